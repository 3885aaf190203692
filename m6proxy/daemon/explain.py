"""What would happen to a packet: the rules' part, then the engine's, in words and octets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from m6proxy.daemon.config import Config
from m6proxy.errors import MalformedMessage
from m6proxy.names import Address, LocatorPair, Prefix, address_text, is_multicast
from m6proxy.reasons import Reason
from m6proxy.shim.effects import Effect, Report, SendPacket, Wake
from m6proxy.shim.engine import Engine
from m6proxy.shim.trial import Outcome
from m6proxy.shim.verdict import CONSUMED
from m6proxy.wire.ipv6 import HEADER_OCTETS, find_shim

_IF_INET6 = Path("/proc/thread-self/net/if_inet6")
_LINK_LOCAL = Prefix.parse("fe80::/10")


def explain(
    engine: Engine, config: Config, interface: str, packet: bytes, now: float
) -> dict[str, Any]:
    """Say what becomes of a packet that comes in by an interface.

    Raises ValueError, with one line for people, for an interface that is none of ours or for
    octets that are no IPv6 packet.
    """
    if len(packet) < HEADER_OCTETS or packet[0] >> 4 != 6:
        raise ValueError("that is no IPv6 packet: it needs 40 octets, the first half octet 6")
    outbound = interface in config.lan
    if not outbound and interface not in {uplink.interface for uplink in config.uplinks}:
        ours = ", ".join([*config.lan, *(uplink.interface for uplink in config.uplinks)])
        raise ValueError(f"no interface {interface!r} in the configuration; it has {ours}")
    told: dict[str, Any] = {
        "direction": "outbound" if outbound else "inbound",
        "before": _shape(packet),
    }
    spared = _spared(config, interface, packet, outbound=outbound)
    if spared is not None:
        return {**told, "verdict": "unchanged", "why": spared}
    if not outbound and _is_signalling(packet):
        return {**told, "verdict": "taken", "why": "a control message: the engine answers it"}
    outcome = engine.try_packet(packet, outbound=outbound, now=now)
    return {**told, **_told(outcome, packet, "rewritten" if outbound else "restored")}


def _spared(config: Config, interface: str, packet: bytes, *, outbound: bool) -> str | None:
    """Why the rules leave a packet alone, in the order of the chains; None when they do not."""
    source, destination = packet[8:24], packet[24:40]
    if not outbound:
        (prefix,) = (u.prefix for u in config.uplinks if u.interface == interface)
        if not prefix.contains(destination):
            return f"its destination is not in {prefix}, the prefix of {interface}"
        if destination in _own_addresses() and packet[6] != 140:
            return "it is for the gateway itself"
        return None
    if not any(uplink.prefix.contains(source) for uplink in config.uplinks):
        return "its source is in none of the site's prefixes"
    if is_multicast(destination) or _LINK_LOCAL.contains(destination):
        return "its destination is multicast or link-local"
    if any(uplink.prefix.contains(destination) for uplink in config.uplinks):
        return "it stays within the site"
    if destination in _own_addresses():
        return "it is for the gateway itself"
    return None


def _own_addresses() -> frozenset[Address]:
    rows = _IF_INET6.read_text().splitlines()
    return frozenset(bytes.fromhex(row.split()[0]) for row in rows)


def _is_signalling(packet: bytes) -> bool:
    try:
        place = find_shim(packet)
    except MalformedMessage:
        return False
    return place is not None and not packet[place.offset + 2] & 0x80


def _told(outcome: Outcome, packet: bytes, word: str) -> dict[str, Any]:
    verdict, context = outcome.verdict, outcome.context
    told: dict[str, Any] = {"context": None, "effects": [*map(_effect_text, _worth(outcome))]}
    if context is not None:
        told["context"] = {
            "pair": str(context.pair),
            "locators": str(context.locators),
            "state": context.state.value,
            "demux": context.demux,
            "tag": f"{context.local_tag:012x}",
        }
    if verdict is CONSUMED:
        return {**told, "verdict": "taken", "why": "the engine keeps it"}
    if isinstance(verdict, Reason):
        return {**told, "verdict": "dropped", "reason": verdict.name, "why": verdict.text}
    if verdict is None or verdict == packet:
        why = "its context is on its ULIDs" if context is not None else "no context claims it"
        return {**told, "verdict": "unchanged", "why": why}
    assert isinstance(verdict, bytes)
    return {**told, "verdict": word, "why": "as its context says", "after": _shape(verdict)}


def _worth(outcome: Outcome) -> list[Effect]:
    return [effect for effect in outcome.effects if not isinstance(effect, Wake)]


def _effect_text(effect: Effect) -> str:
    if isinstance(effect, SendPacket):
        return f"a packet is sent: {LocatorPair(effect.packet[8:24], effect.packet[24:40])}"
    if isinstance(effect, Report):
        return f"event: {effect.what.value} {effect.detail}".rstrip()
    return type(effect).__name__


def _shape(packet: bytes) -> dict[str, Any]:
    return {
        "source": address_text(packet[8:24]),
        "destination": address_text(packet[24:40]),
        "next_header": packet[6],
        "flow_label": int.from_bytes(packet[1:4]) & 0xFFFFF,
        "octets": len(packet),
        "packet": packet.hex(),
    }

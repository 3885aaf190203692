"""What would happen to a packet, in words and octets: the rules' and the engine's part, and the
kernel's. Where programs move packets they must say the same as the engine, or leave it to it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from m6proxy.daemon.config import Config
from m6proxy.dataplane.bpf.layout import EventKind
from m6proxy.dataplane.bpf.trial import Fate, KernelOutcome
from m6proxy.errors import MalformedMessage
from m6proxy.names import Address, LocatorPair, Prefix, address_text, is_multicast
from m6proxy.reasons import Reason
from m6proxy.shim.effects import Effect, Report, SendPacket, Wake
from m6proxy.shim.engine import Engine
from m6proxy.shim.trial import Outcome
from m6proxy.shim.verdict import CONSUMED
from m6proxy.wire.ipv6 import HEADER_OCTETS, find_shim

Json = dict[str, Any]

_IF_INET6 = Path("/proc/thread-self/net/if_inet6")
_LINK_LOCAL = Prefix.parse("fe80::/10")
_HOP_LIMIT_AT = 7
_STRAIGHT = "those behind it go past the gateway's IPv6 stack (EXPRESS), one hop on"
_TOLD = {
    EventKind.RIPE: "Python is told that the pair deserves a context",
    EventKind.AWAKE: "Python is told that the context has traffic again",
    EventKind.DNS: "Python gets a copy of the DNS answer",
}


def explain(engine: Engine, config: Config, interface: str, packet: bytes, now: float) -> Json:
    """Say what the rules and the engine make of a packet that comes in by an interface.

    Raises ValueError, with one line for people, for an interface that is none of ours or for
    octets that are no IPv6 packet.
    """
    if len(packet) < HEADER_OCTETS or packet[0] >> 4 != 6:
        raise ValueError("that is no IPv6 packet: it needs 40 octets, the first half octet 6")
    outbound = interface in config.lan
    if not outbound and interface not in {uplink.interface for uplink in config.uplinks}:
        ours = ", ".join([*config.lan, *(uplink.interface for uplink in config.uplinks)])
        raise ValueError(f"no interface {interface!r} in the configuration; it has {ours}")
    return {
        "direction": "outbound" if outbound else "inbound",
        "before": _shape(packet),
        "engine": _asked(engine, config, interface, packet, now, outbound=outbound),
    }


def without_kernel(told: Json, why: str) -> Json:
    """The whole answer where no program looks at packets, or none could be asked."""
    return {**told, "kernel": {"verdict": "none", "why": why}, "agree": None}


def with_kernel(told: Json, outcome: KernelOutcome, uplink: str | None) -> Json:
    """The whole answer: what ``explain`` told, what the programs did, and whether that fits.

    ``uplink``: the name of the one that the programs marked the packet for.
    """
    before = bytes.fromhex(told["before"]["packet"])
    kernel = _by_kernel(outcome, before, uplink)
    agree = _agree(told["engine"], kernel)
    if outcome.express is not None:
        kernel["express"] = _shape(outcome.express)
        kernel["effects"].append(_STRAIGHT)
        agree = agree and outcome.express == _one_hop_on(outcome.packet)
    return {**told, "kernel": kernel, "agree": agree}


def _one_hop_on(packet: bytes) -> bytes:
    """The packet behind a router."""
    return packet[:_HOP_LIMIT_AT] + bytes([packet[_HOP_LIMIT_AT] - 1]) + packet[_HOP_LIMIT_AT + 1 :]


def _by_kernel(outcome: KernelOutcome, before: bytes, uplink: str | None) -> Json:
    told: Json = {
        "counters": [counter.name for counter in outcome.counters],
        "effects": [_TOLD[kind] for kind in outcome.events],
    }
    match outcome.fate:
        case Fate.LEFT:
            return {**told, "verdict": "left", "why": "the programs leave it to the rules"}
        case Fate.PYTHON:
            (*_, cause) = (one.name for one in outcome.counters if one.is_slow)
            return {**told, "verdict": "python", "why": f"left to the engine because {cause}"}
        case Fate.DROPPED:
            causes = [one.name for one in outcome.counters if one.is_drop]
            return {**told, "verdict": "dropped", "why": f"because {' '.join(causes)}".strip()}
    if outcome.packet == before:
        return {**told, "verdict": "unchanged", "why": "past the queue"}
    told["after"] = _shape(outcome.packet)
    if outcome.flow is None:
        how = ", put together with others" if outcome.aggregated else ""
        return {**told, "verdict": "restored", "why": f"past the queue{how}"}
    mode = outcome.flow.mode.name.lower()
    how = f"for uplink {uplink} in mode {mode}"
    return {**told, "verdict": "rewritten", "why": how, "uplink": uplink, "mode": mode}


def _agree(engine: Json, kernel: Json) -> bool:
    """Whether the packet comes to the same by either way; what programs leave is the engine's."""
    if kernel["verdict"] in ("python", "left"):
        return True
    same = ("verdict", "after", "uplink")
    return all(engine.get(key) == kernel.get(key) for key in same)


def _asked(
    engine: Engine, config: Config, interface: str, packet: bytes, now: float, *, outbound: bool
) -> Json:
    spared = _spared(config, interface, packet, outbound=outbound)
    if spared is not None:
        return {"verdict": "unchanged", "why": spared}
    if not outbound and _is_signalling(packet):
        return {"verdict": "taken", "why": "a control message: the engine answers it"}
    outcome = engine.try_packet(packet, outbound=outbound, now=now)
    return _told(outcome, packet, outbound=outbound)


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


def _told(outcome: Outcome, packet: bytes, *, outbound: bool) -> Json:
    verdict, context = outcome.verdict, outcome.context
    told: Json = {"context": None, "effects": [*map(_effect_text, _worth(outcome))]}
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
    told |= {"why": "as its context says", "after": _shape(verdict)}
    if not outbound:
        return {**told, "verdict": "restored"}
    uplink = context.local_set.uplink_of(verdict[8:24]) if context is not None else None
    return {**told, "verdict": "rewritten", "uplink": uplink.name if uplink is not None else None}


def _worth(outcome: Outcome) -> list[Effect]:
    return [effect for effect in outcome.effects if not isinstance(effect, Wake)]


def _effect_text(effect: Effect) -> str:
    if isinstance(effect, SendPacket):
        return f"a packet is sent: {LocatorPair(effect.packet[8:24], effect.packet[24:40])}"
    if isinstance(effect, Report):
        return f"event: {effect.what.value} {effect.detail}".rstrip()
    return type(effect).__name__


def _shape(packet: bytes) -> Json:
    return {
        "source": address_text(packet[8:24]),
        "destination": address_text(packet[24:40]),
        "next_header": packet[6],
        "flow_label": int.from_bytes(packet[1:4]) & 0xFFFFF,
        "octets": len(packet),
        "packet": packet.hex(),
    }

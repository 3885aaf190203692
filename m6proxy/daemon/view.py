"""What the control socket shows: plain values made from the engine's, ready for JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from m6proxy.daemon.config import Config
from m6proxy.names import address_text
from m6proxy.reasons import Reason
from m6proxy.shim.context import Context
from m6proxy.shim.engine import Engine
from m6proxy.shim.slots import ReadActivity
from m6proxy.shim.transitions import CARRIES

Json = dict[str, Any]
ToUnix = Callable[[float], float]


def context_view(context: Context, to_unix: ToUnix) -> Json:
    """One context; times are Unix seconds, tags 12 hexadecimal digits."""
    pair, locators = context.pair, context.locators
    local_set = context.local_set
    return {
        "local_ulid": address_text(pair.local),
        "peer_ulid": address_text(pair.peer),
        "state": context.state.value,
        "reap_state": context.reap_state.name if context.state in CARRIES else None,
        "local_tag": f"{context.local_tag:012x}",
        "peer_tag": f"{context.peer_tag:012x}" if context.peer_tag else None,
        "local_locator": address_text(locators.local),
        "peer_locator": address_text(locators.peer),
        "local_locators": [
            {
                "address": address_text(octets),
                "uplink": uplink.name,
                "preference": uplink.preference,
                "proof": "configuration",
                "tested": octets == locators.local,
                "broken": broken,
            }
            for octets, uplink, broken in zip(
                local_set.locators, local_set.uplinks, local_set.broken, strict=True
            )
        ],
        "peer_locators": [
            {
                "address": address_text(locator.address),
                "preference": locator.priority,
                "proof": locator.proof.value,
                "tested": locator.tested,
                "broken": locator.broken,
                "transient": locator.transient,
                "weight": locator.weight,
            }
            for locator in context.peer_locators
        ],
        "local_name": context.local_name,
        "peer_name": context.peer_name,
        "fork": context.fii,
        "parked": _parked(context),
        "demux": context.demux,
        "packets_in": context.packets_in,
        "packets_out": context.packets_out,
        "octets_in": context.octets_in,
        "octets_out": context.octets_out,
        "established_at": _moment(context.established_s, to_unix),
        "rehomed_at": _moment(context.rehomed_s, to_unix),
        "rehomings": context.rehomings,
    }


def away_view(engine: Engine, to_unix: ToUnix) -> Json | None:
    """What the peers said to it that the site goes away; None while it is here."""
    away = engine.away
    if away is None:
        return None
    return {
        "until": round(to_unix(away.until_s), 3),
        "granted": away.granted,
        "refused": away.refused,
        "unanswered": away.asked,
        "not_parked": away.deaf,
        "shortest_s": away.shortest_s or None,
    }


def _parked(context: Context) -> str | None:
    """Which end is away: ``local``, ``peer`` or ``both``."""
    parking = context.parking
    if parking is None:
        return None
    if parking.local:
        return "both" if parking.peer_until_s else "local"
    return "peer"


def flow_view(context: Context, read: ReadActivity, to_unix: ToUnix) -> Json | None:
    """The kernel's entry of one context and what it counted since it began; None without one."""
    flow = context.flow
    if flow is None or flow.installed is None or flow.installed.kernel is None:
        return None
    entry, activity = flow.installed.kernel, read(flow.slot)
    pair, locators = context.pair, context.locators
    moved = (locators.local, locators.peer) != (pair.local, pair.peer)
    return {
        "slot": flow.slot,
        "local_ulid": address_text(pair.local),
        "peer_ulid": address_text(pair.peer),
        "local_locator": address_text(locators.local),
        "peer_locator": address_text(locators.peer),
        "mode": entry.mode.name.lower() if moved else None,
        "uplink": entry.uplink,
        "mtu": entry.mtu,
        "path": "engine" if entry.slow or entry.watched else "kernel",
        "packets_out": activity.packets_out,
        "octets_out": activity.octets_out,
        "packets_in": activity.packets_in,
        "octets_in": activity.octets_in,
        "last_out_at": _moment(activity.last_out_s or None, to_unix),
        "last_in_at": _moment(activity.last_in_s or None, to_unix),
    }


def uplinks_view(engine: Engine, config: Config, why: dict[str, str]) -> list[Json]:
    """All uplinks, with how many contexts send through each."""
    by_name = {uplink.name: uplink for uplink in engine.uplinks}
    using: Counter[str] = Counter()
    for context in engine.contexts():
        uplink = context.local_set.uplink_of(context.route[:16]) if context.carries else None
        if uplink is not None:
            using[uplink.name] += 1
    return [
        {
            "name": uplink.name,
            "interface": uplink.interface,
            "prefix": str(uplink.prefix),
            "gateway": address_text(uplink.gateway),
            "preference": uplink.preference,
            "up": by_name[uplink.name].up,
            "why": why.get(uplink.name, ""),
            "mtu": by_name[uplink.name].mtu,
            "contexts": using[uplink.name],
        }
        for uplink in config.uplinks
    ]


def peers_view(snapshot: list[Json], engine: Engine) -> list[Json]:
    """What discovery knows, with how many contexts each peer address has."""
    using = Counter(
        address_text(context.outbound_key[16:]) for context in engine.contexts() if context.carries
    )
    known = {row["address"] for row in snapshot}
    strangers: list[Json] = [
        {
            "address": octets,
            "name": None,
            "capability": "unknown",
            "site": None,
            "prefixes": [],
            "expires_in_s": None,
            "contexts": count,
        }
        for octets, count in using.items()
        if octets not in known
    ]
    return [{**row, "contexts": using[row["address"]]} for row in snapshot] + strangers


def drops_view(engine: Engine) -> list[Json]:
    """Every reason with its count."""
    counted = engine.drops
    return [
        {
            "number": reason.value,
            "reason": reason.name,
            "text": reason.text,
            "count": counted.get(reason, 0),
        }
        for reason in Reason
    ]


def _moment(moment_s: float | None, to_unix: ToUnix) -> float | None:
    return None if moment_s is None else round(to_unix(moment_s), 3)

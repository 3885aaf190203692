"""What the packet path would have done with packets that only the kernel saw.

The kernel notes for each slot when the last packet went out and came in, and since when packets
go one way without any the other way. That is all that reachability (``reap``) and the idle timer
depend on: from these times the timers get the values that they would have if every packet had
come through the engine. An event that fell between two looks and that nothing shows any more
(the first packet after a Keepalive) is taken for as late as the look.

When to look: before anything of a context is decided, that is when one of its timers is due or
a packet of it comes by the slow way; while it has traffic, often enough that no timer of it can
be found too late; and after silence when the kernel reports the first packet.
"""

from __future__ import annotations

from typing import Final

from m6proxy.shim import flows, reap
from m6proxy.shim.context import Context
from m6proxy.shim.core import Core
from m6proxy.shim.slots import Activity, KernelFlow
from m6proxy.shim.timers import NEVER
from m6proxy.shim.transitions import ReapState
from m6proxy.wire.ipv6 import NEXT_TCP

QUIET_S: Final = 1.0
"""After so long without a packet the kernel reports the next one, and nobody looks until then."""
_SEARCH_LOOK_S: Final = 0.1
_LOOK_MIN_S: Final = 0.05
_LOOKS_PER_TIMEOUT: Final = 4
OVERDUE_S: Final = 0.5
"""TCP acknowledges within a round trip and at most 0.5 s (RFC 9293 §3.8.6.3): what a host sends of
TCP when nothing came for so long is repeated, and the kernel lets the engine see it."""
_DOUBT: Final = 0.6
"""After this part of the Send Timeout; the last Keepalive is due after 0.45 of it."""


def look(core: Core, context: Context, now: float) -> None:
    """Take the kernel's activity into account up to now."""
    if core.slots is not None and context.flow is not None:
        take(core, context, core.slots.read(context.flow.slot), now)


def take(core: Core, context: Context, activity: Activity, now: float) -> None:
    """Take a reading of the context's slot into account."""
    flow = context.flow
    if flow is None:
        return
    seen, flow.seen = flow.seen, activity
    if activity.packets_out != seen.packets_out or activity.packets_in != seen.packets_in:
        _account(context, seen, activity)
        for at_s, inbound in _events(seen, activity):
            note(core, context, at_s, inbound=inbound)
    last_s = max(activity.last_out_s, activity.last_in_s)
    flow.look_due_s = NEVER
    if now < last_s + QUIET_S or context.reap_state is not ReapState.OPERATIONAL:
        flow.look_due_s = now + _interval_s(context)
    _doubt(core, context, flow, now)
    if flow.again and now >= flow.again_s:
        reap.send_second_time(core, context, flow, now)
    core.rearm(context)


def hold(context: Context, packet: bytes, now: float) -> None:
    """Keep a segment that the host sends while nothing answers (decision 9)."""
    if packet[6] != NEXT_TCP or context.flow is None:
        return
    began_s = context.send_due_s - context.send_timeout_s
    overdue = context.send_due_s and now >= began_s + OVERDUE_S
    if overdue or context.flow.doubted:
        reap.keep(context, packet, now)


def _doubt(core: Core, context: Context, flow: KernelFlow, now: float) -> None:
    """See when an answer is overdue: no Keepalive of a peer in order comes as late as that."""
    doubt_s = context.send_due_s - (1 - _DOUBT) * context.send_timeout_s
    doubted = context.reap_state is not ReapState.OPERATIONAL
    if context.send_due_s and not doubted:
        doubted = now >= doubt_s
        if not doubted:
            flow.look_due_s = min(flow.look_due_s or doubt_s, doubt_s)
    if flow.doubted and not doubted:
        context.held = None
    flows.watch(core, context, wanted=doubted)


def _account(context: Context, seen: Activity, activity: Activity) -> None:
    context.packets_out += activity.packets_out - seen.packets_out
    context.octets_out += activity.octets_out - seen.octets_out
    context.packets_in += activity.packets_in - seen.packets_in
    context.octets_in += activity.octets_in - seen.octets_in
    last_s = max(activity.last_out_s, activity.last_in_s)
    context.last_traffic_s = max(context.last_traffic_s, last_s)


def _events(seen: Activity, activity: Activity) -> list[tuple[float, bool]]:
    """What is new, in order of time: when, and whether it came in."""
    events: dict[tuple[float, bool], None] = {}
    if activity.last_out_s > seen.last_out_s:
        times = (activity.out_since_s, activity.last_out_s)
        events |= {(at_s, False): None for at_s in times if at_s > seen.last_out_s}
    if activity.last_in_s > seen.last_in_s:
        times = (activity.in_since_s, activity.last_in_s)
        events |= {(at_s, True): None for at_s in times if at_s > seen.last_in_s}
    return sorted(events)


def note(core: Core, context: Context, at_s: float, *, inbound: bool) -> None:
    """A packet went out or came in at a time; the same conditions as in the packet path."""
    if inbound:
        if context.send_due_s or not context.keepalive_due_s:
            reap.payload_in(core, context, b"", at_s)
    elif context.send_due_s == NEVER:
        reap.payload_out(core, context, b"", at_s)


def _interval_s(context: Context) -> float:
    if context.reap_state is not ReapState.OPERATIONAL:
        return _SEARCH_LOOK_S
    shorter_s = min(context.send_timeout_s, context.keepalive_timeout_s)
    return max(_LOOK_MIN_S, shorter_s / _LOOKS_PER_TIMEOUT)

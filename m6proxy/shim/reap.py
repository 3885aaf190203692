"""Does the path still work, and which one does: REAP (RFC 5534), executed from its table.

Who calls: the packet path (``payload_in``, ``payload_out``), the engine for Keepalive and
Probe, the timers (``expire``), and ``suspect`` for everything that only hints at a failure.
The table in ``transitions`` decides; here its actions are carried out.

One thing is ours: a Probe in state InboundOk whose reports match none of our probes says that
the peer has a problem, but not that it hears us. It is taken as a Probe in state Exploring,
where §6.8 would declare the path operational. The same holds for one without reports while the
pair in use is known not to work: what the peer hears of us, it hears over another.

And one event is: a TCP segment acknowledges what our host sent since a search began. That is
both directions, on the pair in use, as a Probe in state Operational would say (RFC 5534 §4.1,
decision 18).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeAlias

from m6proxy.errors import PeerViolation
from m6proxy.names import Address, LocatorPair
from m6proxy.proof.judge import Proof
from m6proxy.reasons import Reason
from m6proxy.shim import arrivals, failback, flows
from m6proxy.shim.context import NO_LOCATORS, Context
from m6proxy.shim.core import Core
from m6proxy.shim.effects import AskProof, Searched, What
from m6proxy.shim.exploration import Exploration, best, candidates
from m6proxy.shim.held import HeldSegments
from m6proxy.shim.lifecycle import meant_pair, refresh_path, use_route, wire_pair
from m6proxy.shim.locators import PeerLocator
from m6proxy.shim.outward import repeat_held, send_again, send_held
from m6proxy.shim.routability import may_send
from m6proxy.shim.slots import KernelFlow
from m6proxy.shim.timers import NEVER, RELEASE_EXPLORATION_S, REPROOF_S
from m6proxy.shim.transitions import REAP, Act, ReapEvent, ReapState
from m6proxy.wire.ipv6 import NEXT_TCP
from m6proxy.wire.message import Keepalive, Probe, ProbeRecord, ProbeState
from m6proxy.wire.options import Option

TEST_PAUSE_S: Final = 10.0
"""Between two tests of one context, and after a search has ended."""
_PROBE_STATES: Final = tuple(map(ProbeState, ReapState))
"""What our probes say, by our state."""
_OPERATIONAL: Final = ReapState.OPERATIONAL
_EXPLORING: Final = ReapState.EXPLORING
_INBOUND_OK: Final = ReapState.INBOUND_OK
"""To look a member up in an Enum costs as much as a call; these are asked for at every turn."""
_WORDS: Final = {event: event.value for event in ReapEvent}
_EVENT_OF_PROBE: Final = {
    ProbeState.EXPLORING: ReapEvent.PROBE_EXPLORING_IN,
    ProbeState.INBOUND_OK: ReapEvent.PROBE_INBOUND_OK_IN,
    ProbeState.OPERATIONAL: ReapEvent.PROBE_OPERATIONAL_IN,
}


def payload_out(core: Core, context: Context, packet: bytes, now: float) -> None:
    """§6.2. The packet path calls this only when a timer has to change, or none runs."""
    repeats = False
    if packet and packet[6] == NEXT_TCP:
        repeats = keep(context, packet, now)
    if context.reap_state is _OPERATIONAL:
        context.keepalive_due_s = NEVER
        if context.send_due_s == NEVER:
            context.send_due_s = now + context.send_timeout_s
            core.timers.arm(context, context.send_due_s)
        if repeats:
            hint(core, context, "TCP gets no answer", now)
    else:
        handle(core, context, ReapEvent.PAYLOAD_OUT, now)


def keep(context: Context, packet: bytes, now: float) -> bool:
    """Keep a TCP segment of the host for a new path; returns whether the host repeats itself."""
    if context.held is None:
        context.held = HeldSegments()
    context.held.until_s = now + context.send_timeout_s
    return context.held.put(packet, now)


def payload_in(core: Core, context: Context, packet: bytes, now: float) -> None:
    """§6.1. The packet path calls this only when a timer has to change.

    ``packet`` is the host's, between ULIDs; empty for a control message that counts as payload.
    """
    sent_s = context.held.acknowledge(packet) if context.held is not None else NEVER
    if context.reap_state is _OPERATIONAL:
        _stop_send(core, context, now)
        _start_keepalive(core, context, now)
    elif sent_s and context.exploration is not None and sent_s > context.exploration.started_s:
        handle(core, context, ReapEvent.PROGRESS, now)
        context.exploration.end(now)
        core.rearm(context)
    else:
        handle(core, context, ReapEvent.PAYLOAD_IN, now)


def hint(core: Core, context: Context, why: str, now: float) -> None:
    """Test a context whose path may be dead, for all that somebody says; not too often."""
    if may_test(context, now):
        context.hinted_s = now
        core.report(What.HINT, context.outbound_key, why)
        suspect(core, context, now)


def search_again(core: Core, context: Context, now: float) -> None:
    """Somebody answers where a search has been in vain: begin it anew, not too often."""
    if context.carries and (context.hinted_s == NEVER or now >= context.hinted_s + TEST_PAUSE_S):
        context.hinted_s = now
        suspect(core, context, now)


def may_test(context: Context, now: float) -> bool:
    """Tell whether a hint would start a test: not within 10 s after another, or a search."""
    if not context.watched or context.reap_state is not _OPERATIONAL:
        return False
    exploration = context.exploration
    if exploration is not None and (exploration.due_s or now < exploration.ended_s + TEST_PAUSE_S):
        return False
    return context.hinted_s == NEVER or now >= context.hinted_s + TEST_PAUSE_S


def handle(core: Core, context: Context, event: ReapEvent, now: float) -> None:
    """Apply one event to one context; the only writer of its reachability state."""
    before = context.reap_state
    cell = _CELLS[event][before]
    if cell is None:
        return
    actions, after = cell
    if after is not before:
        context.reap_state = after
        _on_change(core, context, before, after, event, now)
    for act in actions:
        act(core, context, now)


def handle_keepalive(core: Core, context: Context, now: float) -> None:
    """§6.6."""
    handle(core, context, ReapEvent.KEEPALIVE_IN, now)


def handle_count(core: Core, context: Context, options: tuple[Option, ...], now: float) -> None:
    """A Keepalive may say how much its sender has sent: test the path when none of it arrives."""
    if arrivals.are_missed(context, options):
        hint(core, context, "payload does not arrive", now)


def handle_probe(
    core: Core, context: Context, probe: Probe, route: LocatorPair, now: float
) -> None:
    """§6.7 to §6.9. Raises PeerViolation when the probe does not describe itself truly."""
    first = probe.sent[0]
    if first.src != route.peer or core.local_sets.meant(first.dst) != route.local:
        raise PeerViolation(Reason.BAD_FIELD, "the first probe record is not this probe")
    event = _EVENT_OF_PROBE[probe.state]
    exploration = context.exploration
    reported = exploration.confirmed(probe.received) if exploration is not None else ()
    confirmed = tuple([meant_pair(context, pair) for pair in reported]) if reported else ()
    is_open = not confirmed and _leaves_open(context, probe)
    if event is ReapEvent.PROBE_INBOUND_OK_IN and is_open:
        event = ReapEvent.PROBE_EXPLORING_IN
    for pair in reported:
        locator = context.peer_locator(pair.peer)
        if locator is not None and not locator.tested:
            locator.tested = True
            if locator.stands_in:
                refresh_path(core, context)
    if context.suspects:
        for pair in confirmed:
            context.suspects = context.suspects.difference(pair) or NO_LOCATORS
    arrivals.note(context, probe.options)
    if context.reap_state is not _OPERATIONAL:
        if core.history.scores:
            for pair in confirmed:
                _note_uplink_works(core, context, pair)
        if event is not ReapEvent.PROBE_EXPLORING_IN:
            _choose(core, context, confirmed, now)
    elif event is ReapEvent.PROBE_EXPLORING_IN:
        _explore(core, context, now)
    else:
        failback.handle_reports(core, context, probe.received, now)
    _note_received(core, context, first, route, now)
    if probe.state is ProbeState.INBOUND_OK and is_open and _was_answered(context):
        _restart_send(core, context, now)
        return
    handle(core, context, event, now)
    if context.reap_state is _OPERATIONAL and context.exploration is not None:
        context.exploration.end(now)


def widen(core: Core, context: Context, now: float) -> None:
    """Locators were proved: a search that is going on takes them in at once."""
    if context.exploration is not None and context.exploration.due_s:
        context.exploration.widen(_pairs(core, context, now))


def suspect(core: Core, context: Context, due_s: float, slot_s: float = NEVER) -> None:
    """Something hints at a failure: test the path at ``due_s``. Changes nothing by itself.

    ``slot_s`` is the same when a slot for the probe is taken already. Packets that come in
    meanwhile do not call it off: they may use another path than ours.
    """
    exploration = context.exploration or _explore(core, context, due_s)
    exploration.restart(_pairs(core, context, due_s), due_s, context.packets_out)
    exploration.due_s, exploration.slot_s = due_s, slot_s
    core.rearm(context)


def test_stand_in(core: Core, context: Context, now: float) -> None:
    """A context that began away from its ULIDs never tried what stands in for the peer's."""
    if not context.watched or context.reap_state is not _OPERATIONAL:
        return
    wire = wire_pair(core, context, context.locators)
    known = context.peer_locator(wire.peer)
    if wire != context.locators and known is not None and not known.tested:
        suspect(core, context, now)


def explore(core: Core, context: Context, since_s: float, now: float) -> None:
    """Test the path now, or begin a search anew; the caller has seen to the rate.

    A search whose own timer sent a probe after ``since_s``, what the reason is for the new one,
    waits for the next: two at once would be too fast (RFC 5534 §4.3).
    """
    if context.reap_state is _OPERATIONAL:
        handle(core, context, ReapEvent.SEND_TIMER, now)
        return
    exploration = context.exploration or _explore(core, context, now)
    exploration.restart(_pairs(core, context, now), now, context.packets_out)
    if since_s <= exploration.slot_s < exploration.due_s:
        exploration.probes = 1
        wait_s = exploration.wait_s() * core.entropy.uniform(0.9, 1.1)
        exploration.due_s = min(exploration.due_s, now + wait_s)
        core.timers.arm(context, exploration.due_s)
        return
    handle(core, context, ReapEvent.RETRANSMIT, now)


def send_second_time(core: Core, context: Context, flow: KernelFlow, now: float) -> None:
    """What was sent over the new path goes once more: the peer has moved by now, too."""
    packets, flow.again, flow.again_s = flow.again, (), NEVER
    send_again(core, context, packets, now)


def rest(context: Context) -> None:
    """An end said that it is away: nothing is tested until it is back."""
    context.send_due_s = context.keepalive_due_s = NEVER
    context.exploration = None
    context.reap_state = _OPERATIONAL


def resume(core: Core, context: Context, now: float) -> None:
    """The end is back: what the hosts sent meanwhile and TCP waits for goes out once more."""
    failback.resume(core, context, now)
    test_stand_in(core, context, now)  # it may have been proved meanwhile
    if context.held is not None:
        repeat_held(core, context, now)
        context.held.until_s = now + context.send_timeout_s
        payload_out(core, context, b"", now)


def leave_broken(core: Core, context: Context, source: Address, now: float) -> None:
    """The peer says, from ``source``, that its locator in use is broken (mobike-design §2.1).

    Where policy lets payload go there untested, it goes at once; the path is tested either way.
    """
    settings = core.settings
    allowed = {
        locator.address
        for locator in context.peer_locators
        if not locator.broken
        and may_send(settings.return_routability, locator, source, settings.exempt_proofs)
    }
    pair = next((pair for pair in _pairs(core, context, now) if pair.peer in allowed), None)
    if pair is not None:
        _move(core, context, context.locators, pair, now)
    if not _probed_unbroken(context):
        suspect(core, context, now)


def _probed_unbroken(context: Context) -> bool:
    """Whether a search is going on whose last probe waits for its answer, on a pair not broken."""
    exploration = context.exploration
    if exploration is None or not exploration.due_s or not exploration.probes:
        return False
    locator = context.peer_locator(exploration.sent[0].dst)
    return locator is not None and not locator.broken


def expire(core: Core, context: Context, now: float) -> None:
    """Handle the reachability timers of a context that are due."""
    if context.keepalive_due_s and now >= context.keepalive_due_s:
        context.keepalive_due_s = NEVER
        handle(core, context, ReapEvent.KEEPALIVE_TIMER, now)
    elif context.keepalive_due_s and now >= context.keepalive_next_s:
        _send_keepalive(core, context, now)
    if context.send_due_s and now >= context.send_due_s and _may_begin(core, context, now):
        context.send_due_s = NEVER
        handle(core, context, ReapEvent.SEND_TIMER, now)
    if context.held is not None and context.forgets_held and now >= context.held.until_s:
        context.held = None
    if context.failback is not None:
        failback.expire(core, context, now)
    exploration = context.exploration
    if exploration is None:
        return
    if exploration.due_s and now >= exploration.due_s and _has_slot(core, exploration, now):
        exploration.due_s = NEVER
        exploration.answered = False
        suspected = context.reap_state is _OPERATIONAL
        handle(core, context, ReapEvent.SEND_TIMER if suspected else ReapEvent.RETRANSMIT, now)
        exploration = context.exploration
    if exploration is None or not exploration.ended_s:
        return
    if now >= exploration.ended_s + RELEASE_EXPLORATION_S:
        context.exploration = None


def _may_begin(core: Core, context: Context, now: float) -> bool:
    """Whether a search may begin now; else it begins in the next free slot."""
    exploration = context.exploration
    if exploration is not None and exploration.slot_s == context.send_due_s:
        return True
    slot_s = core.pace.take(now)
    if slot_s <= now:
        return True
    if context.reap_state is _OPERATIONAL:
        context.send_due_s = NEVER
        suspect(core, context, slot_s, slot_s)
    else:
        exploration = exploration or _explore(core, context, now)
        context.send_due_s = exploration.slot_s = slot_s
    return False


def _has_slot(core: Core, exploration: Exploration, now: float) -> bool:
    """Whether the probe that is due may go out now; else it is put off to the next free slot."""
    if exploration.slot_s != exploration.due_s:
        exploration.due_s = exploration.slot_s = core.pace.take(now)
    return now >= exploration.due_s


def _on_change(
    core: Core,
    context: Context,
    before: ReapState,
    after: ReapState,
    event: ReapEvent,
    now: float,
) -> None:
    if after is _OPERATIONAL:
        core.report(What.OPERATIONAL, context.outbound_key, context.route)
    elif after is _EXPLORING:
        context.send_due_s = context.keepalive_due_s = NEVER
        if context.exploration is None or before is _OPERATIONAL:
            _explore(core, context, now)
        else:
            context.exploration.restart(_pairs(core, context, now), now, context.packets_out)
        core.report(What.SILENCE, context.outbound_key, _WORDS[event])
    elif before is _OPERATIONAL:
        core.report(What.PEER_EXPLORES, context.outbound_key, _WORDS[event])
    if after is not _OPERATIONAL and context.flow is not None:
        # before our Probe leaves: what answers it must not let packets take the old path
        flows.watch(core, context, wanted=True)


def _start_send(core: Core, context: Context, now: float) -> None:
    if context.send_due_s == NEVER:
        _restart_send(core, context, now)


def _restart_send(core: Core, context: Context, now: float) -> None:
    context.send_due_s = now + context.send_timeout_s
    core.timers.arm(context, context.send_due_s)


def _stop_send(core: Core, context: Context, now: float) -> None:
    """The peer was heard: that acknowledges no segment, but none waits for ever."""
    context.send_due_s = NEVER
    if context.held is None or context.reap_state is not _OPERATIONAL:
        return
    context.held.hear()
    if now >= context.held.until_s:
        context.held = None


def _start_keepalive(core: Core, context: Context, now: float) -> None:
    if context.keepalive_due_s != NEVER:
        return
    context.keepalive_due_s = now + context.keepalive_timeout_s
    context.keepalive_next_s = now + _keepalive_interval_s(core, context)
    core.timers.arm(context, context.keepalive_next_s)


def _stop_keepalive(core: Core, context: Context, now: float) -> None:
    context.keepalive_due_s = NEVER


def _keepalive_interval_s(core: Core, context: Context) -> float:
    """One third to one half of the timeout (§4.1); never the whole of it."""
    return context.keepalive_timeout_s * core.entropy.uniform(1 / 3, 0.45)


def _send_keepalive(core: Core, context: Context, now: float) -> None:
    core.send(Keepalive(context.peer_tag, arrivals.sent(context)), context.locators)
    context.keepalive_next_s = now + _keepalive_interval_s(core, context)


def _pairs(core: Core, context: Context, now: float) -> tuple[LocatorPair, ...]:
    local_set, suspects = context.local_set, context.suspects
    names = core.history.suspects(now)
    if names:
        places = zip(local_set.locators, local_set.uplinks, strict=True)
        suspects |= {octets for octets, uplink in places if uplink.name in names}
    peer, current = context.peer_locators, context.locators
    usual = candidates(local_set, peer, current, suspects)
    for locator in peer:
        if locator.flags & PeerLocator.BROKEN:
            # this may be old news: the Update that takes it back can be lost on the path that died
            every = candidates(local_set, peer, current, suspects, peers_broken=True)
            return (*usual, *(pair for pair in every if pair not in usual))
    return usual


def _leaves_open(context: Context, probe: Probe) -> bool:
    """Whether a Probe InboundOk that confirms no probe of ours leaves open what the peer hears.

    Either it reports others' probes; or it reports none, while we hear nothing of the peer:
    then it may be one that tests a better pair of the peer, whose own path is in doubt. Or we
    search, since the pair in use is known not to work: what the peer hears came another way.
    """
    if probe.received or context.reap_state is _EXPLORING:
        return True
    return context.reap_state is _INBOUND_OK and _is_lost(context)


def _is_lost(context: Context) -> bool:
    """Whether our uplink in use is down, or the peer says so of its own."""
    locator = context.peer_locator(context.route[16:])
    return context.route[:16] in context.local_set.down or (locator is not None and locator.broken)


def _was_answered(context: Context) -> bool:
    """Whether such a probe was answered since our timer's last probe; from now on one was.

    Each end would take the other's answer for the next one: on a long path that doubles
    packets the reports never catch up, and the answers became a storm.
    """
    exploration = context.exploration
    if exploration is None or context.reap_state is not _INBOUND_OK:
        return False
    before, exploration.answered = exploration.answered, True
    return before


def _note_uplink_works(core: Core, context: Context, pair: LocatorPair) -> None:
    uplink = context.local_set.uplink_of(pair.local)
    if uplink is not None:
        core.history.clear(uplink.name)


def _explore(core: Core, context: Context, now: float) -> Exploration:
    context.exploration = Exploration(_pairs(core, context, now), now, context.packets_out)
    return context.exploration


def _note_received(
    core: Core, context: Context, record: ProbeRecord, route: LocatorPair, now: float
) -> None:
    exploration = context.exploration or _explore(core, context, now)
    exploration.note_received(record)
    locator = context.peer_locator(route.peer)
    if locator is not None and locator.proved:
        exploration.prefer(route)


def _choose(core: Core, context: Context, confirmed: tuple[LocatorPair, ...], now: float) -> None:
    """Pick the current pair among those that the peer reports to receive (§6.8)."""
    current = context.locators
    if current in confirmed:
        _doubt_mode(core, context, now)
        return
    pair = best(confirmed, context.local_set, context.peer_locators)
    if pair is not None:
        _move(core, context, current, pair, now)


def _move(core: Core, context: Context, left: LocatorPair, pair: LocatorPair, now: float) -> None:
    context.suspects |= {old for old, new in zip(left, pair, strict=True) if old != new}
    uplink = context.local_set.uplink_of(left.local) if left.local != pair.local else None
    if uplink is not None:
        core.history.note_left(uplink.name, now)
    use_route(core, context, pair, now)
    failback.begin(core, context, now)
    if context.held is not None:
        send_held(core, context, now)


def _doubt_mode(core: Core, context: Context, now: float) -> None:
    """Probes pass the pair in use; if nothing else does, the path loses the mode (``arrivals``)."""
    exploration = context.exploration
    if exploration is not None and arrivals.are_lost(context, exploration.packets_out):
        mode, context.unlabelled_route = context.demux, context.route
        refresh_path(core, context)
        core.report(What.UPDATED, context.outbound_key, f"no {mode} on this path")
        if context.held is not None:
            send_held(core, context, now)


def _send_probe(core: Core, context: Context, now: float) -> None:
    exploration = context.exploration or _explore(core, context, now)
    operational = context.reap_state is _OPERATIONAL
    pair = context.locators if operational else exploration.take_pair()
    pair = wire_pair(core, context, pair) if pair is not None else None
    if not operational:
        exploration.probes += 1
        exploration.due_s = now + exploration.wait_s() * core.entropy.uniform(0.9, 1.1)
        core.timers.arm(context, exploration.due_s)
        _ask_again(core, context, now)
    if pair is None:
        return
    record = ProbeRecord._make((pair.local, pair.peer, core.entropy.nonce(), 0))
    earlier = exploration.unreported() if exploration.sent else ()
    exploration.note_sent(record)
    state = _PROBE_STATES[context.reap_state]
    core.send_probe(context, state, (record, *earlier), exploration.received)
    if not operational:
        core.report(What.PROBE, context.outbound_key, Searched(state, pair))


def _ask_again(core: Core, context: Context, now: float) -> None:
    """DNS was silent when it was asked what is the peer's: a search is worth another try."""
    if context.peer_name is None or now < context.reproof_due_s:
        return
    for locator in context.peer_locators:
        if locator.proof is Proof.NONE:
            context.reproof_due_s = now + REPROOF_S
            core.effects.append(AskProof(context.pair, context.peer_name))
            return


_Act: TypeAlias = Callable[[Core, Context, float], None]
_ACTS: Final[dict[Act, _Act]] = {
    Act.START_SEND: _start_send,
    Act.RESTART_SEND: _restart_send,
    Act.STOP_SEND: _stop_send,
    Act.START_KEEPALIVE: _start_keepalive,
    Act.STOP_KEEPALIVE: _stop_keepalive,
    Act.SEND_KEEPALIVE: _send_keepalive,
    Act.SEND_PROBE: _send_probe,
}


def _cell(state: ReapState, event: ReapEvent) -> tuple[tuple[_Act, ...], ReapState] | None:
    actions, after = REAP.get((state, event), (None, state))
    return (tuple([_ACTS[action] for action in actions]), after) if actions is not None else None


_CELLS: Final = {event: tuple([_cell(state, event) for state in ReapState]) for event in ReapEvent}
"""The table with functions for actions, by event, then by state."""

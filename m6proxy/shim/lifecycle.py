"""Birth, path and death of contexts: what must happen together, happens here."""

from __future__ import annotations

from m6proxy.errors import PeerViolation
from m6proxy.names import Address, LocatorPair
from m6proxy.reasons import Reason
from m6proxy.shim import arrivals, flows, forward, memo
from m6proxy.shim.context import Context
from m6proxy.shim.core import Core
from m6proxy.shim.demux import UNTAGGED, DemuxMode
from m6proxy.shim.effects import InstallFlow, RemoveFlow, What
from m6proxy.shim.timers import NEVER, SEND_TIMEOUT_S
from m6proxy.shim.transitions import Input, ReapState, State, legal
from m6proxy.wire.dstopt import option_tail

_PAYLOAD_BIT = 1 << 47


def create(core: Core, key: bytes, fii: int, now: float) -> Context:
    """Make a context in IDLE for a ULID pair (32 octets). Raises PeerViolation when full."""
    if len(core.contexts) >= core.max_contexts:
        raise PeerViolation(Reason.TABLE_FULL, "the context table is full")
    local_set = core.local_sets.by_ulid(key[:16])
    context = Context(key, fii, core.contexts.new_tag(core.entropy), local_set)
    context.last_traffic_s = now
    context.send_timeout_s = core.settings.send_timeout_s * core.entropy.uniform(0.9, 1.0)
    context.keepalive_timeout_s = SEND_TIMEOUT_S
    core.contexts.add(context)
    if core.settings.asks_for(DemuxMode.FLOWLABEL):
        core.contexts.choose_label(context, core.entropy)
    if core.settings.asks_for(DemuxMode.DSTOPT):
        core.contexts.take_options(context)
    return context


def enter(core: Core, context: Context, after: State, cause: Input, now: float) -> None:
    """Move a context to another state, with all that follows from it."""
    before, carried = context.state, context.carries
    context.set_state(after, cause)
    if before is after:
        return
    core.report(
        What.STATE, context.outbound_key, f"{before.value} -> {after.value} ({cause.value})"
    )
    core.closing += (after is State.CLOSING) - (before is State.CLOSING)
    if before is State.CLOSING:
        context.closing = None
    if after is State.ESTABLISHED:
        core.contexts.unbind_nonce(context)
        context.handshake = None
        context.holddown_due_s = NEVER
    if context.carries or carried:
        memo.note(core, context)
    if context.carries and not carried:
        context.established_s = now
        context.last_traffic_s = now
        core.contexts.open(context)
        core.accounts.forget(context.outbound_key)
        core.report(What.ESTABLISHED, context.outbound_key, f"tag {context.local_tag:012x}")
        refresh_path(core, context)
    elif carried and not context.carries:
        _remember(core, context, now)
        core.contexts.close(context)
        context.parking = None
        _leave_flow(core, context)
        flows.remove(core, context)
        context.send_due_s = context.keepalive_due_s = NEVER
        context.exploration = context.update = None
        context.held = context.held_ack = context.failback = None
        context.reap_state = ReapState.OPERATIONAL
    elif carried:
        flows.install(core, context)


def _remember(core: Core, context: Context, now: float) -> None:
    """Keep what a context proved beyond its end, for the next start."""
    ulid = context.outbound_key[16:]
    proved = [
        one.address
        for one in context.peer_locators
        if one.proved and one.address != ulid and not one.stands_in
    ]
    core.peers.note_capable(ulid, now, tuple(proved))


def use_route(core: Core, context: Context, pair: LocatorPair, now: float) -> None:
    """Re-home a context: its packets use this locator pair from now on."""
    before = context.route
    context.take_route(pair)
    if context.route == before:
        return
    context.rehomed_s = now
    context.rehomings += 1
    arrivals.begin(context)
    if context.flow is not None:
        context.flow.doubted = False
    refresh_path(core, context)
    core.report(What.REHOMED, context.outbound_key, context.route)


def refresh_path(core: Core, context: Context) -> None:
    """Prepare what the packet path needs, from the current route and CT(peer).

    A fork has no flow: packets find only the context without a fork by their ULIDs. And it puts
    the payload header on even there, so that its packets do not speak for its pair's path.
    """
    on_ulids = context.route == context.outbound_key
    if on_ulids and not context.fii:
        _leave_flow(core, context)
        flows.install(core, context)
        return
    uplink = context.local_set.uplink_of(context.route[:16])
    context.mtu = uplink.mtu if uplink else 0xFFFF
    context.told_too_big_s = NEVER
    pair = wire = context.locators
    context.wire_addresses, context.wire_label = context.route, 0
    if context.peer_mode is DemuxMode.IDENTIFIER:
        wire = _tested_wire_pair(core, context, pair)
        context.wire_addresses = wire.local + wire.peer
    wanted = context.mode_wanted
    if wanted is DemuxMode.DSTOPT:
        context.shim_tail, context.wire_kind = option_tail(context.peer_tag), forward.OPTION
    else:
        context.shim_tail = (_PAYLOAD_BIT | context.peer_tag).to_bytes(7)
        context.wire_kind = forward.SHIM
        if wanted is not DemuxMode.EXTHDR and not on_ulids:
            context.wire_label = _wire_label(core, context, wire)
    core.contexts.bind_sent(context, context.wire_addresses)
    if context.label or core.asks_untagged:
        expect_rehomed(core, context, pair)
    if core.slots is not None:
        flows.install(core, context)
    elif context.fii == 0:
        core.effects.append(InstallFlow(context.pair, wire, context.peer_tag))


def _tested_wire_pair(core: Core, context: Context, pair: LocatorPair) -> LocatorPair:
    wire = wire_pair(core, context, pair)
    if wire != pair:
        stand_in = context.peer_locator(wire.peer)
        if not (stand_in and stand_in.tested):
            return pair
    return wire


def _wire_label(core: Core, context: Context, wire: LocatorPair) -> int:
    """What stands in the place of the label in packets between these addresses.

    The peer finds the context without any tag when the destination is locator-only, and the
    source is so too or the ULID. All locators but the ULID are locator-only at an end that asked
    for this; that we did the peer has heard for sure when we asked for nothing else before.
    """
    if context.mode_wanted is DemuxMode.FLOWLABEL:
        return context.peer_label
    if context.mode_wanted is not DemuxMode.IDENTIFIER or wire.peer == context.outbound_key[16:]:
        return 0
    known = context.peer_locator(wire.peer)
    first = core.settings.demux[0] is DemuxMode.IDENTIFIER
    ours = first or wire.local == context.outbound_key[:16]
    theirs = known is not None and (known.listed or known.stands_in)
    return UNTAGGED if ours and theirs else 0


def wire_pair(core: Core, context: Context, pair: LocatorPair) -> LocatorPair:
    """The addresses of probes and packets over a pair: to the peer's ULID, from another place
    than ours, they go to what stands in for it, where both ends do without tags."""
    if context.peer_mode is not DemuxMode.IDENTIFIER:
        return pair
    ulids = context.pair
    if pair.peer != ulids.peer or pair.local == ulids.local:
        return pair
    if core.settings.demux[0] is not DemuxMode.IDENTIFIER:
        return pair
    for locator in context.peer_locators:
        if locator.stands_in and locator.proved:
            return LocatorPair(pair.local, locator.address)
    return pair


def meant_pair(context: Context, pair: LocatorPair) -> LocatorPair:
    """The locator pair that a probe of ours was for; the peer's stand-in is its ULID's place."""
    known = context.peer_locator(pair.peer)
    if known is not None and known.stands_in:
        return LocatorPair(pair.local, context.outbound_key[16:])
    return pair


def expect_rehomed(core: Core, context: Context, route: LocatorPair) -> None:
    """Packets may come over this pair that no tag shows to be ours, unless it is the ULIDs."""
    if route.local + route.peer == context.outbound_key:
        return
    core.contexts.expect_label(context)
    if not core.asks_untagged or context.fii:
        return
    local: Address | None = route.local
    if local == context.outbound_key[:16]:
        local = context.local_set.stand_in
    ours = route.peer == context.outbound_key[16:]
    if local is not None and (ours or context.peer_mode is DemuxMode.IDENTIFIER):
        core.contexts.expect_untagged(context, route.peer + local)
        if context.carries:
            flows.install(core, context)


def refuse(core: Core, context: Context, cause: Input, holddown_s: float, now: float) -> None:
    """§7.8: the peer has no shim; remember that for a while and leave its traffic alone."""
    after = State.NO_SUPPORT if cause is Input.UNRECOGNIZED else State.E_FAILED
    enter(core, context, after, cause, now)
    core.contexts.unbind_nonce(context)
    core.contexts.bind_peer_tag(context, 0)
    context.handshake = None
    context.holddown_due_s = now + holddown_s
    core.report(What.FAILED, context.outbound_key, cause.value)
    core.rearm(context)


def remove(core: Core, context: Context, cause: Input, now: float) -> None:
    """End a context here (RFC 5533 §9); whether the peer is told is for ``close`` to say.

    Its forks go with it: to what ends it (its own Close, say) they may be strangers.
    """
    was_carrying = context.carries or context.state is State.CLOSING
    for _, fork in context.forks:
        if fork.carries:
            known = legal(fork.state, cause)
            remove(core, fork, cause if known else Input.IDLE_TIMEOUT, now)
    leave_pair(core, context)
    enter(core, context, State.IDLE, cause, now)
    core.contexts.remove(context)
    core.timers.cancel(context)
    if was_carrying:
        core.report(What.REMOVED, context.outbound_key, cause.value)


def leave_pair(core: Core, context: Context) -> None:
    """The pair of a fork does without it from now on."""
    main = core.contexts.by_pair(context.outbound_key) if context.fii else None
    if main is not None and main.forks:
        main.forks = tuple(one for one in main.forks if one[1] is not context)
        if main.carries:
            core.contexts.open(main)
            flows.install(core, main)


def _leave_flow(core: Core, context: Context) -> None:
    if context.wire_addresses is not None:
        context.wire_addresses = None
        context.wire_label = 0
        core.contexts.bind_sent(context, None)
        if context.fii == 0 and core.slots is None:
            core.effects.append(RemoveFlow(context.pair))

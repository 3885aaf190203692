"""A site goes away for a while, and its contexts wait for it (mobike-design §3.1, decision 16).

    the site that goes                        its peer
    begin           -> Update Request  ->  handle_request   (empty list and Park Time)
    handle_ack      <- Update Ack      <-                   (how long it will wait)
    end             -> Update Request  ->  take_up          (the set as ever)

One request is about as many contexts with one gateway as fit it (``scope``): it names them, and so
does the acknowledgement.

A parked context is found by tags and by its pair, but not by the packet path's tables: what
hosts send for it is dropped here, and its reachability rests. Either end may be away, or both;
``Parking`` says who. docs/wire.md has the octets.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from m6proxy.names import LocatorPair, Tag
from m6proxy.reasons import Reason
from m6proxy.shim import activity, flows, icmp, lifecycle, reap, scope, update
from m6proxy.shim.context import Context, Parking, PendingUpdate
from m6proxy.shim.core import Core
from m6proxy.shim.effects import SendPacket, What
from m6proxy.shim.features import Feature
from m6proxy.shim.held import HeldSegments
from m6proxy.shim.timers import NEVER, PARK_GRACE_S, PARK_QUIET_S, PARK_SENT_MAX
from m6proxy.shim.transitions import Input, State
from m6proxy.wire.ipv6 import NEXT_TCP, upper_layer
from m6proxy.wire.message import (
    MAX_MESSAGE_OCTETS,
    Keepalive,
    Probe,
    UpdateAck,
    UpdateRequest,
    find,
)
from m6proxy.wire.options import LocatorList, Option, ParkTime, Scope

NAMED_MAX: Final = (MAX_MESSAGE_OCTETS - 16 - 16 - 8 - 16) // 12
"""So many contexts fit beside an Update Request's fields, an empty list, a time and the scope's."""
TELL_AGAIN_S: Final = 1.0
"""How often the hosts of one context are told that the peer cannot be reached."""
_SYN_AT: Final = 13
_SYN_ACK: Final = 0x12
_SYN: Final = 0x02
_FIRST_INFORMATIONAL: Final = 128


@dataclass(frozen=True, slots=True)
class Away:
    """How far the site's word that it goes away has come: numbers of contexts."""

    until_s: float
    """When the site is back at the latest, on the clock of ``now``."""
    granted: int = 0
    """Whose peer waits."""
    refused: int = 0
    """Whose peer will not wait."""
    asked: int = 0
    """Whose peer has not answered yet."""
    deaf: int = 0
    """Whose peer does not know the question: they are not parked."""
    shortest_s: float = NEVER
    """The shortest time that a peer waits, in seconds from its answer; NEVER when none does."""


# --- we go away ------------------------------------------------------------------------


def begin(core: Core, until_s: float, now: float) -> None:
    """Park every context whose peer understands it, and tell that peer; again: a new time."""
    core.away_until_s = until_s
    groups: dict[scope.Gateways | Context, list[Context]] = {}
    for context in core.contexts:
        if context.state is State.ESTABLISHED and context.peer_features & Feature.PARK:
            _rest(core, context, now)
            groups.setdefault(scope.gateways_of(context) or context, []).append(context)
    for group in groups.values():
        for first in range(0, len(group), NAMED_MAX):
            _tell_together(core, group[first : first + NAMED_MAX], core.pace.take(now), now)
    core.wake()


def end(core: Core, now: float) -> None:
    """The site is back: tell every peer our set, test the paths, let hosts' packets go."""
    core.away_until_s = NEVER
    for context in core.contexts:
        parking = context.parking
        if parking is None or not parking.local:
            continue
        parking.local = False
        due_s = core.pace.take(now)
        if parking.peer_until_s == NEVER:
            _go_on(core, context, now)
            reap.suspect(core, context, due_s, due_s)
        update.announce(core, context, due_s, now)


def away(core: Core) -> Away | None:
    """What the peers said to our going away; None while we are here."""
    if core.away_until_s == NEVER:
        return None
    granted = refused = asked = deaf = 0
    times_s = []
    for context in core.contexts:
        if not context.carries:
            continue
        if context.parking is None or not context.parking.local:
            deaf += 1
        elif context.parking.granted_s is None:
            asked += 1
        elif context.parking.granted_s:
            granted += 1
            times_s.append(context.parking.granted_s)
        else:
            refused += 1
    shortest_s = min(times_s, default=NEVER)
    return Away(core.away_until_s, granted, refused, asked, deaf, shortest_s)


def handle_ack(core: Core, context: Context, message: UpdateAck, now: float) -> bool:
    """Tell whether an acknowledgement was to our going away; then take it in.

    Of a question about several contexts those that it does not name are asked by themselves.
    """
    pending, parking, answer = context.update, context.parking, find(message.options, ParkTime)
    if pending is None or parking is None or not parking.local or answer is None:
        return False
    request = pending.request
    if request.request_nonce != message.request_nonce or find(request.options, ParkTime) is None:
        return False
    for other, _, is_agreed in scope.answered(pending.named or (context,), request, message):
        if other.parking is None:
            continue
        if other is context or is_agreed:
            _note_granted(core, other, other.parking, answer.seconds)
        else:
            _tell_away(core, other, core.pace.take(now), now)
    return True


def _note_granted(core: Core, context: Context, parking: Parking, granted_s: int) -> None:
    context.update = None
    parking.granted_s = float(granted_s)
    said = f"the peer waits {granted_s} s" if granted_s else "the peer will not wait"
    core.report(What.PARKED, context.outbound_key, said)


# --- the peer goes away ----------------------------------------------------------------


def asks(context: Context, message: UpdateRequest) -> ParkTime | None:
    """The time that a peer asks for: only beside an empty list, and of a peer that knows it."""
    listed = find(message.options, LocatorList)
    if listed is None or listed.locators or not context.peer_features & Feature.PARK:
        return None
    return find(message.options, ParkTime)


def handle_request(
    core: Core,
    context: Context,
    message: UpdateRequest,
    asked: ParkTime,
    route: LocatorPair,
    now: float,
) -> None:
    """Wait for the peer, as long as policy allows, and say how long that is.

    The empty list is not taken in: the context goes on with the set as it was, when it goes on.
    A peer can ask for several contexts at once. Raises PeerViolation when it does so too often.
    """
    if context.state is not State.ESTABLISHED:
        return
    granted_s = min(asked.seconds, int(core.settings.park_max_s))
    about = find(message.options, Scope) if context.peer_features & Feature.SCOPE else None
    agreed: list[tuple[Tag, Tag]] = []
    if about is not None:
        core.limit_requests(route.peer, now)
        for tags in scope.named_in(about):
            other = scope.addressed(core, tags, route.peer)
            if other is not None and other.peer_features & Feature.PARK:
                agreed.append(tags)
                if other is not context:
                    _wait_for(core, other, granted_s, now)
    _wait_for(core, context, granted_s, now)
    options: tuple[Option, ...] = (ParkTime(granted_s),)
    if agreed:
        options = (Scope(0, 0, (), scope.mirrored(agreed)), *options)
    core.send(UpdateAck(context.peer_tag, message.request_nonce, options), route)


def _wait_for(core: Core, context: Context, granted_s: int, now: float) -> None:
    if granted_s:
        parking = _rest(core, context, now)
        parking.peer_until_s = now + granted_s + PARK_GRACE_S
        parking.peer_since_s = now
        core.rearm(context)
        said = f"the peer is away for up to {granted_s} s"
        core.report(What.PARKED, context.outbound_key, said)


def handle_message(
    core: Core, context: Context, message: UpdateRequest | UpdateAck | Keepalive | Probe, now: float
) -> bool:
    """A control message for a parked context; returns whether it is to be handled as ever.

    Its set tells that the peer is back, at once; other messages when they cannot have been
    under way any more. While we are away ourselves nothing but updates is heard.
    """
    parking = context.parking
    if parking is None:
        return True
    if isinstance(message, UpdateRequest):
        take_up(core, context, now)
        return True
    if isinstance(message, UpdateAck):
        if find(message.options, ParkTime) is None:
            _take_up_late(core, context, now)
        return True
    _take_up_late(core, context, now)
    return context.parking is None


def handle_packet(core: Core, context: Context, now: float) -> None:
    """A host of the peer sends: its gateway is back, unless the packet was under way."""
    _take_up_late(core, context, now)


def take_up(core: Core, context: Context, now: float) -> None:
    """The peer is back."""
    parking = context.parking
    if parking is None or parking.peer_until_s == NEVER:
        return
    parking.peer_until_s = NEVER
    if parking.local:
        return
    _go_on(core, context, now)
    uplink = context.local_set.uplink_of(context.route[:16])
    if uplink is not None and not uplink.up:
        due_s = core.pace.take(now)
        reap.suspect(core, context, due_s, due_s)
    if context.update is None and context.told_set is not context.local_set:
        update.announce(core, context, now, now)


def handle_exchange(core: Core, context: Context, now: float) -> None:
    """The peer set the context up anew: it is here, and knows nothing of our being away."""
    take_up(core, context, now)
    if context.parking is not None and context.parking.local:
        _tell_away(core, context, now, now)


# --- meanwhile -------------------------------------------------------------------------


def handle_outbound(core: Core, context: Context, packet: bytes, now: float) -> Reason:
    """A host sends while nobody would get it: drop, and keep what brings TCP back at once.

    An established TCP is left to its own patience, which is longer than most parks. All else
    hears that the address is unreachable: that ends no session, but a new connection.
    """
    parking = context.parking
    upper = upper_layer(packet)
    if parking is None or upper is None:
        return core.drop(Reason.PARKED)
    protocol, offset = upper
    begins = (
        protocol != NEXT_TCP
        or packet[offset + _SYN_AT :][:1] == b""
        or (packet[offset + _SYN_AT] & _SYN_ACK == _SYN)
    )
    if not begins:
        if packet[6] == NEXT_TCP:
            context.held = context.held or HeldSegments()
            context.held.put(packet, now)
    elif not (protocol == 58 and packet[offset : offset + 1] < bytes((_FIRST_INFORMATIONAL,))):
        source = core.settings.gateway
        due = parking.told_s == NEVER or now >= parking.told_s + TELL_AGAIN_S
        if due and source is not None and core.icmp_limit.allow(packet[8:24], now):
            parking.told_s = now
            core.effects.append(SendPacket(icmp.unreachable(packet, source)))
    return core.drop(Reason.PARKED)


def expire(core: Core, context: Context, now: float) -> None:
    """The timers of a parked context: our question again, and the end of our patience."""
    parking = context.parking
    if parking is None:
        return
    if parking.peer_until_s and now >= parking.peer_until_s:
        lifecycle.remove(core, context, Input.PARK_OVER, now)
        return
    pending = context.update
    if pending is not None and pending.named == () and now >= pending.timeout_due_s:
        _tell_away(core, context, core.pace.take(now), now, retries=PARK_SENT_MAX - 1)
        return
    if pending is not None and parking.local and pending.retries >= PARK_SENT_MAX:
        pending.timeout_due_s = NEVER
    update.expire(core, context, now)
    core.rearm(context)


def _tell_together(core: Core, named: list[Context], due_s: float, now: float) -> None:
    """Ask one gateway about several contexts; each asks once by itself when no answer comes."""
    carrier = scope.carrier_of(named)
    if len(named) == 1:
        _tell_away(core, carrier, due_s, now)
        return
    request = _request(core, carrier, (Scope(0, 0, (), scope.tags_of(named)),), now)
    alone_s = scope.alone_due_s(core, now)
    for context in named:
        _ask(context, request, alone_s, named=())
        core.rearm(context)
    _ask(carrier, request, due_s, named=tuple(named))
    update.expire(core, carrier, now)
    core.rearm(carrier)


def _tell_away(core: Core, context: Context, due_s: float, now: float, *, retries: int = 0) -> None:
    """Ask for one context; ``retries`` is how often its peer was asked already."""
    _ask(context, _request(core, context, (), now), due_s).retries = retries
    update.expire(core, context, now)
    core.rearm(context)


def _request(core: Core, carrier: Context, about: tuple[Option, ...], now: float) -> UpdateRequest:
    asked_s = max(1, int(core.away_until_s - now))
    options = (LocatorList(core.entropy.nonce(), (), ()), *about, ParkTime(asked_s))
    return UpdateRequest(carrier.peer_tag, core.entropy.nonce(), options)


def _ask(
    context: Context,
    request: UpdateRequest,
    due_s: float,
    named: tuple[Context, ...] | None = None,
) -> PendingUpdate:
    pending = context.update
    if pending is not None and find(pending.request.options, ParkTime) is None:
        context.told_set = None  # nobody knows whether the peer took in what was on its way
    if context.parking is not None:
        context.parking.granted_s = None
    context.update = PendingUpdate(request, context.told_set, named)
    context.update.timeout_due_s = due_s
    return context.update


def _rest(core: Core, context: Context, now: float) -> Parking:
    """Take a context out of the packet path and let its reachability rest."""
    parking = context.parking
    if parking is None:
        activity.look(core, context, now)
        parking = context.parking = Parking()
        reap.rest(context)
        core.contexts.park(context)
        context.last_in_pair = b""
        context.held_ack = None
        if context.update is not None:
            context.update, context.told_set = None, None
        flows.install(core, context)
    parking.local = core.away_until_s != NEVER
    core.rearm(context)
    return parking


def _take_up_late(core: Core, context: Context, now: float) -> None:
    parking = context.parking
    if parking is not None and parking.peer_until_s and now >= parking.peer_since_s + PARK_QUIET_S:
        take_up(core, context, now)


def _go_on(core: Core, context: Context, now: float) -> None:
    """Let packets find the context again; what TCP waits for goes out at once."""
    context.parking = None
    context.last_traffic_s = now
    core.contexts.open(context)
    flows.install(core, context)
    core.report(What.RESUMED, context.outbound_key, str(context.locators))
    reap.resume(core, context, now)
    core.rearm(context)

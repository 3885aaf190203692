"""Telling the peer that our locators changed, and hearing it from the peer (RFC 5533 §10)."""

from __future__ import annotations

from typing import Final

from m6proxy.errors import PeerViolation
from m6proxy.names import TAG_MASK, LocatorPair
from m6proxy.reasons import Reason
from m6proxy.shim import memo, reap
from m6proxy.shim.context import Context, HeldAck, PendingUpdate
from m6proxy.shim.core import Core
from m6proxy.shim.effects import AskProof, What
from m6proxy.shim.features import Feature
from m6proxy.shim.peerset import adopt_delta, adopt_demux, adopt_locators, offer
from m6proxy.shim.signed import evidence_of
from m6proxy.shim.timers import (
    MAX_UPDATE_TIMEOUT_S,
    PENDING_PROOF_S,
    SOON_S,
    UPDATE_TIMEOUT_S,
    backoff_s,
)
from m6proxy.wire.ipv6 import HEADER_OCTETS
from m6proxy.wire.message import (
    MAX_MESSAGE_OCTETS,
    ErrorCode,
    ErrorMessage,
    UpdateAck,
    UpdateRequest,
    find,
)
from m6proxy.wire.options import (
    LocatorDelta,
    LocatorList,
    Option,
    ParkTime,
    SenderName,
    encode_options,
)

_SILENT_AFTER: Final = 2
_FIXED_OCTETS: Final = 16
"""An Update Request without options (§5.10)."""


def announce(core: Core, context: Context, due_s: float, now: float) -> None:
    """§10.1, §10.3: tell our set; whatever was not acknowledged is abandoned for it.

    A peer that understands differences and has an earlier set gets the difference, every
    other the whole set. It goes out at ``due_s``, so that many contexts can be told one after
    the other.
    """
    room_octets = MAX_MESSAGE_OCTETS - _FIXED_OCTETS
    base, whole = context.told_set, True
    options: tuple[Option, ...] = ()
    if base is not None and context.peer_features & Feature.DELTA:
        options = (context.local_set.since(base),)
    if not options or len(encode_options(options)) > room_octets:
        current = _signal_route(context).local
        options, whole = offer(core, context, room_octets, current, first=False)
    request = UpdateRequest(context.peer_tag, core.entropy.nonce(), options)
    context.update = PendingUpdate(request, context.local_set if whole else None)
    if due_s <= now:
        send(core, context, now)
    else:
        context.update.timeout_due_s = due_s
        core.rearm(context)


def handle_request(
    core: Core, context: Context, message: UpdateRequest, route: LocatorPair, now: float
) -> None:
    """§10.4: take the peer's new set in; acknowledge it when DNS was asked about it (§7.2).

    A name that the exchange gave stays: else whoever saw our tag could name itself the peer.
    """
    held = context.held_ack
    if held is not None and held.request_nonce == message.request_nonce:
        return
    evidence = evidence_of(core, context, message.options, None, route.peer, now)
    delta = find(message.options, LocatorDelta)
    if delta is not None and find(message.options, LocatorList) is None:
        adopt_delta(core, context, delta)
    adopt_locators(core, context, message.options, evidence)
    adopt_demux(core, context, message.options)
    memo.note(core, context)
    context.peer_updated = True
    context.held_ack = None
    name = find(message.options, SenderName)
    if name is not None and context.peer_name is None:
        context.peer_name = name.name
    core.report(
        What.UPDATED, context.outbound_key, f"{len(context.peer_locators)} locators of the peer"
    )
    if (
        context.peer_name is not None
        and context.parking is None
        and not all(locator.proved for locator in context.peer_locators)
        and core.requests_limit.allow(route.peer, now)
    ):
        context.held_ack = HeldAck(message.request_nonce, route, now + PENDING_PROOF_S)
        core.effects.append(AskProof(context.pair, context.peer_name))
    else:
        core.send(
            UpdateAck(context.peer_tag, message.request_nonce, _away(core, context, now)), route
        )
    current = context.peer_locator(context.route[16:])
    if current is not None and current.broken and context.parking is None:
        reap.leave_broken(core, context, route.peer, now)


def _away(core: Core, context: Context, now: float) -> tuple[Option, ...]:
    """That we are away says an acknowledgement too: it is no sign that we are back."""
    if context.parking is None or not context.parking.local:
        return ()
    return (ParkTime(max(1, int(core.away_until_s - now))),)


def acknowledge(core: Core, context: Context) -> None:
    """DNS answered, or will not: acknowledge the request that waited for it, if one did."""
    held = context.held_ack
    if held is not None:
        context.held_ack = None
        core.send(UpdateAck(context.peer_tag, held.request_nonce), held.route)


def handle_ack(context: Context, message: UpdateAck) -> None:
    """§10.5: the peer has our set."""
    update = context.update
    if update is None or update.request.request_nonce != message.request_nonce:
        raise PeerViolation(Reason.WRONG_NONCE, "an acknowledgement of nothing outstanding")
    context.told_set = update.told
    context.update = None


def handle_error(core: Core, message: ErrorMessage, route: LocatorPair, now: float) -> bool:
    """The peer has another list than our difference starts from: tell it the whole one.

    Returns whether the error was about an outstanding difference of ours. Who cannot quote its
    tag and its nonce changes nothing.
    """
    quoted = message.packet[HEADER_OCTETS:]
    if message.code != ErrorCode.GENERATION_OUT_OF_SYNC or len(quoted) < _FIXED_OCTETS:
        return False
    tag, nonce = int.from_bytes(quoted[6:12]) & TAG_MASK, int.from_bytes(quoted[12:16])
    context = core.contexts.by_sent(tag, route)
    if context is None or not context.carries or context.update is None:
        return False
    request = context.update.request
    if request.request_nonce != nonce or find(request.options, LocatorDelta) is None:
        return False
    core.report(
        What.UPDATED, context.outbound_key, "the peer has another list: it is told all of ours"
    )
    context.told_set = None
    announce(core, context, now, now)
    return True


def expire(core: Core, context: Context, now: float) -> None:
    """§10.2: send an unacknowledged Update Request again; the backoff ends at 120 s.

    Two in a row without an answer hint at a dead path, whatever comes in meanwhile: the plain
    packets of a peer that lost the context are no answer to what we send over other locators.
    A request of the peer whose proof takes too long is acknowledged without it. A context that
    waited for the answer to a request about many is told by itself.
    """
    if context.held_ack is not None and now >= context.held_ack.due_s:
        acknowledge(core, context)
    update = context.update
    if update is not None and update.timeout_due_s and now >= update.timeout_due_s:
        if update.named == ():
            announce(core, context, core.pace.take(now), now)
            return
        send(core, context, now)
        if update.retries > _SILENT_AFTER:
            reap.hint(core, context, "Update without an answer", now + SOON_S)


def send(core: Core, context: Context, now: float) -> None:
    """Send the outstanding request, and arm its repetition."""
    update = context.update
    if update is None:
        return
    core.send(update.request, _signal_route(context))
    if context.parking is None:
        reap.payload_out(core, context, b"", now)
    nominal_s = backoff_s(UPDATE_TIMEOUT_S, update.retries, MAX_UPDATE_TIMEOUT_S)
    update.retries += 1
    update.timeout_due_s = now + nominal_s * core.entropy.uniform(0.5, 1.5)
    core.rearm(context)


def _signal_route(context: Context) -> LocatorPair:
    """The current pair; from another of our locators when the current one is known dead."""
    local, peer = context.locators
    alive = [
        octets
        for octets, broken in zip(context.local_set.locators, context.local_set.broken, strict=True)
        if not broken
    ]
    return LocatorPair(local if local in alive or not alive else alive[0], peer)

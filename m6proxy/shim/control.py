"""The way of a control message, cheap checks first (RFC 5533 §12.3, §12.4).

1. length, checksum, known type, options: ``wire`` says MalformedMessage
2. addresses: neither multicast nor unspecified, ours on our side
3. what it is about: ULID pair, nonce, or our tag
4. is it legal in that state: ``transitions``
5. its handler in ``establish``, ``update``, ``scope``, ``park``, ``reap`` or ``close``
"""

from __future__ import annotations

from typing import Final, TypeAlias

from m6proxy.errors import MalformedMessage, PeerViolation
from m6proxy.names import TAG_MASK, UNSPECIFIED, LocatorPair, Tag
from m6proxy.reasons import Reason
from m6proxy.shim import (
    activity,
    close,
    detect,
    establish,
    hints,
    lifecycle,
    park,
    reap,
    scope,
    update,
)
from m6proxy.shim.context import Context
from m6proxy.shim.core import Core
from m6proxy.shim.demux import DemuxMode
from m6proxy.shim.effects import AskProof
from m6proxy.shim.features import Feature
from m6proxy.shim.pending import PendingProofs
from m6proxy.shim.timers import REPROOF_S
from m6proxy.shim.transitions import REMEMBERS, Input, ReapState, State, legal
from m6proxy.shim.verdict import CONSUMED, Verdict
from m6proxy.wire.checksum import checksum
from m6proxy.wire.ipv6 import HEADER_OCTETS, NEXT_NONE
from m6proxy.wire.message import (
    I1,
    I2,
    MAX_QUOTE_OCTETS,
    R1,
    R2,
    CapabilityReply,
    CapabilityRequest,
    Close,
    CloseAck,
    ErrorCode,
    ErrorMessage,
    I2bis,
    Keepalive,
    Message,
    MessageType,
    Probe,
    R1bis,
    UnknownMessage,
    UpdateAck,
    UpdateRequest,
    parse_message,
)
from m6proxy.wire.options import (
    NUMBER_LOCATOR_DELTA,
    NUMBER_LOCATOR_LIST,
    NUMBER_LOCATOR_PREFERENCES,
)

Tagged: TypeAlias = UpdateRequest | UpdateAck | Keepalive | Probe
"""Messages that name their context by our tag."""

_TAGGED: Final = frozenset({UpdateRequest, UpdateAck, Keepalive, Probe})
_INPUT_OF: Final[dict[type[Message], Input]] = {
    UpdateRequest: Input.UPDATE_REQUEST,
    UpdateAck: Input.UPDATE_ACK,
    Close: Input.CLOSE,
    CloseAck: Input.CLOSE_ACK,
    Keepalive: Input.REAP,
    Probe: Input.REAP,
}
_ERROR_OF: Final = {
    Reason.UNKNOWN_TYPE: ErrorCode.UNKNOWN_TYPE,
    Reason.CRITICAL_OPTION: ErrorCode.CRITICAL_OPTION,
    Reason.BAD_METHOD: ErrorCode.METHOD_FAILED,
    Reason.BAD_SIGNATURE: ErrorCode.METHOD_FAILED,
    Reason.GENERATION_MISMATCH: ErrorCode.GENERATION_OUT_OF_SYNC,
    Reason.DELTA_BASE: ErrorCode.GENERATION_OUT_OF_SYNC,
    Reason.PREFERENCE_COUNT: ErrorCode.PREFERENCE_COUNT,
}
_KEEPALIVE_START: Final = bytes((NEXT_NONE, 1, MessageType.KEEPALIVE, 0))
_KEEPALIVE_LENGTH: Final = (16).to_bytes(2)
_KEEPALIVE_OCTETS: Final = HEADER_OCTETS + 16
_TYPE_POINTER: Final = 2
"""Where the type octet stands, from the start of the shim header."""
_OPTIONS_AT: Final[dict[int, int]] = {MessageType.I2: 24, MessageType.I2BIS: 32}
"""How long the fixed fields are, in octets, where they are not 16."""
_FIELD_OF: Final = {
    Reason.BAD_METHOD: (NUMBER_LOCATOR_LIST, 9),
    Reason.BAD_SIGNATURE: (NUMBER_LOCATOR_LIST, 9),
    Reason.GENERATION_MISMATCH: (NUMBER_LOCATOR_PREFERENCES, 4),
    Reason.PREFERENCE_COUNT: (NUMBER_LOCATOR_PREFERENCES, 2),
    Reason.DELTA_BASE: (NUMBER_LOCATOR_DELTA, 4),
}
"""The option in which a fault is, and where: first method, generation, Length (§10.4)."""


def handle_control(
    core: Core, pending: PendingProofs, packet: bytes, offset: int, now: float
) -> Verdict:
    """Take one control message whose shim header stands at ``offset``."""
    route = LocatorPair(core.local_sets.meant(packet[24:40]), packet[8:24])
    try:
        _check_addresses(route)
        message = parse_message(packet[offset:])
        if type(message) in _TAGGED:
            _handle_tagged(core, message, route, now)  # type: ignore[arg-type]
        else:
            _dispatch(core, pending, message, route, now)
    except MalformedMessage as malformed:
        _send_error(core, malformed.reason, offset + malformed.pointer, packet, route, now)
        return core.drop(malformed.reason)
    except PeerViolation as violation:
        pointer = offset + _pointer(violation, packet[offset:])
        _send_error(core, violation.reason, pointer, packet, route, now)
        return core.drop(violation.reason)
    return CONSUMED


def take_keepalive(core: Core, packet: bytes, now: float) -> bool:
    """Take a Keepalive (from offset 40) as it usually is: for a context in order, over its route.

    Returns False, and has done nothing, when it is anything else: ``handle_control`` judges it.
    That a right one has no options and ends with the packet is seen from its first octets; the
    addresses of a context's own route are always in its sets.
    """
    if packet[40:44] != _KEEPALIVE_START or packet[4:6] != _KEEPALIVE_LENGTH:
        return False
    context = core.contexts.by_tag.get(int.from_bytes(packet[46:52]) & TAG_MASK)
    if (
        context is None
        or context.reap_state is not ReapState.OPERATIONAL
        or context.state is not State.ESTABLISHED
        or context.parking is not None
        or context.flow is not None
        or context.route[:16] != packet[24:40]
        or context.route[16:] != packet[8:24]
        or len(packet) != _KEEPALIVE_OCTETS
        or checksum(packet[40:])
    ):
        return False
    reap.handle_keepalive(core, context, now)
    return True


def belongs(context: Context, route: LocatorPair) -> bool:
    """Tell whether both addresses of a packet are in the context's sets (§12.4)."""
    local, peer = route
    if local not in context.local_set.locators and local not in (
        context.outbound_key[:16],
        context.local_set.stand_in,
    ):
        return False
    return context.peer_locator(peer) is not None


def _check_addresses(route: LocatorPair) -> None:
    local, peer = route
    if 0xFF in (local[0], peer[0]) or UNSPECIFIED in route:
        raise PeerViolation(Reason.BAD_ADDRESS, "a multicast or unspecified address")


def _dispatch(
    core: Core,
    pending: PendingProofs,
    message: Message,
    route: LocatorPair,
    now: float,
) -> None:
    match message:
        case I1():
            establish.handle_i1(core, message, route, now)
        case R1():
            establish.handle_r1(core, message, route, now)
        case I2() | I2bis():
            establish.handle_i2(core, pending, message, route, now)
        case R2():
            establish.handle_r2(core, message, route, now)
        case R1bis():
            establish.handle_r1bis(core, message, route, now)
        case CapabilityRequest():
            detect.handle_request(core, message, route, now)
        case CapabilityReply():
            detect.handle_reply(core, message, route, now)
        case Close() | CloseAck():
            _handle_closing(core, message, route, now)
        case ErrorMessage():
            if not (
                detect.handle_error(core, message, route, now)
                or update.handle_error(core, message, route, now)
                or hints.handle_lost(core, message, route, now)
            ):
                raise PeerViolation(Reason.PEER_ERROR, f"error code {message.code}")
        case UnknownMessage():
            raise PeerViolation(Reason.UNKNOWN_TYPE, f"message type {message.number}")


def _handle_tagged(core: Core, message: Tagged, route: LocatorPair, now: float) -> None:
    context = core.contexts.by_tag.get(message.receiver_tag)
    if context is None or context.state in REMEMBERS or not belongs(context, route):
        establish.respond_r1bis(core, message.receiver_tag, route, now)
        raise PeerViolation(Reason.NO_CONTEXT, "no context has this tag here")
    if context.state is not State.ESTABLISHED and not legal(
        context.state, _INPUT_OF[type(message)]
    ):
        raise PeerViolation(Reason.ILLEGAL_IN_STATE, f"in {context.state.value}")
    if context.label or core.asks_untagged:
        lifecycle.expect_rehomed(core, context, route)
    if context.flow is not None:
        activity.look(core, context, now)
    asked = park.asks(context, message) if type(message) is UpdateRequest else None
    if type(message) is UpdateRequest and asked is not None:
        establish.answer_early(core, context, now)
        park.handle_request(core, context, message, asked, route, now)
        return
    if context.parking is not None and not park.handle_message(core, context, message, now):
        raise PeerViolation(Reason.PARKED, "a test while one end is away")
    if type(message) is Keepalive:
        reap.handle_keepalive(core, context, now)  # what it starts is armed there
        reap.handle_count(core, context, message.options, now)
        return
    match message:
        case Probe():
            reap.handle_probe(core, context, message, route, now)
        case UpdateRequest() | UpdateAck():
            establish.answer_early(core, context, now)
            if not context.carries:
                return
            if context.parking is None:
                reap.payload_in(core, context, b"", now)
            if isinstance(message, UpdateRequest):
                about_many = scope.asks(context, message)
                if about_many is not None:
                    scope.handle_request(core, context, message, about_many, route, now)
                else:
                    update.handle_request(core, context, message, route, now)
            elif not (
                park.handle_ack(core, context, message, now)
                or scope.handle_ack(core, context, message, now)
            ):
                update.handle_ack(context, message)
    core.rearm(context)


def _handle_closing(core: Core, message: Close | CloseAck, route: LocatorPair, now: float) -> None:
    """Ours: never answered with R1bis. Both tags, the place and the promise must be right."""
    context = core.contexts.by_tag.get(message.receiver_tag)
    if context is None or context.state in REMEMBERS:
        close.handle_unknown(core, message, route, now)
        return
    if not belongs(context, route):
        raise PeerViolation(Reason.WRONG_LOCATOR, "a Close from elsewhere")
    if context.peer_tag != message.sender_tag or not context.peer_features & Feature.CLOSE:
        raise PeerViolation(Reason.NO_CONTEXT, "a Close without the sender's tag")
    if not legal(context.state, _INPUT_OF[type(message)]):
        raise PeerViolation(Reason.ILLEGAL_IN_STATE, f"in {context.state.value}")
    if isinstance(message, Close):
        close.handle_close(core, context, message, route, now)
    else:
        close.handle_ack(core, context, message, now)


def no_context(core: Core, tag: Tag, route: LocatorPair, now: float) -> Reason:
    """A payload header with a tag of no context: offer recovery (§12.2), drop the packet."""
    try:
        establish.respond_r1bis(core, tag, route, now)
    except PeerViolation as violation:
        return core.drop(violation.reason)
    return core.drop(Reason.NO_CONTEXT)


def nobodys(core: Core, packet: bytes, now: float) -> Reason:
    """A packet to a locator-only address, without a tag, that is of no context: drop it.

    A peer that goes on after we lost the context is told, so that it tests the path: nothing in
    its packet names the context, so R1bis cannot be the answer (docs/decisions/0017).
    """
    route = LocatorPair(packet[24:40], packet[8:24])
    if core.settings.asks_for(DemuxMode.IDENTIFIER) and core.errors_limit.allow(route.peer, now):
        try:
            _check_addresses(route)
        except PeerViolation:
            return core.drop(Reason.BAD_ADDRESS)
        core.send(ErrorMessage(ErrorCode.NO_CONTEXT, 0, packet[:HEADER_OCTETS]), route)
    return core.drop(Reason.NOBODYS_ADDRESS)


def unproved(core: Core, context: Context, now: float) -> Reason:
    """Payload from a locator that is not proved: drop it, and ask DNS again now and then."""
    if context.peer_name is not None and now >= context.reproof_due_s:
        context.reproof_due_s = now + REPROOF_S
        core.effects.append(AskProof(context.pair, context.peer_name))
    return core.drop(Reason.UNPROVED_LOCATOR)


def _pointer(violation: PeerViolation, message: bytes) -> int:
    """§10.4: where the fault is, in octets from the start of the shim header."""
    number, field = _FIELD_OF.get(violation.reason, (0, 0))
    at = _OPTIONS_AT.get(message[2] & 0x7F, 16) if len(message) > 2 else 0
    while number and at + 4 <= len(message):
        length = int.from_bytes(message[at + 2 : at + 4])
        if int.from_bytes(message[at : at + 2]) >> 1 == number:
            return at + field + violation.place
        at += 11 + length - (length + 3) % 8
    return _TYPE_POINTER


def _send_error(
    core: Core, reason: Reason, pointer: int, packet: bytes, route: LocatorPair, now: float
) -> None:
    """§5.14: tell the sender, for the faults that have a code; never about an error."""
    code = _ERROR_OF.get(reason)
    if code is None or not core.local_sets.is_local(route.local):
        return
    if not core.errors_limit.allow(route.peer, now):
        return
    core.send(ErrorMessage(code, pointer, packet[:MAX_QUOTE_OCTETS]), route)

"""The codec of the shim control messages (RFC 5533 §5.3-5.14, RFC 5534 §5).

Every message begins with 8 octets that this module alone knows: Next Header (59), Hdr
Ext Len, P=0 and the type, type-specific bits and S=0, the checksum over the shim header
alone (no pseudo-header). Reserved fields are zero when sent and not looked at when
received. Fixed fields of all messages end on a multiple of 8 octets; options follow.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from m6proxy.errors import MalformedMessage
from m6proxy.names import Tag
from m6proxy.reasons import Reason
from m6proxy.wire import options as opt
from m6proxy.wire.checksum import checksum
from m6proxy.wire.ipv6 import NEXT_NONE
from m6proxy.wire.options import Option, ResponderValidator, encode_options, find, parse_options
from m6proxy.wire.values import (
    I1,
    I2,
    MAX_MESSAGE_OCTETS,
    MAX_PROBE_RECORDS,
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
    ProbeRecord,
    ProbeState,
    R1bis,
    UnknownMessage,
    UpdateAck,
    UpdateRequest,
)

__all__ = [
    "I1",
    "I2",
    "MAX_MESSAGE_OCTETS",
    "MAX_PROBE_RECORDS",
    "MAX_QUOTE_OCTETS",
    "R1",
    "R2",
    "CapabilityReply",
    "CapabilityRequest",
    "Close",
    "CloseAck",
    "ErrorCode",
    "ErrorMessage",
    "I2bis",
    "Keepalive",
    "Message",
    "MessageType",
    "Probe",
    "ProbeRecord",
    "ProbeState",
    "R1bis",
    "UnknownMessage",
    "UpdateAck",
    "UpdateRequest",
    "encode_message",
    "encode_probe",
    "find",
    "parse_message",
]

_MAX_U32 = 0xFFFFFFFF
_TYPE_AT = 2
_CHECKSUM_AT = 4

# From the start of the shim header. A tag is 16 bits (its highest one is R, masked) and 32.
_HEAD = struct.Struct("!HHH")
_TAG_NONCE = struct.Struct("!6xHII")
_R1_FIXED = struct.Struct("!8xII")
_I2_FIXED = struct.Struct("!6xHIII4x")
_I2BIS_FIXED = struct.Struct("!6xHIII6xHI")
_CAPABILITY_FIXED = struct.Struct("!8xI4x")
_CLOSE_FIXED = struct.Struct("!6xHII2xHI")
_PROBE_FIXED = struct.Struct("!6xHIBB2x")
_RECORD = struct.Struct("!16s16sII")
_PROBE_STATES = tuple(ProbeState)
_PROBE = int(MessageType.PROBE)
_MIN_OCTETS = 8
_TAG_HIGH_MASK = 0x7FFF

# The options that RFC 5533 §5.4-5.11, RFC 5534 §5.3 and docs/wire.md (name, features)
# list for each message.
_ON_I1 = frozenset((opt.NUMBER_ULID_PAIR, opt.NUMBER_FORKED_INSTANCE))
_ON_R1 = frozenset((opt.NUMBER_RESPONDER_VALIDATOR,))
_ON_R2 = frozenset(
    (
        opt.NUMBER_LOCATOR_LIST,
        opt.NUMBER_LOCATOR_PREFERENCES,
        opt.NUMBER_CGA_PARAMETERS,
        opt.NUMBER_CGA_SIGNATURE,
        opt.NUMBER_KEEPALIVE_TIMEOUT,
        opt.NUMBER_SENDER_NAME,
        opt.NUMBER_FEATURES,
        opt.NUMBER_DEMUX,
    )
)
_ON_I2 = _ON_I1 | _ON_R1 | _ON_R2
_ON_UPDATE_ACK = frozenset((opt.NUMBER_SCOPE, opt.NUMBER_PARK_TIME))
_ON_UPDATE = _ON_R2 | _ON_UPDATE_ACK | {opt.NUMBER_LOCATOR_DELTA}
_ON_CAPABILITY = frozenset((opt.NUMBER_FEATURES,))
_ON_REAP = frozenset((opt.NUMBER_PAYLOAD_COUNT,))
_ON_OTHERS: frozenset[int] = frozenset()


def parse_message(octets: bytes) -> Message:
    """Parse the control message at the start of ``octets``, which may go on behind it.

    Checks in this order: P=0 and S=0, lengths, checksum (RFC 5533 §12.3), the type's own
    fields, the options. The addresses of the packet are the caller's to check.

    Raises MalformedMessage, ``pointer`` counted from the start of the shim header:
    TRUNCATED, BAD_LENGTH, BAD_FIELD, BAD_CHECKSUM, BAD_OPTION, MISSING_OPTION,
    CRITICAL_OPTION (pointer at the option's type). Never another exception.
    """
    if len(octets) < _MIN_OCTETS:
        raise MalformedMessage(Reason.TRUNCATED, "shorter than a control header", len(octets))
    number = octets[_TYPE_AT]
    if number & 0x80:
        raise MalformedMessage(Reason.BAD_FIELD, "a payload header, not a message", _TYPE_AT)
    if octets[3] & 1:
        raise MalformedMessage(Reason.BAD_FIELD, "S is 1: a HIP message", 3)
    end = 8 + octets[1] * 8
    if end > len(octets):
        raise MalformedMessage(Reason.BAD_LENGTH, "the message runs past the packet", 1)
    message = octets if end == len(octets) else octets[:end]
    if checksum(message):
        raise MalformedMessage(Reason.BAD_CHECKSUM, "wrong checksum", _CHECKSUM_AT)
    known = _PARSERS.get(number)
    if known is None:
        return UnknownMessage(number, message[6:], message[3] >> 1)
    least, parse = known
    if end < least:
        raise MalformedMessage(Reason.BAD_LENGTH, f"type {number} is at least {least} octets", 1)
    return parse(message)


def encode_message(message: Message) -> bytes:
    """Return the message with its checksum, ready to be the payload of a packet (59 after it).

    Raises ValueError when it would be longer than ``MAX_MESSAGE_OCTETS``.
    """
    specific = 0
    match message:
        case Probe(tag, state, sent, received, options):
            return encode_probe(tag, state, sent, received, options)
        case Keepalive(tag, options):
            number, body = MessageType.KEEPALIVE, _tag_nonce(tag, 0)
        case I1(tag, nonce, options):
            number, body = MessageType.I1, _tag_nonce(tag, nonce)
        case R2(tag, nonce, options):
            number, body = MessageType.R2, _tag_nonce(tag, nonce)
        case R1bis(tag, nonce, options):
            number, body = MessageType.R1BIS, _tag_nonce(tag, nonce)
        case CapabilityRequest(nonce, options):
            number, body = MessageType.CAPABILITY_REQUEST, _CAPABILITY_FIXED.pack(nonce)
        case CapabilityReply(nonce, options):
            number, body = MessageType.CAPABILITY_REPLY, _CAPABILITY_FIXED.pack(nonce)
        case UpdateRequest(tag, nonce, options):
            number, body = MessageType.UPDATE_REQUEST, _tag_nonce(tag, nonce)
        case UpdateAck(tag, nonce, options):
            number, body = MessageType.UPDATE_ACK, _tag_nonce(tag, nonce)
        case Close(tag, nonce, sender_tag, options):
            number, body = MessageType.CLOSE, _two_tags(tag, nonce, sender_tag)
        case CloseAck(tag, nonce, sender_tag, options):
            number, body = MessageType.CLOSE_ACK, _two_tags(tag, nonce, sender_tag)
        case R1(initiator_nonce, responder_nonce, options):
            number, body = MessageType.R1, _R1_FIXED.pack(initiator_nonce, responder_nonce)
        case I2(tag, initiator_nonce, responder_nonce, options):
            number = MessageType.I2
            body = _I2_FIXED.pack(tag >> 32, tag & _MAX_U32, initiator_nonce, responder_nonce)
        case I2bis(tag, initiator_nonce, responder_nonce, packet_tag, options):
            number = MessageType.I2BIS
            body = _I2BIS_FIXED.pack(
                tag >> 32,
                tag & _MAX_U32,
                initiator_nonce,
                responder_nonce,
                packet_tag >> 32,
                packet_tag & _MAX_U32,
            )
        case ErrorMessage(specific, pointer, packet):
            fill = bytes(max(8 - len(packet), -len(packet) % 8))
            head = bytes(6) + pointer.to_bytes(2)
            return _seal(MessageType.ERROR, specific, head + packet + fill)
        case UnknownMessage(number, rest, specific):
            return _seal(number, specific, bytes(6) + rest)
    return _seal(number, 0, body + encode_options(options) if options else body)


def encode_probe(
    tag: Tag,
    state: ProbeState,
    sent: tuple[ProbeRecord, ...],
    received: tuple[ProbeRecord, ...],
    options: tuple[Option, ...],
) -> bytes:
    """Return what ``encode_message`` would for a Probe of these fields."""
    counts = len(received) << 4 | len(sent)
    body = _PROBE_FIXED.pack(tag >> 32, tag & _MAX_U32, counts, state << 6)
    for src, dst, nonce, data in sent + received:
        body += _RECORD.pack(src, dst, nonce, data)
    return _seal(_PROBE, 0, body + encode_options(options) if options else body)


def _seal(number: int, specific: int, body: bytes) -> bytes:
    """Fill in the first 6 octets of a message, which are zero in ``body``.

    The checksum is that of ``checksum``: the words of the head are added to those of the body,
    which are the two numbers themselves modulo 65,535.
    """
    octets = len(body)
    if octets > MAX_MESSAGE_OCTETS:
        raise ValueError(f"a message of {octets} octets; at most {MAX_MESSAGE_OCTETS} go out")
    first, second = NEXT_NONE << 8 | octets // 8 - 1, number << 8 | specific << 1
    summed = -(int.from_bytes(body) + first + second) % 0xFFFF
    return _HEAD.pack(first, second, summed) + body[6:]


def _tag_nonce(tag: Tag, nonce: int) -> bytes:
    return _TAG_NONCE.pack(tag >> 32, tag & _MAX_U32, nonce)


def _two_tags(receiver_tag: Tag, nonce: int, sender_tag: Tag) -> bytes:
    return _CLOSE_FIXED.pack(
        receiver_tag >> 32,
        receiver_tag & _MAX_U32,
        nonce,
        sender_tag >> 32,
        sender_tag & _MAX_U32,
    )


def _parse_i1(octets: bytes) -> I1:
    high, low, nonce = _TAG_NONCE.unpack_from(octets)
    return I1(_tag(high, low), nonce, _options(octets, 16, _ON_I1))


def _parse_r1(octets: bytes) -> R1:
    initiator_nonce, responder_nonce = _R1_FIXED.unpack_from(octets)
    options = _options(octets, 16, _ON_R1)
    _require_validator(options)
    return R1(initiator_nonce, responder_nonce, options)


def _parse_i2(octets: bytes) -> I2:
    high, low, initiator_nonce, responder_nonce = _I2_FIXED.unpack_from(octets)
    options = _options(octets, 24, _ON_I2)
    _require_validator(options)
    return I2(_tag(high, low), initiator_nonce, responder_nonce, options)


def _parse_r2(octets: bytes) -> R2:
    high, low, nonce = _TAG_NONCE.unpack_from(octets)
    return R2(_tag(high, low), nonce, _options(octets, 16, _ON_R2))


def _parse_r1bis(octets: bytes) -> R1bis:
    high, low, nonce = _TAG_NONCE.unpack_from(octets)
    return R1bis(_tag(high, low), nonce, _options(octets, 16, _ON_R1))


def _parse_i2bis(octets: bytes) -> I2bis:
    high, low, initiator_nonce, responder_nonce, packet_high, packet_low = _I2BIS_FIXED.unpack_from(
        octets
    )
    return I2bis(
        _tag(high, low),
        initiator_nonce,
        responder_nonce,
        _tag(packet_high, packet_low),
        _options(octets, 32, _ON_I2),
    )


def _parse_capability_request(octets: bytes) -> CapabilityRequest:
    (nonce,) = _CAPABILITY_FIXED.unpack_from(octets)
    return CapabilityRequest(nonce, _options(octets, 16, _ON_CAPABILITY))


def _parse_capability_reply(octets: bytes) -> CapabilityReply:
    (nonce,) = _CAPABILITY_FIXED.unpack_from(octets)
    return CapabilityReply(nonce, _options(octets, 16, _ON_CAPABILITY))


def _parse_update_request(octets: bytes) -> UpdateRequest:
    high, low, nonce = _TAG_NONCE.unpack_from(octets)
    return UpdateRequest(_tag(high, low), nonce, _options(octets, 16, _ON_UPDATE))


def _parse_update_ack(octets: bytes) -> UpdateAck:
    high, low, nonce = _TAG_NONCE.unpack_from(octets)
    return UpdateAck(_tag(high, low), nonce, _options(octets, 16, _ON_UPDATE_ACK))


def _parse_close(octets: bytes) -> Close:
    high, low, nonce, sender_high, sender_low = _CLOSE_FIXED.unpack_from(octets)
    options = _options(octets, 24, _ON_OTHERS)
    return Close(_tag(high, low), nonce, _tag(sender_high, sender_low), options)


def _parse_close_ack(octets: bytes) -> CloseAck:
    high, low, nonce, sender_high, sender_low = _CLOSE_FIXED.unpack_from(octets)
    options = _options(octets, 24, _ON_OTHERS)
    return CloseAck(_tag(high, low), nonce, _tag(sender_high, sender_low), options)


def _parse_keepalive(octets: bytes) -> Keepalive:
    high, low, _reserved = _TAG_NONCE.unpack_from(octets)
    return Keepalive(_tag(high, low), _options(octets, 16, _ON_REAP))


def _parse_probe(octets: bytes) -> Probe:
    high, low, counts, state = _PROBE_FIXED.unpack_from(octets)
    sent_count, received_count, state = counts & 0x0F, counts >> 4, state >> 6
    if not sent_count:
        raise MalformedMessage(Reason.BAD_FIELD, "a probe without a sent record", 12)
    if state >= len(_PROBE_STATES):
        raise MalformedMessage(Reason.BAD_FIELD, "probe state 3 means nothing", 13)
    sent_end = _PROBE_FIXED.size + _RECORD.size * sent_count
    records_end = sent_end + _RECORD.size * received_count
    if records_end > len(octets):
        raise MalformedMessage(Reason.BAD_LENGTH, "probe records run past the message", 12)
    fields = _RECORD.iter_unpack(octets[_PROBE_FIXED.size : records_end])
    records = tuple(map(ProbeRecord._make, fields))
    options = _options(octets, records_end, _ON_REAP) if records_end < len(octets) else ()
    return Probe._make(
        (
            (high & _TAG_HIGH_MASK) << 32 | low,
            _PROBE_STATES[state],
            records[:sent_count],
            records[sent_count:],
            options,
        )
    )


def _parse_error(octets: bytes) -> ErrorMessage:
    return ErrorMessage(octets[3] >> 1, int.from_bytes(octets[6:8]), octets[8:])


_PARSERS: dict[int, tuple[int, Callable[[bytes], Message]]] = {
    MessageType.I1: (16, _parse_i1),
    MessageType.R1: (16, _parse_r1),
    MessageType.I2: (24, _parse_i2),
    MessageType.R2: (16, _parse_r2),
    MessageType.R1BIS: (16, _parse_r1bis),
    MessageType.I2BIS: (32, _parse_i2bis),
    MessageType.CAPABILITY_REQUEST: (16, _parse_capability_request),
    MessageType.CAPABILITY_REPLY: (16, _parse_capability_reply),
    MessageType.CLOSE: (24, _parse_close),
    MessageType.CLOSE_ACK: (24, _parse_close_ack),
    MessageType.UPDATE_REQUEST: (16, _parse_update_request),
    MessageType.UPDATE_ACK: (16, _parse_update_ack),
    MessageType.KEEPALIVE: (16, _parse_keepalive),
    MessageType.PROBE: (56, _parse_probe),
    MessageType.ERROR: (16, _parse_error),
}
"""By type: the least octets of a message (its fixed fields) and its parser."""


def _tag(high: int, low: int) -> Tag:
    return (high & _TAG_HIGH_MASK) << 32 | low


def _options(octets: bytes, start: int, listed: frozenset[int]) -> tuple[Option, ...]:
    if start == len(octets):
        return ()
    return parse_options(octets, start, listed=listed)


def _require_validator(options: tuple[Option, ...]) -> None:
    if find(options, ResponderValidator) is None:
        raise MalformedMessage(Reason.MISSING_OPTION, "no responder validator", _TYPE_AT)

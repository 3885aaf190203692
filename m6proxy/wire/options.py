"""The codec of the options of shim control messages.

An option is 15 bits of type, the critical bit C, a 16-bit length of the contents alone,
the contents, and zeros up to a multiple of 8 octets (RFC 5533 §5.15). Padding is not
looked at on receipt. A list of options must use up its octets exactly.

Options that we do not know stay values (``UnknownOption``) and round-trip.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from typing import TypeVar

from m6proxy.errors import MalformedMessage
from m6proxy.names import ADDRESS_OCTETS, Prefix
from m6proxy.reasons import Reason
from m6proxy.wire.option_values import (
    BROKEN,
    MAX_NAME_OCTETS,
    METHOD_CGA,
    METHOD_DNS,
    METHOD_HBA,
    NAME_OCTETS,
    TRANSIENT,
    CgaParameters,
    CgaSignature,
    Demux,
    Features,
    ForkedInstance,
    KeepaliveTimeout,
    LocatorDelta,
    LocatorList,
    LocatorPreferences,
    Option,
    ParkTime,
    PayloadCount,
    Preference,
    ResponderValidator,
    Scope,
    SenderName,
    UlidPairOption,
    UnknownOption,
)

__all__ = [
    "BROKEN",
    "MAX_NAME_OCTETS",
    "METHOD_CGA",
    "METHOD_DNS",
    "METHOD_HBA",
    "NUMBER_CGA_PARAMETERS",
    "NUMBER_CGA_SIGNATURE",
    "NUMBER_DEMUX",
    "NUMBER_FEATURES",
    "NUMBER_FORKED_INSTANCE",
    "NUMBER_KEEPALIVE_TIMEOUT",
    "NUMBER_LOCATOR_DELTA",
    "NUMBER_LOCATOR_LIST",
    "NUMBER_LOCATOR_PREFERENCES",
    "NUMBER_PARK_TIME",
    "NUMBER_RESPONDER_VALIDATOR",
    "NUMBER_SCOPE",
    "NUMBER_SENDER_NAME",
    "NUMBER_ULID_PAIR",
    "TRANSIENT",
    "CgaParameters",
    "CgaSignature",
    "Demux",
    "Features",
    "ForkedInstance",
    "KeepaliveTimeout",
    "LocatorDelta",
    "LocatorList",
    "LocatorPreferences",
    "Option",
    "ParkTime",
    "PayloadCount",
    "Preference",
    "ResponderValidator",
    "Scope",
    "SenderName",
    "UlidPairOption",
    "UnknownOption",
    "encode_options",
    "find",
    "parse_options",
]

NUMBER_RESPONDER_VALIDATOR = 1
NUMBER_LOCATOR_LIST = 2
NUMBER_LOCATOR_PREFERENCES = 3
NUMBER_CGA_PARAMETERS = 4
NUMBER_CGA_SIGNATURE = 5
NUMBER_ULID_PAIR = 6
NUMBER_FORKED_INSTANCE = 7
NUMBER_KEEPALIVE_TIMEOUT = 10
NUMBER_SENDER_NAME = 0x4001
"""Ours, from the experimental range of option types (RFC 5533 §17)."""
NUMBER_FEATURES = 0x4002
"""Ours, from the same range."""
NUMBER_LOCATOR_DELTA = 0x4003
"""Ours, from the same range."""
NUMBER_SCOPE = 0x4004
"""Ours, from the same range."""
NUMBER_DEMUX = 0x4005
"""Ours, from the same range."""
NUMBER_PARK_TIME = 0x4006
"""Ours, from the same range."""
NUMBER_PAYLOAD_COUNT = 0x4007
"""Ours, from the same range."""

_MAX_U8 = 0xFF
_MAX_U32 = 0xFFFFFFFF
_MAX_FLOW_LABEL = 0xFFFFF
_TAG_HIGH_MASK = 0x7FFF

_HEAD = struct.Struct("!HH")
_GENERATION_COUNT = struct.Struct("!IB")
_ULID_PAIR = struct.Struct("!4x16s16s")
_U32 = struct.Struct("!I")
_SECONDS = struct.Struct("!2xH")
_DELTA = struct.Struct("!IIBB2x")
_ADDED = struct.Struct("!BBBB16s")
_LOCATOR = struct.Struct("16s")
_SCOPE = struct.Struct("!IIB3x")
_SCOPE_PREFIX = struct.Struct("!BBBB16s")
_SCOPE_TAGS = struct.Struct("!HIHI")


_Wanted = TypeVar("_Wanted", bound=Option)


def find(options: Iterable[Option], cls: type[_Wanted]) -> _Wanted | None:
    """Return the first option of a type, or None."""
    for option in options:
        if isinstance(option, cls):
            return option
    return None


def parse_options(
    octets: bytes, start: int = 0, end: int | None = None, *, listed: frozenset[int] | None = None
) -> tuple[Option, ...]:
    """Parse the options in ``octets[start:end]``; they must use up that range exactly.

    ``listed`` holds the option numbers that the RFC (or docs/wire.md) lists for the
    message; None means all that we know. RFC 5533 §5.15 lets the C bit decide about an
    option that is unknown or not listed: with C=0 it is ignored, which here means that it
    is kept as a value and receivers look up only what they want; with C=1 it is an error.
    A listed option may have either.

    Raises MalformedMessage, ``pointer`` counted from the start of ``octets``: BAD_LENGTH
    when an option runs past the end, CRITICAL_OPTION (pointer at the option's type),
    BAD_OPTION when the contents do not parse.
    """
    if end is None:
        end = len(octets)
    listed = _KNOWN if listed is None else listed
    options: list[Option] = []
    offset = start
    while offset < end:
        if offset + 4 > end:
            raise MalformedMessage(Reason.BAD_LENGTH, "the options end inside an option", offset)
        number, length = _HEAD.unpack_from(octets, offset)
        critical, number = number & 1, number >> 1
        following = offset + 11 + length - (length + 3) % 8
        if following > end:
            raise MalformedMessage(
                Reason.BAD_LENGTH, f"option {number} runs past the message", offset + 2
            )
        if critical and number not in listed:
            raise MalformedMessage(
                Reason.CRITICAL_OPTION, f"critical option {number} is unknown here", offset
            )
        options.append(
            _parse_option(
                number, octets[offset + 4 : offset + 4 + length], offset, number in listed
            )
        )
        offset = following
    return tuple(options)


def encode_options(options: Iterable[Option]) -> bytes:
    """Return the options one after the other; the length is a multiple of 8."""
    return b"".join([_encode_option(option) for option in options])


def _parse_option(number: int, contents: bytes, offset: int, listed: bool) -> Option:
    parse = _PARSERS.get(number)
    if parse is None:
        return UnknownOption(number, False, contents)
    try:
        return parse(contents)
    except _BadContents as error:
        if not listed:
            return UnknownOption(number, False, contents)
        raise MalformedMessage(Reason.BAD_OPTION, f"option {number}: {error}", offset) from None


class _BadContents(Exception):
    """The contents of an option do not parse; becomes MalformedMessage with its place."""


def _parse_locator_list(contents: bytes) -> LocatorList:
    if len(contents) < _GENERATION_COUNT.size:
        raise _BadContents("shorter than its fixed fields")
    generation, count = _GENERATION_COUNT.unpack_from(contents)
    methods_end = _GENERATION_COUNT.size + count
    locators_at = methods_end + _locator_padding(count)
    if len(contents) != locators_at + ADDRESS_OCTETS * count:
        raise _BadContents(f"{len(contents)} octets do not hold {count} locators")
    methods = tuple(contents[_GENERATION_COUNT.size : methods_end])
    locators = tuple([locator for (locator,) in _LOCATOR.iter_unpack(contents[locators_at:])])
    return LocatorList(generation, methods, locators)


def _locator_padding(count: int) -> int:
    """Return the octets between methods and locators: these start on a multiple of 8 octets.

    Before them stand 4 octets of option header, 4 of generation, 1 of count, the methods.
    The padding is part of the option's Length (RFC 5533 §5.15.2).
    """
    return 7 - count % 8


def _parse_preferences(contents: bytes) -> LocatorPreferences:
    if len(contents) < _GENERATION_COUNT.size:
        raise _BadContents("shorter than its fixed fields")
    generation, octets = _GENERATION_COUNT.unpack_from(contents)
    elements = contents[_GENERATION_COUNT.size :]
    if octets == 0 or len(elements) % octets or len(elements) > octets * _MAX_U8:
        raise _BadContents(f"{len(elements)} octets are not whole elements of {octets}")
    preferences = tuple(
        [_preference(element) for (element,) in struct.iter_unpack(f"{octets}s", elements)]
    )
    return LocatorPreferences(generation, octets, preferences)


def _preference(element: bytes) -> Preference:
    flags, priority, weight = (element[:3] + b"\0\0")[:3]
    return Preference(flags, priority, weight, element[3:])


def _parse_ulid_pair(contents: bytes) -> UlidPairOption:
    if len(contents) != _ULID_PAIR.size:
        raise _BadContents("the length of a ULID pair is 36")
    return UlidPairOption(*_ULID_PAIR.unpack(contents))


def _parse_forked_instance(contents: bytes) -> ForkedInstance:
    if len(contents) != _U32.size:
        raise _BadContents("the length of a forked instance identifier is 4")
    return ForkedInstance(int.from_bytes(contents))


def _parse_keepalive_timeout(contents: bytes) -> KeepaliveTimeout:
    if len(contents) != _SECONDS.size:
        raise _BadContents("the length of a keepalive timeout is 4")
    return KeepaliveTimeout(*_SECONDS.unpack(contents))


def _parse_sender_name(contents: bytes) -> SenderName:
    labels: list[bytes] = []
    at = 0
    while at < len(contents):
        length = contents[at]
        if length == 0:
            break
        labels.append(contents[at + 1 : at + 1 + length])
        at += 1 + length
    # A label that holds a dot would turn into two in text form.
    joined = b"".join(labels)
    if at + 1 != len(contents) or joined.translate(None, NAME_OCTETS):
        raise _BadContents("not one DNS name in lower case")
    try:
        return SenderName(b".".join(labels).decode("ascii"))
    except ValueError as error:
        raise _BadContents(str(error)) from None


def _parse_features(contents: bytes) -> Features:
    if len(contents) != _U32.size:
        raise _BadContents("the length of the features is 4")
    return Features(*_U32.unpack(contents))


def _parse_demux(contents: bytes) -> Demux:
    if len(contents) not in (_U32.size, _U32.size + ADDRESS_OCTETS):
        raise _BadContents("the length of demux is 4, or 20 with an address")
    label = int.from_bytes(contents[: _U32.size]) & _MAX_FLOW_LABEL
    return Demux(contents[0], label, contents[_U32.size :] or None)


def _parse_locator_delta(contents: bytes) -> LocatorDelta:
    if len(contents) < _DELTA.size:
        raise _BadContents("shorter than its fixed fields")
    base_generation, generation, added_count, removed_count = _DELTA.unpack_from(contents)
    removed_at = _DELTA.size + _ADDED.size * added_count
    if len(contents) != removed_at + ADDRESS_OCTETS * removed_count:
        raise _BadContents(f"{len(contents)} octets do not hold its locators")
    added = tuple(
        [
            (method, Preference(flags, priority, weight), locator)
            for method, flags, priority, weight, locator in _ADDED.iter_unpack(
                contents[_DELTA.size : removed_at]
            )
        ]
    )
    removed = tuple([locator for (locator,) in _LOCATOR.iter_unpack(contents[removed_at:])])
    return LocatorDelta(base_generation, generation, added, removed)


def _parse_scope(contents: bytes) -> Scope:
    if len(contents) < _SCOPE.size:
        raise _BadContents("shorter than its fixed fields")
    base_generation, generation, count = _SCOPE.unpack_from(contents)
    tags_at = _SCOPE.size + _SCOPE_PREFIX.size * count
    if len(contents) < tags_at or (len(contents) - tags_at) % _SCOPE_TAGS.size:
        raise _BadContents(f"{len(contents)} octets do not hold {count} prefixes and whole tags")
    prefixes = []
    for length, flags, priority, weight, network in _SCOPE_PREFIX.iter_unpack(
        contents[_SCOPE.size : tags_at]
    ):
        try:
            prefixes.append((Prefix(network, length), Preference(flags, priority, weight)))
        except ValueError as error:
            raise _BadContents(str(error)) from None
    tags = tuple(
        [
            ((high & _TAG_HIGH_MASK) << 32 | low, (own_high & _TAG_HIGH_MASK) << 32 | own_low)
            for high, low, own_high, own_low in _SCOPE_TAGS.iter_unpack(contents[tags_at:])
        ]
    )
    return Scope(base_generation, generation, tuple(prefixes), tags)


def _parse_park_time(contents: bytes) -> ParkTime:
    if len(contents) != _U32.size:
        raise _BadContents("the length of a park time is 4")
    return ParkTime(*_U32.unpack(contents))


def _parse_payload_count(contents: bytes) -> PayloadCount:
    if len(contents) != _U32.size:
        raise _BadContents("the length of a payload count is 4")
    return PayloadCount(*_U32.unpack(contents))


_PARSERS: dict[int, Callable[[bytes], Option]] = {
    NUMBER_RESPONDER_VALIDATOR: ResponderValidator,
    NUMBER_LOCATOR_LIST: _parse_locator_list,
    NUMBER_LOCATOR_PREFERENCES: _parse_preferences,
    NUMBER_CGA_PARAMETERS: CgaParameters,
    NUMBER_CGA_SIGNATURE: CgaSignature,
    NUMBER_ULID_PAIR: _parse_ulid_pair,
    NUMBER_FORKED_INSTANCE: _parse_forked_instance,
    NUMBER_KEEPALIVE_TIMEOUT: _parse_keepalive_timeout,
    NUMBER_SENDER_NAME: _parse_sender_name,
    NUMBER_FEATURES: _parse_features,
    NUMBER_LOCATOR_DELTA: _parse_locator_delta,
    NUMBER_DEMUX: _parse_demux,
    NUMBER_SCOPE: _parse_scope,
    NUMBER_PARK_TIME: _parse_park_time,
    NUMBER_PAYLOAD_COUNT: _parse_payload_count,
}
_KNOWN = frozenset(_PARSERS)


def _encode_option(option: Option) -> bytes:
    critical = False
    match option:
        case PayloadCount(packets):  # first, for every Probe has it where modes are used
            number, contents = NUMBER_PAYLOAD_COUNT, _U32.pack(packets)
        case ResponderValidator(validator):
            number, contents = NUMBER_RESPONDER_VALIDATOR, validator
        case LocatorList(generation, methods, locators):
            number = NUMBER_LOCATOR_LIST
            count = len(locators)
            contents = b"".join(
                (
                    _GENERATION_COUNT.pack(generation, count),
                    bytes(methods),
                    bytes(_locator_padding(count)),
                    *locators,
                )
            )
        case LocatorPreferences(generation, octets, preferences):
            number = NUMBER_LOCATOR_PREFERENCES
            elements = [
                bytes((p.flags, p.priority, p.weight))[:octets] + p.rest for p in preferences
            ]
            contents = _GENERATION_COUNT.pack(generation, octets) + b"".join(elements)
        case CgaParameters(contents):
            number = NUMBER_CGA_PARAMETERS
        case CgaSignature(contents):
            number = NUMBER_CGA_SIGNATURE
        case UlidPairOption(sender, receiver):
            number, contents = NUMBER_ULID_PAIR, _ULID_PAIR.pack(sender, receiver)
        case ForkedInstance(fii):
            number, contents = NUMBER_FORKED_INSTANCE, _U32.pack(fii)
        case KeepaliveTimeout(seconds):
            number, contents = NUMBER_KEEPALIVE_TIMEOUT, _SECONDS.pack(seconds)
        case SenderName(name):
            number = NUMBER_SENDER_NAME
            labels = name.encode("ascii").split(b".")
            contents = b"".join([bytes((len(label),)) + label for label in labels]) + b"\0"
        case Features(bits):
            number, contents = NUMBER_FEATURES, _U32.pack(bits)
        case LocatorDelta(base_generation, generation, added, removed):
            number = NUMBER_LOCATOR_DELTA
            contents = b"".join(
                (
                    _DELTA.pack(base_generation, generation, len(added), len(removed)),
                    *(
                        _ADDED.pack(method, p.flags, p.priority, p.weight, locator)
                        for method, p, locator in added
                    ),
                    *removed,
                )
            )
        case Demux(mode, label, stand_in):
            number, contents = NUMBER_DEMUX, _U32.pack(mode << 24 | label) + (stand_in or b"")
        case Scope(base_generation, generation, prefixes, tags):
            number = NUMBER_SCOPE
            contents = b"".join(
                (
                    _SCOPE.pack(base_generation, generation, len(prefixes)),
                    *(
                        _SCOPE_PREFIX.pack(
                            prefix.length, p.flags, p.priority, p.weight, prefix.network
                        )
                        for prefix, p in prefixes
                    ),
                    *(
                        _SCOPE_TAGS.pack(tag >> 32, tag & _MAX_U32, own >> 32, own & _MAX_U32)
                        for tag, own in tags
                    ),
                )
            )
        case ParkTime(seconds):
            number, contents = NUMBER_PARK_TIME, _U32.pack(seconds)
        case UnknownOption(number, critical, contents):
            pass
    length = len(contents)
    return _HEAD.pack(number << 1 | critical, length) + contents + bytes(7 - (length + 3) % 8)

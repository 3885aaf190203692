"""The options of shim control messages, as values, and their codec.

An option is 15 bits of type, the critical bit C, a 16-bit length of the contents alone,
the contents, and zeros up to a multiple of 8 octets (RFC 5533 §5.15). Padding is not
looked at on receipt. A list of options must use up its octets exactly.

Options that we do not know stay values (``UnknownOption``) and round-trip.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

from m6proxy.errors import MalformedMessage
from m6proxy.names import ADDRESS_OCTETS, Address
from m6proxy.reasons import Reason

# Verification methods. RFC 5533 contradicts itself: Table 4 (§5.15.2) has 1=HBA, 2=CGA,
# §17 the reverse. LinShim6 and Wireshark follow Table 4, and so do we.
METHOD_HBA = 1
METHOD_CGA = 2
METHOD_DNS = 201
"""Ours, from the experimental range 201-254: the sender's name in DNS proves the locator."""

BROKEN = 0x01
"""Preference flag: the locator is known not to work."""
TRANSIENT = 0x02
"""Preference flag: the locator is less stable than the others."""

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
NUMBER_DEMUX = 0x4005
"""Ours, from the same range."""

MAX_NAME_OCTETS = 253
"""Of a DNS name in text form without the final dot."""

_MAX_U8 = 0xFF
_MAX_U16 = 0xFFFF
_MAX_U32 = 0xFFFFFFFF
_MAX_LABEL_OCTETS = 63
_MAX_FLOW_LABEL = 0xFFFFF
_MAX_NUMBER = 0x7FFF
_NAME_OCTETS = b"abcdefghijklmnopqrstuvwxyz0123456789-_"

_HEAD = struct.Struct("!HH")
_GENERATION_COUNT = struct.Struct("!IB")
_ULID_PAIR = struct.Struct("!4x16s16s")
_U32 = struct.Struct("!I")
_SECONDS = struct.Struct("!2xH")
_DELTA = struct.Struct("!IIBB2x")
_ADDED = struct.Struct("!BBBB16s")
_LOCATOR = struct.Struct("16s")


@dataclass(frozen=True, slots=True)
class ResponderValidator:
    """RFC 5533 §5.15.1: what only the responder can check (type 1)."""

    validator: bytes

    def __post_init__(self) -> None:
        _check_contents(self.validator)


@dataclass(frozen=True, slots=True)
class LocatorList:
    """RFC 5533 §5.15.2: all locators of the sender, in the order that preferences refer to."""

    generation: int
    """32 bits; one more for each new list."""
    methods: tuple[int, ...]
    """One verification method (0 to 255) for each locator. Not judged here."""
    locators: tuple[Address, ...]
    """At most 255."""

    def __post_init__(self) -> None:
        _check_u32(self.generation)
        if len(self.methods) != len(self.locators) or len(self.locators) > _MAX_U8:
            raise ValueError("one method for each of at most 255 locators")
        for locator in self.locators:
            _check_address(locator)
        if self.methods and not 0 <= min(self.methods) <= max(self.methods) <= _MAX_U8:
            raise ValueError("a verification method is 8 bits")


@dataclass(frozen=True, slots=True)
class Preference:
    """One element of LocatorPreferences; what a short element leaves out is 0."""

    flags: int
    """``BROKEN``, ``TRANSIENT``, other bits as they came."""
    priority: int = 0
    """As in DNS SRV: lower is tried first. Sent in elements of 2 octets or more."""
    weight: int = 0
    """As in DNS SRV. Sent in elements of 3 octets or more."""
    rest: bytes = b""
    """Octets 4 and up of longer elements: no meaning yet, kept."""

    def __post_init__(self) -> None:
        if not (
            0 <= self.flags <= _MAX_U8
            and 0 <= self.priority <= _MAX_U8
            and 0 <= self.weight <= _MAX_U8
        ):
            raise ValueError("flags, priority and weight are 8 bits each")


@dataclass(frozen=True, slots=True)
class LocatorPreferences:
    """RFC 5533 §5.15.3: one preference for each locator of the list with this generation."""

    generation: int
    element_octets: int
    """1 (flags), 2 (and priority), 3 (and weight); up to 255, the rest is kept unread."""
    preferences: tuple[Preference, ...]

    def __post_init__(self) -> None:
        _check_u32(self.generation)
        octets = self.element_octets
        if not 1 <= octets <= _MAX_U8 or len(self.preferences) > _MAX_U8:
            raise ValueError("elements have 1 to 255 octets, and there are at most 255")
        rest_octets = max(0, octets - 3)
        for preference in self.preferences:
            if (
                len(preference.rest) != rest_octets
                or (preference.priority and octets < 2)
                or (preference.weight and octets < 3)
            ):
                raise ValueError(f"{preference} does not fit an element of {octets} octets")


@dataclass(frozen=True, slots=True)
class CgaParameters:
    """RFC 5533 §5.15.4: a CGA Parameter Data Structure (RFC 3972 §3), not parsed here."""

    octets: bytes

    def __post_init__(self) -> None:
        _check_contents(self.octets)


@dataclass(frozen=True, slots=True)
class CgaSignature:
    """RFC 5533 §5.15.5: a PKCS#1 v1.5 signature, not parsed here."""

    octets: bytes

    def __post_init__(self) -> None:
        _check_contents(self.octets)


@dataclass(frozen=True, slots=True)
class UlidPairOption:
    """RFC 5533 §5.15.6: the ULIDs, when they are not the addresses of the packet."""

    sender: Address
    receiver: Address

    def __post_init__(self) -> None:
        _check_address(self.sender)
        _check_address(self.receiver)


@dataclass(frozen=True, slots=True)
class ForkedInstance:
    """RFC 5533 §5.15.7: which of several contexts of one ULID pair is meant."""

    fii: int
    """32 bits."""

    def __post_init__(self) -> None:
        _check_u32(self.fii)


@dataclass(frozen=True, slots=True)
class KeepaliveTimeout:
    """RFC 5534 §5.3: the Keepalive Timeout that the sender wants the peer to use."""

    seconds: int
    """16 bits."""

    def __post_init__(self) -> None:
        if not 0 <= self.seconds <= _MAX_U16:
            raise ValueError("a keepalive timeout is 16 bits")


@dataclass(frozen=True, slots=True)
class SenderName:
    """The DNS name of the sending host: ours, experimental, never critical (docs/wire.md)."""

    name: str
    """Lower case letters, digits, ``-``, ``_``, dots between labels, none at the end."""

    def __post_init__(self) -> None:
        if not self.name.isascii():
            raise ValueError(f"{self.name!r} is not a DNS name")
        text = self.name.encode("ascii")
        labels = text.split(b".")
        if (
            len(text) > MAX_NAME_OCTETS
            or text.translate(None, _NAME_OCTETS + b".")
            or not all(0 < len(label) <= _MAX_LABEL_OCTETS for label in labels)
        ):
            raise ValueError(f"{self.name!r} is not a lower-case DNS name without the final dot")


@dataclass(frozen=True, slots=True)
class Features:
    """Which of our extensions the sender understands: ours, never critical (docs/wire.md)."""

    bits: int
    """32 bits; unknown ones are kept and mean nothing."""

    def __post_init__(self) -> None:
        _check_u32(self.bits)


@dataclass(frozen=True, slots=True)
class Demux:
    """How packets to the sender may find the context: ours, never critical (docs/wire.md)."""

    mode: int
    """8 bits: 0 payload header, 1 flow label, 2 nothing, 3 destination option; others are kept and
    mean 0."""
    label: int = 0
    """20 bits: the flow label that the sender chose, 0 when there is none."""
    stand_in: Address | None = None
    """16 octets: a locator-only address in the place of the sender's ULID, if there is one."""

    def __post_init__(self) -> None:
        if self.stand_in is not None:
            _check_address(self.stand_in)
        if not 0 <= self.mode <= _MAX_U8 or not 0 <= self.label <= _MAX_FLOW_LABEL:
            raise ValueError("a mode is 8 bits and a flow label 20")


@dataclass(frozen=True, slots=True)
class LocatorDelta:
    """How a locator list differs from an earlier one: ours, never critical (docs/wire.md)."""

    base_generation: int
    """32 bits: that of the list that it changes."""
    generation: int
    """32 bits: that of the list that it makes."""
    added: tuple[tuple[int, Preference, Address], ...]
    """At most 255 locators that are new or have another preference, with their methods (0 to
    255). The preferences have no octets after the weight."""
    removed: tuple[Address, ...]
    """At most 255, taken away before the others are added."""

    def __post_init__(self) -> None:
        _check_u32(self.base_generation)
        _check_u32(self.generation)
        if len(self.added) > _MAX_U8 or len(self.removed) > _MAX_U8:
            raise ValueError("at most 255 locators each are added and removed")
        for method, preference, locator in self.added:
            _check_address(locator)
            if not 0 <= method <= _MAX_U8 or preference.rest:
                raise ValueError("a method of 8 bits, and preferences of three octets")
        for locator in self.removed:
            _check_address(locator)


@dataclass(frozen=True, slots=True)
class UnknownOption:
    """An option that nobody here understands, or one out of place whose contents do not parse."""

    number: int
    """15 bits."""
    critical: bool
    """Never true in what ``parse_options`` returns: there it is an error."""
    contents: bytes

    def __post_init__(self) -> None:
        if not 0 <= self.number <= _MAX_NUMBER:
            raise ValueError("an option number is 15 bits")
        _check_contents(self.contents)


Option: TypeAlias = (
    ResponderValidator
    | LocatorList
    | LocatorPreferences
    | CgaParameters
    | CgaSignature
    | UlidPairOption
    | ForkedInstance
    | KeepaliveTimeout
    | SenderName
    | Features
    | LocatorDelta
    | Demux
    | UnknownOption
)

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
    if at + 1 != len(contents) or joined.translate(None, _NAME_OCTETS):
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
}
_KNOWN = frozenset(_PARSERS)


def _encode_option(option: Option) -> bytes:
    critical = False
    match option:
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
        case UnknownOption(number, critical, contents):
            pass
    length = len(contents)
    return _HEAD.pack(number << 1 | critical, length) + contents + bytes(7 - (length + 3) % 8)


def _check_u32(number: int) -> None:
    if not 0 <= number <= _MAX_U32:
        raise ValueError(f"{number} does not fit 32 bits")


def _check_address(octets: Address) -> None:
    if len(octets) != ADDRESS_OCTETS:
        raise ValueError("an address is 16 octets")


def _check_contents(octets: bytes) -> None:
    if len(octets) > _MAX_U16:
        raise ValueError(f"{len(octets)} octets do not fit one option")

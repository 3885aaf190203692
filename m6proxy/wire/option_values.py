"""The options of shim control messages as values; ``options`` holds their codec.

What a field cannot hold is refused at construction. Options that we do not know stay values
(``UnknownOption``) and round-trip.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from m6proxy.names import ADDRESS_OCTETS, TAG_MASK, Address, Prefix, Tag

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

MAX_NAME_OCTETS = 253
"""Of a DNS name in text form without the final dot."""

_MAX_U8 = 0xFF
_MAX_U16 = 0xFFFF
_MAX_U32 = 0xFFFFFFFF
_MAX_LABEL_OCTETS = 63
_MAX_FLOW_LABEL = 0xFFFFF
_MAX_NUMBER = 0x7FFF
NAME_OCTETS = b"abcdefghijklmnopqrstuvwxyz0123456789-_"
"""What a label may consist of."""


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
            or text.translate(None, NAME_OCTETS + b".")
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
class Scope:
    """Several contexts that one message is about: ours, never critical (docs/wire.md)."""

    base_generation: int
    """32 bits: that of the list of each context, which the message changes."""
    generation: int
    """32 bits: that of the list that results."""
    prefixes: tuple[tuple[Prefix, Preference], ...]
    """At most 255: what is said of the sender's locators in each of them, in all contexts. The
    preferences have no octets after the weight."""
    tags: tuple[tuple[Tag, Tag], ...]
    """Of each context the receiver's and the sender's tag."""

    def __post_init__(self) -> None:
        _check_u32(self.base_generation)
        _check_u32(self.generation)
        if len(self.prefixes) > _MAX_U8 or any(p.rest for _, p in self.prefixes):
            raise ValueError("at most 255 prefixes, with preferences of three octets")
        if not all(0 <= tag <= TAG_MASK for pair in self.tags for tag in pair):
            raise ValueError("a context tag is 47 bits")


@dataclass(frozen=True, slots=True)
class ParkTime:
    """How long the contexts shall, or may, be parked: ours, never critical (docs/wire.md)."""

    seconds: int
    """32 bits."""

    def __post_init__(self) -> None:
        _check_u32(self.seconds)


@dataclass(frozen=True, slots=True)
class PayloadCount:
    """How many payload packets of the context arrived, in a Probe, or were sent, in a Keepalive:
    ours, never critical (docs/wire.md)."""

    packets: int
    """32 bits: modulo 2^32."""

    def __post_init__(self) -> None:
        _check_u32(self.packets)

    @classmethod
    def of(cls, packets: int) -> PayloadCount:
        """Of so many packets, however many these are."""
        return cls(packets & _MAX_U32)


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
    | Scope
    | ParkTime
    | PayloadCount
    | UnknownOption
)


def _check_u32(number: int) -> None:
    if not 0 <= number <= _MAX_U32:
        raise ValueError(f"{number} does not fit 32 bits")


def _check_address(octets: Address) -> None:
    if len(octets) != ADDRESS_OCTETS:
        raise ValueError("an address is 16 octets")


def _check_contents(octets: bytes) -> None:
    if len(octets) > _MAX_U16:
        raise ValueError(f"{len(octets)} octets do not fit one option")

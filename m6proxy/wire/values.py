"""The shim control messages as values (RFC 5533 §5.4-5.14, RFC 5534 §5.1-5.2).

Tags are 47 bits and nonces 32, checked at construction; ``message`` holds the codec.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple, TypeAlias

from m6proxy.names import ADDRESS_OCTETS, TAG_MASK, Address, Tag
from m6proxy.wire.ipv6 import HEADER_OCTETS, MIN_MTU
from m6proxy.wire.options import Option, ResponderValidator, find

MAX_MESSAGE_OCTETS = MIN_MTU - HEADER_OCTETS
"""Of a message that we send: packets are at most 1,280 octets (RFC 5533 §5.1)."""

MAX_QUOTE_OCTETS = MAX_MESSAGE_OCTETS - 8
"""Of the packet that an error message quotes."""

MAX_PROBE_RECORDS = 15
"""Of each kind in one probe: the counts have 4 bits."""

_MAX_U32 = 0xFFFFFFFF


class MessageType(IntEnum):
    """RFC 5533 §5.3, Table 1; 60 to 63 are ours (docs/wire.md)."""

    I1 = 1
    R1 = 2
    I2 = 3
    R2 = 4
    R1BIS = 5
    I2BIS = 6
    CAPABILITY_REQUEST = 60
    CAPABILITY_REPLY = 61
    CLOSE = 62
    CLOSE_ACK = 63
    UPDATE_REQUEST = 64
    UPDATE_ACK = 65
    KEEPALIVE = 66
    PROBE = 67
    ERROR = 68


_KNOWN = frozenset(MessageType)


class ProbeState(IntEnum):
    """What the sender of a probe says of itself (RFC 5534 §5.2)."""

    __hash__ = int.__hash__  # Enum's own hashes the name, in Python

    OPERATIONAL = 0
    EXPLORING = 1
    INBOUND_OK = 2


class ErrorCode(IntEnum):
    """RFC 5533 §5.14, Table 2."""

    UNKNOWN_TYPE = 0
    CRITICAL_OPTION = 1
    METHOD_FAILED = 2
    GENERATION_OUT_OF_SYNC = 3
    PREFERENCE_COUNT = 4
    NO_CONTEXT = 120
    """Ours, from the range for experiments: a packet without a tag met no context."""


@dataclass(frozen=True, slots=True)
class I1:
    """RFC 5533 §5.4: asks for a context."""

    initiator_tag: Tag
    initiator_nonce: int
    options: tuple[Option, ...] = ()

    def __post_init__(self) -> None:
        _check_fields(self.initiator_tag, self.initiator_nonce)


@dataclass(frozen=True, slots=True)
class R1:
    """RFC 5533 §5.5: the answer to I1 that costs its sender no state. Carries a validator."""

    initiator_nonce: int
    responder_nonce: int
    options: tuple[Option, ...]

    def __post_init__(self) -> None:
        _check_fields(0, self.initiator_nonce, self.responder_nonce)
        _check_validator(self.options)


@dataclass(frozen=True, slots=True)
class I2:
    """RFC 5533 §5.6: gives back nonce and validator of R1, with the initiator's locators."""

    initiator_tag: Tag
    initiator_nonce: int
    responder_nonce: int
    options: tuple[Option, ...]

    def __post_init__(self) -> None:
        _check_fields(self.initiator_tag, self.initiator_nonce, self.responder_nonce)
        _check_validator(self.options)


@dataclass(frozen=True, slots=True)
class R2:
    """RFC 5533 §5.7: ends the exchange, with the responder's tag and locators."""

    responder_tag: Tag
    initiator_nonce: int
    options: tuple[Option, ...] = ()

    def __post_init__(self) -> None:
        _check_fields(self.responder_tag, self.initiator_nonce)


@dataclass(frozen=True, slots=True)
class R1bis:
    """RFC 5533 §5.8: a packet came with a tag that has no context here."""

    packet_tag: Tag
    """The tag of that packet."""
    responder_nonce: int
    options: tuple[Option, ...]

    def __post_init__(self) -> None:
        _check_fields(self.packet_tag, self.responder_nonce)


@dataclass(frozen=True, slots=True)
class I2bis:
    """RFC 5533 §5.9: the answer to R1bis, which restores the lost context."""

    initiator_tag: Tag
    initiator_nonce: int
    responder_nonce: int
    packet_tag: Tag
    """Copied from R1bis."""
    options: tuple[Option, ...]

    def __post_init__(self) -> None:
        _check_fields(self.initiator_tag, self.initiator_nonce, self.responder_nonce)
        _check_fields(self.packet_tag)


@dataclass(frozen=True, slots=True)
class CapabilityRequest:
    """docs/wire.md: asks whether the receiver speaks the protocol at all."""

    nonce: int
    options: tuple[Option, ...] = ()

    def __post_init__(self) -> None:
        _check_fields(0, self.nonce)


@dataclass(frozen=True, slots=True)
class CapabilityReply:
    """docs/wire.md: it does. Never longer than the request that it answers."""

    nonce: int
    """Copied from the request."""
    options: tuple[Option, ...] = ()

    def __post_init__(self) -> None:
        _check_fields(0, self.nonce)


@dataclass(frozen=True, slots=True)
class UpdateRequest:
    """RFC 5533 §5.10: the sender's locators or preferences changed."""

    receiver_tag: Tag
    request_nonce: int
    options: tuple[Option, ...] = ()

    def __post_init__(self) -> None:
        _check_fields(self.receiver_tag, self.request_nonce)


@dataclass(frozen=True, slots=True)
class UpdateAck:
    """RFC 5533 §5.11: the answer to UpdateRequest."""

    receiver_tag: Tag
    request_nonce: int
    options: tuple[Option, ...] = ()

    def __post_init__(self) -> None:
        _check_fields(self.receiver_tag, self.request_nonce)


@dataclass(frozen=True, slots=True)
class Close:
    """Ours (docs/wire.md): the sender ends the context and restores no packets any more."""

    receiver_tag: Tag
    nonce: int
    sender_tag: Tag
    """CT(local) of the sender: who knows one tag only ends nothing."""
    options: tuple[Option, ...] = ()

    def __post_init__(self) -> None:
        _check_fields(self.receiver_tag, self.nonce)
        _check_fields(self.sender_tag)


@dataclass(frozen=True, slots=True)
class CloseAck:
    """Ours (docs/wire.md): the answer to Close; the sender has no such context now."""

    receiver_tag: Tag
    nonce: int
    """Copied from the Close."""
    sender_tag: Tag
    options: tuple[Option, ...] = ()

    def __post_init__(self) -> None:
        _check_fields(self.receiver_tag, self.nonce)
        _check_fields(self.sender_tag)


@dataclass(frozen=True, slots=True)
class Keepalive:
    """RFC 5534 §5.1: the sender receives payload and has none to send."""

    receiver_tag: Tag
    options: tuple[Option, ...] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.receiver_tag <= TAG_MASK:
            raise ValueError(f"tag {self.receiver_tag} does not fit 47 bits")


class _RecordFields(NamedTuple):
    src: Address
    dst: Address
    nonce: int
    """32 bits."""
    data: int
    """32 bits without a meaning, copied back."""


class ProbeRecord(_RecordFields):
    """RFC 5534 §5.2: one probe that was sent or received; 40 octets.

    A tuple, because a search makes and compares many of them; ``_make`` is for fields that
    were just parsed and cannot be wrong.
    """

    __slots__ = ()

    def __new__(cls, src: Address, dst: Address, nonce: int, data: int = 0) -> ProbeRecord:
        """Raises ValueError when a field has not its size."""
        if len(src) != ADDRESS_OCTETS or len(dst) != ADDRESS_OCTETS:
            raise ValueError("an address is 16 octets")
        _check_fields(0, nonce, data)
        return super().__new__(cls, src, dst, nonce, data)


class _ProbeFields(NamedTuple):
    receiver_tag: Tag
    state: ProbeState
    sent: tuple[ProbeRecord, ...]
    """1 to 15; the first describes this very probe."""
    received: tuple[ProbeRecord, ...] = ()
    """0 to 15."""
    options: tuple[Option, ...] = ()


class Probe(_ProbeFields):
    """RFC 5534 §5.2: tests one locator pair and tells which ones were heard.

    An InboundOk probe without a received record is accepted, although §5.2 demands one:
    §6.1 sends just that when payload, and no probe, ended the silence. A tuple, as its
    records are; ``_make`` is for fields that cannot be wrong.
    """

    __slots__ = ()

    def __new__(
        cls,
        receiver_tag: Tag,
        state: ProbeState,
        sent: tuple[ProbeRecord, ...],
        received: tuple[ProbeRecord, ...] = (),
        options: tuple[Option, ...] = (),
    ) -> Probe:
        """Raises ValueError when the tag does not fit 47 bits, or the records their counts."""
        if not 0 <= receiver_tag <= TAG_MASK:
            raise ValueError(f"tag {receiver_tag} does not fit 47 bits")
        if not 1 <= len(sent) <= MAX_PROBE_RECORDS or len(received) > MAX_PROBE_RECORDS:
            raise ValueError("a probe has 1 to 15 sent and 0 to 15 received records")
        return super().__new__(cls, receiver_tag, state, sent, received, options)


@dataclass(frozen=True, slots=True)
class ErrorMessage:
    """RFC 5533 §5.14: the receiver could not use a message of ours."""

    code: int
    """7 bits: an ``ErrorCode`` or another number."""
    pointer: int
    """16 bits: offset of the fault in ``packet``, counted from its IPv6 header."""
    packet: bytes
    """The start of the packet in error, at most ``MAX_QUOTE_OCTETS``. When parsed, with the
    zeros that fill it up to a multiple of 8 octets (at least 8)."""

    def __post_init__(self) -> None:
        if not 0 <= self.code <= 0x7F or not 0 <= self.pointer <= 0xFFFF:
            raise ValueError("an error code is 7 bits and a pointer 16")


@dataclass(frozen=True, slots=True)
class UnknownMessage:
    """A message of a type that nobody here understands; answered with ErrorCode 0."""

    number: int
    """7 bits: the type."""
    body: bytes
    """What follows the checksum: 2 octets and then a multiple of 8."""
    specific: int = 0
    """The 7 type-specific bits."""

    def __post_init__(self) -> None:
        if self.number in _KNOWN or not 0 <= self.number <= 0x7F:
            raise ValueError(f"{self.number} is not the number of an unknown type")
        if len(self.body) % 8 != 2 or not 0 <= self.specific <= 0x7F:
            raise ValueError("a body is 2 octets and a multiple of 8; type-specific bits are 7")


Message: TypeAlias = (
    I1
    | R1
    | I2
    | R2
    | R1bis
    | I2bis
    | CapabilityRequest
    | CapabilityReply
    | UpdateRequest
    | UpdateAck
    | Close
    | CloseAck
    | Keepalive
    | Probe
    | ErrorMessage
    | UnknownMessage
)


def _check_validator(options: tuple[Option, ...]) -> None:
    if find(options, ResponderValidator) is None:
        raise ValueError("R1 and I2 carry a responder validator")


def _check_fields(tag: Tag, *words: int) -> None:
    if not 0 <= tag <= TAG_MASK:
        raise ValueError(f"tag {tag} does not fit 47 bits")
    for word in words:
        if not 0 <= word <= _MAX_U32:
            raise ValueError(f"{word} does not fit 32 bits")

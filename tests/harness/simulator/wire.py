"""Where the few fields stand that the watchers read; octets from the start of the packet.

Read here by offset and not by the package's parser, so that a fault in the parser does not
blind the watchers with it, and because every packet is looked at.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

from m6proxy.names import TAG_MASK, Address

SHIM: Final = 140
OPTIONS: Final = 60
TAG_OPTION: Final = 0x9E
I1: Final = 1
R1: Final = 2
I2: Final = 3
R2: Final = 4
R1BIS: Final = 5
I2BIS: Final = 6
CAPABILITY_REQUEST: Final = 60
CLOSE: Final = 62
CLOSE_ACK: Final = 63
UPDATE_REQUEST: Final = 64
KEEPALIVE: Final = 66
PROBE: Final = 67
TAGGED: Final = range(64, 68)
"""Types that name their receiver's context by its tag."""

_RECORDS_AT: Final = 56
_RECORD_OCTETS: Final = 40


class Record(NamedTuple):
    """A probe record without its data field."""

    src: Address
    dst: Address
    nonce: bytes


def is_shim(packet: bytes) -> bool:
    """Tell whether a shim header follows the fixed header."""
    return packet[6] == SHIM


def is_payload(packet: bytes) -> bool:
    """Tell whether a shim packet carries a payload header, not a control message."""
    return bool(packet[42] & 0x80)


def tag_of(packet: bytes) -> int:
    """The tag of a payload header."""
    return int.from_bytes(packet[42:48]) & TAG_MASK


def type_of(packet: bytes) -> int:
    """The type of a control message."""
    return packet[42] & 0x7F


def named_tag(packet: bytes) -> int:
    """The tag that a control message names; meaningless in R1 and Error."""
    return int.from_bytes(packet[46:52]) & TAG_MASK


def flow_label(packet: bytes) -> int:
    """The flow label; hosts here send 0."""
    return int.from_bytes(packet[1:4]) & 0xFFFFF


def has_tag_option(packet: bytes) -> bool:
    """Whether the context tag is in an option; hosts here send other options."""
    return packet[6] == OPTIONS and packet[42] == TAG_OPTION


def nonce_of(packet: bytes) -> bytes:
    """The initiator's nonce of I1, I2, R2 and I2bis."""
    return packet[52:56]


def probe_state(packet: bytes) -> int:
    """The Sta field of a Probe."""
    return packet[53] >> 6


def sent_record(packet: bytes) -> Record:
    """The record of a Probe that describes itself."""
    return _record(packet, _RECORDS_AT)


def received_records(packet: bytes) -> Iterator[Record]:
    """The records of a Probe that report what its sender received."""
    received, sent = packet[52] >> 4, packet[52] & 0x0F
    start = _RECORDS_AT + sent * _RECORD_OCTETS
    for at in range(start, start + received * _RECORD_OCTETS, _RECORD_OCTETS):
        yield _record(packet, at)


def _record(packet: bytes, at: int) -> Record:
    return Record(packet[at : at + 16], packet[at + 16 : at + 32], packet[at + 32 : at + 36])

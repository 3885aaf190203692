"""The shim payload extension header: 8 octets before the payload of a re-homed context.

RFC 5533 §5.2: Next Header, Hdr Ext Len 0, then the P bit (1) and the receiver's 47-bit
context tag. P=1 means payload: §12 says the opposite in its prose, but the pictures of
§5.1 to §5.3, LinShim6 and Wireshark all agree on 1.
"""

from __future__ import annotations

from m6proxy.errors import MalformedMessage
from m6proxy.names import TAG_MASK, Tag
from m6proxy.reasons import Reason

PAYLOAD_HEADER_OCTETS = 8

_PAYLOAD_BIT = 1 << 47


def payload_header(next_header: int, tag: Tag) -> bytes:
    """Return the 8 octets that go before the payload; ``tag`` is the receiver's.

    Raises ValueError when an argument does not fit its field.
    """
    if not 0 <= tag <= TAG_MASK or not 0 <= next_header <= 0xFF:
        raise ValueError("a tag is 47 bits and a next header 8")
    return (next_header << 56 | _PAYLOAD_BIT | tag).to_bytes(PAYLOAD_HEADER_OCTETS)


def parse_payload_header(octets: bytes) -> tuple[int, Tag]:
    """Return the next header and the tag. ``octets`` may go on behind the header.

    Raises MalformedMessage: TRUNCATED when shorter than 8 octets, BAD_FIELD when P is 0,
    BAD_LENGTH when Hdr Ext Len is not 0.
    """
    if len(octets) < PAYLOAD_HEADER_OCTETS:
        raise MalformedMessage(Reason.TRUNCATED, "shorter than a payload header", len(octets))
    word = int.from_bytes(octets[:PAYLOAD_HEADER_OCTETS])
    if not word & _PAYLOAD_BIT:
        raise MalformedMessage(Reason.BAD_FIELD, "a control message, not a payload header", 2)
    if octets[1]:
        raise MalformedMessage(Reason.BAD_LENGTH, "a payload header is 8 octets", 1)
    return word >> 56, word & TAG_MASK


def is_payload(octets: bytes, offset: int = 0) -> bool:
    """Tell whether the shim header at ``offset`` is a payload header (P=1).

    False also when the octets end before the P bit.
    """
    return len(octets) > offset + 2 and octets[offset + 2] & 0x80 != 0

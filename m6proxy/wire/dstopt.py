"""The context tag as a destination option: another form of the payload header, 8 octets too.

A Destination Options header of our own stands where the payload header would: Hdr Ext Len 0,
and one option of type 0x9e with 4 octets of data, the low 32 bits of the receiver's context
tag. 0x9e is experimental (RFC 4727 §3.2), and its first bits say what who does not know it
must do: discard the packet and tell its source (RFC 8200 §4.2).
"""

from __future__ import annotations

from typing import Final

from m6proxy.names import Tag
from m6proxy.wire.ipv6 import Walk, destination_options
from m6proxy.wire.payload import PAYLOAD_HEADER_OCTETS

OPTION_TYPE: Final = 0x9E
SHORT_BITS: Final = 32
SHORT_MASK: Final = (1 << SHORT_BITS) - 1
_HEAD: Final = bytes((0, OPTION_TYPE, 4))
"""Hdr Ext Len, option type, option data length."""


def short_tag(tag: Tag) -> int:
    """The 32 bits of a context tag that the option has room for."""
    return tag & SHORT_MASK


def option_tail(tag: Tag) -> bytes:
    """The last 7 octets of the header with the option; the first is its Next Header."""
    return _HEAD + (tag & SHORT_MASK).to_bytes(4)


def option_tag(packet: bytes, offset: int) -> int:
    """The 32 bits in the option whose header, which ``find_tag_option`` found, is at ``offset``."""
    return int.from_bytes(packet[offset + 4 : offset + PAYLOAD_HEADER_OCTETS])


def find_tag_option(packet: bytes, *, whole: bool = True) -> Walk | None:
    """Find the header with the tag option in a packet; None when its chain has none.

    Only a header as ``option_tail`` makes it counts. A shim header, a fragment header, AH, ESP
    or the upper layer ends the search. ``whole=False`` is for a packet that an ICMPv6 error
    quotes. Raises MalformedMessage as ``walk`` does.
    """
    for place in destination_options(packet, whole=whole):
        if packet[place.offset + 1 : place.offset + 4] == _HEAD:
            return place
    return None

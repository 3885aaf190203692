"""IPv6 packets: build one, find the place of the shim header, find the upper layer.

These functions see every packet of the packet path. The usual packet has no extension
header and leaves each of them after a few comparisons.

The place of the shim header (RFC 5533 §4.6, §11.1): after hop-by-hop options, routing
headers, and destination options that a routing header follows; before everything else.
A chain holds at most ``MAX_HEADERS`` extension headers; a longer one is refused.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

from m6proxy.errors import MalformedMessage
from m6proxy.names import ADDRESS_OCTETS, Address
from m6proxy.reasons import Reason

NEXT_HOP_BY_HOP = 0
NEXT_TCP = 6
NEXT_UDP = 17
NEXT_ROUTING = 43
NEXT_FRAGMENT = 44
NEXT_ESP = 50
NEXT_AH = 51
NEXT_ICMPV6 = 58
NEXT_NONE = 59
NEXT_DESTINATION = 60
NEXT_SHIM = 140

HEADER_OCTETS = 40
MIN_MTU = 1280
MAX_HEADERS = 8
"""Extension headers that one packet may have before we stop reading (our own bound)."""

_MAX_PAYLOAD_OCTETS = 0xFFFF
_NEXT_HEADER_AT = 6
_FRAGMENT_OCTETS = 8
_SHIM_MIN_OCTETS = 8
_HEADER = struct.Struct("!IHBB16s16s")
_VERSION_6 = 6

# What may stand before the shim header on the wire.
_BEFORE_SHIM = frozenset((NEXT_HOP_BY_HOP, NEXT_ROUTING, NEXT_DESTINATION))
# What upper_layer steps over.
_EXTENSIONS = _BEFORE_SHIM | {NEXT_FRAGMENT, NEXT_AH, NEXT_SHIM}


class Walk(NamedTuple):
    """A place in the chain of headers. Offsets are in octets from the start of the packet."""

    link: int
    """Where the Next Header octet is that names what stands at ``offset``."""
    offset: int
    """Where the shim header is or is to be inserted; may be the end of the packet."""
    next_header: int
    """The value at ``link``."""


_PLAIN_PLACE = Walk(_NEXT_HEADER_AT, HEADER_OCTETS, NEXT_SHIM)
_CONTROL_START = (_VERSION_6 << 28).to_bytes(4)
_CONTROL_HOPS = bytes((NEXT_SHIM, 64))
"""What the first line of a control packet holds beside its length: next header and hop limit."""


def build_packet(
    src: Address,
    dst: Address,
    next_header: int,
    payload: bytes,
    *,
    hop_limit: int = 64,
    traffic_class: int = 0,
    flow_label: int = 0,
) -> bytes:
    """Return a whole packet: 40 octets of header and the payload (at most 65,535 octets).

    Raises ValueError when an argument does not fit its field.
    """
    if len(src) != ADDRESS_OCTETS or len(dst) != ADDRESS_OCTETS:
        raise ValueError("an address is 16 octets")
    if len(payload) > _MAX_PAYLOAD_OCTETS:
        raise ValueError(f"{len(payload)} octets do not fit one packet")
    if not 0 <= traffic_class <= 0xFF or not 0 <= flow_label <= 0xFFFFF:
        raise ValueError("traffic class is 8 bits and flow label 20 bits")
    if not 0 <= next_header <= 0xFF or not 0 <= hop_limit <= 0xFF:
        raise ValueError("next header and hop limit are 8 bits each")
    first = _VERSION_6 << 28 | traffic_class << 20 | flow_label
    return _HEADER.pack(first, len(payload), next_header, hop_limit, src, dst) + payload


def build_control_packet(src: Address, dst: Address, message: bytes) -> bytes:
    """Return a whole packet with a shim control message in it, as ``build_packet`` would.

    The addresses are 16 octets each, and the message is at most 65,535.
    """
    return b"".join((_CONTROL_START, len(message).to_bytes(2), _CONTROL_HOPS, src, dst, message))


def walk(packet: bytes, *, whole: bool = True) -> Walk:
    """Find where the sender of a payload inserts the shim header, or already has it.

    ``whole=False`` is for a packet that an ICMPv6 error quotes: it may be cut at its end,
    and the payload length is not compared.

    Raises MalformedMessage: TRUNCATED when a header runs past the end, BAD_LENGTH when
    the version is not 6 or the payload length disagrees with the packet,
    TOO_MANY_HEADERS past ``MAX_HEADERS``.
    """
    _check_fixed_header(packet, whole)
    next_header = packet[_NEXT_HEADER_AT]
    if next_header not in _BEFORE_SHIM:
        return Walk(_NEXT_HEADER_AT, HEADER_OCTETS, next_header)
    place = Walk(_NEXT_HEADER_AT, HEADER_OCTETS, next_header)
    offset = HEADER_OCTETS
    for _ in range(MAX_HEADERS):
        current, end = next_header, _end_of(packet, offset)
        next_header = packet[offset]
        # Destination options do not move the place by themselves; a routing header
        # behind them does, and takes them along.
        if current != NEXT_DESTINATION:
            place = Walk(offset, end, next_header)
        if next_header not in _BEFORE_SHIM:
            return place
        offset = end
    raise _too_many(offset)


def find_shim(packet: bytes, *, whole: bool = True) -> Walk | None:
    """Find the shim header of a received packet; None when its chain has none.

    A receiver takes headers in their order (RFC 5533 §12), so destination options before
    the shim header are passed over here whether or not a routing header follows them. A
    fragment header, AH, ESP or the upper layer ends the search. A shim header that is
    found has at least its 8 first octets in the packet.

    Raises MalformedMessage as ``walk`` does.
    """
    _check_fixed_header(packet, whole)
    link, offset = _NEXT_HEADER_AT, HEADER_OCTETS
    next_header = packet[link]
    if next_header == NEXT_SHIM and len(packet) >= HEADER_OCTETS + _SHIM_MIN_OCTETS:
        return _PLAIN_PLACE
    if next_header not in _BEFORE_SHIM and next_header != NEXT_SHIM:
        return None
    for _ in range(MAX_HEADERS + 1):
        if next_header == NEXT_SHIM:
            if offset + _SHIM_MIN_OCTETS > len(packet):
                raise _cut(offset)
            return Walk(link, offset, next_header)
        if next_header not in _BEFORE_SHIM:
            return None
        end = _end_of(packet, offset)
        link, offset = offset, end
        next_header = packet[link]
    raise _too_many(offset)


def destination_options(packet: bytes, *, whole: bool = True) -> Iterator[Walk]:
    """The Destination Options headers of a packet where a shim header may stand, in order.

    Raises MalformedMessage as ``walk`` does, but only for what stands before the one that is
    asked for; each has the octets in the packet that its length promises.
    """
    _check_fixed_header(packet, whole)
    link, offset = _NEXT_HEADER_AT, HEADER_OCTETS
    for _ in range(MAX_HEADERS + 1):
        next_header = packet[link]
        if next_header not in _BEFORE_SHIM:
            return
        end = _end_of(packet, offset)
        if next_header == NEXT_DESTINATION:
            yield Walk(link, offset, next_header)
        link, offset = offset, end
    raise _too_many(offset)


def upper_layer(packet: bytes) -> tuple[int, int] | None:
    """Return the protocol number and the offset of the upper-layer header; never raises.

    Steps over every extension header: hop-by-hop, routing, destination options, AH, a
    fragment header with offset 0, and shim payload headers. ESP, No Next Header (59), a
    shim control message (140) and unknown numbers are upper layers. The offset may be the
    end of the packet. None when the chain is malformed or too long, or for a fragment
    other than the first. The payload length is not looked at, so that packets quoted in
    ICMPv6 errors can be asked about too.
    """
    octets = len(packet)
    if octets < HEADER_OCTETS or packet[0] >> 4 != _VERSION_6:
        return None
    protocol, offset = packet[_NEXT_HEADER_AT], HEADER_OCTETS
    for _ in range(MAX_HEADERS + 1):
        if protocol not in _EXTENSIONS:
            return protocol, offset
        if offset + 8 > octets:
            return None
        if protocol == NEXT_FRAGMENT:
            if packet[offset + 2] or packet[offset + 3] & 0xF8:
                return None
            end = offset + _FRAGMENT_OCTETS
        elif protocol == NEXT_AH:
            end = offset + (packet[offset + 1] + 2) * 4  # RFC 4302 §2.2: 4-octet units
        elif protocol == NEXT_SHIM and not packet[offset + 2] & 0x80:
            return protocol, offset
        else:
            end = offset + 8 + packet[offset + 1] * 8
        if end > octets:
            return None
        protocol, offset = packet[offset], end
    return None


def _check_fixed_header(packet: bytes, whole: bool) -> None:
    if len(packet) < HEADER_OCTETS:
        raise MalformedMessage(Reason.TRUNCATED, "shorter than an IPv6 header", len(packet))
    if packet[0] >> 4 != _VERSION_6:
        raise MalformedMessage(Reason.BAD_LENGTH, "the IP version is not 6", 0)
    if whole and (packet[4] << 8 | packet[5]) + HEADER_OCTETS != len(packet):
        raise MalformedMessage(Reason.BAD_LENGTH, "payload length disagrees with the packet", 4)


def _end_of(packet: bytes, offset: int) -> int:
    """Return where the options or routing header at ``offset`` ends."""
    if offset + 2 > len(packet):
        raise _cut(offset)
    end = offset + 8 + packet[offset + 1] * 8
    if end > len(packet):
        raise _cut(offset)
    return end


def _cut(offset: int) -> MalformedMessage:
    return MalformedMessage(Reason.TRUNCATED, "the packet ends inside a header", offset)


def _too_many(offset: int) -> MalformedMessage:
    return MalformedMessage(
        Reason.TOO_MANY_HEADERS, f"more than {MAX_HEADERS} extension headers", offset
    )

"""The meaning of the data path: how a packet is rewritten, and how it is restored.

Octets in, octets out, no state. NFQUEUE executes these functions; any other executor must
give the same octets for the same packet.

Rewrite (RFC 5533 §11.1): the ULIDs give way to locators and a payload header of 8 octets
goes in at its place in the chain. Restore (§12.2) is the inverse. Upper-layer checksums are
never touched: their pseudo-header keeps the ULIDs from end to end.

That is demux mode ``exthdr``. Mode ``dstopt`` (docs/decisions/0021) differs by the kind of the
header that goes in: destination options with the tag, of 8 octets too. In mode ``flowlabel``
(docs/decisions/0014) nothing is inserted: ``relabel`` puts the receiver's label where the
host's was, and ``unlabel`` leaves 0 there. In mode ``identifier`` (docs/decisions/0017)
``readdress`` changes the addresses and no more.
"""

from __future__ import annotations

from typing import Final

from m6proxy.errors import MalformedMessage
from m6proxy.reasons import Reason
from m6proxy.wire.ipv6 import (
    HEADER_OCTETS,
    NEXT_DESTINATION,
    NEXT_SHIM,
    NEXT_TCP,
    Walk,
    find_shim,
    walk,
)
from m6proxy.wire.payload import PAYLOAD_HEADER_OCTETS

GROWTH_OCTETS: Final = PAYLOAD_HEADER_OCTETS
SEGMENT_OCTETS: Final = 40
"""How much smaller than the path TCP packets have to be behind a tag option. Linux routers that
hold a large segment, not cut yet, compare its pieces with the MTU; they take the option's header
for that of TCP, which may look 60 octets long (skb_gso_network_seglen), and would refuse it."""
CHAINED: Final = frozenset({0, 43, 60})
"""Next headers that may stand before the shim header, so that its place must be looked for."""
SHIM: Final = bytes([NEXT_SHIM])
OPTION: Final = bytes([NEXT_DESTINATION])
"""What the header that ``rewrite`` puts in is called by the one before it."""
_PAYLOAD_MAX: Final = 0xFFFF
_FIXED_LINK: Final = 6
_LABEL_MASK: Final = 0xFFFFF
"""The fixed header's Next Header octet: the shim header stands or comes right behind it."""


def room_octets(packet: bytes, kind: bytes) -> int:
    """How much smaller than the path a packet has to be when a header of this kind goes in."""
    return SEGMENT_OCTETS if kind == OPTION and packet[6] == NEXT_TCP else GROWTH_OCTETS


def rewrite(packet: bytes, addresses: bytes, tail: bytes, kind: bytes = SHIM) -> bytes:
    """Put locators (32 octets) and a payload header (its last 7 octets) into a packet.

    ``kind`` is ``OPTION`` when the 7 octets are those of destination options. Raises
    MalformedMessage when the chain of headers leaves no place, or the payload length would
    not fit.
    """
    length = len(packet) - HEADER_OCTETS + GROWTH_OCTETS
    if length > _PAYLOAD_MAX:
        raise MalformedMessage(Reason.TOO_BIG, "no payload length is that large", 4)
    link = _FIXED_LINK
    if packet[6] in CHAINED:
        link, offset, next_header = walk(packet)
    if link == _FIXED_LINK:
        return b"".join(
            (
                packet[:4],
                length.to_bytes(2),
                kind,
                packet[7:8],
                addresses,
                packet[6:7],
                tail,
                packet[40:],
            )
        )
    return b"".join(
        (
            packet[:4],
            length.to_bytes(2),
            packet[6:8],
            addresses,
            packet[40:link],
            kind,
            packet[link + 1 : offset],
            next_header.to_bytes(1),
            tail,
            packet[offset:],
        )
    )


def restore(packet: bytes, place: Walk, addresses: bytes) -> bytes:
    """Take the header with the tag at ``place`` out and put the ULIDs (32 octets) back.

    The caller has checked that its 8 octets stand there. A packet that an
    ICMPv6 error quotes may be cut at its end: its length field is lowered, not computed.
    """
    link, offset, _ = place
    length = int.from_bytes(packet[4:6]) - GROWTH_OCTETS
    if length < 0:
        raise MalformedMessage(Reason.BAD_LENGTH, "payload length below the shim header", 4)
    if link == _FIXED_LINK:
        return b"".join(
            (
                packet[:4],
                length.to_bytes(2),
                packet[40:41],
                packet[7:8],
                addresses,
                packet[48:],
            )
        )
    return b"".join(
        (
            packet[:4],
            length.to_bytes(2),
            packet[6:8],
            addresses,
            packet[40:link],
            packet[offset : offset + 1],
            packet[link + 1 : offset],
            packet[offset + GROWTH_OCTETS :],
        )
    )


def label_of(packet: bytes) -> int:
    """The flow label, 20 bits, of a packet of at least 4 octets."""
    return int.from_bytes(packet[1:4]) & _LABEL_MASK


def with_label(packet: bytes, label: int) -> bytes:
    """The packet with another flow label (20 bits)."""
    head = int.from_bytes(packet[:4]) & ~_LABEL_MASK | label
    return head.to_bytes(4) + packet[4:]


def readdress(packet: bytes, addresses: bytes) -> bytes:
    """Put other addresses (32 octets) into a packet; all else stays."""
    return b"".join((packet[:8], addresses, packet[40:]))


def has_shim(packet: bytes) -> bool:
    """Tell whether a packet has a shim header in its chain, as far as the chain makes sense."""
    if packet[6] != NEXT_SHIM and packet[6] not in CHAINED:
        return False
    try:
        return find_shim(packet) is not None
    except MalformedMessage:
        return packet[6] == NEXT_SHIM


def relabel(packet: bytes, addresses: bytes, label: int) -> bytes:
    """Put locators (32 octets) and the receiver's label into a packet; its size stays."""
    head = int.from_bytes(packet[:4]) & ~_LABEL_MASK | label
    return b"".join((head.to_bytes(4), packet[4:8], addresses, packet[40:]))


def unlabel(packet: bytes, addresses: bytes) -> bytes:
    """Put the ULIDs (32 octets) back; the flow label is 0, whatever the host had chosen."""
    return relabel(packet, addresses, 0)

"""One packet of each upper layer, with real octets: what must arrive as it was sent."""

from __future__ import annotations

from scapy.layers.inet import TCP, UDP
from scapy.layers.inet6 import ICMPv6EchoRequest, IPv6, in6_chksum
from scapy.layers.sctp import SCTP, SCTPChunkData

from m6proxy.names import Address, address_text

UNKNOWN = 253
"""For experiments (RFC 3692)."""
_FRAGMENT, _ESP, _AH, _DESTINATION = 44, 50, 51, 60


def upper_layers(source: Address, destination: Address) -> dict[str, tuple[int, bytes]]:
    """By name: protocol number and octets, checksums right for these addresses."""
    head = IPv6(src=address_text(source), dst=address_text(destination))
    body = bytes(range(256))
    udp = bytes(UDP(sport=4000, dport=5000, len=8 + 256) / body)
    udp = udp[:6] + in6_chksum(17, head, udp[:6] + bytes(2) + udp[8:]).to_bytes(2) + udp[8:]
    ah = bytes((17, 4)) + bytes(2) + b"\x00\x00\x10\x01" + b"\x00\x00\x00\x07" + bytes(range(12))
    return {
        "tcp": (6, bytes(head / TCP(sport=4000, dport=80, flags="PA", seq=9) / body)[40:]),
        "udp": (17, udp),
        "icmpv6": (58, bytes(head / ICMPv6EchoRequest(id=7, seq=1, data=body))[40:]),
        "sctp": (132, bytes(SCTP(sport=1, dport=2, tag=3) / SCTPChunkData(data=body))),
        "esp": (_ESP, b"\x00\x00\x10\x02" + b"\x00\x00\x00\x05" + body[::-1]),
        "ah": (_AH, ah + udp),
        "first fragment": (_FRAGMENT, b"\x11\x00\x00\x01" + b"\xde\xad\xbe\xef" + udp[:128]),
        "last fragment": (_FRAGMENT, b"\x11\x00\x00\x80" + b"\xde\xad\xbe\xef" + udp[128:]),
        "destination options": (_DESTINATION, b"\x11\x00\x01\x04\x00\x00\x00\x00" + udp),
        "unknown": (UNKNOWN, body * 2),
        "nothing": (59, b""),
        "full": (UNKNOWN, bytes(n % 251 for n in range(1460))),
    }

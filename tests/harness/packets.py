"""Packets and control messages for tests: built in one line, and found again on the wire."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from m6proxy.names import Address, LocatorPair
from m6proxy.wire.checksum import icmpv6_checksum
from m6proxy.wire.ipv6 import NEXT_ICMPV6, NEXT_SHIM, NEXT_TCP, NEXT_UDP, build_packet
from m6proxy.wire.message import Message, encode_message, parse_message
from m6proxy.wire.payload import payload_header

Kind = TypeVar("Kind")


def control(source: Address, destination: Address, message: Message) -> bytes:
    """A control packet."""
    return build_packet(source, destination, NEXT_SHIM, encode_message(message))


def udp(
    source: Address, destination: Address, body: bytes = b"", *, ports: tuple[int, int] = (9, 9)
) -> bytes:
    """A UDP packet; its checksum is not right, as nothing here may look at it."""
    head = ports[0].to_bytes(2) + ports[1].to_bytes(2) + (8 + len(body)).to_bytes(2) + b"\xbe\xef"
    return build_packet(source, destination, NEXT_UDP, head + body)


def tcp(
    source: Address,
    destination: Address,
    body: bytes = b"",
    *,
    port: int = 80,
    flags: int = 0x10,
    sequence: int = 0,
    acknowledged: int = 0,
    server: bool = False,
) -> bytes:
    """A TCP segment with a header of 20 octets, of the client or the server at ``port``."""
    ports = (port, 4000) if server else (4000, port)
    head = b"".join(number.to_bytes(2) for number in ports)
    head += sequence.to_bytes(4) + acknowledged.to_bytes(4) + bytes((0x50, flags)) + bytes(6)
    return build_packet(source, destination, NEXT_TCP, head + body)


def rewritten(source: Address, destination: Address, tag: int, inner: int, body: bytes) -> bytes:
    """A packet with a payload header."""
    return build_packet(source, destination, NEXT_SHIM, payload_header(inner, tag) + body)


def icmp_error(
    source: Address, destination: Address, kind: int, code: int, word: int, quoted: bytes
) -> bytes:
    """An ICMPv6 error with a right checksum; ``word`` is its MTU, pointer or unused field."""
    body = bytes((kind, code, 0, 0)) + word.to_bytes(4) + quoted
    value = icmpv6_checksum(source, destination, body)
    return build_packet(source, destination, NEXT_ICMPV6, body[:2] + value.to_bytes(2) + body[4:])


def route_of(packet: bytes) -> LocatorPair:
    """The addresses of a packet as its sender sees them."""
    return LocatorPair(packet[8:24], packet[24:40])


def is_control(packet: bytes) -> bool:
    """Tell whether a packet is a control message without other headers before it."""
    return packet[6] == NEXT_SHIM and not packet[42] & 0x80


def find_messages(
    packets: Iterable[tuple[float, bytes]], kind: type[Kind]
) -> list[tuple[float, bytes, Kind]]:
    """The messages of a kind among packets with their times: time, packet, message."""
    found: list[tuple[float, bytes, Kind]] = []
    for when, packet in packets:
        if is_control(packet):
            message = parse_message(packet[40:])
            if isinstance(message, kind):
                found.append((when, packet, message))
    return found

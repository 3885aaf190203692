"""TCP segments that wait for an answer: what a host would send again, if only it knew.

While a path is silent TCP doubles its retransmission timer, and after a re-homing it would
wait for that timer on a path that works. So for each connection of a context the first
segment that nothing answered is kept, and sent once more when the context is re-homed: the
receiver acknowledges it at once and the sender goes on. TCP drops what it has already;
other protocols might not, so only TCP is kept.
"""

from __future__ import annotations

from typing import Final

from m6proxy.wire.ipv6 import NEXT_TCP

CONNECTIONS_MAX: Final = 16
_TCP_FLAGS_AT: Final = 40 + 13
_RST: Final = 0x04


class HeldSegments:
    """The first unanswered segment of up to 16 connections; only without extension headers."""

    __slots__ = ("_by_ports",)

    def __init__(self) -> None:
        self._by_ports: dict[bytes, bytes] = {}

    def put(self, packet: bytes) -> None:
        """Keep a packet of the host, if it is the first of its connection, and TCP."""
        if len(packet) <= _TCP_FLAGS_AT or packet[6] != NEXT_TCP:
            return
        if packet[_TCP_FLAGS_AT] & _RST:
            return
        ports = packet[40:44]
        if ports not in self._by_ports and len(self._by_ports) < CONNECTIONS_MAX:
            self._by_ports[ports] = packet

    def take(self) -> tuple[bytes, ...]:
        """Hand all of them over, in the order in which they came."""
        packets = tuple(self._by_ports.values())
        self._by_ports.clear()
        return packets

"""TCP segments that wait for an answer: what a host would send again, if only it knew.

While a path is silent TCP doubles its retransmission timer, and after a re-homing it would
wait for that timer on a path that works. So for each connection of a context the first
segment that nothing answered is kept, and sent once more when the context is re-homed: the
receiver acknowledges it at once and the sender goes on. TCP drops what it has already;
other protocols might not, so only TCP is kept.

The same segments tell what TCP knows of the path (docs/decisions/0018-advice-of-tcp.md): one
that is acknowledged went out and was heard of; one that the host sends again a second later
did not, whatever else the peer sends meanwhile.

Who calls: ``reap`` only, for those packets that change a timer. Of a stream these are some
samples, and that is enough: what is acknowledged later acknowledges the sample too.
"""

from __future__ import annotations

from struct import Struct
from typing import Final

from m6proxy.shim.timers import NEVER
from m6proxy.wire.ipv6 import HEADER_OCTETS, NEXT_TCP

CONNECTIONS_MAX: Final = 16
REPEATS_S: Final = 1.0
"""What is sent again so long after its first time was not acknowledged. On a usual path a TCP
has sent it three times by then."""
_LEAST_OCTETS: Final = HEADER_OCTETS + 20
_OUT = Struct("!IIIBB").unpack_from
_IN = Struct("!HHIIBB").unpack_from
"""Ports, sequence and acknowledgement number, length of the header, flags (RFC 9293 §3.1)."""
_SYN, _RST, _ACK = 0x02, 0x04, 0x10
_OCCUPIES: Final = 0x03
"""FIN and SYN are acknowledged as data is."""
_HALF: Final = 1 << 31
_MASK: Final = 0xFFFFFFFF
"""Sequence numbers are compared modulo 2^32 (RFC 9293 §3.4)."""


class HeldSegments:
    """The first unanswered segment of up to 16 connections; only without extension headers.

    ``bare`` are those that no acknowledgement will ever name, since they carry nothing: any
    word of the peer answers them. ``until_s`` is when all are forgotten at the latest.
    """

    __slots__ = ("_bare", "_full", "until_s")

    def __init__(self) -> None:
        self._bare: dict[int, bytes] = {}
        self._full: dict[int, tuple[bytes, int, int, float]] = {}
        """What to send again and its sequence number; how far the connection was, since when."""
        self.until_s = NEVER

    def put(self, packet: bytes, now: float) -> bool:
        """Keep a TCP packet of the host, if it is the first of its connection, or an earlier part.

        Returns whether the host repeats what it sent ``REPEATS_S`` ago: it got no answer to it.
        """
        if len(packet) < _LEAST_OCTETS:
            return False
        ports, sequence, _, offset, flags = _OUT(packet, HEADER_OCTETS)
        if flags & _RST:
            return False
        known = self._full.get(ports)
        if not flags & _OCCUPIES and len(packet) <= HEADER_OCTETS + (offset >> 2 & 60):
            if known is None and len(self._full) + len(self._bare) < CONNECTIONS_MAX:
                self._bare.setdefault(ports, packet)
            return False
        if known is None:
            if self._bare:
                self._bare.pop(ports, None)
            if len(self._full) + len(self._bare) < CONNECTIONS_MAX:
                self._full[ports] = packet, sequence, sequence, now
            return False
        _, _, furthest, since_s = known
        if 0 < sequence - furthest & _MASK < _HALF:
            return False
        self._full[ports] = packet, sequence, furthest, since_s
        return not flags & _SYN and now >= since_s + REPEATS_S

    def acknowledge(self, packet: bytes) -> float:
        """The peer's host sent a packet, here between ULIDs: let go what it has.

        Returns when the segment that it acknowledges was sent first, NEVER if it does not.
        """
        if self._bare:
            self._bare.clear()
        if not self._full or len(packet) < _LEAST_OCTETS or packet[6] != NEXT_TCP:
            return NEVER
        theirs, ours, _, acknowledged, _, flags = _IN(packet, HEADER_OCTETS)
        ports = ours << 16 | theirs
        known = self._full.get(ports)
        if known is None:
            return NEVER
        _, sequence, furthest, since_s = known
        if 0 < acknowledged - sequence & _MASK < _HALF and flags & _ACK:
            del self._full[ports]
            return since_s if 0 < acknowledged - furthest & _MASK < _HALF else NEVER
        if flags & _RST:
            del self._full[ports]
        return NEVER

    def hear(self) -> None:
        """The peer's gateway said something: that acknowledges nothing."""
        self._bare.clear()

    @property
    def packets(self) -> tuple[bytes, ...]:
        """All of them, those that carry something first."""
        return (*(packet for packet, *_ in self._full.values()), *self._bare.values())

    def take(self) -> tuple[bytes, ...]:
        """Hand all of them over."""
        packets = self.packets
        self._full.clear()
        self._bare.clear()
        return packets

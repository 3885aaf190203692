"""Whether what a program did is what the reference says."""

from __future__ import annotations

from m6proxy.reasons import Reason
from m6proxy.shim.verdict import Verdict
from tests.equivalence.kernel import DROPPED, SLOW, Outcome

HEADER_OCTETS = 40


def is_whole(packet: bytes) -> bool:
    """Whether IPv6 itself lets the packet in: only such packets ever reach Python."""
    return len(packet) >= HEADER_OCTETS and packet[0] >> 4 == 6 and promised(packet) <= len(packet)


def promised(packet: bytes) -> int:
    """How long the header says that the packet is; what follows is padding of the link."""
    return HEADER_OCTETS + int.from_bytes(packet[4:6])


def disagreement(outcome: Outcome, verdict: Verdict, packet: bytes) -> str | None:
    """Compare a program's outcome with the reference's verdict; None when they agree.

    What is left to the slow path becomes what the reference says.
    """
    if outcome is SLOW:
        return None
    if outcome is DROPPED:
        return None if isinstance(verdict, Reason) else "the program dropped it"
    if not is_whole(packet):
        return "the program let something in that is no packet"
    end = promised(packet)
    if verdict is None:
        return None if outcome == packet else "the reference does not change it"
    if not isinstance(verdict, bytes):
        return f"the reference says {verdict!r}"
    grown = len(verdict) - end
    if outcome[: len(verdict)] == verdict and len(outcome) == len(packet) + grown:
        return None
    return f"octets differ: {outcome.hex()} instead of {verdict.hex()}"

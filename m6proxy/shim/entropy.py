"""Where the core's randomness comes from: an argument, so that a test can repeat a run."""

from __future__ import annotations

from typing import Protocol

from m6proxy.names import Tag


class Entropy(Protocol):
    """A source of unguessable numbers."""

    def tag(self) -> Tag:
        """A context tag: 1 to 2^47 - 1."""

    def nonce(self) -> int:
        """32 bits."""

    def octets(self, count: int) -> bytes:
        """So many octets, for secrets."""

    def uniform(self, low: float, high: float) -> float:
        """A number between the two, for spreading timers."""

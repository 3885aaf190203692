"""The core's randomness in production: the operating system's."""

from __future__ import annotations

import random
import secrets
from typing import Final

from m6proxy.names import TAG_MASK, Tag

_FETCHED_OCTETS: Final = 4096
"""Asking the kernel for every nonce would be the dearest part of a probe."""


class SystemEntropy:
    """Unguessable numbers from the kernel."""

    def __init__(self) -> None:
        self._spread = random.Random(secrets.randbits(256))  # timers only: nobody need not guess
        self._fetched = b""
        self._at = 0

    def tag(self) -> Tag:
        """A context tag: 1 to 2^47 - 1."""
        return secrets.randbelow(TAG_MASK) + 1

    def nonce(self) -> int:
        """32 bits."""
        at = self._at
        if at == len(self._fetched):
            self._fetched, at = secrets.token_bytes(_FETCHED_OCTETS), 0
        self._at = at + 4
        return int.from_bytes(self._fetched[at : at + 4])

    def octets(self, count: int) -> bytes:
        """So many octets."""
        return secrets.token_bytes(count)

    def uniform(self, low: float, high: float) -> float:
        """A number between the two."""
        return self._spread.uniform(low, high)

"""Randomness that a test can repeat."""

from __future__ import annotations

import random


class SeededEntropy:
    """The core's entropy from a seed."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def tag(self) -> int:
        return self._random.randrange(1, 1 << 47)

    def nonce(self) -> int:
        return self._random.getrandbits(32)

    def octets(self, count: int) -> bytes:
        return self._random.randbytes(count)

    def uniform(self, low: float, high: float) -> float:
        return self._random.uniform(low, high)

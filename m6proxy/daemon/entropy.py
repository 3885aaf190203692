"""The core's randomness in production: the operating system's."""

from __future__ import annotations

import random
import secrets
from collections.abc import Iterator
from struct import Struct
from typing import Final

from m6proxy.names import TAG_MASK, Tag

_WORDS: Final = Struct("!1024I")
"""Asking the kernel for every nonce would be the dearest part of a probe."""


class SystemEntropy:
    """Unguessable numbers from the kernel."""

    def __init__(self) -> None:
        self._random = random.Random(secrets.randbits(256)).random
        """For timers only, which nobody must not guess."""
        self._nonces: Iterator[int] = iter(())

    def tag(self) -> Tag:
        """A context tag: 1 to 2^47 - 1."""
        return secrets.randbelow(TAG_MASK) + 1

    def nonce(self) -> int:
        """32 bits."""
        for nonce in self._nonces:
            return nonce
        self._nonces = iter(_WORDS.unpack(secrets.token_bytes(_WORDS.size)))
        return next(self._nonces)

    def octets(self, count: int) -> bytes:
        """So many octets."""
        return secrets.token_bytes(count)

    def uniform(self, low: float, high: float) -> float:
        """A number between the two."""
        return low + (high - low) * self._random()

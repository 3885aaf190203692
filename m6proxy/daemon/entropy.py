"""The core's randomness in production: the operating system's."""

from __future__ import annotations

import secrets

from m6proxy.names import TAG_MASK, Tag

_SPREAD = secrets.SystemRandom()


class SystemEntropy:
    """Unguessable numbers from the kernel."""

    def tag(self) -> Tag:
        """A context tag: 1 to 2^47 - 1."""
        return secrets.randbelow(TAG_MASK) + 1

    def nonce(self) -> int:
        """32 bits."""
        return secrets.randbits(32)

    def octets(self, count: int) -> bytes:
        """So many octets."""
        return secrets.token_bytes(count)

    def uniform(self, low: float, high: float) -> float:
        """A number between the two."""
        return _SPREAD.uniform(low, high)

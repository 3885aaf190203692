"""Messages that wait for I/O: an I2 is answered when DNS has said what its name proves."""

from __future__ import annotations

from typing import Final

from m6proxy.names import LocatorPair
from m6proxy.wire.message import I2, I2bis

_FORKS_MAX: Final = 8


class PendingProofs:
    """I2 and I2bis messages that wait for their proof by DNS. Bounded; the oldest go first."""

    __slots__ = ("_by_pair", "_limit")

    def __init__(self, limit: int = 1024) -> None:
        self._limit = limit
        self._by_pair: dict[bytes, dict[int, tuple[I2 | I2bis, LocatorPair, float]]] = {}

    def put(
        self, key: bytes, fii: int, message: I2 | I2bis, route: LocatorPair, until_s: float
    ) -> None:
        """Keep a message for a ULID pair (32 octets) and fork; a newer one replaces it."""
        forks = self._by_pair.setdefault(key, {})
        forks[fii] = (message, route, until_s)
        if len(forks) > _FORKS_MAX:
            del forks[next(iter(forks))]
        if len(self._by_pair) > self._limit:
            del self._by_pair[next(iter(self._by_pair))]

    def take(self, key: bytes, now: float) -> list[tuple[int, I2 | I2bis, LocatorPair]]:
        """Take out what waits for a ULID pair and is not too old."""
        waiting = self._by_pair.pop(key, {})
        return [
            (fii, message, route)
            for fii, (message, route, until_s) in waiting.items()
            if now <= until_s
        ]

    def __len__(self) -> int:
        return len(self._by_pair)

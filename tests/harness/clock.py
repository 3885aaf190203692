"""Virtual time: nothing in the core's tests ever waits."""

from __future__ import annotations

import heapq
from collections.abc import Callable


class Clock:
    """A clock with a queue of things to do at a time."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._sequence = 0

    def at(self, when_s: float, action: Callable[[], None]) -> None:
        """Do something at a time."""
        self._sequence += 1
        heapq.heappush(self._queue, (when_s, self._sequence, action))

    def next_s(self) -> float | None:
        """When the next thing is to be done."""
        return self._queue[0][0] if self._queue else None

    def step(self) -> None:
        """Go to the next thing and do it."""
        when_s, _, action = heapq.heappop(self._queue)
        self.now = max(self.now, when_s)
        action()

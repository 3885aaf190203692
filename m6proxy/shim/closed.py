"""Tags of contexts that were closed a moment ago: their late packets invite no recovery."""

from __future__ import annotations

from itertools import islice

from m6proxy.names import Tag
from m6proxy.shim.timers import CLOSED_QUIET_S


class ClosedTags:
    """Our tags of closed contexts, for CLOSED_QUIET_S. Bounded; the oldest go first."""

    __slots__ = ("_limit", "_until_s")

    def __init__(self, limit: int = 65_536) -> None:
        self._limit = limit
        self._until_s: dict[Tag, float] = {}

    def __len__(self) -> int:
        return len(self._until_s)

    def add(self, tag: Tag, now: float) -> None:
        """Remember a tag; forget those whose time is over."""
        self._until_s.pop(tag, None)
        self._until_s[tag] = now + CLOSED_QUIET_S
        for oldest in tuple(islice(self._until_s, 2)):
            if self._until_s[oldest] <= now or len(self._until_s) > self._limit:
                del self._until_s[oldest]

    def recently(self, tag: Tag, now: float) -> bool:
        """Tell whether the context with this tag was closed just now."""
        return now < self._until_s.get(tag, 0.0)

"""How long an answer holds, and where it is kept until then.

Two caches, because the two kinds of answer are bounded differently: what a name holds may
be believed for a day, that it holds nothing for minutes only. Both are bounded in size and
forget what was used least recently.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Generic, TypeVar

POSITIVE_MIN_S = 30.0
POSITIVE_MAX_S = 86_400.0
NEGATIVE_MIN_S = 5.0
NEGATIVE_MAX_S = 300.0
FAILURE_S = 30.0
"""How long a failure of the resolver is remembered, and an answer that says nothing."""
ENTRIES_MAX = 65_536

K = TypeVar("K")
V = TypeVar("V")


class _Cache(Generic[K, V]):
    """Keys to values with the time until which each holds."""

    def __init__(self, entries_max: int) -> None:
        if entries_max < 1:
            raise ValueError("a cache holds at least one entry")
        self._entries_max = entries_max
        self._held: OrderedDict[K, tuple[V, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._held)

    def get(self, key: K, now: float) -> tuple[V, float] | None:
        """Return the value and until when it holds; None when there is none any more."""
        entry = self._held.get(key)
        if entry is None:
            return None
        if now >= entry[1]:
            del self._held[key]
            return None
        self._held.move_to_end(key)
        return entry

    def drop(self, key: K) -> None:
        """Forget a key, if it is there."""
        self._held.pop(key, None)

    def _keep(self, key: K, value: V, until_s: float) -> float:
        self._held[key] = (value, until_s)
        self._held.move_to_end(key)
        while len(self._held) > self._entries_max:
            self._held.popitem(last=False)
        return until_s


class PositiveCache(_Cache[K, V]):
    """What names hold: the TTL that DNS gave, from 30 s to one day."""

    def __init__(self, entries_max: int = ENTRIES_MAX) -> None:
        super().__init__(entries_max)

    def put(self, key: K, value: V, ttl_s: float, now: float) -> float:
        """Keep a value and return until when it holds."""
        held_s = min(max(ttl_s, POSITIVE_MIN_S), POSITIVE_MAX_S)
        return self._keep(key, value, now + held_s)


class NegativeCache(_Cache[K, V]):
    """That a name holds nothing (RFC 2308 §5), or that nobody could say so."""

    def __init__(self, entries_max: int = ENTRIES_MAX) -> None:
        super().__init__(entries_max)

    def put(self, key: K, value: V, soa_ttl_s: float | None, now: float) -> float:
        """Keep a denial and return until when it holds.

        ``soa_ttl_s`` is the lesser of the SOA record's TTL and its minimum field; None
        when the answer had no SOA.
        """
        if soa_ttl_s is None:
            return self.put_failure(key, value, now)
        held_s = min(max(soa_ttl_s, NEGATIVE_MIN_S), NEGATIVE_MAX_S)
        return self._keep(key, value, now + held_s)

    def put_failure(self, key: K, value: V, now: float) -> float:
        """Remember shortly that nobody answered, and return until when."""
        return self._keep(key, value, now + FAILURE_S)

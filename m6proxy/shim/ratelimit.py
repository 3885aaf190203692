"""Token buckets by source prefix: nobody can make the gateway work faster than this."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

SOURCE_OCTETS: Final = 6
"""A bucket for each /48: what one site is usually given."""
_BUCKETS_MAX: Final = 4096


class RateLimit:
    """``rate_per_s`` tokens a second, at most ``burst`` saved, for each /48 of sources."""

    __slots__ = ("_buckets", "_burst", "_rate_per_s")

    def __init__(self, rate_per_s: float, burst: float) -> None:
        self._rate_per_s = rate_per_s
        self._burst = burst
        self._buckets: OrderedDict[bytes, tuple[float, float]] = OrderedDict()

    def allow(self, source: bytes, now: float) -> bool:
        """Take one token for a source (16 octets); False when there is none."""
        prefix = source[:SOURCE_OCTETS]
        tokens, since_s = self._buckets.pop(prefix, (self._burst, now))
        tokens = min(self._burst, tokens + (now - since_s) * self._rate_per_s)
        allowed = tokens >= 1.0
        self._buckets[prefix] = (tokens - 1.0 if allowed else tokens, now)
        if len(self._buckets) > _BUCKETS_MAX:
            self._buckets.popitem(last=False)
        return allowed

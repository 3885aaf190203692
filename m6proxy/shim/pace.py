"""How fast searches probe, all contexts together: one slot after the other, for whoever asks."""

from __future__ import annotations

from typing import Final

CATCH_UP_S: Final = 0.01
"""Slots that passed unused are lost, but for those of this long: timers wake up late."""


class Pace:
    """Slots at ``rate_per_s``. In any time of W seconds at most rate x (W + 0.01) + 1 are taken."""

    __slots__ = ("_interval_s", "free_s")

    def __init__(self, rate_per_s: float) -> None:
        self._interval_s = 1.0 / rate_per_s
        self.free_s = 0.0
        """The next slot that nobody took."""

    def is_free(self, now: float) -> bool:
        """Whether a slot could be taken for now."""
        return self.free_s <= now

    def begin(self, now: float) -> None:
        """Nothing waited until now, so that there is nothing to catch up with."""
        self.free_s = max(self.free_s, now)

    def take(self, now: float) -> float:
        """Take the next slot; returns when it is, now or later."""
        slot_s = max(self.free_s, now - CATCH_UP_S)
        self.free_s = slot_s + self._interval_s
        return max(slot_s, now)

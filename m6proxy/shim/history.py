"""Which uplinks many contexts had to leave of late: all of them try those last.

Each context has its own memory (``Context.suspects``); this one is the site's. A search
that left an uplink adds one to its score, which halves every minute; from three on it counts
as suspect. A probe that arrived over the uplink, or an event of the uplink itself, clears it.
"""

from __future__ import annotations

from typing import Final

HALF_LIFE_S: Final = 60.0
_NONE: Final[frozenset[str]] = frozenset()
SUSPECT_FROM: Final = 2.5
"""Three contexts that leave within about 15 s."""


class UplinkHistory:
    """A score for each uplink, by name. ``fades`` is whether time alone clears it."""

    __slots__ = ("_fades", "scores")

    def __init__(self, *, fades: bool) -> None:
        self._fades = fades
        self.scores: dict[str, tuple[float, float]] = {}

    def note_left(self, name: str, now: float) -> None:
        """A context had to leave the uplink."""
        self.scores[name] = (self._score(name, now) + 1.0, now)

    def clear(self, name: str) -> None:
        """The uplink works, or changed its state: forget."""
        self.scores.pop(name, None)

    def suspects(self, now: float) -> frozenset[str]:
        """The names of the uplinks to try last."""
        if not self.scores:
            return _NONE
        return frozenset([one for one in self.scores if self._score(one, now) >= SUSPECT_FROM])

    def _score(self, name: str, now: float) -> float:
        score, since_s = self.scores.get(name, (0.0, now))
        if not self._fades:
            return score
        return float(score * 0.5 ** ((now - since_s) / HALF_LIFE_S))

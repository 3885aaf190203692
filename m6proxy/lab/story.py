"""The demo's story as values: what happens when, what was measured, and the judgement on it.

Pure: times are seconds since the sessions began, whoever reads the clock. The same story is
told twice, with m6proxy and without, and judged by the same rules.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from m6proxy.errors import SetupError

SETTLE_S = 8.0
"""After the last fault, the run goes on at least this long."""
MEBI_OCTETS = 1 << 20


@dataclass(frozen=True, slots=True)
class Script:
    """How much is fetched how fast, and when which provider falls silent."""

    size_octets: int = 256 * MEBI_OCTETS
    rate_octets_s: int = 8 * MEBI_OCTETS
    first_cut_s: float = 8.0
    second_cut_s: float = 20.0
    give_up_s: float = 20.0
    """A session that makes no progress for this long is lost; the same in both runs."""

    def __post_init__(self) -> None:
        if self.size_octets < 1 or self.rate_octets_s < 1 or self.give_up_s <= 0:
            raise SetupError("the size, the rate and the patience of the demo are above zero")
        if not 0 < self.first_cut_s < self.second_cut_s:
            raise SetupError("the demo's first cut comes after its start and before its second")
        transfer_s = self.size_octets / self.rate_octets_s
        if transfer_s < self.second_cut_s + 2:
            raise SetupError(
                f"the transfer would take {transfer_s:.0f} s and be over before the second cut "
                f"at {self.second_cut_s:g} s has shown anything: more --size-mib or less "
                "--rate-mib-s"
            )

    def cuts(self) -> tuple[tuple[float, str], ...]:
        """Return the faults: seconds from the start, and the provider that falls silent."""
        return ((self.first_cut_s, "alpha.isp1"), (self.second_cut_s, "beta.isp1"))

    @property
    def deadline_s(self) -> float:
        """When a run ends whatever happens: the transfer, an outage per cut, and a reserve."""
        return self.size_octets / self.rate_octets_s * 1.5 + 3 * self.give_up_s


@dataclass(slots=True)
class Progress:
    """What came through in one session, in order: the input of the judgement and the plot."""

    times_s: list[float]
    """When something came, never falling."""
    octets: list[int]
    """How much came then; one for each time."""

    @classmethod
    def empty(cls) -> Progress:
        """Return the progress of a session that has not begun."""
        return cls([], [])

    def note(self, at_s: float, octets: int) -> None:
        """Note that octets arrived."""
        self.times_s.append(at_s)
        self.octets.append(octets)

    @property
    def total_octets(self) -> int:
        """All that came through."""
        return sum(self.octets)

    def last_s(self, otherwise: float) -> float:
        """Return when the last octets came, or ``otherwise`` when none did."""
        return self.times_s[-1] if self.times_s else otherwise


@dataclass(frozen=True, slots=True)
class SessionResult:
    """The judgement on one session; the fields of the demo's JSON."""

    name: str
    protocol: str
    survived: bool
    octets: int
    sha256_ok: bool
    """What arrived, or came back, is what was sent."""
    longest_gap_s: float
    """The longest time between two arrivals, start and end of the session included."""
    why: str
    """One line: how it ended."""


@dataclass(frozen=True, slots=True)
class StoryEvent:
    """Something on the timeline."""

    t_s: float
    what: str
    """Few words, the same for the same kind of event."""
    detail: str


@dataclass(slots=True)
class RunResult:
    """One telling of the story."""

    sessions: list[SessionResult]
    progress: dict[str, Progress]
    """By session name."""
    events: list[StoryEvent]
    length_s: float


def longest_gap_s(times_s: Sequence[float], start_s: float, end_s: float) -> float:
    """Return the longest stretch without an arrival between start and end, in seconds."""
    inner = [t for t in times_s if start_s <= t <= end_s]
    edges = [start_s, *inner, max(end_s, start_s)]
    return max((b - a for a, b in itertools.pairwise(edges)), default=0.0)


def judge(
    *,
    name: str,
    protocol: str,
    progress: Progress,
    began_s: float,
    ended_s: float,
    fault: str | None,
    sum_ok: bool,
    give_up_s: float,
) -> SessionResult:
    """Judge one session that began and ended at these times.

    ``fault`` says how its program failed, None when it did its whole work. It survived when
    it did, nothing was altered, and it was never silent for ``give_up_s`` seconds.
    """
    gap_s = longest_gap_s(progress.times_s, began_s, ended_s)
    if fault is None and gap_s >= give_up_s:
        fault = f"nothing came for {gap_s:.1f} s"
    if fault is None and not sum_ok:
        fault = "what came is not what was sent"
    return SessionResult(
        name=name,
        protocol=protocol,
        survived=fault is None,
        octets=progress.total_octets,
        sha256_ok=sum_ok,
        longest_gap_s=round(gap_s, 3),
        why=fault or "complete",
    )


def succeeded(sessions: Iterable[SessionResult], control: Iterable[SessionResult]) -> bool:
    """Tell whether the demo shows its point: all survived here, and none without m6proxy."""
    with_it, without = list(sessions), list(control)
    return (
        bool(with_it)
        and bool(without)
        and all(s.survived and s.sha256_ok for s in with_it)
        and not any(s.survived for s in without)
    )


def throughput(progress: Progress, bin_s: float, end_s: float) -> list[tuple[float, float]]:
    """Return (middle of the bin in s, octets per second) for each bin up to ``end_s``."""
    bins = [0] * max(1, math.ceil(end_s / bin_s))
    for at_s, octets in zip(progress.times_s, progress.octets, strict=True):
        index = int(at_s / bin_s)
        if 0 <= index < len(bins):
            bins[index] += octets
    return [((i + 0.5) * bin_s, n / bin_s) for i, n in enumerate(bins)]

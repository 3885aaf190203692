"""What a benchmark measured, and how it is told: medians, spreads and ratios of rounds.

Things that are compared are measured in interleaved rounds (A B A B ...), so that whatever
else the machine does meets all of them; the ratio is taken within each round, and its median
is the result.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from m6proxy.errors import SetupError


@dataclass(frozen=True, slots=True)
class Series:
    """The values of one thing, one for each round."""

    name: str
    unit: str
    values: tuple[float, ...]

    @property
    def median(self) -> float:
        """The middle value."""
        return statistics.median(self.values)

    @property
    def spread(self) -> float:
        """Largest minus smallest value, as a share of the median; 0 for a single round."""
        return (max(self.values) - min(self.values)) / self.median if self.median else 0.0

    def to_json(self) -> dict[str, Any]:
        """Return everything, the single rounds included."""
        return {
            "name": self.name,
            "unit": self.unit,
            "median": self.median,
            "minimum": min(self.values),
            "maximum": max(self.values),
            "runs": len(self.values),
            "values": list(self.values),
        }


def calibration_ms() -> float:
    """CPU time of a fixed loop in Python, to tell a slow machine from slow code."""
    found = []
    for _ in range(9):
        start_ns, value = time.thread_time_ns(), 0
        for step in range(100_000):
            value = (value * 31 + step) & 0xFFFFFFFF
        found.append((time.thread_time_ns() - start_ns) / 1e6)
    return statistics.median(found)


def ratio(name: str, above: Series, below: Series) -> Series:
    """Return the ratio of two things, round by round."""
    pairs = zip(above.values, below.values, strict=True)
    return Series(name, "ratio", tuple(a / b for a, b in pairs))


@dataclass(frozen=True, slots=True)
class Goal:
    """A number to reach."""

    series: Series
    bound: float
    at_least: bool
    """Whether more is better."""

    @property
    def reached(self) -> bool:
        """Whether the median is on the right side of the bound."""
        if self.at_least:
            return self.series.median >= self.bound
        return self.series.median <= self.bound

    def __str__(self) -> str:
        sign = ">=" if self.at_least else "<="
        word = "reached" if self.reached else "MISSED"
        series = self.series
        return f"{series.name}: {number(series.median)} {sign} {number(self.bound)}: {word}"

    def to_json(self) -> dict[str, Any]:
        """Return the goal and whether it was reached."""
        return {
            "name": self.series.name,
            "median": self.series.median,
            "bound": self.bound,
            "at_least": self.at_least,
            "reached": self.reached,
        }


@dataclass(slots=True)
class Outcome:
    """All that one script has to tell."""

    title: str
    series: list[Series] = field(default_factory=list)
    goals: list[Goal] = field(default_factory=list)
    limits: list[str] = field(default_factory=list)
    """What limited it: one line each."""
    settings: dict[str, Any] = field(default_factory=dict)

    def table(self) -> str:
        """Return the table that people read."""
        rows = [("", "median", "unit", "runs", "smallest", "largest", "spread")]
        for s in self.series:
            low, high = number(min(s.values)), number(max(s.values))
            runs, spread = str(len(s.values)), f"{s.spread:.0%}"
            rows.append((s.name, number(s.median), s.unit, runs, low, high, spread))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [self.title]
        for name, *cells in rows:
            right = (cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True))
            lines.append("  ".join((name.ljust(widths[0]), *right)).rstrip())
        lines += [f"goal   {goal}" for goal in self.goals]
        lines += [f"limit  {line}" for line in self.limits]
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """Return everything, for ``--json``."""
        return {
            "title": self.title,
            "series": [series.to_json() for series in self.series],
            "goals": [goal.to_json() for goal in self.goals],
            "limits": self.limits,
            "settings": self.settings,
        }


def number(value: float) -> str:
    """Return a number with about three digits, for people."""
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def machine() -> str:
    """Return how busy the machine is by itself; everything measured here is to be read with it."""
    load = os.getloadavg()
    return f"{os.cpu_count()} cores, load average {load[0]:.2f} {load[1]:.2f} {load[2]:.2f}"


def options(description: str) -> argparse.ArgumentParser:
    """Return the options that all scripts have."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there")
    parser.add_argument("--quick", action="store_true", help="the smallest run, to see it work")
    return parser


def run_script(main: Callable[[], int]) -> NoReturn:
    """Run a script and leave with its exit code; 2 when the machine lacks something.

    Ctrl-C and SIGTERM unwind the stack, so that whatever was made is removed.
    """

    def leave(signum: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + signum)

    signal.signal(signal.SIGTERM, leave)
    signal.signal(signal.SIGINT, leave)
    try:
        sys.exit(main())
    except SetupError as error:
        print(f"{Path(sys.argv[0]).name}: {error}", file=sys.stderr)
        sys.exit(2)


def tell(outcome: Outcome, arguments: argparse.Namespace) -> int:
    """Print the table, write the JSON; returns the exit code (0: a missed goal is no error)."""
    print(outcome.table())
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(outcome.to_json(), indent=2) + "\n")
    return 0


def progress(words: Sequence[object]) -> None:
    """Say on standard error what has just been measured."""
    print("#", *words, file=sys.stderr, flush=True)

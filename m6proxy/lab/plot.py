"""The demo as a drawing: throughput of each session over time, both runs, events marked.

A small writer of our own: text in, SVG text out, nothing drawn that is not in the results.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias
from xml.sax.saxutils import escape

from m6proxy.lab.story import MEBI_OCTETS, Progress, RunResult, StoryEvent, throughput

BIN_S = 1.0
WIDTH = 1120
PANEL_HEIGHT = 150
PANEL_GAP = 46
LEFT, RIGHT, TOP, BOTTOM = 84, 24, 168, 54
WITH_COLOUR = "#1b6ca8"
WITHOUT_COLOUR = "#c4452d"
MARKS = {
    "provider silent": "#c4452d",
    "context established": "#6a8f3c",
    "silence noticed": "#b8860b",
    "re-homed": "#2e7d32",
}
"""The kinds of event that are drawn, with their colours."""
Series: TypeAlias = tuple[list[tuple[float, float]], str, str]
"""(s, octets per second) for each bin, colour, and the dashes of the line."""
CLUSTER_S = 2.0
"""Events of one kind closer than this are one mark."""
LABEL_ROWS = 5


@dataclass(frozen=True, slots=True)
class Mark:
    """One vertical line."""

    t_s: float
    what: str
    count: int
    label: str


def draw(with_it: RunResult, control: RunResult) -> str:
    """Return the SVG document of both runs."""
    end_s = max(with_it.length_s, control.length_s, 1.0)
    names = [(s.name, s.protocol) for s in with_it.sessions]
    height = TOP + len(names) * (PANEL_HEIGHT + PANEL_GAP) - PANEL_GAP + BOTTOM
    plot_bottom = height - BOTTOM
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" '
        f'viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
        *_legend(),
        *_marks(marks(with_it.events), end_s, plot_bottom),
    ]
    for index, (name, protocol) in enumerate(names):
        top = TOP + index * (PANEL_HEIGHT + PANEL_GAP)
        series = (
            (_rates(control, name), WITHOUT_COLOUR, "5 3"),
            (_rates(with_it, name), WITH_COLOUR, ""),
        )
        parts += _panel(f"{name} ({protocol})", series, end_s, top)
    parts += _time_axis(end_s, plot_bottom)
    parts.append("</svg>")
    return "\n".join(parts) + "\n"


def marks(events: Sequence[StoryEvent]) -> list[Mark]:
    """Return the events that are drawn; those of one kind at nearly one time are one mark."""
    found: list[Mark] = []
    for event in sorted(events, key=lambda e: e.t_s):
        if event.what not in MARKS:
            continue
        for index, mark in enumerate(found):
            if mark.what == event.what and event.t_s - mark.t_s <= CLUSTER_S:
                found[index] = replace(mark, count=mark.count + 1)
                break
        else:
            label = event.detail if event.what == "provider silent" else event.what
            found.append(Mark(event.t_s, event.what, 1, label))
    return found


def _legend() -> list[str]:
    title = "Sessions of unmodified hosts while two providers fall silent"
    parts = [_text(LEFT, 24, title, size=16, weight="bold")]
    for x, colour, label, dash in (
        (LEFT, WITH_COLOUR, "with m6proxy", ""),
        (LEFT + 150, WITHOUT_COLOUR, "without (control)", "5 3"),
    ):
        style = f' stroke-dasharray="{dash}"' if dash else ""
        parts.append(
            f'<line x1="{x}" y1="44" x2="{x + 28}" y2="44" stroke="{colour}" '
            f'stroke-width="2"{style}/>'
        )
        parts.append(_text(x + 34, 48, label))
    return parts


def _marks(found: Sequence[Mark], end_s: float, bottom: float) -> list[str]:
    """Vertical lines with their labels in rows, so that neighbours do not cover each other."""
    parts: list[str] = []
    row_free_x = [0.0] * LABEL_ROWS
    for mark in found:
        x = _x(mark.t_s, end_s)
        label = f"{mark.t_s:.1f} s {mark.label}" + (f" ×{mark.count}" if mark.count > 1 else "")
        width = 6.3 * len(label) + 8
        at = x if x + width < WIDTH else WIDTH - width
        row = next((r for r, free in enumerate(row_free_x) if free <= at), LABEL_ROWS - 1)
        row_free_x[row] = at + width
        y = 70 + row * 17
        colour = MARKS[mark.what]
        parts.append(
            f'<line x1="{x:.1f}" y1="{y - 9}" x2="{x:.1f}" y2="{bottom}" stroke="{colour}" '
            'stroke-width="1" stroke-dasharray="2 2"/>'
        )
        parts.append(_text(at + 4, y, label, size=11, colour=colour))
    return parts


def _rates(run: RunResult, name: str) -> list[tuple[float, float]]:
    """Octets per second of one session; one that survived ends with its last whole bin."""
    progress = run.progress.get(name, Progress.empty())
    survived = any(s.name == name and s.survived for s in run.sessions)
    end_s = run.length_s
    if survived:
        end_s = max(BIN_S, math.floor(progress.last_s(end_s) / BIN_S) * BIN_S)
    return throughput(progress, BIN_S, end_s)


def _panel(title: str, lines: Sequence[Series], end_s: float, top: float) -> list[str]:
    bottom = top + PANEL_HEIGHT
    highest = max((rate for points, _, _ in lines for _, rate in points), default=0.0)
    unit, size = _unit(highest)
    ceiling = _round_up(highest / size or 1.0)
    parts = [
        f'<rect x="{LEFT}" y="{top}" width="{WIDTH - LEFT - RIGHT}" height="{PANEL_HEIGHT}" '
        'fill="none" stroke="#999999"/>',
        _text(LEFT, top - 6, f"{title}, {unit}", weight="bold"),
    ]
    for share in (0.0, 0.5, 1.0):
        y = bottom - share * PANEL_HEIGHT
        parts.append(_text(LEFT - 6, y + 4, f"{ceiling * share:g}", anchor="end"))
        if 0 < share < 1:
            parts.append(
                f'<line x1="{LEFT}" y1="{y}" x2="{WIDTH - RIGHT}" y2="{y}" stroke="#e4e4e4"/>'
            )
    for points, colour, dash in lines:
        corners = [
            f"{_x(t + side, end_s):.1f},{bottom - rate / size / ceiling * PANEL_HEIGHT:.1f}"
            for t, rate in points
            for side in (-BIN_S / 2, BIN_S / 2)
        ]
        path = " ".join(corners)
        style = f' stroke-dasharray="{dash}"' if dash else ""
        parts.append(
            f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.6"{style}/>'
        )
    return parts


def _time_axis(end_s: float, bottom: float) -> list[str]:
    step = next((s for s in (1, 2, 5, 10, 20, 50, 100) if end_s / s <= 16), 200)
    parts = []
    for number in range(int(end_s / step) + 1):
        x = _x(number * step, end_s)
        parts.append(
            f'<line x1="{x:.1f}" y1="{bottom}" x2="{x:.1f}" y2="{bottom + 5}" stroke="#666666"/>'
        )
        parts.append(_text(x, bottom + 20, f"{number * step}", anchor="middle"))
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, bottom + 40, "seconds", anchor="middle"))
    return parts


def _x(t_s: float, end_s: float) -> float:
    return LEFT + min(max(t_s, 0.0), end_s) / end_s * (WIDTH - LEFT - RIGHT)


def _unit(highest: float) -> tuple[str, int]:
    if highest >= MEBI_OCTETS:
        return "MiB/s", MEBI_OCTETS
    if highest >= 1024:
        return "KiB/s", 1024
    return "B/s", 1


def _round_up(value: float) -> float:
    """The next of 1, 2, 4, 5, 10 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(value))
    return next(power * step for step in (1, 2, 4, 5, 10) if power * step >= value * 0.999)


def _text(
    x: float, y: float, words: str, *, size: int = 12, colour: str = "#222222",
    anchor: str = "start", weight: str = "normal",
) -> str:  # fmt: skip
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" fill="{colour}" '
        f'text-anchor="{anchor}" font-weight="{weight}">{escape(words)}</text>'
    )

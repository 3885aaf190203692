"""What the demo shows while it runs: a live screen on a terminal, plain lines elsewhere."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from m6proxy.lab.story import MEBI_OCTETS, SessionResult, StoryEvent
from m6proxy.lab.topology import short_names

SHOWN_EVENTS = 22
_NAMES = short_names()
_ADDRESS = re.compile(r"2001:db8:[0-9a-f:]+")
_STYLES = {
    "provider silent": "bold red",
    "session silent": "red",
    "session lost": "bold red",
    "path doubted": "yellow",
    "silence noticed": "yellow",
    "peer explores": "yellow",
    "probe sent": "dim",
    "context established": "green",
    "re-homed": "bold green",
    "session resumed": "bold green",
    "session complete": "green",
}


@dataclass(frozen=True, slots=True)
class SessionView:
    """One session now."""

    name: str
    protocol: str
    octets: int
    rate_octets_s: float
    silent_s: float
    longest_gap_s: float
    is_over: bool
    fault: str | None


class Timeline(Protocol):
    """Where the story is told."""

    def chapter(self, title: str) -> None:
        """Begin a run."""

    def note(self, event: StoryEvent) -> None:
        """Tell one event."""

    def show(self, now_s: float, sessions: Sequence[SessionView]) -> None:
        """Show where the sessions are now."""

    def close(self) -> None:
        """End the run's display, leaving its last state on the screen."""


class PlainTimeline:
    """One line per event; a session's numbers every 5 s."""

    PERIOD_S = 5.0
    PATIENCE_S = 1.0
    """How long a session's numbers wait for events that happened before them."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._next_s = 0.0
        self._waiting: tuple[float, str] | None = None

    def chapter(self, title: str) -> None:
        self._console.print(f"== {title}", markup=False, highlight=False)
        self._next_s = self.PERIOD_S

    def note(self, event: StoryEvent) -> None:
        self._release(event.t_s)
        self._line(event.t_s, f"{event.what:<20} {spoken(event.detail)}")

    def show(self, now_s: float, sessions: Sequence[SessionView]) -> None:
        self._release(now_s - self.PATIENCE_S)
        if now_s < self._next_s:
            return
        self._next_s += self.PERIOD_S
        parts = [f"{s.name} {amount(s.octets)}" for s in sessions]
        self._waiting = (now_s, f"{'so far':<20} {', '.join(parts)}")

    def close(self) -> None:
        self._release(math.inf)

    def _release(self, until_s: float) -> None:
        if self._waiting is not None and self._waiting[0] <= until_s:
            self._line(*self._waiting)
            self._waiting = None

    def _line(self, at_s: float, text: str) -> None:
        self._console.print(
            f"{at_s:7.2f} s  {text.rstrip()}", markup=False, highlight=False, soft_wrap=True
        )


class LiveTimeline:
    """The screen: the sessions on top, below them what happened."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live: Live | None = None
        self._title = ""
        self._events: list[StoryEvent] = []
        self._sessions: Sequence[SessionView] = ()
        self._now_s = 0.0

    def chapter(self, title: str) -> None:
        self._title = title
        self._events = []
        self._live = Live(console=self._console, auto_refresh=False, transient=True)
        self._live.start()

    def note(self, event: StoryEvent) -> None:
        self._events.append(event)

    def show(self, now_s: float, sessions: Sequence[SessionView]) -> None:
        self._now_s, self._sessions = now_s, sessions
        self._draw()

    def close(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None
            self._console.print(self._screen(len(self._events)))

    def _draw(self) -> None:
        if self._live is not None:
            self._live.update(self._screen(SHOWN_EVENTS), refresh=True)

    def _screen(self, shown: int) -> Group:
        sessions = Table(title=self._title, title_justify="left", title_style="bold", expand=True)
        for heading in ("session", "protocol", "received", "now", "longest gap", "state"):
            sessions.add_column(heading, justify="left" if heading == "session" else "right")
        for s in self._sessions:
            sessions.add_row(
                s.name,
                s.protocol,
                amount(s.octets),
                "" if s.is_over else f"{amount(s.rate_octets_s)}/s",
                f"{s.longest_gap_s:.1f} s",
                _state(s),
            )
        events = Table.grid(padding=(0, 2))
        for event in self._events[-shown:]:
            style = _STYLES.get(event.what, "")
            events.add_row(
                Text(f"{event.t_s:7.2f} s", style="cyan"),
                Text(event.what, style=style),
                Text(spoken(event.detail), style="dim" if style == "dim" else ""),
            )
        return Group(sessions, Text(f"{self._now_s:7.2f} s  now", style="bold cyan"), events)


def spoken(detail: str) -> str:
    """Put the hosts' names in the place of their addresses, for people."""
    return _ADDRESS.sub(lambda found: _NAMES.get(found[0], found[0]), detail)


def _state(session: SessionView) -> Text:
    if session.is_over and session.fault is None:
        return Text("complete", style="green")
    if session.fault is not None:
        return Text("lost", style="bold red")
    if session.silent_s > 1:
        return Text(f"silent for {session.silent_s:.1f} s", style="yellow")
    return Text("flowing", style="green")


def amount(octets: float) -> str:
    """Return an amount of octets as people read it: ``200 B``, ``1.5 KiB``, ``12.0 MiB``."""
    if octets < 1024:
        return f"{octets:.0f} B"
    if octets < MEBI_OCTETS:
        return f"{octets / 1024:.1f} KiB"
    return f"{octets / MEBI_OCTETS:.1f} MiB"


def results_table(sessions: Sequence[SessionResult], control: Sequence[SessionResult]) -> Table:
    """Return the two runs side by side, one row for each session and run."""
    table = Table(
        title="the same sessions, with and without m6proxy",
        title_justify="left",
        box=box.SIMPLE,
        padding=(0, 1, 0, 0),
    )
    for heading in ("session", "run", "survived", "received", "SHA-256", "longest gap", "how"):
        table.add_column(heading, no_wrap=heading != "how")
    for label, results in (("m6proxy", sessions), ("control", control)):
        for r in results:
            table.add_row(
                r.name,
                label,
                Text("yes", style="green") if r.survived else Text("no", style="bold red"),
                amount(r.octets),
                "right" if r.sha256_ok else "wrong",
                f"{r.longest_gap_s:.2f} s",
                r.why,
            )
    return table

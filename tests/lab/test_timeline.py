"""What people see: plain lines where there is no terminal, a screen where there is one."""

from __future__ import annotations

import io

from rich.console import Console

from m6proxy.lab.story import SessionResult, StoryEvent
from m6proxy.lab.timeline import (
    LiveTimeline,
    PlainTimeline,
    SessionView,
    Timeline,
    amount,
    results_table,
    spoken,
)

VIEW = SessionView("file", "tcp/http", 3 << 20, 1 << 20, 0.1, 4.5, False, None)


def _tell(timeline: Timeline) -> None:
    timeline.chapter("with m6proxy")
    timeline.note(StoryEvent(8.02, "provider silent", "alpha.isp1 drops [all]"))
    timeline.show(10.0, [VIEW])
    timeline.close()


def test_plain_lines() -> None:
    out = io.StringIO()
    _tell(PlainTimeline(Console(file=out, width=100)))
    assert out.getvalue().splitlines() == [
        "== with m6proxy",
        "   8.02 s  provider silent      alpha.isp1 drops [all]",
        "  10.00 s  so far               file 3.0 MiB",
    ]


def test_the_screen_keeps_its_last_state() -> None:
    out = io.StringIO()
    _tell(LiveTimeline(Console(file=out, width=100, force_terminal=True)))
    text = out.getvalue()
    for word in ("with m6proxy", "provider silent", "alpha.isp1 drops [all]", "4.5 s", "flowing"):
        assert word in text


def test_amounts() -> None:
    assert [amount(n) for n in (0, 200, 1536, 12 << 20)] == ["0 B", "200 B", "1.5 KiB", "12.0 MiB"]


def test_results_side_by_side() -> None:
    good = SessionResult("file", "tcp/http", True, 1 << 20, True, 4.25, "complete")
    bad = SessionResult("file", "tcp/http", False, 1 << 10, False, 20.0, "no progress for 20 s")
    out = io.StringIO()
    Console(file=out, width=140).print(results_table([good], [bad]))
    assert "4.25 s" in out.getvalue()
    assert "no progress for 20 s" in out.getvalue()


def test_addresses_are_spoken_as_names() -> None:
    detail = "alpha: 2001:db8:a1:1::10 <-> 2001:db8:b1:1::20 2001:db8:a2::10 at 2001:db8:9::1"
    assert spoken(detail) == "alpha: a1 <-> b2 a1@isp2 at 2001:db8:9::1"


def test_numbers_wait_for_events_that_came_before_them() -> None:
    out = io.StringIO()
    timeline = PlainTimeline(Console(file=out, width=100))
    timeline.chapter("x")
    timeline.show(5.0, [VIEW])
    timeline.note(StoryEvent(4.8, "re-homed", ""))
    timeline.note(StoryEvent(5.2, "path confirmed", ""))
    assert [line.split()[0] for line in out.getvalue().splitlines()[1:]] == ["4.80", "5.00", "5.20"]

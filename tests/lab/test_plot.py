"""The drawing is well-formed, and the events of the story are in it."""

from __future__ import annotations

import xml.etree.ElementTree as ET

from m6proxy.lab.plot import draw, marks
from m6proxy.lab.story import Progress, RunResult, SessionResult, StoryEvent

SVG = "{http://www.w3.org/2000/svg}"


def _run(*, survived: bool, events: list[StoryEvent]) -> RunResult:
    result = SessionResult("file", "tcp/http", survived, 10, survived, 1.0, "<why> & how")
    progress = Progress([i / 10 for i in range(200)], [1 << 20] * 200)
    return RunResult([result], {"file": progress}, events, 22.0)


def _events() -> list[StoryEvent]:
    return [
        StoryEvent(8.0, "provider silent", "alpha.isp1 drops <all>"),
        StoryEvent(11.2, "re-homed", "alpha: one"),
        StoryEvent(11.4, "re-homed", "beta: two"),
        StoryEvent(10.9, "silence noticed", "alpha: one"),
        StoryEvent(12.0, "probe sent", "alpha: one"),
    ]


def test_both_runs_and_the_events_are_in_the_drawing() -> None:
    text = draw(_run(survived=True, events=_events()), _run(survived=False, events=[]))
    root = ET.fromstring(text)  # noqa: S314  our own text
    words = [node.text for node in root.iter(f"{SVG}text")]
    assert "8.0 s alpha.isp1 drops <all>" in words
    assert "11.2 s re-homed ×2" in words
    assert "10.9 s silence noticed" in words
    assert "file (tcp/http), MiB/s" in words
    assert not any("probe" in (word or "") for word in words)
    assert len(list(root.iter(f"{SVG}polyline"))) == 2


def test_a_run_in_which_nothing_came_can_be_drawn() -> None:
    empty = RunResult([], {}, [], 0.0)
    assert ET.fromstring(draw(empty, empty)).tag == f"{SVG}svg"  # noqa: S314  our own text


def test_events_of_one_kind_at_nearly_one_time_are_one_mark() -> None:
    found = marks(_events())
    assert [(m.t_s, m.what, m.count) for m in found] == [
        (8.0, "provider silent", 1),
        (10.9, "silence noticed", 1),
        (11.2, "re-homed", 2),
    ]

"""Random schedules in the simulator: 500 here, 10,000 in CI, as many as one likes by hand.

``M6PROXY_SIMULATIONS`` overrules the number. A seed that fails prints its schedule; then
``python -m tests.harness.simulator --seed N --steps`` plays it again, packet by packet.
That the watchers see what they watch for is shown in ``test_simulator_watchers``.
"""

from __future__ import annotations

import os
from collections import Counter
from concurrent.futures import Future, ProcessPoolExecutor
from functools import cache
from multiprocessing import get_context

import pytest

from tests.harness.simulator.census import Census, Event
from tests.harness.simulator.schedule import generate
from tests.harness.simulator.world import World

USUAL, IN_CI, PARTS = 500, 10_000, 20


def schedules() -> int:
    """How many seeds to play."""
    usual = IN_CI if os.environ.get("CI") == "true" else USUAL
    return int(os.environ.get("M6PROXY_SIMULATIONS", usual))


def play(part: int) -> tuple[str, Census]:
    """Play one part of the seeds; returns what failed first, if anything, and what happened."""
    stories: Census = Counter()
    for seed in range(part, schedules(), PARTS):
        world = World(generate(seed))
        try:
            world.play()
        except Exception as broken:
            return f"{world.schedule}\n{world.now:8.3f} s: {broken!r}", stories
        stories.update(event for event, times in world.census.items() if times)
    return "", stories


@cache
def _processes() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn"))


@cache
def _playing(part: int) -> Future[tuple[str, Census]]:
    return _processes().submit(play, part)


def played(part: int) -> tuple[str, Census]:
    """The result of ``play``, while the next part is being played by another core."""
    if part + 1 < PARTS:
        _playing(part + 1)
    return _playing(part).result()


@pytest.mark.parametrize("part", range(PARTS))
def test_no_schedule_breaks_an_invariant(part: int) -> None:
    failure, _ = played(part)
    assert not failure, failure


def test_whatever_can_happen_happens_in_some_of_them() -> None:
    """A schedule that asks for something proves nothing while it never takes effect."""
    stories: Census = Counter()
    for part in range(PARTS):
        stories += played(part)[1]
    if schedules() >= USUAL:
        assert {event.name for event in Event if not stories[event]} == set()


def test_a_seed_plays_the_same_way_each_time() -> None:
    told: list[list[str]] = []
    for _ in range(2):
        lines: list[str] = []
        World(generate(7), trace=lines.append).play()
        told.append(lines)
    assert told[0] == told[1]
    assert len(told[0]) > 10

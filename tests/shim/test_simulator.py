"""Random schedules in the simulator: 500 here, 10,000 in CI, as many as one likes by hand.

``M6PROXY_SIMULATIONS`` overrules the number. A seed that fails prints its schedule; then
``python -m tests.harness.simulator --seed N --steps`` plays it again, packet by packet.
"""

from __future__ import annotations

import os

import pytest

from tests.harness.simulator.schedule import generate
from tests.harness.simulator.world import World

USUAL, IN_CI, PARTS = 500, 10_000, 20


def schedules() -> int:
    """How many seeds to play."""
    usual = IN_CI if os.environ.get("CI") == "true" else USUAL
    return int(os.environ.get("M6PROXY_SIMULATIONS", usual))


@pytest.mark.parametrize("part", range(PARTS))
def test_no_schedule_breaks_an_invariant(part: int) -> None:
    for seed in range(part, schedules(), PARTS):
        world = World(generate(seed))
        try:
            world.play()
        except Exception as broken:
            pytest.fail(f"{world.schedule}\n{world.now:8.3f} s: {broken!r}")


def test_a_seed_plays_the_same_way_each_time() -> None:
    told: list[list[str]] = []
    for _ in range(2):
        lines: list[str] = []
        World(generate(7), trace=lines.append).play()
        told.append(lines)
    assert told[0] == told[1]
    assert len(told[0]) > 10

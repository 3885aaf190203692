"""Play seeds by hand: ``python -m tests.harness.simulator --seed 7 --steps``."""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from collections.abc import Sequence

from tests.harness.simulator.schedule import generate
from tests.harness.simulator.world import World


def main(arguments: Sequence[str] | None = None) -> int:
    """Play the seeds asked for; returns 1 when any of them broke something."""
    parser = argparse.ArgumentParser(prog="python -m tests.harness.simulator", description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    parser.add_argument("--count", type=int, default=1, help="how many seeds from there on")
    parser.add_argument("--steps", action="store_true", help="print each schedule and its packets")
    asked = parser.parse_args(arguments)
    failed = 0
    start_s = time.perf_counter()
    for seed in range(asked.seed, asked.seed + asked.count):
        schedule = generate(seed)
        if asked.steps:
            _say(str(schedule))
        world = World(schedule, trace=_say if asked.steps else None)
        try:
            world.play()
        except Exception as error:
            failed += 1
            _say(f"{schedule}\n  {world.now:8.3f} s  seed {seed} fails: {error!r}")
            if asked.count == 1:
                traceback.print_exc()
    spent_s = time.perf_counter() - start_s
    _say(f"{asked.count} schedules, {failed} failed, {spent_s:.1f} s")
    return min(failed, 1)


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")


if __name__ == "__main__":
    sys.exit(main())

"""What a receiver of ``m6proxy.lab.traffic`` wrote down."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from m6proxy.lab import traffic
from m6proxy.lab.build import Lab
from tests.harness.gateway import B1, program
from tests.harness.netns import eventually


@contextmanager
def streaming(lab: Lab, path: Path) -> Iterator[None]:
    """Datagrams from a1 to b1 all the while; what came is written to ``path``."""
    words = [sys.executable, "-m", traffic.__name__]
    with (
        program(lab, "b1", *words, "receive", B1, "5005", output=path),
        program(lab, "a1", *words, "send", B1, "5005"),
    ):
        yield


def sequence(path: Path) -> list[int]:
    """The numbers of the datagrams that came, in their order."""
    lines = path.read_text().splitlines()
    return [int(line.split()[0]) for line in lines if line and not line.startswith("#")]


def grows(path: Path, by: int) -> None:
    """Wait until so many more came; fail the test when they do not."""
    count = len(sequence(path)) + by
    eventually(lambda: len(sequence(path)) >= count, deadline_s=20, what=f"{by} more packets")


def is_whole(path: Path) -> bool:
    """Whether none is missing between the first and the last, and none came twice."""
    numbers = sequence(path)
    return numbers == list(range(numbers[0], numbers[0] + len(numbers)))

"""What a receiver of ``m6proxy.lab.traffic`` wrote down."""

from __future__ import annotations

from pathlib import Path

from tests.harness.netns import eventually


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

"""Fixtures that bring a lab up in network namespaces and take it down, for any test.

A test module asks for them by importing the fixture's name; each test gets a lab of its own
with a name that no other run uses. Nothing of it is left afterwards, however the test ends.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from m6proxy.discovery.codec import svcb_zone_line
from m6proxy.lab import build
from m6proxy.lab.build import Lab
from m6proxy.lab.nameserver import start_nameserver

_numbers = itertools.count(1)


def unique_lab() -> Lab:
    """Return a lab that is not up, with a name of its own."""
    return Lab(f"m6t-{os.getpid()}-{next(_numbers)}")


@contextmanager
def up_with_names(the_lab: Lab) -> Iterator[Lab]:
    """A lab with its name server for the length of the block."""
    try:
        build.up(the_lab)
        start_nameserver(the_lab, svcb_zone_line)
        yield the_lab
    finally:
        build.down(the_lab)


@pytest.fixture
def lab() -> Iterator[Lab]:
    """The whole lab with its name server, no m6proxy and no source routing on the gateways."""
    with up_with_names(unique_lab()) as the_lab:
        yield the_lab


@pytest.fixture
def plain_lab() -> Iterator[Lab]:
    """The lab as the control run has it: plain source routing, and no name server."""
    the_lab = unique_lab()
    try:
        build.up(the_lab, source_routing=True)
        yield the_lab
    finally:
        build.down(the_lab)


def run_in(lab: Lab, node: str, *command: str, deadline_s: float = 10.0) -> str:
    """Run a command in a node and return its output; fail the test when it fails."""
    done = subprocess.run(
        lab.inside(node, command), capture_output=True, text=True, timeout=deadline_s
    )
    assert done.returncode == 0, f"{node}: {command}: {done.stdout}{done.stderr}"
    return done.stdout


def reaches(lab: Lab, node: str, destination: str, *, source: str | None = None) -> bool:
    """Tell whether a ping of at most one second is answered."""
    origin = ["-I", source] if source else []
    done = subprocess.run(
        lab.inside(node, ["ping", "-n", "-c", "1", "-W", "1", *origin, destination]),
        capture_output=True,
    )
    return done.returncode == 0


def eventually(is_so: Callable[[], bool], *, deadline_s: float, what: str) -> None:
    """Ask again until it is so; fail the test after ``deadline_s``."""
    end_s = time.monotonic() + deadline_s
    while not is_so():
        assert time.monotonic() < end_s, f"not within {deadline_s:g} s: {what}"
        time.sleep(0.02)

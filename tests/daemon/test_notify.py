"""sd_notify over a real datagram socket."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from m6proxy.daemon.notify import Notifier


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        listener.settimeout(5)
        yield listener


def test_the_manager_hears_each_word(manager: socket.socket) -> None:
    notifier = Notifier.from_environment({"NOTIFY_SOCKET": manager.getsockname()})
    notifier.ready("2 uplinks up")
    assert manager.recv(4096) == b"READY=1\nSTATUS=2 uplinks up"
    notifier.status("1 uplink up")
    assert manager.recv(4096) == b"STATUS=1 uplink up"
    notifier.alive()
    assert manager.recv(4096) == b"WATCHDOG=1"
    notifier.stopping()
    assert manager.recv(4096) == b"STOPPING=1\nSTATUS=stopping"


def test_an_abstract_socket() -> None:
    name = f"m6t-{os.getpid()}-notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(f"\0{name}")
        listener.settimeout(5)
        Notifier(f"@{name}", None).alive()
        assert listener.recv(4096) == b"WATCHDOG=1"


def test_without_a_manager_it_says_nothing(tmp_path: Path) -> None:
    Notifier.from_environment({}).ready("up")
    Notifier(str(tmp_path / "gone"), None).ready("up")


def test_the_watchdog_is_answered_twice_as_often_as_needed() -> None:
    assert Notifier.from_environment({"WATCHDOG_USEC": "30000000"}).watchdog_interval_s == 15.0
    assert Notifier.from_environment({}).watchdog_interval_s is None


def test_a_manager_that_does_not_read_stops_nothing(manager: socket.socket) -> None:
    notifier = Notifier(manager.getsockname(), None)
    for _ in range(10_000):  # more than any receive queue holds
        notifier.alive()

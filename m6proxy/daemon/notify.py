"""Tells the service manager how the daemon is: sd_notify(3), the part that a daemon needs."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Notifier:
    """Says it over the socket that the service manager gave; without one, says nothing."""

    socket_name: str | None
    """Path, or @name for an abstract socket."""
    watchdog_interval_s: float | None
    """How often ``alive`` is due: half of what the manager tolerates; None for never."""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Notifier:
        """Read NOTIFY_SOCKET and WATCHDOG_USEC."""
        limit_us = environment.get("WATCHDOG_USEC", "")
        interval_s = int(limit_us) / 2e6 if limit_us.isdecimal() else None
        return cls(environment.get("NOTIFY_SOCKET"), interval_s)

    def ready(self, status: str) -> None:
        """The daemon works; ``status`` is one line for people."""
        self._send(f"READY=1\nSTATUS={status}")

    def status(self, text: str) -> None:
        """One line for people."""
        self._send(f"STATUS={text}")

    def stopping(self) -> None:
        """The daemon cleans up and ends."""
        self._send("STOPPING=1\nSTATUS=stopping")

    def alive(self) -> None:
        """Answer the watchdog."""
        self._send("WATCHDOG=1")

    def _send(self, message: str) -> None:
        if not self.socket_name:
            return
        name = self.socket_name
        if name.startswith("@"):
            name = "\0" + name[1:]
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            sender.setblocking(False)
            try:
                sender.sendto(message.encode(), name)
            except OSError:
                return  # a deaf service manager is no reason to stop traffic

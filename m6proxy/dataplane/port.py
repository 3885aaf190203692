"""The seam between the loop and whatever moves packets. ``memory`` is its fake.

A data plane delivers each packet to the sink of its direction and does what the verdict
says. It decides nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol, TypeAlias

from m6proxy.shim.effects import InstallFlow, RemoveFlow
from m6proxy.shim.verdict import Verdict

Sink: TypeAlias = Callable[[bytes], Verdict]
"""Takes one IPv6 packet, whole, and says what becomes of it."""


class DataPlane(Protocol):
    """Delivers packets of both directions and executes flows."""

    def open(self, *, outbound: Sink, inbound: Sink) -> None:
        """Start delivering. Raises SetupError when the kernel refuses."""

    def close(self) -> None:
        """Stop delivering; safe to call twice."""

    def send(self, packet: bytes) -> None:
        """Send one IPv6 packet of ours, source as in its header. Never raises for the network."""

    def apply_flows(self, changes: Iterable[InstallFlow | RemoveFlow]) -> None:
        """Tell the kernel which ULID pairs must not pass without their rewriter."""

    def losses(self) -> dict[str, int]:
        """Packets that died before or after us (queue full, send failed), by name."""

"""The data plane's fake: packets are handed in by the test, and everything is written down."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from m6proxy.dataplane.port import Sink
from m6proxy.names import LocatorPair, UlidPair
from m6proxy.reasons import Reason
from m6proxy.shim.effects import InstallFlow, RemoveFlow
from m6proxy.shim.verdict import CONSUMED


class MemoryDataPlane:
    """Does what a kernel would do with the verdicts, one packet at a time."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        """Packets that were sent, oldest first; the test may clear it."""
        self.flows: dict[UlidPair, LocatorPair] = {}
        """The re-homed pairs, as the kernel would have them."""
        self.drops: Counter[Reason] = Counter()
        self.consumed = 0
        self.opened = False
        self._outbound: Sink | None = None
        self._inbound: Sink | None = None

    def open(self, *, outbound: Sink, inbound: Sink) -> None:
        """Start delivering what is injected."""
        self._outbound = outbound
        self._inbound = inbound
        self.opened = True

    def close(self) -> None:
        """Stop delivering: from now on injected packets meet the rules of a dead daemon."""
        self._outbound = self._inbound = None
        self.opened = False

    def send(self, packet: bytes) -> None:
        """Write the packet down in ``sent``."""
        self.sent.append(packet)

    def apply_flows(self, changes: Iterable[InstallFlow | RemoveFlow]) -> None:
        """Write the flows down in ``flows``."""
        for change in changes:
            if isinstance(change, InstallFlow):
                self.flows[change.ulids] = change.locators
            else:
                self.flows.pop(change.ulids, None)

    def losses(self) -> dict[str, int]:
        """Nothing is lost here."""
        return {}

    def inject_outbound(self, packet: bytes) -> list[bytes]:
        """Hand in a packet from a host; return what leaves towards the uplinks: one or none."""
        if self._outbound is None:
            guarded = UlidPair(packet[8:24], packet[24:40]) in self.flows
            return [] if guarded else [packet]
        return self._deliver(self._outbound, packet)

    def inject_inbound(self, packet: bytes) -> list[bytes]:
        """Hand in a packet from an uplink; return what goes on to the host: one or none."""
        if self._inbound is None:
            return [] if packet[6] == 140 else [packet]
        return self._deliver(self._inbound, packet)

    def _deliver(self, sink: Sink, packet: bytes) -> list[bytes]:
        verdict = sink(packet)
        if verdict is None:
            return [packet]
        if isinstance(verdict, bytes):
            return [verdict]
        if verdict is CONSUMED:
            self.consumed += 1
        else:
            self.drops[verdict] += 1
        return []

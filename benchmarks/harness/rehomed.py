"""Two engines in memory with a context that left its ULIDs, and packets for it."""

from __future__ import annotations

import time
from collections.abc import Callable

from m6proxy.daemon.journal import Journal
from m6proxy.daemon.loop import Loop
from m6proxy.dataplane.port import DataPlane
from m6proxy.discovery.capability import NameData
from m6proxy.discovery.names_book import NameBook
from m6proxy.names import Address
from m6proxy.shim.verdict import Verdict
from m6proxy.wire.ipv6 import NEXT_UDP, build_packet
from tests.harness.pair import A1, B1, Pair

SEND_TIMEOUT_S = 15.0
"""Longer than a measurement, in which traffic goes one way only and would look like silence."""
UDP_HEADER = bytes.fromhex("1388 1389 0048 0000")
UDP_OCTETS = 64


class Silent:
    """A DNS in which there is nothing."""

    async def peer(self, octets: Address) -> NameData | None:
        """Nothing."""
        return None

    async def named(self, name: str, ulid: Address) -> NameData | None:
        """Nothing."""
        return None

    async def local_name(self, ulid: Address) -> str | None:
        """Nothing."""
        return None


def rehomed_pair() -> Pair:
    """Alpha's first provider died and the context uses the second; the same in every process."""
    pair = Pair(seed=7, send_timeout_s=SEND_TIMEOUT_S)
    pair.establish()
    pair.cut_provider("a", 1)
    pair.stream(30.0, both=True)
    assert pair.alpha.context.rehomings == 1, "alpha did not re-home"
    assert pair.alpha.context.wire_addresses is not None
    return pair


def outbound_packet() -> bytes:
    """A packet of a1 to b1 as the host sends it: 64 octets of UDP payload."""
    return build_packet(A1, B1, NEXT_UDP, UDP_HEADER + bytes(UDP_OCTETS))


def inbound_packet(pair: Pair) -> bytes:
    """The same from b1 to a1, as it arrives at alpha from the network."""
    packet = build_packet(B1, A1, NEXT_UDP, UDP_HEADER + bytes(UDP_OCTETS))
    verdict = pair.beta.engine.handle_outbound(packet, pair.clock.now)
    pair.beta.engine.take_effects()
    assert isinstance(verdict, bytes), "beta did not re-home"
    return verdict


def clock_from(now: float) -> Callable[[], float]:
    """The daemon's clock, moved so that it goes on at ``now``."""
    monotonic, offset_s = time.monotonic, now - time.monotonic()
    return lambda: monotonic() + offset_s


def alpha_loop(pair: Pair, dataplane: DataPlane) -> Loop:
    """Alpha's engine in the daemon's loop."""
    engine = pair.alpha.engine
    engine.take_effects()
    return Loop(
        engine, dataplane, Silent(), NameBook({}), Journal(time.time), clock_from(pair.clock.now)
    )


class Sinks:
    """A data plane that only keeps the sinks, so that they can be called and timed."""

    def __init__(self) -> None:
        self.outbound: Callable[[bytes], Verdict]
        self.inbound: Callable[[bytes], Verdict]

    def open(
        self, *, outbound: Callable[[bytes], Verdict], inbound: Callable[[bytes], Verdict]
    ) -> None:
        """Keep the sinks."""
        self.outbound, self.inbound = outbound, inbound

    def close(self) -> None:
        """Nothing to close."""

    def send(self, packet: bytes) -> None:
        """Nothing goes out."""

    def apply_flows(self, changes: object) -> None:
        """No kernel follows."""

    def losses(self) -> dict[str, int]:
        """Nothing is lost."""
        return {}

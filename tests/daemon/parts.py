"""The daemon's parts for tests: an engine, a data plane in memory and a DNS that a test decides."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from m6proxy.daemon.journal import Journal
from m6proxy.daemon.loop import Loop
from m6proxy.dataplane.memory import MemoryDataPlane
from m6proxy.discovery.capability import NameData
from m6proxy.discovery.names_book import NameBook
from m6proxy.names import Address
from m6proxy.shim.core import ShimSettings
from m6proxy.shim.engine import Engine
from m6proxy.shim.policy import EstablishPolicy
from tests.harness.entropy import SeededEntropy
from tests.harness.pair import A_GATEWAY, uplinks


@dataclass
class FakeDiscovery:
    """Answers from a table; a test may hold answers back with ``gate``."""

    data: dict[Address, NameData] = field(default_factory=dict)
    names: dict[Address, str] = field(default_factory=dict)
    asked: list[Address] = field(default_factory=list)
    gate: asyncio.Event | None = None

    async def peer(self, octets: Address) -> NameData | None:
        self.asked.append(octets)
        if self.gate is not None:
            await self.gate.wait()
        return self.data.get(octets)

    async def named(self, name: str, ulid: Address) -> NameData | None:
        found = self.data.get(ulid)
        return found if found is not None and found.name == name else None

    async def local_name(self, ulid: Address) -> str | None:
        return self.names.get(ulid)

    def snapshot(self) -> list[dict[str, Any]]:
        return []


@dataclass
class Parts:
    """One loop with everything around it."""

    engine: Engine
    plane: MemoryDataPlane
    discovery: FakeDiscovery
    book: NameBook
    journal: Journal
    loop: Loop


def parts(
    *,
    letter: str = "a",
    seed: int = 1,
    discovery: FakeDiscovery | None = None,
    plane: MemoryDataPlane | None = None,
    clock: Callable[[], float] = time.monotonic,
    **settings: Any,
) -> Parts:
    """Put the parts of one site together; nothing runs yet."""
    engine = Engine(
        ShimSettings(
            uplinks=uplinks(letter),
            establish=EstablishPolicy(after_packets=2),
            gateway=A_GATEWAY,
            **settings,
        ),
        SeededEntropy(seed),
    )
    plane = plane or MemoryDataPlane()
    discovery = discovery or FakeDiscovery()
    book = NameBook()
    journal = Journal(time.time)
    loop = Loop(engine, plane, discovery, book, journal, clock)
    return Parts(engine, plane, discovery, book, journal, loop)


async def until(holds: Callable[[], bool], what: str, *, within_s: float = 5.0) -> None:
    """Let the loop run until something holds; fail with ``what`` when it does not in time."""
    deadline_s = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < deadline_s, f"not within {within_s:g} s: {what}"
        await asyncio.sleep(0.001)

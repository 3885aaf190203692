"""The lease to go past the IPv6 stack: given after a look, taken back before the next."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import pytest

from m6proxy.daemon import express
from m6proxy.daemon.config import parse_config
from m6proxy.daemon.express import ExpressGuard, express_view, interfaces, open_guard
from m6proxy.daemon.journal import Journal
from m6proxy.names import UlidPair, address
from m6proxy.steering.apply import RuleBundles
from tests.daemon.parts import until
from tests.daemon.test_config import CONTRACT
from tests.harness import nft
from tests.steering.namespaces import Namespaces, inside, settings_of

pytestmark = pytest.mark.netns


@dataclass
class Others:
    """Who is there, as the test says; a look may be held up."""

    lines: list[str] = field(default_factory=list)
    fault: Exception | None = None
    gate: threading.Event = field(default_factory=threading.Event)
    looks: int = 0
    is_closed: bool = False

    def look(self) -> list[str]:
        self.looks += 1
        self.gate.wait(5)
        if self.fault is not None:
            raise self.fault
        return list(self.lines)

    def close(self) -> None:
        self.is_closed = True


@dataclass
class Story:
    guard: ExpressGuard
    others: Others
    leases: list[int]
    journal: Journal

    def events(self) -> list[str]:
        return [entry.what for entry in self.journal.after(0)]


def told(
    story: Callable[[Story], Awaitable[None]],
    monkeypatch: pytest.MonkeyPatch,
    *,
    held: bool = False,
) -> Story:
    """Play a story with a guard in a namespace of its own, and looks in quick succession."""
    monkeypatch.setattr(express, "LOOK_S", 0.05)
    monkeypatch.setattr(express, "_REST_S", 0.01)
    others, leases, journal = Others(), list[int](), Journal(time.time)
    if not held:
        others.gate.set()

    async def run() -> Story:
        guard = ExpressGuard(others, leases.append, journal)
        parts = Story(guard, others, leases, journal)
        start = asyncio.ensure_future(guard.start())
        if not held:
            await start
        try:
            await story(parts)
        finally:
            others.gate.set()
            await start
            await guard.close()
            await guard.close()
        return parts

    with Namespaces() as namespaces, inside(namespaces.add("g")):
        return asyncio.run(run())


def test_while_nobody_is_there_the_lease_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(now: Story) -> None:
        assert now.guard.is_on and now.guard.in_the_way == ()
        left_s = (now.leases[-1] - time.monotonic_ns()) / 1e9
        assert 2 < left_s <= express.LEASE_S
        await until(lambda: len(now.leases) >= 3, "given again")
        assert sorted(now.leases) == now.leases

    after = told(story, monkeypatch)
    assert after.leases[-1] == 0 and not after.guard.is_on, "the end is the ordinary way"
    assert after.others.is_closed
    assert after.events() == ["express on", "express off"]


def test_who_comes_is_named_and_who_goes_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(now: Story) -> None:
        now.others.lines = ["IPsec: 1 policy"]
        await until(lambda: not now.guard.is_on, "off")
        assert now.leases[-1] == 0
        assert express_view(now.guard, in_kernel=True) == {
            "on": False,
            "in_the_way": ["IPsec: 1 policy"],
        }
        now.others.lines = []
        await until(lambda: now.guard.is_on, "on again")
        assert now.leases[-1] > 0

    assert told(story, monkeypatch).events() == [
        *("express on", "express off", "express on", "express off"),
    ]


def test_a_change_of_rules_ends_the_lease_before_the_look(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(now: Story) -> None:
        now.others.gate.clear()
        nft.add_chain(nft.IP6, "wall", policy=nft.DROP)
        await until(lambda: not now.guard.is_on, "off")
        assert now.leases[-1] == 0
        now.others.gate.set()
        await until(lambda: now.guard.is_on, "on again, for the look says that nobody is there")

    told(story, monkeypatch)


def test_a_look_that_a_change_overtook_gives_no_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(now: Story) -> None:
        await until(lambda: now.others.looks == 1, "it looks")
        nft.add_chain(nft.IP6, "wall", policy=nft.DROP)
        now.others.lines = ["somebody"]
        now.others.gate.set()
        await until(lambda: now.others.looks >= 2, "it looks again")
        await until(lambda: now.guard.in_the_way == ("somebody",), "and sees it")
        assert not any(now.leases)

    told(story, monkeypatch, held=True)


def test_when_nobody_can_look_the_way_is_the_ordinary_one(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(now: Story) -> None:
        now.others.fault = OSError(1, "not allowed")
        await until(lambda: not now.guard.is_on, "off")
        (line,) = now.guard.in_the_way
        assert line == "nobody can tell who else is here: [Errno 1] not allowed"
        now.others.fault = None
        await until(lambda: now.guard.is_on, "on again")

    told(story, monkeypatch)


def test_without_a_guard_the_view_says_why() -> None:
    assert express_view(None, in_kernel=True)["in_the_way"] == ["the configuration says off"]
    assert express_view(None, in_kernel=False) == {
        "on": False,
        "in_the_way": ["the kernel moves no packets here"],
    }


def test_nothing_is_guarded_where_python_moves_all_packets() -> None:
    config = parse_config(CONTRACT, "f.yaml")
    assert open_guard(config, None, None, Journal(time.time)) is None
    assert interfaces(config) == ("lan0", "wan1", "wan2")


def test_rules_of_our_own_however_many_leave_the_lease_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pairs = tuple(
        UlidPair(address("2001:db8:a1::1"), address(f"2001:db8:b1::{number:x}"))
        for number in range(1, 4097)
    )

    async def story(now: Story) -> None:
        bundles = RuleBundles(settings_of("a"))
        await asyncio.to_thread(bundles.apply)
        await until(lambda: "express off" in now.events(), "the jump in PREROUTING is looked at")
        await until(lambda: now.guard.is_on, "on again")
        seen = len(now.events())
        await asyncio.to_thread(bundles.apply_rehomed, pairs)
        looks = now.others.looks
        await until(lambda: now.others.looks > looks + 2, "it looked again")
        assert now.guard.is_on and len(now.events()) == seen

    told(story, monkeypatch)

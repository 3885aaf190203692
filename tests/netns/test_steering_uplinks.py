"""The uplink watch against a real kernel."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Awaitable, Callable, Iterator

import pytest
import structlog

from m6proxy.steering.routes import SourceRouting
from m6proxy.steering.uplinks import UplinkWatch
from tests.steering.namespaces import TwoSites, inside, run, run_line, settings_of

pytestmark = pytest.mark.netns
SETTINGS = settings_of("a")


@pytest.fixture
def sites() -> Iterator[TwoSites]:
    """The topology, and the test inside gateway a."""
    with TwoSites() as built, inside(built.gateway["a"]):
        yield built


class _Story:
    """A started watch and what it said."""

    def __init__(self, *, repaired: bool) -> None:
        self.said: list[tuple[str, bool, str, int]] = []
        self.routing = SourceRouting(SETTINGS)
        self.watch = UplinkWatch(
            SETTINGS,
            lambda *change: self.said.append(change),
            repair=self.routing.repair if repaired else None,
        )

    async def hears(self, name: str, up: bool, why: str, *, mtu: int | None = None) -> None:
        """Wait until the last word about an uplink is this one."""
        deadline = time.monotonic() + 5
        while True:
            last = next((said for said in reversed(self.said) if said[0] == name), None)
            if last and last[1:3] == (up, why) and mtu in (None, last[3]):
                return
            assert time.monotonic() < deadline, f"{name} {up} {why}; heard {self.said}"
            await asyncio.sleep(0.01)


def _tell(story: Callable[[_Story], Awaitable[None]], *, repaired: bool = False) -> None:
    async def whole() -> None:
        told = _Story(repaired=repaired)
        if repaired:
            told.routing.apply()
        await told.watch.start()
        try:
            await story(told)
        finally:
            told.watch.close()
            told.watch.close()

    asyncio.run(whole())


def test_the_initial_state_and_link_down_and_up(sites: TwoSites) -> None:
    async def story(told: _Story) -> None:
        assert told.said == [
            ("isp1", True, "wan1 is up", 1500),
            ("isp2", True, "wan2 is up", 1500),
        ]
        run("ip", "link", "set", "wan1", "down")
        await told.hears("isp1", False, "wan1 is switched off")
        run("ip", "link", "set", "wan1", "up")
        await told.hears("isp1", True, "wan1 is up")
        run("ip", "-n", sites.gateway["b"], "link", "set", "wan2", "down")
        await told.hears("isp2", False, "wan2 has no carrier")
        run("ip", "-n", sites.gateway["b"], "link", "set", "wan2", "up")
        await told.hears("isp2", True, "wan2 is up")
        assert [state.up for state in told.watch.states()] == [True, True]

    _tell(story)


def test_mtu_of_the_link_and_of_ipv6(sites: TwoSites) -> None:
    async def story(told: _Story) -> None:
        run("ip", "link", "set", "wan1", "mtu", "1400")
        await told.hears("isp1", True, "wan1 is up", mtu=1400)
        run("sysctl", "-qw", "net.ipv6.conf.wan1.mtu=1300")
        run("ip", "link", "set", "wan1", "txqueuelen", "77")  # any announcement
        await told.hears("isp1", True, "wan1 is up", mtu=1300)

    _tell(story)


def test_an_interface_that_goes_and_comes_back_gets_its_routes_back(sites: TwoSites) -> None:
    async def story(told: _Story) -> None:
        await told.hears("isp2", True, "wan2 is up")
        run("ip", "link", "del", "wan2")
        await told.hears("isp2", False, "wan2 does not exist", mtu=0)
        assert len(told.routing.verify()) == 1
        sites.link((sites.gateway["a"], "wan2"), (sites.gateway["b"], "wan2"))
        await told.hears("isp2", False, "the gateway 2001:db8:f2::b is not on a network of wan2")
        run_line("ip addr add 2001:db8:f2::a/64 dev wan2 nodad")
        await told.hears("isp2", True, "wan2 is up")
        assert told.routing.verify() == []

    _tell(story, repaired=True)


def test_a_bounced_link_and_a_deleted_route_are_mended(sites: TwoSites) -> None:
    async def story(told: _Story) -> None:
        run_line("ip -6 route del default via 2001:db8:f1::b dev wan1 table 14000")
        run_line("ip -6 rule del from 2001:db8:a2::/48 priority 14001")
        deadline = time.monotonic() + 5
        while told.routing.verify():
            assert time.monotonic() < deadline
            await asyncio.sleep(0.02)
        assert all(up for _, up, _, _ in told.said)
        run("ip", "link", "set", "wan1", "down")
        await told.hears("isp1", False, "wan1 is switched off")
        run("ip", "link", "set", "wan1", "up")
        run_line("ip addr replace 2001:db8:f1::a/64 dev wan1 nodad")
        await told.hears("isp1", True, "wan1 is up")
        assert told.routing.verify() == []

    _tell(story, repaired=True)


def test_lost_announcements_are_read_again(sites: TwoSites) -> None:
    """A small buffer and more changes than it holds while the loop is busy."""

    async def story(told: _Story) -> None:
        watching = told.watch._socket
        assert watching is not None
        watching.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2304)
        for n in range(40):
            run("ip", "link", "set", "wan2", "txqueuelen", str(500 + n))
        run("ip", "link", "set", "wan1", "down")
        await told.hears("isp1", False, "wan1 is switched off")
        assert told.watch.losses()["uplink_resyncs"] >= 1

    with structlog.testing.capture_logs():
        _tell(story)


def test_an_uplink_that_is_missing_from_the_start(sites: TwoSites) -> None:
    async def story(told: _Story) -> None:
        assert told.said[0] == ("isp1", False, "wan1 does not exist", 0)
        run("ip", "link", "set", "other", "name", "wan1")
        await told.hears("isp1", True, "wan1 is up")

    run("ip", "link", "set", "wan1", "down")
    run("ip", "link", "set", "wan1", "name", "other")
    run("ip", "link", "set", "other", "up")
    _tell(story)

"""The NFQUEUE data plane end to end: host - gateway = gateway - host."""

from __future__ import annotations

import asyncio
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import structlog

from m6proxy.dataplane.nfqueue import COPY_OCTETS, NfqueueDataPlane
from m6proxy.dataplane.port import Sink
from m6proxy.errors import SetupError
from m6proxy.names import LocatorPair, UlidPair, address
from m6proxy.reasons import Reason
from m6proxy.shim.effects import InstallFlow
from m6proxy.shim.verdict import CONSUMED, Verdict
from m6proxy.steering.apply import RuleBundles
from m6proxy.steering.flows import RehomedChain
from m6proxy.steering.routes import SourceRouting
from tests.steering.namespaces import (
    HOST_A,
    HOST_B,
    TwoSites,
    heard,
    inside,
    run,
    run_line,
    settings_of,
    sniffer,
    udp,
    until,
)

pytestmark = pytest.mark.netns

FIREWALL = """\
*filter
:FORWARD DROP [0:0]
-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -i lan0 -j ACCEPT
COMMIT
"""
TAG = bytes.fromhex("800000000001")


@pytest.fixture
def sites() -> Iterator[TwoSites]:
    with TwoSites() as built:
        yield built


def _plane(side: str, **options: int) -> NfqueueDataPlane:
    settings = settings_of(side)
    return NfqueueDataPlane(
        queue_outbound=settings.queue_outbound,
        queue_inbound=settings.queue_inbound,
        flows=RehomedChain(lambda pairs: None),
        **options,
    )


@contextmanager
def _opened(
    sites: TwoSites, side: str, outbound: Sink, inbound: Sink, **options: int
) -> Iterator[NfqueueDataPlane]:
    """Rules, routes and a data plane on one gateway; needs a running loop."""
    plane = _plane(side, **options)
    with inside(sites.gateway[side]):
        SourceRouting(settings_of(side)).apply()
        RuleBundles(settings_of(side)).apply()
        plane.open(outbound=outbound, inbound=inbound)
    try:
        yield plane
    finally:
        plane.close()


def _accept(packet: bytes) -> Verdict:
    return None


def _rewriter(source: str, target: str) -> Sink:
    """Put the payload extension header in front and the given locators on the packet."""
    locators = address(source) + address(target)

    def rewrite(packet: bytes) -> Verdict:
        if packet[6] != 17:
            return None
        length = (len(packet) - 32).to_bytes(2)
        header = packet[:4] + length + b"\x8c" + packet[7:8] + locators
        return header + packet[6:7] + b"\0" + TAG + packet[40:]

    return rewrite


def _restorer(source: str, target: str) -> Sink:
    """Do the opposite."""
    ulids = address(source) + address(target)

    def restore(packet: bytes) -> Verdict:
        if packet[6] != 140:
            return None
        length = (len(packet) - 48).to_bytes(2)
        return packet[:4] + length + packet[40:41] + packet[7:8] + ulids + packet[48:]

    return restore


async def _turns(holds: Callable[[], bool], what: str, *, within_s: float = 5.0) -> None:
    deadline = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < deadline, f"not within {within_s} s: {what}"
        await asyncio.sleep(0.005)


async def _answer(opened: socket.socket) -> bytes:
    opened.setblocking(False)
    loop = asyncio.get_running_loop()
    return await asyncio.wait_for(loop.sock_recv(opened, 65_535), 5)


def test_rewritten_there_and_restored_beyond_through_stateful_firewalls(sites: TwoSites) -> None:
    """Both directions on the second link, and neither the hosts nor the firewalls notice."""

    async def story() -> None:
        rewrite_a = _rewriter("2001:db8:a2:1::10", "2001:db8:b2:1::10")
        rewrite_b = _rewriter("2001:db8:b2:1::10", "2001:db8:a2:1::10")
        restore_a, restore_b = _restorer(HOST_B, HOST_A), _restorer(HOST_A, HOST_B)
        with (
            _opened(sites, "a", rewrite_a, restore_a),
            _opened(sites, "b", rewrite_b, restore_b),
            udp(sites.host["a"], (HOST_A, 4000), (HOST_B, 5000)) as near,
            udp(sites.host["b"], (HOST_B, 5000), (HOST_A, 4000)) as far,
            sniffer(sites.gateway["b"], "wan1") as first,
            sniffer(sites.gateway["b"], "wan2") as second,
        ):
            near.send(b"to b")
            assert await _answer(far) == b"to b"
            far.send(b"to a")
            assert await _answer(near) == b"to a"
            wire = [packet for packet in heard(second) if packet[6] == 140]
            assert [packet[8:40] for packet in wire] == [
                address("2001:db8:a2:1::10") + address("2001:db8:b2:1::10"),
                address("2001:db8:b2:1::10") + address("2001:db8:a2:1::10"),
            ]
            assert len(wire[0]) == 40 + 8 + 8 + 4
            assert not [packet for packet in heard(first) if packet[6] in (17, 140)]

    for side in "ab":
        with inside(sites.gateway[side]):
            run("ip6tables-restore", "--noflush", text=FIREWALL)
    with inside(sites.gateway["b"]):
        run_line("ip6tables -A FORWARD -p udp --dport 5000 -j ACCEPT")
    asyncio.run(story())


def test_accept_drop_and_consumed(sites: TwoSites) -> None:
    def judge(packet: bytes) -> Verdict:
        verdicts: dict[bytes, Verdict] = {b"drop": Reason.TOO_BIG, b"take": CONSUMED}
        seen.append(packet[48:])
        return verdicts.get(packet[48:])

    async def story() -> None:
        with (
            _opened(sites, "a", judge, _accept) as plane,
            udp(sites.host["a"], (HOST_A, 4000), (HOST_B, 5000)) as near,
            udp(sites.host["b"], (HOST_B, 5000), (HOST_A, 4000)) as far,
        ):
            for word in (b"drop", b"take", b"pass"):
                near.send(word)
            assert await _answer(far) == b"pass"
            assert seen == [b"drop", b"take", b"pass"]
            assert not any(plane.losses().values())

    seen: list[bytes] = []
    asyncio.run(story())


def test_a_fault_in_the_sink_drops_that_packet_logs_once_and_stops_nothing(
    sites: TwoSites,
) -> None:
    def faulty(packet: bytes) -> Verdict:
        if packet[48:] == b"bad":
            raise KeyError("a bug of ours")
        return None

    async def story() -> None:
        with (
            _opened(sites, "a", faulty, _accept) as plane,
            udp(sites.host["a"], (HOST_A, 4000), (HOST_B, 5000)) as near,
            udp(sites.host["b"], (HOST_B, 5000), (HOST_A, 4000)) as far,
        ):
            for word in (b"bad", b"bad", b"bad", b"good"):
                near.send(word)
            assert await _answer(far) == b"good"
            assert plane.losses()["sink_failed"] == 3

    with structlog.testing.capture_logs() as logs:
        asyncio.run(story())
    assert [entry["event"] for entry in logs] == ["a packet was dropped by a fault of ours"]


@pytest.mark.parametrize("octets", [COPY_OCTETS - 48, COPY_OCTETS - 47, 4016, 4096, 8000, 8900])
def test_a_packet_that_the_queue_cut_is_never_written_back(sites: TwoSites, octets: int) -> None:
    """Accepted it goes on whole; rewritten it would lose its end, so it is dropped."""
    rewriting, lengths = False, list[int]()

    def judge(packet: bytes) -> Verdict:
        lengths.append(len(packet))
        return packet if rewriting else None

    async def story() -> None:
        nonlocal rewriting
        with (
            _opened(sites, "a", judge, _accept) as plane,
            udp(sites.host["a"], (HOST_A, 4000), (HOST_B, 5000)) as near,
            udp(sites.host["b"], (HOST_B, 5000), (HOST_A, 4000)) as far,
        ):
            near.send(bytes(octets))
            assert await _answer(far) == bytes(octets)
            rewriting = True
            near.send(bytes(octets))
            await _turns(lambda: len(lengths) == 2, "both packets were seen")
            cut = octets + 48 > COPY_OCTETS
            assert lengths == [min(octets + 48, COPY_OCTETS)] * 2
            assert plane.losses()["cut_by_queue"] == int(cut)
            if not cut:
                assert await _answer(far) == bytes(octets)

    for side in "ab":
        run("ip", "-n", sites.host[side], "link", "set", "eth0", "mtu", "9000")
        for interface in ("lan0", "wan1", "wan2"):
            run("ip", "-n", sites.gateway[side], "link", "set", interface, "mtu", "9000")
    asyncio.run(story())


def test_a_flood_starves_neither_the_loop_nor_the_second_queue(sites: TwoSites) -> None:
    """The package's own run() would not come back before the flood ends."""
    outbound = 0
    flood = (
        "import socket; s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)\n"
        f"s.connect(({HOST_B!r}, 5000))\n"
        "while True:\n for _ in range(1000): s.send(bytes(18))\n"
    )

    def slow(packet: bytes) -> Verdict:
        nonlocal outbound
        outbound += 1
        until_s = time.monotonic() + 0.0002
        while time.monotonic() < until_s:
            pass
        return Reason.TOO_BIG

    async def story() -> None:
        with (
            _opened(sites, "a", slow, _accept, max_queued=256, turn_packets=64) as plane,
            udp(sites.host["a"], (HOST_A, 4000), (HOST_B, 5001)) as near,
            udp(sites.host["b"], (HOST_B, 5001), (HOST_A, 4000)) as far,
        ):
            command = ["ip", "netns", "exec", sites.host["a"], sys.executable, "-c", flood]
            flooding = subprocess.Popen(command)
            try:
                with inside(sites.gateway["a"]):
                    await _turns(
                        lambda: plane.losses().get("queue_full_outbound", 0) > 100,
                        "the kernel's queue overflowed and that is counted",
                    )
                before = outbound
                far.send(b"inbound")
                assert await _answer(near) == b"inbound"
                assert outbound > before
            finally:
                flooding.kill()
                flooding.wait()

    asyncio.run(story())


def test_enobufs_is_survived(sites: TwoSites) -> None:
    """A socket buffer far too small for a burst: packets die and are counted, nothing stops."""

    async def story() -> None:
        with (
            _opened(sites, "a", _accept, _accept, receive_buffer_octets=4096) as plane,
            udp(sites.host["a"], (HOST_A, 4000), (HOST_B, 5000)) as near,
            udp(sites.host["b"], (HOST_B, 5000), (HOST_A, 4000)) as far,
        ):
            for _ in range(300):  # the loop does not turn meanwhile
                near.send(bytes(1000))
            await asyncio.sleep(0)
            with inside(sites.gateway["a"]):
                await _turns(
                    lambda: plane.losses()["queue_socket_full_outbound"] > 0, "counted as lost"
                )
            far.setblocking(False)
            await _turns(lambda: near.send(b"afterwards") > 0 and came_through(far), "the next")

    def came_through(far: socket.socket) -> bool:
        try:
            return b"afterwards" in iter(lambda: far.recv(2000), b"")
        except BlockingIOError:
            return False

    asyncio.run(story())


def test_a_queue_of_another_process_is_one_line(sites: TwoSites) -> None:
    async def story() -> None:
        with _opened(sites, "a", _accept, _accept), inside(sites.gateway["a"]):
            second = _plane("a")
            with pytest.raises(SetupError) as caught:
                second.open(outbound=_accept, inbound=_accept)
            assert "NFQUEUE 140" in str(caught.value) and "\n" not in str(caught.value)
            second.close()
        with inside(sites.gateway["a"]):  # closed, they are free again
            third = _plane("a")
            third.open(outbound=_accept, inbound=_accept)
            third.close()
            third.close()

    asyncio.run(story())


@contextmanager
def _gateway_process(sites: TwoSites, *pairs: str) -> Iterator[subprocess.Popen[str]]:
    command = [
        *("ip", "netns", "exec", sites.gateway["a"], sys.executable),
        *("-m", "tests.netns.steering_gateway", "a", *pairs),
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        yield process
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def test_killed_it_leaves_plain_ipv6_working_and_guards_the_rehomed(sites: TwoSites) -> None:
    with (
        udp(sites.host["a"], (HOST_A, 4000), (HOST_B, 5000)) as near,
        udp(sites.host["b"], (HOST_B, 5000), (HOST_A, 4000)) as far,
    ):
        with _gateway_process(sites) as process:
            near.send(b"alive")
            assert far.recv(100) == b"alive"
            process.send_signal(signal.SIGKILL)
            process.wait()
            near.send(b"dead")
            assert far.recv(100) == b"dead"
            far.send(b"dead too")
            assert near.recv(100) == b"dead too"
        with _gateway_process(sites, HOST_A, HOST_B) as process:  # beside what was left
            near.send(b"guarded")
            assert far.recv(100) == b"guarded"
            process.send_signal(signal.SIGKILL)
            process.wait()
            _refused(near, far)
            with inside(sites.gateway["a"]):
                bundles = RuleBundles(settings_of("a"))
                guards = [c for c in bundles.counters() if c.chain == "M6PROXY-REHOMED"]
                assert [guard.packets for guard in guards] == [2]  # one alive, one dropped
                bundles.remove()
                SourceRouting(settings_of("a")).remove()
            near.send(b"removed")
            assert far.recv(100) == b"removed"


def _refused(near: socket.socket, far: socket.socket) -> None:
    """A packet of the re-homed pair does not arrive."""
    near.send(b"lost")
    far.settimeout(0.3)
    with pytest.raises(TimeoutError):
        far.recv(100)
    far.settimeout(2)


def test_shim_packets_never_reach_a_host_when_the_daemon_is_dead(sites: TwoSites) -> None:
    packet = b"\x60\0\0\0\0\x08\x8c\x40" + address(HOST_B) + address(HOST_A) + b"\x3b\0" + TAG
    with inside(sites.gateway["b"]):
        sender = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_RAW)
    with sender, sniffer(sites.host["a"], "eth0") as host:
        with _gateway_process(sites) as process:
            process.send_signal(signal.SIGKILL)
            process.wait()
        sender.sendto(packet, (HOST_A, 0))
        with inside(sites.gateway["a"]):
            bundles = RuleBundles(settings_of("a"))
            until(
                lambda: any(c.packets for c in bundles.counters() if "-p shim6" in c.rule),
                "the packet met its rule",
            )
            assert not [seen for seen in heard(host) if seen[6] == 140]
            bundles.remove()
        sender.sendto(packet, (HOST_A, 0))
        until(lambda: any(seen[6] == 140 for seen in heard(host)), "without rules it passes")


def test_flows_are_handed_to_the_guard() -> None:
    async def story() -> None:
        chain = RehomedChain(written.append)
        plane = NfqueueDataPlane(queue_outbound=1, queue_inbound=2, flows=chain)
        plane.apply_flows([InstallFlow(pair, LocatorPair(pair.peer, pair.local), 7)])
        await chain.settle()
        assert plane.losses()["rehomed_unguarded"] == 0

    pair = UlidPair(address(HOST_A), address(HOST_B))
    written: list[tuple[UlidPair, ...]] = []
    asyncio.run(story())
    assert written == [(pair,)]

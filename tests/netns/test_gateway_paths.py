"""Failures and policies of single paths, with real traffic, one after the other in one lab."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from m6proxy.lab import faults, traffic
from m6proxy.lab.build import Lab
from m6proxy.lab.plan import CUSTOMER
from m6proxy.lab.topology import NAMESERVER, PROVIDERS, provider_by_target
from m6proxy.names import address
from m6proxy.wire.ipv6 import NEXT_SHIM, NEXT_UDP
from m6proxy.wire.message import UpdateAck, UpdateRequest, find, parse_message
from m6proxy.wire.options import Scope
from tests.harness.gateway import (
    A1,
    A1_ISP2,
    B1,
    B1_ISP2,
    QUICK,
    Capture,
    Gateway,
    both,
    established,
    link_sender,
    listening,
    mac_of,
    ping,
    program,
    put_on_link,
    rehomed,
)
from tests.harness.netns import eventually, run_in, unique_lab, up_with_names
from tests.harness.packets import rewritten

pytestmark = pytest.mark.netns

A2, A2_ISP2 = "2001:db8:a1:1::20", "2001:db8:a2::20"
B2, B2_ISP2 = "2001:db8:b1:1::20", "2001:db8:b2::20"
PATIENT = {**QUICK, "send_timeout_s: 3": "send_timeout_s: 60"}
"""Silence alone is noticed after a minute: what moves a context before was something else."""


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """One lab for all of them: each test ends its own faults."""
    with up_with_names(unique_lab()) as the_lab:
        yield the_lab


@contextmanager
def pinging(lab: Lab, node: str, target: str) -> Iterator[subprocess.Popen[bytes]]:
    """Ten packets a second for the length of the block."""
    with program(lab, node, "ping", "-n", "-q", "-i", "0.1", target) as child:
        yield child


def with_policy(*lines: str, base: dict[str, str] = QUICK) -> dict[str, str]:
    """Changes of the lab's configuration with further lines under ``policy``."""
    changes = dict(base)
    changes["send_timeout_s: 3"] = "\n  ".join((changes["send_timeout_s: 3"], *lines))
    return changes


def test_the_path_out_and_the_path_back_have_nothing_in_common(lab: Lab) -> None:
    """isp1 of alpha carries only what comes in, and isp2 only what goes out."""
    with both(lab, QUICK) as (alpha, beta):
        established(lab, alpha, beta)
        faults.blackhole(lab, "alpha.isp1", "out")
        faults.blackhole(lab, "alpha.isp2", "in")
        rehomed(lab, alpha, (A1_ISP2, B1))
        eventually(lambda: ping(lab, "a1", B1), deadline_s=10, what="answers again")
        assert beta.locators(B1, A1) == (B1, A1)
        assert ping(lab, "a1", B1, "-c", "10", "-i", "0.1")
        assert ping(lab, "b1", A1, "-c", "10", "-i", "0.1")
        assert alpha.locators(A1, B1) == (A1_ISP2, B1)
        assert beta.locators(B1, A1) == (B1, A1)


@pytest.mark.parametrize("mode", ["never", "soft", "hard"])
def test_going_back_is_for_policy_to_say(lab: Lab, mode: str) -> None:
    with (
        both(lab, with_policy(f"failback: {mode}", "failback_hold_s: 10")) as (alpha, beta),
        pinging(lab, "a1", B1),
    ):
        established(lab, alpha, beta)
        faults.cut(lab, "alpha.isp1")
        rehomed(lab, alpha, (A1_ISP2, B1))
        faults.restore(lab, "alpha.isp1")
        if mode == "hard":
            eventually(
                lambda: alpha.locators(A1, B1) == (A1, B1) and beta.locators(B1, A1) == (B1, A1),
                deadline_s=25,
                what="back on the best pair",
            )
            assert ping(lab, "a1", B1, "-c", "5", "-i", "0.1")
            return
        established(lab, alpha, beta, peer="2001:db8:b1:1::20", node="a2")
        assert alpha.locators("2001:db8:a1:1::20", "2001:db8:b1:1::20") == (
            "2001:db8:a1:1::20",
            "2001:db8:b1:1::20",
        ), "a new pair begins on its ULIDs"
        assert ping(lab, "a1", B1, "-c", "30", "-i", "0.1")
        assert alpha.locators(A1, B1) == (A1_ISP2, B1)


@pytest.mark.parametrize(
    ("mode", "found"), [("soft", (A2, B2_ISP2)), ("never", (A2_ISP2, B2_ISP2))]
)
def test_what_many_had_to_leave_is_tried_last_for_a_while_or_for_good(
    lab: Lab, mode: str, found: tuple[str, str]
) -> None:
    """Three pairs left alpha.isp1, which works again; nobody has seen that since.

    A fourth pair, on its ULIDs over isp1, loses beta.isp1 and must look for another path: with
    ``soft`` isp1 is a path like any other when three pairs' word is half a minute old, with
    ``never`` it comes after all others. Beta's host is silent, so that the search is alpha's.
    """
    module = (sys.executable, "-m", traffic.__name__)
    early = [("a1", A1, B1), ("a1", A1, B2), ("a2", A2, B1)]
    with both(lab, with_policy(f"failback: {mode}")) as (alpha, beta):
        for node, _, peer in early:
            established(lab, alpha, beta, peer=peer, node=node)
        with ExitStack() as talks:
            for node, _, peer in early:
                talks.enter_context(pinging(lab, node, peer))
            faults.cut(lab, "alpha.isp1")
            eventually(
                lambda: all(_uplink_prefix(alpha, local, peer) == "a2" for _, local, peer in early),
                deadline_s=20,
                what="three pairs have left isp1",
            )
            eventually(
                lambda: _is_calm(alpha) and _is_calm(beta),
                deadline_s=20,
                what="all searches are over: a probe over isp1 would say that it works",
            )
            faults.restore(lab, "alpha.isp1")
            assert ping(lab, "a1", B1, "-c", "20", "-i", "1", deadline_s=40)
        established(lab, alpha, beta, peer=B2, node="a2")
        assert alpha.locators(A2, B2) == (A2, B2)
        with program(lab, "a2", *module, "send", B2, "5004"):
            faults.cut(lab, "beta.isp1")
            eventually(
                lambda: alpha.locators(A2, B2) != (A2, B2), deadline_s=20, what="a path is found"
            )
            assert alpha.locators(A2, B2) == found


def _is_calm(gateway: Gateway) -> bool:
    return all(one["reap_state"] == "OPERATIONAL" for one in gateway.contexts())


def _uplink_prefix(gateway: Gateway, local: str, peer: str) -> str:
    locators = gateway.locators(local, peer)
    return locators[0].split(":")[2] if locators is not None else ""


def test_one_exchange_tells_the_peer_of_all_contexts(lab: Lab) -> None:
    """Two hosts here and two there: four contexts, one uplink that goes, one Update and one
    acknowledgement, which name all of them."""
    pairs = [("a1", A1, B1), ("a1", A1, B2), ("a2", A2, B1), ("a2", A2, B2)]
    with both(lab, PATIENT) as (alpha, beta), Capture(lab, "bgw", "wan1") as wire:
        for node, _, peer in pairs:
            established(lab, alpha, beta, peer=peer, node=node)
        wire.packets().clear()
        faults.link(lab, "alpha.isp1", is_up=False)
        eventually(
            lambda: all(
                _uplink_prefix(alpha, local, peer) == "a2"
                and beta.locators(peer, local) != (peer, local)
                for _, local, peer in pairs
            ),
            deadline_s=5,
            what="all have moved, here and there",
        )
        messages = [
            parse_message(packet[40:])
            for packet in wire.packets()
            if packet[6] == NEXT_SHIM and not packet[42] & 0x80
        ]
        (request,) = [one for one in messages if isinstance(one, UpdateRequest)]
        (answer,) = [one for one in messages if isinstance(one, UpdateAck)]
        asked, agreed = find(request.options, Scope), find(answer.options, Scope)
        assert asked is not None and agreed is not None
        assert len(asked.tags) == len(pairs)
        assert {(theirs, ours) for ours, theirs in agreed.tags} == set(asked.tags)
        assert [event["detail"] for event in beta.events("locators updated")] == ["4 of 4 contexts"]
        faults.restore(lab, "alpha.isp1")
        eventually(
            lambda: all(row["up"] for row in alpha.ask("/v1/uplinks")),
            deadline_s=10,
            what="the uplink is up again",
        )


def _doubts(gateway: Gateway) -> list[str]:
    return [event["detail"] for event in gateway.events("path doubted")]


def test_a_router_that_has_no_route_is_heard_long_before_the_silence(lab: Lab) -> None:
    provider = provider_by_target("alpha.isp1")
    route = ("unreachable", "2001:db8:b1::/48")
    with both(lab, PATIENT) as (alpha, beta), pinging(lab, "b1", A1):
        established(lab, alpha, beta)
        run_in(lab, provider, "ip", "-6", "route", "add", *route)
        try:
            rehomed(lab, alpha, (A1_ISP2, B1), deadline_s=10)
            assert "ICMPv6 error" in _doubts(alpha)
            eventually(lambda: ping(lab, "a1", B1), deadline_s=5, what="answers again")
        finally:
            run_in(lab, provider, "ip", "-6", "route", "del", *route)


def test_packets_from_another_source_start_a_test_and_move_nothing(lab: Lab) -> None:
    provider = provider_by_target("beta.isp2")
    mac = mac_of(lab, provider, CUSTOMER)
    with both(lab, PATIENT) as (alpha, beta), link_sender(lab, "bgw", "wan2") as sender:
        established(lab, alpha, beta)
        context = alpha.context(A1, B1)
        assert context is not None
        tag = int(context["local_tag"], 16)
        put_on_link(sender, rewritten(address(B1_ISP2), address(A1), tag, 59, b""), mac)
        eventually(lambda: _doubts(alpha) == ["another source"], deadline_s=5, what="a test")
        eventually(lambda: bool(alpha.events("path confirmed")), deadline_s=5, what="its end")
        probes = [event["detail"] for event in alpha.events("probe sent")]
        assert A1 in probes[0] and B1 in probes[0], "the pair in use first"
        assert alpha.locators(A1, B1) == (A1, B1)
        assert not alpha.events("re-homed") and not beta.events("re-homed")
        assert ping(lab, "a1", B1)


def test_tcp_that_gets_no_answer_is_heard_long_before_the_silence(lab: Lab, tmp_path: Path) -> None:
    """b1's provider lets nothing out any more, and b1 hears a1 all the time."""
    received = tmp_path / "received"
    module = (sys.executable, "-m", traffic.__name__)
    with (
        both(lab, PATIENT) as (alpha, beta),
        program(lab, "b1", *module, "receive", B1, "5004"),
        program(lab, "a1", *module, "send", B1, "5004"),
    ):
        established(lab, alpha, beta)
        with program(lab, "a1", sys.executable, "-c", SINK, A1, output=received):
            listening(lab, "a1", 9000)
            with program(lab, "b1", sys.executable, "-c", SOURCE, A1):
                eventually(lambda: _octets(received) > 0, deadline_s=10, what="data")
                faults.blackhole(lab, "beta.isp1", "out")
                eventually(
                    lambda: beta.locators(B1, A1) == (B1_ISP2, A1), deadline_s=10, what="moved"
                )
                assert "TCP gets no answer" in _doubts(beta)
                before = _octets(received)
                eventually(lambda: _octets(received) > before, deadline_s=10, what="more data")


SINK = """
import socket, sys
server = socket.create_server((sys.argv[1], 9000), family=socket.AF_INET6)
connection, _ = server.accept()
total = 0
while data := connection.recv(65536):
    total += len(data)
    print(total, flush=True)
"""
SOURCE = """
import socket, sys, time
connection = socket.create_connection((sys.argv[1], 9000))
while True:
    connection.sendall(bytes(1000))
    time.sleep(0.02)
"""


def _octets(output: Path) -> int:
    lines = output.read_text().splitlines() if output.exists() else []
    return int(lines[-1]) if lines else 0


def test_a_session_begins_while_the_first_provider_of_its_server_is_dead(lab: Lab) -> None:
    """Its first SYN is lost; the second waits for the context and is answered."""
    changes = with_policy("hold_first_packet_s: 5")
    isp2 = PROVIDERS[provider_by_target("beta.isp2")][1]
    way = (f"{NAMESERVER}/128", "via", isp2.provider_address, "dev", isp2.interface)
    run_in(lab, "bgw", "ip", "-6", "route", "add", *way)
    try:
        with (
            both(lab, changes) as (alpha, beta),
            program(lab, "b1", sys.executable, "-m", traffic.__name__, "serve-lines", B1, "7"),
        ):
            listening(lab, "b1", 7)
            faults.cut(lab, "beta.isp1")
            took_s = float(run_in(lab, "a1", sys.executable, "-c", CONNECT, B1, deadline_s=20))
            assert took_s < 2.9, "the third SYN would come after three seconds"
            assert alpha.locators(A1, B1) == (A1, B1_ISP2)
            assert beta.locators(B1, A1) == (B1_ISP2, A1)
    finally:
        run_in(lab, "bgw", "ip", "-6", "route", "del", *way)


CONNECT = """
import socket, sys, time
began_s = time.monotonic()
with socket.create_connection((sys.argv[1], 7), timeout=15) as connection:
    print(time.monotonic() - began_s)
    connection.sendall(b"hello\\n")
    assert connection.recv(100) == b"hello\\n"
"""


def test_two_flows_of_one_pair_go_over_two_uplinks(lab: Lab, tmp_path: Path) -> None:
    """The fork goes on over isp1 when isp2 dies; the other flow stays where it is."""
    changes = with_policy("forks: [{match: [udp/5004], uplink: isp2}]")
    module = (sys.executable, "-m", traffic.__name__)
    stream = tmp_path / "stream"
    with both(lab, changes) as (alpha, beta), pinging(lab, "a1", B1):
        established(lab, alpha, beta)
        eventually(lambda: (A1_ISP2, B1) in _forks(alpha), deadline_s=10, what="a fork")
        with (
            program(lab, "b1", *module, "receive", B1, "5004", output=stream),
            program(lab, "a1", *module, "send", B1, "5004"),
            Capture(lab, "agw", "wan1") as wan1,
            Capture(lab, "agw", "wan2") as wan2,
        ):
            eventually(
                lambda: len(_on_ulids(wan1)) >= 10 and len(stream.read_text()) > 1000,
                deadline_s=10,
                what="both flows on their uplinks",
            )
            assert not any(packet[6] == NEXT_UDP for packet in _on_ulids(wan1))
            assert any(packet[8:24] == address(A1_ISP2) for packet in wan2.packets())
            faults.cut(lab, "alpha.isp2")
            eventually(
                lambda: all(local == A1 for local, _ in _forks(alpha)),
                deadline_s=15,
                what="the fork has moved",
            )
            before = len(stream.read_text().splitlines())
            eventually(
                lambda: len(stream.read_text().splitlines()) > before + 10,
                deadline_s=5,
                what="the stream goes on",
            )
            assert ping(lab, "a1", B1)


def _forks(gateway: Gateway) -> list[tuple[str, str]]:
    return [
        (context["local_locator"], context["peer_locator"])
        for context in gateway.contexts()
        if context["fork"] and context["state"] == "ESTABLISHED"
    ]


def _on_ulids(capture: Capture) -> list[bytes]:
    """What a1 sent to b1 as it was."""
    pair = address(A1) + address(B1)
    return [packet for packet in capture.packets() if packet[8:40] == pair]

"""The data plane in the kernel, with the real daemon: it moves packets, and Python need not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from m6proxy.lab import faults
from m6proxy.lab.build import Lab, configure, feed, pins_path
from m6proxy.lab.plan import CUSTOMER, customer_side
from m6proxy.lab.topology import ALPHA, BETA
from tests.harness.fastpath import programs
from tests.harness.gateway import (
    A1,
    A1_ISP2,
    B1,
    Json,
    both,
    established,
    kernel_state,
    ping,
    rehomed,
    restore_rules,
    running,
    settled_state,
)
from tests.harness.netns import eventually
from tests.harness.netns import lab as lab
from tests.harness.stream import grows, is_whole, sequence, streaming
from tests.netns.rehomed_pair import bpf, on_isp2
from tests.netns.test_gateway_outage import curl, finished, web

pytestmark = pytest.mark.netns


@pytest.mark.parametrize("mode", ["exthdr", "flowlabel", "dstopt"])
def test_a_re_homed_pair_does_not_visit_python(lab: Lab, mode: str) -> None:
    with on_isp2(lab, mode, fast=True) as (alpha, beta):
        before = [gateway.ask("/v1/status")["packets"] for gateway in (alpha, beta)]
        assert ping(lab, "a1", B1, "-c", "20", "-i", "0.05", "-W", "2")
        after = [gateway.ask("/v1/status")["packets"] for gateway in (alpha, beta)]
        for earlier, later in zip(before, after, strict=True):
            assert later["kernel_rewritten"] >= earlier["kernel_rewritten"] + 20
            assert later["kernel_restored"] >= earlier["kernel_restored"] + 20
            assert later["rewritten"] == earlier["rewritten"]


def test_an_uplink_that_is_made_anew_has_its_program_before_its_packets(
    lab: Lab, tmp_path: Path
) -> None:
    """PPP dialled in again: for up to ten seconds re-homed packets left with their ULIDs."""
    path, uplink = tmp_path / "received", ALPHA.uplinks[1]
    provider, gateway = lab.namespace(uplink.provider), lab.namespace("agw")
    prerouting = lab.inside(uplink.provider, ["ip6tables", "-t", "mangle"])
    with on_isp2(lab, "flowlabel", fast=True), streaming(lab, path):
        grows(path, 10)
        feed([*prerouting, "-A", "PREROUTING", "-s", A1], "")
        for _ in range(3):
            configure(lab, "agw", f"link del {uplink.interface}\n")
            ends = f"link add {uplink.interface} netns {gateway} type veth"
            feed(["ip", *ends.split(), "peer", "name", CUSTOMER, "netns", provider], "")
            configure(lab, uplink.provider, "\n".join(customer_side(uplink.provider)) + "\n")
            address = f"address replace {uplink.site_address}/64 dev {uplink.interface} nodad"
            configure(lab, "agw", f"{address}\nlink set {uplink.interface} up\n")
            grows(path, 10)
        counted = feed([*prerouting, "-nvxL", "PREROUTING"], "").splitlines()[-1]
        assert counted.split()[0] == "0"


FIREWALL = f"""\
*filter
:FORWARD DROP
-A FORWARD -i wan+ -s {A1_ISP2} -j DROP
-A FORWARD -i wan+ -d {A1_ISP2} -j DROP
-A FORWARD -i wan+ -p 140 -j DROP
-A FORWARD -o wan+ -s {A1_ISP2}
-A FORWARD -o wan+ -d {A1_ISP2}
-A FORWARD -m conntrack --ctstate ESTABLISHED -j ACCEPT
-A FORWARD -i lan0 -m conntrack --ctstate NEW -j ACCEPT
"""
"""What goes out by the slow way has its locators in FORWARD, and passes by its connection."""
INTO_BETA = f"-A FORWARD -d {B1} -p tcp --dport 80 -m conntrack --ctstate NEW -j ACCEPT\n"


def _carries(context: Json | None) -> bool:
    return context is not None and context["state"] == "ESTABLISHED"


def _counts(lab: Lab, node: str) -> list[int]:
    """Return how many packets each rule of FORWARD took."""
    text = feed(lab.inside(node, ["ip6tables", "-nvxL", "FORWARD"]), "")
    return [int(line.split()[0]) for line in text.splitlines()[2:]]


@pytest.mark.parametrize("mode", ["exthdr", "flowlabel", "dstopt"])
def test_stateful_firewalls_see_ulids_both_ways_while_a_flow_moves(
    lab: Lab, tmp_path: Path, mode: str
) -> None:
    restore_rules(lab, "agw", FIREWALL + "COMMIT\n")
    restore_rules(lab, "bgw", FIREWALL + INTO_BETA + "COMMIT\n")
    fetched = tmp_path / "fetched"
    with both(lab, bpf(mode)) as (alpha, beta), web(lab, tmp_path, 3 << 20, 1 << 19) as sha256:
        fetch = curl(lab, fetched)
        eventually(
            lambda: all(map(_carries, (alpha.context(A1, B1), beta.context(B1, A1)))),
            deadline_s=15,
            what="a context at both ends",
        )
        faults.cut(lab, "alpha.isp1")
        eventually(lambda: alpha.locators(A1, B1) == (A1_ISP2, B1), deadline_s=15, what="re-homed")
        assert fetch.poll() is None, "the flow must move in mid-flight"
        before = {node: _counts(lab, node) for node in ("agw", "bgw")}
        finished(fetch, fetched, sha256, 60)
        for gateway, (node, counts) in zip((alpha, beta), before.items(), strict=True):
            after, packets = _counts(lab, node), gateway.ask("/v1/status")["packets"]
            assert after[:3] == [0] * 3, f"{node} saw a locator or a shim header"
            assert sum(after[3:5]) <= packets["rewritten"], "only what went the slow way"
            assert after[5] > counts[5] + 100
            assert packets["kernel_rewritten"] > 100 < packets["kernel_restored"]
        (flow,) = json.loads(beta.cli("flows", "--json", "--interval", "0.1"))
        assert (flow["local_locator"], flow["peer_locator"], flow["mode"]) == (B1, A1_ISP2, mode)
        assert flow["octets_out"] > 1 << 20 and flow["packets_in"] > 100 and flow["last_out_at"]


def test_a_daemon_that_is_killed_while_an_answer_is_overdue_takes_no_packets_with_it(
    lab: Lab, tmp_path: Path
) -> None:
    """The programs show it what the host sends then; half a second of that was lost."""
    heard = tmp_path / "heard"
    slow = {**bpf("dstopt"), "send_timeout_s: 3": "send_timeout_s: 8\n  demux: [dstopt, exthdr]"}
    with running(lab, ALPHA, BETA, changes=slow) as (alpha, beta):
        established(lab, alpha, beta)
        faults.cut(lab, "alpha.isp1")
        rehomed(lab, alpha, (A1_ISP2, B1))
        with streaming(lab, heard):
            grows(heard, 50)
            faults.blackhole(lab, "beta.isp1", "out")
            seen = alpha.ask("/v1/status")["packets"]["rewritten"]
            eventually(
                lambda: alpha.ask("/v1/status")["packets"]["rewritten"] > seen + 5,
                deadline_s=15,
                what="packets shown to the daemon",
            )
            alpha.kill()
            grows(heard, 100)
        numbers = sequence(heard)
        missing = numbers[-1] - numbers[0] + 1 - len(numbers)
        assert missing <= 3, "more than was in the queue when it died"


def test_a_gateway_that_starts_under_traffic_hears_what_its_first_message_brings(
    lab: Lab, tmp_path: Path
) -> None:
    """The programs told of a pair before the rules were there: the answer went to the host."""
    heard = tmp_path / "heard"
    with (
        running(lab, BETA, changes=bpf()),
        streaming(lab, heard),
        running(lab, ALPHA, changes=bpf()) as (alpha,),
    ):
        eventually(lambda: bool(alpha.events("context established")), deadline_s=20, what="there")
        (begun, *_), (done,) = alpha.events("state"), alpha.events("context established")
        assert done["time"] - begun["time"] < 2, "it had to ask again"


@pytest.mark.parametrize("mode", ["exthdr", "dstopt"])
def test_a_killed_daemon_and_its_successor_lose_no_packet(
    lab: Lab, tmp_path: Path, mode: str
) -> None:
    heard = tmp_path / "heard"
    before = settled_state(lab, "agw")
    with on_isp2(lab, mode, fast=True) as (alpha, beta):
        with streaming(lab, heard):
            grows(heard, 50)
            known = alpha.context(A1, B1)
            alpha.kill()
            grows(heard, 100)
            with running(lab, ALPHA, changes=bpf(mode)) as (again,):
                grows(heard, 150)
                taken = again.context(A1, B1)
                assert known is not None and taken is not None
                for key in ("local_tag", "peer_tag", "local_locator", "peer_locator", "demux"):
                    assert taken[key] == known[key], key
                assert again.events("contexts taken over")
                assert not again.events("silence noticed") and not again.events("probe sent")
                assert is_whole(heard), "one was lost"
                assert again.stop() == 0
        assert not (pins_path(lab) / "alpha").exists()
        assert beta.context(B1, A1) is None, "the peer was told that it is over"
        assert kernel_state(lab, "agw") == before
        assert programs(lab, "agw") == []


def test_a_successor_without_programs_removes_what_the_killed_one_had_for_its_own(lab: Lab) -> None:
    """The veth pair and the file of contexts stayed there for ever."""

    def remains() -> tuple[list[str], str]:
        links = feed(lab.inside("agw", ["ip", "-o", "link"]), "").count("m6p-")
        return [path.name for path in lab.state_dir.glob("alpha.*")], f"{links} ends of veths"

    before = remains()
    with running(lab, ALPHA, BETA, changes=bpf()) as (alpha, beta):
        established(lab, alpha, beta)
        assert remains() != before
        alpha.kill()
    with running(lab, ALPHA) as (again,):
        assert again.stop() == 0
    assert remains() == before
    assert programs(lab, "agw") == []

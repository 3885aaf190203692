"""The data plane in the kernel, with the real daemon: it moves packets, and Python need not."""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from m6proxy.dataplane.bpf.syscall import link_ids
from m6proxy.lab import faults, traffic
from m6proxy.lab.build import Lab, feed, pins_path
from m6proxy.lab.topology import ALPHA
from tests.harness.gateway import (
    A1,
    A1_ISP2,
    B1,
    B1_ISP2,
    QUICK,
    Gateway,
    Json,
    both,
    established,
    kernel_state,
    ping,
    program,
    rehomed,
    restore_rules,
    running,
    settled_state,
)
from tests.harness.netns import eventually
from tests.harness.netns import lab as lab
from tests.netns.test_gateway_outage import curl, finished, web
from tests.steering.namespaces import inside

pytestmark = pytest.mark.netns
_TCX_INGRESS, _TCX_EGRESS = 46, 47


def bpf(mode: str = "exthdr") -> dict[str, str]:
    """The lab's configuration with the fast path, and a demux mode."""
    modes = "[exthdr]" if mode == "exthdr" else f"[{mode}, exthdr]"
    return {
        **QUICK,
        "send_timeout_s: 3": f"send_timeout_s: 1\n  demux: {modes}",
        "control:": "fast_path: bpf\ncontrol:",
    }


@contextmanager
def on_isp2(lab: Lab, mode: str) -> Iterator[tuple[Gateway, Gateway]]:
    """Both gateways in a mode, with the pair a1, b1 moved to isp2 of both sites."""
    with both(lab, bpf(mode)) as (alpha, beta):
        established(lab, alpha, beta)
        faults.cut(lab, "alpha.isp1")
        faults.cut(lab, "beta.isp1")
        rehomed(lab, alpha, (A1_ISP2, B1_ISP2))
        eventually(lambda: ping(lab, "a1", B1), deadline_s=10, what="answers again")
        yield alpha, beta


@pytest.mark.parametrize("mode", ["exthdr", "flowlabel", "dstopt"])
def test_a_re_homed_pair_does_not_visit_python(lab: Lab, mode: str) -> None:
    with on_isp2(lab, mode) as (alpha, beta):
        before = [gateway.ask("/v1/status")["packets"] for gateway in (alpha, beta)]
        assert ping(lab, "a1", B1, "-c", "20", "-i", "0.05", "-W", "2")
        after = [gateway.ask("/v1/status")["packets"] for gateway in (alpha, beta)]
        for earlier, later in zip(before, after, strict=True):
            assert later["kernel_rewritten"] >= earlier["kernel_rewritten"] + 20
            assert later["kernel_restored"] >= earlier["kernel_restored"] + 20
            assert later["rewritten"] == earlier["rewritten"]


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


def _sequence(path: Path) -> list[int]:
    lines = path.read_text().splitlines()
    return [int(line.split()[0]) for line in lines if line and not line.startswith("#")]


def _grows(path: Path, by: int) -> None:
    count = len(_sequence(path)) + by
    eventually(lambda: len(_sequence(path)) >= count, deadline_s=20, what=f"{by} more packets")


@pytest.mark.parametrize("mode", ["exthdr", "flowlabel", "dstopt"])
def test_a_killed_daemon_and_its_successor_lose_no_packet(
    lab: Lab, tmp_path: Path, mode: str
) -> None:
    heard = tmp_path / "heard"
    stream = [sys.executable, "-m", traffic.__name__]
    before = settled_state(lab, "agw")
    with on_isp2(lab, mode) as (alpha, beta):
        with (
            program(lab, "b1", *stream, "receive", B1, "5005", output=heard),
            program(lab, "a1", *stream, "send", B1, "5005"),
        ):
            _grows(heard, 50)
            known = alpha.context(A1, B1)
            alpha.kill()
            _grows(heard, 100)
            with running(lab, ALPHA, changes=bpf(mode)) as (again,):
                _grows(heard, 150)
                taken = again.context(A1, B1)
                assert known is not None and taken is not None
                for key in ("local_tag", "peer_tag", "local_locator", "peer_locator", "demux"):
                    assert taken[key] == known[key], key
                assert again.events("contexts taken over")
                assert not again.events("silence noticed") and not again.events("probe sent")
                sequence = _sequence(heard)
                first = sequence[0]
                assert sequence == list(range(first, first + len(sequence))), "one was lost"
                assert again.stop() == 0
        assert not (pins_path(lab) / "alpha").exists()
        assert beta.context(B1, A1) is None, "the peer was told that it is over"
        assert kernel_state(lab, "agw") == before
        assert _programs(lab, "agw") == []


def _programs(lab: Lab, node: str) -> list[str]:
    """Programs at the interfaces of a node, as ``ip`` shows them."""
    with inside(lab.namespace(node)):
        return [
            f"{name} {kind}"
            for index, name in socket.if_nameindex()
            for kind in (_TCX_INGRESS, _TCX_EGRESS)
            if link_ids(index, kind)
        ]

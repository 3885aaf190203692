"""A daemon that is killed and its successor: what the kernel does not say is remembered."""

from __future__ import annotations

from pathlib import Path

import pytest

from m6proxy.lab import faults
from m6proxy.lab.build import Lab
from m6proxy.lab.topology import ALPHA
from tests.harness.gateway import (
    A1,
    A1_ISP2,
    B1,
    Gateway,
    Json,
    both,
    established,
    ping,
    rehomed,
    running,
)
from tests.harness.netns import eventually
from tests.harness.netns import lab as lab
from tests.harness.stream import grows, is_whole, sequence, streaming
from tests.netns.rehomed_pair import bpf
from tests.netns.test_identifier_bpf import A1_AT_2, IDENTIFIER

pytestmark = pytest.mark.netns

FORKS = {
    **bpf(),
    "  unknown_peers: ignore": "  forks: [{match: [udp/5005], uplink: isp2}]\n"
    "  unknown_peers: ignore",
}
SAME = (
    *("local_tag", "peer_tag", "local_locator", "peer_locator", "demux", "peer_name"),
    *("local_name", "fork", "state"),
)


def _stable(context: Json) -> Json:
    locators = [
        (one["address"], one["proof"] != "none", one["preference"], one["weight"])
        for one in context["peer_locators"]
    ]
    return {**{key: context[key] for key in SAME}, "peer_locators": sorted(locators)}


def _memos(gateway: Gateway) -> Path:
    return gateway.control.with_suffix(".contexts")


def test_a_name_and_a_fork_are_known_to_the_successor(lab: Lab, tmp_path: Path) -> None:
    heard = tmp_path / "heard"
    with both(lab, FORKS) as (alpha, beta):
        established(lab, alpha, beta)

        def forked(gateway: Gateway) -> bool:
            """Beside the pair's context one for either end's rule."""
            carrying = [one for one in gateway.contexts() if one["state"] == "ESTABLISHED"]
            return len(carrying) == 3

        eventually(lambda: forked(alpha), deadline_s=15, what="forks")
        with streaming(lab, heard):
            grows(heard, 50)
            known = sorted(map(_stable, alpha.contexts()), key=lambda one: int(one["fork"]))
            assert known[0]["peer_name"] and known[1]["fork"]
            assert A1_ISP2 in (known[1]["local_locator"], known[2]["local_locator"])
            eventually(_memos(alpha).exists, deadline_s=5, what="the pair is remembered")
            alpha.kill()
            with running(lab, ALPHA, changes=FORKS) as (again,):
                eventually(lambda: forked(again), deadline_s=5, what="all are there")
                taken = sorted(map(_stable, again.contexts()), key=lambda one: int(one["fork"]))
                assert taken == known
                count = len(sequence(heard))

                def goes_on() -> bool:
                    by_locator = {one["local_locator"]: one for one in again.contexts()}
                    fork = by_locator[A1_ISP2]
                    return len(sequence(heard)) > count + 50 and fork["packets_out"] > 50

                eventually(goes_on, deadline_s=20, what="the stream goes on by its fork")
                assert ping(lab, "a1", B1)
                assert again.stop() == 0
            assert not _memos(alpha).exists()


def test_an_end_that_moved_alone_still_sends_to_what_stands_in(lab: Lab, tmp_path: Path) -> None:
    """Mode identifier: the kernel has an address of the peer that is no place of its own."""
    heard = tmp_path / "heard"
    with both(lab, IDENTIFIER) as (alpha, beta):
        established(lab, alpha, beta)
        faults.cut(lab, "alpha.isp1")
        rehomed(lab, alpha, (A1_AT_2, B1))
        eventually(lambda: ping(lab, "a1", B1), deadline_s=10, what="answers again")
        with streaming(lab, heard):
            grows(heard, 50)
            known = alpha.context(A1, B1)
            assert known is not None and known["demux"] == "identifier"
            alpha.kill()
            grows(heard, 50)
            with running(lab, ALPHA, changes=IDENTIFIER) as (again,):
                grows(heard, 100)
                taken = again.context(A1, B1)
                assert taken is not None and _stable(taken) == _stable(known)
                before = again.ask("/v1/status")["packets"]
                grows(heard, 50)
                after = again.ask("/v1/status")["packets"]
                assert after["kernel_rewritten"] >= before["kernel_rewritten"] + 40
                assert after["rewritten"] == before["rewritten"]
                assert is_whole(heard), "one was lost"

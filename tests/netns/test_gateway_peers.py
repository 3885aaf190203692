"""Peers that have no m6proxy, and a name server that is dead: their traffic is as ever."""

from __future__ import annotations

import os
import signal
import time

import pytest

from m6proxy.lab import build, faults
from m6proxy.lab.build import Lab
from m6proxy.lab.topology import ALPHA
from m6proxy.wire.ipv6 import NEXT_SHIM
from m6proxy.wire.message import I1, parse_message
from tests.harness.gateway import (
    A1,
    A1_ISP2,
    B1,
    C1,
    QUICK,
    Capture,
    both,
    established,
    ping,
    rehomed,
    restore_rules,
    running,
)
from tests.harness.netns import eventually
from tests.harness.netns import lab as lab

pytestmark = pytest.mark.netns

A2, B2 = "2001:db8:a1:1::20", "2001:db8:b1:1::20"
PROBE = {**QUICK, "unknown_peers: ignore": "unknown_peers: probe"}


def _signalling(capture: Capture) -> list[bytes]:
    return [packet for packet in capture.packets() if packet[6] == NEXT_SHIM]


def test_a_peer_without_a_record_never_gets_signalling(lab: Lab) -> None:
    with running(lab, ALPHA, changes=QUICK) as (alpha,), Capture(lab, "p5", "core") as capture:
        assert ping(lab, "a1", C1, "-c", "20", "-i", "0.05", "-s", "1000", deadline_s=20)
        eventually(lambda: bool(alpha.events("no capability")), deadline_s=15, what="DNS was asked")
        assert ping(lab, "a1", C1, "-c", "20", "-i", "0.05", "-s", "1452", "-M", "do")
        assert _signalling(capture) == []
        assert sum(packet[6] == 58 for packet in capture.packets()) >= 80
        assert alpha.contexts() == []
        (peer,) = alpha.ask("/v1/peers")
        assert (peer["address"], peer["capability"], peer["contexts"]) == (C1, "no", 0)
        assert len(alpha.events("capability asked")) == 1, "the negative answer is kept"


def test_a_probed_peer_that_refuses_is_left_alone_after_one_i1(lab: Lab) -> None:
    """Its kernel answers "unrecognized next header": no second I1 (RFC 5533 §7.8)."""
    with running(lab, ALPHA, changes=PROBE) as (alpha,), Capture(lab, "p5", "core") as capture:
        ping(lab, "a1", C1, "-c", "3", "-i", "0.05")
        eventually(
            lambda: [context["state"] for context in alpha.contexts()] == ["NO-SUPPORT"],
            deadline_s=10,
            what="the refusal is understood",
        )
        assert ping(lab, "a1", C1, "-c", "20", "-i", "0.05")
        (i1,) = _signalling(capture)
        assert isinstance(parse_message(i1[40:]), I1)
        assert len(alpha.events("establishment failed")) == 1


def test_a_probed_peer_that_is_silent_gets_the_i1s_of_the_rfc(lab: Lab) -> None:
    """The second comes after I1_TIMEOUT, 4 s, spread by half (§7.8); traffic goes on meanwhile."""
    restore_rules(lab, "c1", "*raw\n:PREROUTING ACCEPT\n-A PREROUTING -p 140 -j DROP\nCOMMIT\n")
    with running(lab, ALPHA, changes=PROBE) as (alpha,), Capture(lab, "p5", "core") as capture:
        ping(lab, "a1", C1, "-c", "3", "-i", "0.05")
        eventually(lambda: len(_signalling(capture)) == 1, deadline_s=10, what="the first I1")
        began_s = time.monotonic()
        assert ping(lab, "a1", C1)
        eventually(lambda: len(_signalling(capture)) == 2, deadline_s=10, what="the second I1")
        assert 1.5 < time.monotonic() - began_s < 7.5
        first, second = (parse_message(packet[40:]) for packet in _signalling(capture))
        assert first == second
        assert [context["state"] for context in alpha.contexts()] == ["I1-SENT"]
        assert ping(lab, "a1", C1)


def test_a_dead_resolver_changes_nothing_for_traffic(lab: Lab) -> None:
    """What was proved still re-homes; what was never asked stays plain, and works."""
    with both(lab, QUICK) as (alpha, beta):
        established(lab, alpha, beta)
        pid = build.nameserver_pid(lab)
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        assert ping(lab, "a2", B2, "-c", "20", "-i", "0.05")
        assert alpha.context(A2, B2) is None
        faults.cut(lab, "alpha.isp1")
        rehomed(lab, alpha, (A1_ISP2, B1))
        eventually(lambda: ping(lab, "a1", B1), deadline_s=10, what="answers again")
        faults.restore(lab, "alpha.isp1")
        eventually(
            lambda: any(row["capability"] == "unknown" for row in alpha.ask("/v1/peers")),
            deadline_s=15,
            what="the question about b2 failed",
        )
        assert ping(lab, "a2", B2, "-c", "20", "-i", "0.05")
        assert alpha.context(A2, B2) is None
        assert alpha.locators(A1, B1) is not None

"""Mode identifier with programs in the kernel and the real daemon: what must see Python, and what
need not."""

from __future__ import annotations

from pathlib import Path

import pytest

from m6proxy.lab import faults
from m6proxy.lab.build import Lab
from m6proxy.lab.topology import ALPHA
from m6proxy.names import address
from tests.harness.gateway import (
    A1,
    B1,
    C1,
    Capture,
    Gateway,
    both,
    established,
    ping,
    raw_socket,
    rehomed,
    running,
    send_raw,
)
from tests.harness.netns import eventually
from tests.harness.netns import lab as lab
from tests.harness.packets import udp
from tests.harness.stream import grows, is_whole, streaming
from tests.netns.rehomed_pair import MODES, ON_ISP2

pytestmark = pytest.mark.netns

IDENTIFIER = {**MODES["identifier"], "control:": "fast_path: bpf\ncontrol:"}
A1_AT_2, B1_AT_2 = ON_ISP2["identifier"]
NOBODYS = "2001:db8:a1:8001::10"
"""In alpha's first prefix, with the mark of the second."""
MANY = ("-c", "20", "-i", "0.05", "-W", "2")


def _packets(gateway: Gateway) -> dict[str, int]:
    found: dict[str, int] = gateway.ask("/v1/status")["packets"]
    return found


def _moved(lab: Lab, alpha: Gateway, beta: Gateway) -> None:
    """Bring the pair a1, b1 to the second providers of both sites."""
    established(lab, alpha, beta)
    faults.cut(lab, "alpha.isp1")
    faults.cut(lab, "beta.isp1")
    rehomed(lab, alpha, (A1_AT_2, B1_AT_2))
    eventually(lambda: ping(lab, "a1", B1), deadline_s=10, what="answers again")


def test_a_re_homed_pair_and_plain_traffic_do_not_visit_python(lab: Lab) -> None:
    with both(lab, IDENTIFIER) as (alpha, beta):
        assert ping(lab, "a1", C1)
        before = _packets(alpha)
        assert ping(lab, "a1", C1, *MANY)
        after = _packets(alpha)
        assert after["kernel_slow_policy"] == before["kernel_slow_policy"] == 0
        for way in ("outbound", "inbound"):
            assert after[way] - before[way] <= 4, "probes of REAP and DNS at most"
        _moved(lab, alpha, beta)
        earlier = [_packets(gateway) for gateway in (alpha, beta)]
        assert ping(lab, "a1", B1, *MANY)
        later = [_packets(gateway) for gateway in (alpha, beta)]
        for old, new in zip(earlier, later, strict=True):
            for way in ("rewritten", "restored"):
                assert new[f"kernel_{way}"] >= old[f"kernel_{way}"] + 20
                assert new[way] == old[way]
        found = alpha.context(A1, B1)
        assert found is not None and found["demux"] == "identifier"
        told = alpha.cli("explain", "--in", "lan0", "--from", A1, "--to", B1)
        assert "rewritten: for uplink isp2 in mode identifier" in told
        assert told.splitlines()[-1].split() == ["agree", "yes"]


def test_packets_to_locator_only_addresses_without_a_context_end_here(lab: Lab) -> None:
    stray = udp(address(C1), address(NOBODYS), b"stray")
    with (
        running(lab, ALPHA, changes=IDENTIFIER) as (alpha,),
        raw_socket(lab, "c1") as sender,
        Capture(lab, "a1", "eth0") as at_host,
        Capture(lab, "agw", "lan0") as at_lan,
    ):

        def sent() -> None:
            for _ in range(50):
                send_raw(sender, stray)

        def dropped() -> bool:
            sent()
            packets = _packets(alpha)
            return bool(
                packets["kernel_slow_nobodys"]
                and packets["kernel_drop_nobodys"]
                and alpha.drops().get("NOBODYS_ADDRESS")
            )

        eventually(dropped, deadline_s=10, what="drops by the kernel and by the engine")
        packets, drops = _packets(alpha), alpha.drops()
        assert drops["NOBODYS_ADDRESS"] <= packets["kernel_slow_nobodys"]
        assert packets["kernel_slow_policy"] == 0
        alpha.kill()
        sent()
        assert ping(lab, "a1", C1), "plain traffic goes on without a daemon"
        for capture in (at_host, at_lan):
            assert not [one for one in capture.packets() if one[24:40] == address(NOBODYS)]


def test_a_killed_daemon_and_its_successor_lose_no_packet(lab: Lab, tmp_path: Path) -> None:
    heard = tmp_path / "heard"
    with both(lab, IDENTIFIER) as (alpha, beta):
        _moved(lab, alpha, beta)
        with streaming(lab, heard):
            grows(heard, 50)
            known = alpha.context(A1, B1)
            alpha.kill()
            grows(heard, 100)
            with running(lab, ALPHA, changes=IDENTIFIER) as (again,):
                grows(heard, 150)
                taken = again.context(A1, B1)
                assert known is not None and taken is not None
                for key in ("local_tag", "peer_tag", "local_locator", "peer_locator", "demux"):
                    assert taken[key] == known[key], key
                assert taken["demux"] == "identifier"
                before = _packets(again)
                assert ping(lab, "a1", B1, *MANY)
                after = _packets(again)
                for way in ("rewritten", "restored"):
                    assert after[f"kernel_{way}"] >= before[f"kernel_{way}"] + 20
                    assert after[way] == before[way]
                assert not again.events("silence noticed") and not again.events("probe sent")
                assert is_whole(heard), "one was lost"
                assert again.stop() == 0
        assert beta.context(B1, A1) is None, "the peer was told that it is over"

"""How a daemon begins and ends: refusals, what it leaves behind, death, and coming back."""

from __future__ import annotations

import os
import socket
from functools import partial
from pathlib import Path

import pytest

from m6proxy.lab import faults
from m6proxy.lab.build import Lab
from m6proxy.lab.topology import ALPHA, BETA
from m6proxy.names import address
from tests.harness.gateway import (
    A1,
    A1_ISP2,
    B1,
    QUICK,
    Capture,
    Gateway,
    both,
    established,
    kernel_state,
    m6proxy,
    not_answering,
    ping,
    refused,
    rehomed,
    restore_rules,
    running,
    settled_state,
    write_config,
)
from tests.harness.netns import eventually, run_in
from tests.harness.netns import lab as lab

pytestmark = pytest.mark.netns

A2, B2 = "2001:db8:a1:1::20", "2001:db8:b1:1::20"
FOREIGN = """\
*raw
:PREROUTING ACCEPT
:OPERATOR - [0:0]
-A PREROUTING -i wan1 -j OPERATOR
-A OPERATOR -s 2001:db8:99::/48 -m comment --comment "the operator's" -j DROP
COMMIT
*mangle
:PREROUTING ACCEPT
:FORWARD ACCEPT
-A PREROUTING -i lan0 -p tcp -m tcp --tcp-flags SYN,RST SYN -j TCPMSS --set-mss 1400
-A FORWARD -p udp -m udp --dport 99 -j DROP
COMMIT
*filter
:FORWARD ACCEPT
-A FORWARD -m conntrack --ctstate INVALID -j DROP
COMMIT
"""
FOREIGN_ROUTES = (
    ("rule", "add", "from", "2001:db8:77::/48", "lookup", "99", "priority", "99"),
    ("route", "add", "2001:db8:88::/48", "via", "2001:db8:f1::1", "dev", "wan1", "table", "99"),
)


def _foreign(lab: Lab) -> None:
    restore_rules(lab, "agw", FOREIGN)
    for words in FOREIGN_ROUTES:
        run_in(lab, "agw", "ip", "-6", *words)


def test_sigterm_leaves_everything_as_it_was(lab: Lab) -> None:
    """Rules and routes of others stand byte for byte; the socket is gone."""
    _foreign(lab)
    before = settled_state(lab, "agw")
    with both(lab, QUICK) as (alpha, beta):
        during = kernel_state(lab, "agw")
        assert all(during[what] != before[what] for what in ("ip6tables", "rules", "routes"))
        established(lab, alpha, beta)
        faults.cut(lab, "alpha.isp1")
        rehomed(lab, alpha, (A1_ISP2, B1))
        assert alpha.control.is_socket()
        assert alpha.stop() == 0
        assert kernel_state(lab, "agw") == before
        assert not alpha.control.exists()
        faults.restore(lab, "alpha.isp1")
        assert ping(lab, "a2", B2), "plain IPv6 goes on"


def test_sigterm_while_it_starts_leaves_nothing(lab: Lab) -> None:
    before = settled_state(lab, "agw")
    path = write_config(lab, ALPHA, {})
    for _ in range(3):
        gateway = Gateway(lab, ALPHA, path)
        eventually(
            partial(_is_on_its_way, gateway),
            deadline_s=20,
            what="it is on its way",
        )
        gateway.close()
        assert kernel_state(lab, "agw") == before
        assert not gateway.control.exists()


def _is_on_its_way(gateway: Gateway) -> bool:
    return gateway.control.exists() or gateway.child.poll() is not None


def _without_shim(capture: Capture) -> list[bytes]:
    """Return what left with the ULIDs of a1 and b1 in the header."""
    pair = address(A1) + address(B1)
    return [packet for packet in capture.packets() if packet[8:40] == pair]


def test_sigkill_leaves_plain_ipv6_and_no_re_homed_packet_on_the_wrong_path(lab: Lab) -> None:
    before = settled_state(lab, "agw")
    with both(lab, QUICK) as (alpha, beta):
        established(lab, alpha, beta)
        faults.cut(lab, "alpha.isp1")
        rehomed(lab, alpha, (A1_ISP2, B1))
        eventually(lambda: ping(lab, "a1", B1), deadline_s=10, what="answers again")
        eventually(
            lambda: f"-s {A1}/128 -d {B1}/128" in kernel_state(lab, "agw")["ip6tables"],
            deadline_s=5,
            what="the pair is guarded",
        )
        faults.restore(lab, "alpha.isp1")
        alpha.kill()
        with Capture(lab, "agw", "wan1") as wan1, Capture(lab, "agw", "wan2") as wan2:
            assert not ping(lab, "a1", B1)
            assert not ping(lab, "b1", A1)
            assert ping(lab, "a2", B2), "pairs on their ULIDs go on"
            assert ping(lab, "a1", B2), "other pairs of the same host too"
            assert _without_shim(wan1) == [] and _without_shim(wan2) == []
        assert alpha.control.exists(), "a killed daemon cannot remove its socket"
        with running(lab, ALPHA, changes=QUICK) as (again,):
            eventually(lambda: ping(lab, "a1", B1), deadline_s=15, what="the pair works again")
            assert again.ask("/v1/status")["pid"] == again.child.pid
        assert kernel_state(lab, "agw") == before, "the next daemon cleans up after a killed one"


def test_a_pair_recovers_by_r1bis_after_its_gateway_was_killed(lab: Lab) -> None:
    """isp1 of alpha stays dead: beta knows a way, or alpha asks name servers over isp2."""
    with both(lab, QUICK) as (alpha, beta):
        established(lab, alpha, beta)
        faults.cut(lab, "alpha.isp1")
        rehomed(lab, alpha, (A1_ISP2, B1))
        eventually(lambda: ping(lab, "a1", B1), deadline_s=10, what="answers again")
        alpha.kill()
        with running(lab, ALPHA, changes=QUICK) as (again,):
            assert again.contexts() == []
            eventually(lambda: ping(lab, "b1", A1), deadline_s=20, what="the pair works again")
            assert ping(lab, "a1", B1, "-c", "5", "-i", "0.1")
            moved = again.locators(A1, B1)
            assert moved is not None and moved[0] == A1_ISP2
            one, other = again.context(A1, B1), beta.context(B1, A1)
            assert one is not None and other is not None
            assert (one["local_tag"], one["peer_tag"]) == (other["peer_tag"], other["local_tag"])


def test_starting_twice_is_refused_and_harms_nobody(lab: Lab) -> None:
    with running(lab, ALPHA) as (alpha,):
        during = kernel_state(lab, "agw")
        line = refused(lab, "agw", alpha.config)
        assert "runs already" in line and str(alpha.control) in line
        other = write_config(lab, ALPHA, {"alpha.sock": "other.sock"})
        line = refused(lab, "agw", other)
        assert "NFQUEUE 140" in line and "another process" in line
        assert not (lab.state_dir / "other.sock").exists()
        assert kernel_state(lab, "agw") == during
        assert alpha.ask("/v1/status")["pid"] == alpha.child.pid
        assert ping(lab, "a1", B1)


CANNOT_WORK: tuple[tuple[dict[str, str], tuple[str, ...]], ...] = (
    ({"interface: wan2": "interface: wan9"}, ("wan9", "no such interface")),
    ({"lan: [lan0]": "lan: [lan7]"}, ("lan7", "no such interface")),
    ({"a2::/48": "a2::/49"}, ("isp2", "/49", "/48")),
    ({"2001:db8:a2::/48": "2001:db8:a1::/48"}, ("isp2", "overlaps", "isp1")),
    ({"unknown_peers": "unknown_pears"}, ("unknown_pears", "unknown_peers")),
    ({'gateway: "2001:db8:f2::1"': 'gateway: "2001:db8:e9::1"'}, ("2001:db8:e9::1",)),
)
"""What is changed in a good configuration, and the words of the one line about it."""


def test_what_cannot_work_is_one_line_and_exit_2(lab: Lab) -> None:
    before = settled_state(lab, "agw")
    for changes, words in CANNOT_WORK:
        line = refused(lab, "agw", write_config(lab, ALPHA, changes))
        assert all(word in line for word in words), line
        assert kernel_state(lab, "agw") == before
        assert not (lab.state_dir / "alpha.sock").exists()


def test_a_missing_kernel_feature_is_one_line_and_exit_2(lab: Lab, tmp_path: Path) -> None:
    """An ip6tables-restore that refuses, as it does in a kernel without NFQUEUE."""
    fake = tmp_path / "ip6tables-restore"
    fake.write_text("#!/bin/sh\ncat > /dev/null\necho 'no extension NFQUEUE' >&2\nexit 1\n")
    fake.chmod(0o755)
    path = write_config(lab, ALPHA, {})
    gateway = Gateway(lab, ALPHA, path, {"PATH": f"{tmp_path}:{os.environ['PATH']}"})
    assert gateway.child.wait(timeout=20) == 2
    lines = gateway.words().strip().splitlines()
    assert len(lines) == 1 and "ip6tables" in lines[0], lines


def test_a_socket_that_a_dead_daemon_left_is_taken_over(lab: Lab) -> None:
    path = lab.state_dir / "alpha.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as dead:
        dead.bind(str(path))
    with running(lab, ALPHA) as (alpha,):
        assert alpha.ask("/v1/status")["site"] == "alpha.example"
        assert oct(path.stat().st_mode & 0o777) == "0o660"
    path.write_text("something else")
    assert "in the way" in refused(lab, "agw", write_config(lab, ALPHA, {}))
    assert path.read_text() == "something else"


PATIENT = {"dns: {": "dns: {timeout_s: 10, "}
"""On a machine under load a name server takes longer than the two seconds that it gets, and its
silence is a warning; nor is 30 s much for a command then."""


def _check(lab: Lab, node: str, path: Path) -> tuple[int, list[str]]:
    """The exit code of ``m6proxy check`` and its lines."""
    done = m6proxy(lab, node, "check", "-c", str(path), deadline_s=120)
    return done.returncode, (done.stdout + done.stderr).splitlines()


def test_check_says_ok_and_why_not(lab: Lab) -> None:
    path = write_config(lab, ALPHA, PATIENT)
    before = settled_state(lab, "agw")
    code, lines = _check(lab, "agw", path)
    assert len(lines) >= 10 and all(line.startswith("ok ") for line in lines), lines
    assert code == 0
    assert kernel_state(lab, "agw") == before
    faults.link(lab, "alpha.isp2", is_up=False)
    code, lines = _check(lab, "agw", path)
    assert code == 1
    assert any(line.startswith("FAIL") and "wan2" in line for line in lines), lines
    with running(lab, ALPHA, changes=PATIENT) as (alpha,):
        assert [row["up"] for row in alpha.ask("/v1/uplinks")] == [True, False]
        assert _check(lab, "agw", path)[0] == 1, "a running daemon does not hide the fault"
    faults.restore(lab, "alpha.isp2")


def test_check_beside_a_running_daemon_says_ok(lab: Lab) -> None:
    with running(lab, BETA, changes=PATIENT) as (beta,):
        code, lines = _check(lab, "bgw", beta.config)
        assert code == 0, lines
        for interface in ("wan1", "wan2"):
            assert any(line.endswith(f"leads to {interface}") for line in lines), lines


def test_the_service_manager_is_told(lab: Lab, tmp_path: Path) -> None:
    path = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(path))
        manager.settimeout(20)
        environment = {"NOTIFY_SOCKET": str(path), "WATCHDOG_USEC": "400000"}
        with running(lab, ALPHA, environment=environment) as (alpha,):
            assert manager.recv(4096).startswith(b"READY=1\n")
            assert alpha.ask("/v1/status")["uplinks_up"] == 2, "ready means that it answers"
            assert [manager.recv(4096) for _ in range(3)] == [b"WATCHDOG=1"] * 3
            assert alpha.stop() == 0
            said = b"WATCHDOG=1"
            while said == b"WATCHDOG=1":
                said = manager.recv(4096)
            assert said.startswith(b"STOPPING=1\n")
            assert not_answering(alpha)


def test_rules_that_somebody_flushed_come_back(lab: Lab) -> None:
    """A firewall that is reloaded takes our chains with it; within some seconds they are there."""
    with running(lab, ALPHA) as (alpha,):
        during = kernel_state(lab, "agw")["ip6tables"]
        for table in ("raw", "mangle"):
            run_in(lab, "agw", "ip6tables", "-t", table, "-F")
            run_in(lab, "agw", "ip6tables", "-t", table, "-X")
        eventually(
            lambda: (
                sorted(kernel_state(lab, "agw")["ip6tables"].splitlines())
                == sorted(during.splitlines())
            ),
            deadline_s=20,
            what="the rules are back",
        )
        assert alpha.events("rules put back")

"""Two gateways with real programs behind them, and providers that die in every way there is."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from m6proxy.lab import faults, servers, traffic
from m6proxy.lab.build import Lab, feed
from m6proxy.lab.sessions import python_environment
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
    listening,
    longest_gap_s,
    m6proxy,
    ping,
    program,
    rehomed,
    restore_rules,
)
from tests.harness.netns import eventually, unique_lab, up_with_names
from tests.harness.netns import lab as lab

pytestmark = pytest.mark.netns

A2, B2 = "2001:db8:a1:1::20", "2001:db8:b1:1::20"
FETCHED_OCTETS = 10 << 20
RATE_OCTETS_S = 1 << 20
DEMANDED_KEYS = {
    *("local_ulid", "peer_ulid", "state", "reap_state", "local_tag", "peer_tag"),
    *("local_locator", "peer_locator", "local_locators", "peer_locators"),
    *("packets_in", "packets_out", "established_at", "rehomed_at", "rehomings"),
}
"""What the issue demands of an object of ``contexts --json``."""


@contextmanager
def web(lab: Lab, folder: Path, octets: int, rate_octets_s: int) -> Iterator[str]:
    """Serve a file of random octets from b1 with nginx; the value is its SHA-256."""
    content = os.urandom(octets)
    (folder / servers.FILE_NAME).write_bytes(content)
    config = folder / "nginx.conf"
    config.write_text(servers.nginx_config(folder, B1, rate_octets_s))
    nginx = servers.program("nginx")
    assert nginx is not None
    with program(lab, "b1", nginx, "-c", str(config), "-p", str(folder)):
        listening(lab, "b1", 80)
        yield hashlib.sha256(content).hexdigest()


def curl(lab: Lab, output: Path) -> subprocess.Popen[bytes]:
    """Start to fetch the file from a1."""
    url = f"http://[{B1}]/{servers.FILE_NAME}"
    words = ["curl", "-sS", "--fail", "--noproxy", "*", "-o", str(output), url]
    return subprocess.Popen(lab.inside("a1", words), stderr=subprocess.PIPE)


def finished(fetch: subprocess.Popen[bytes], output: Path, sha256: str, deadline_s: float) -> None:
    """Wait for the end of a fetch and compare the sum."""
    try:
        _, complaint = fetch.communicate(timeout=deadline_s)
    finally:
        fetch.kill()
        fetch.wait()
    assert fetch.returncode == 0, complaint
    assert hashlib.sha256(output.read_bytes()).hexdigest() == sha256


@dataclass
class Story:
    """What the one long run left behind."""

    arrivals_s: list[float]
    """When packets of the UDP stream arrived, monotonic clock."""
    sequence: list[int]
    lines_sent: bytes
    lines_came: bytes
    ssh_code: int
    alpha: list[Json]
    beta: list[Json]
    alpha_drops: list[Json]
    moved_s: tuple[float, float]
    """From each cut until alpha said that it re-homed."""


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    """curl and a UDP stream from a1 to b1, ssh from a2 to b2; alpha's isp1 dies, then beta's."""
    folder = tmp_path_factory.mktemp("story")
    the_lab = unique_lab()
    with up_with_names(the_lab), both(the_lab) as (alpha, beta):
        yield _tell(the_lab, alpha, beta, folder)


def _tell(lab: Lab, alpha: Gateway, beta: Gateway, folder: Path) -> Story:
    module = (sys.executable, "-m", traffic.__name__)
    stream, fetched = folder / "stream", folder / "fetched"
    with ExitStack() as stack:
        sha256 = stack.enter_context(web(lab, folder, FETCHED_OCTETS, RATE_OCTETS_S))
        stack.enter_context(program(lab, "b1", *module, "receive", B1, "5004", output=stream))
        eventually(lambda: "ready" in stream.read_text(), deadline_s=15, what="the receiver runs")
        login = stack.enter_context(_login(lab, folder))
        stack.enter_context(program(lab, "a1", *module, "send", B1, "5004"))
        fetch = curl(lab, fetched)
        lines = _Lines(login)
        eventually(
            lambda: lines.type() and _carries(alpha, A1, B1) and _carries(alpha, A2, B2),
            deadline_s=20,
            what="contexts for both pairs",
        )
        moved_s = []
        for target, goal in (("alpha.isp1", (A1_ISP2, B1)), ("beta.isp1", (A1_ISP2, B1_ISP2))):
            assert fetch.poll() is None, "the fetch is over before the provider died"
            cut_s = time.monotonic()
            faults.cut(lab, target)
            eventually(
                partial(_moved, lines, alpha, goal),
                deadline_s=15,
                what=f"re-homed to {goal}",
            )
            moved_s.append(time.monotonic() - cut_s)
            eventually(
                partial(_answers, lines, lines.answered()),
                deadline_s=30,
                what="the login answers again",
            )
        finished(fetch, fetched, sha256, 60)
        code = lines.close()
        arrivals = [line.split() for line in stream.read_text().splitlines() if line[0] != "#"]
        return Story(
            arrivals_s=[float(words[1]) for words in arrivals],
            sequence=[int(words[0]) for words in arrivals],
            lines_sent=bytes(lines.sent),
            lines_came=bytes(lines.came),
            ssh_code=code,
            alpha=json.loads(alpha.cli("contexts", "--json")),
            beta=json.loads(beta.cli("contexts", "--json")),
            alpha_drops=json.loads(alpha.cli("drops", "--json")),
            moved_s=(moved_s[0], moved_s[1]),
        )


def _moved(lines: _Lines, alpha: Gateway, goal: tuple[str, str]) -> bool:
    return lines.type() and alpha.locators(A1, B1) == goal


def _answers(lines: _Lines, before: int) -> bool:
    return lines.type() and lines.answered() > before


def _carries(gateway: Gateway, local: str, peer: str) -> bool:
    found = gateway.context(local, peer)
    return found is not None and found["state"] == "ESTABLISHED"


@contextmanager
def _login(lab: Lab, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """sshd on b2 with keys and configuration of its own, and a login from a2 that echoes."""
    for key in ("host_key", "user_key"):
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / key)], check=True
        )
    name = "b2.beta.example"
    (folder / "known_hosts").write_text(f"{name} {(folder / 'host_key.pub').read_text()}")
    config = folder / "sshd.conf"
    locked = "root:!" in Path("/etc/shadow").read_text()
    config.write_text(servers.sshd_config(folder, B2, pam=locked))
    Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    sshd = servers.program("sshd")
    assert sshd is not None
    with program(lab, "b2", sshd, "-D", "-e", "-f", str(config), output=folder / "sshd.log"):
        listening(lab, "b2", 22)
        child = subprocess.Popen(
            lab.inside("a2", servers.ssh_command(folder, name)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=python_environment(),
        )
        assert child.stdout is not None
        os.set_blocking(child.stdout.fileno(), False)
        try:
            yield child
        finally:
            child.kill()
            child.wait()


class _Lines:
    """Somebody types into the login and reads what comes back."""

    def __init__(self, login: subprocess.Popen[bytes]) -> None:
        self._login = login
        self._typed_s = 0.0
        self.sent = bytearray()
        self.came = bytearray()

    def type(self) -> bool:
        """Type a line, at most ten a second. Always true."""
        if time.monotonic() - self._typed_s > 0.1:
            self._typed_s = time.monotonic()
            line = b"line %d\n" % self.sent.count(b"\n")
            assert self._login.stdin is not None
            self._login.stdin.write(line)
            self._login.stdin.flush()
            self.sent += line
        return True

    def answered(self) -> int:
        """Return how many lines came back so far."""
        assert self._login.stdout is not None
        self.came += self._login.stdout.read() or b""
        return self.came.count(b"\n")

    def close(self) -> int:
        """End the input, read the rest and return the login's exit code."""
        assert self._login.stdin is not None and self._login.stdout is not None
        self._login.stdin.close()
        os.set_blocking(self._login.stdout.fileno(), True)
        code = self._login.wait(timeout=30)
        self.came += self._login.stdout.read() or b""
        return code


def test_the_fetch_survives_both_deaths_with_the_right_sum(story: Story) -> None:
    assert story.moved_s, "the fixture compares the sum"


def test_the_stream_is_silent_for_five_seconds_at_most(story: Story) -> None:
    """send_timeout_s is 3; nothing comes twice and nothing in a wrong order."""
    assert longest_gap_s(story.arrivals_s) <= 5.0
    assert story.sequence == sorted(set(story.sequence))


def test_the_login_answers_every_line_that_was_typed(story: Story) -> None:
    assert story.ssh_code == 0
    assert story.lines_came == story.lines_sent
    assert story.lines_sent.count(b"\n") > 20


def test_contexts_tell_where_the_pairs_are_now(story: Story) -> None:
    (alpha,) = (context for context in story.alpha if context["local_ulid"] == A1)
    (beta,) = (context for context in story.beta if context["local_ulid"] == B1)
    for context in (alpha, beta):
        assert context.keys() >= DEMANDED_KEYS
        assert (context["state"], context["reap_state"]) == ("ESTABLISHED", "OPERATIONAL")
        assert context["rehomings"] >= 2
        assert context["established_at"] < context["rehomed_at"] <= time.time()
        assert min(context["packets_in"], context["packets_out"]) > 1000
    assert (alpha["local_locator"], alpha["peer_locator"]) == (A1_ISP2, B1_ISP2)
    assert (beta["local_locator"], beta["peer_locator"]) == (B1_ISP2, A1_ISP2)
    assert (alpha["local_tag"], alpha["peer_tag"]) == (beta["peer_tag"], beta["local_tag"])
    assert [row["address"] for row in alpha["local_locators"]] == [A1, A1_ISP2]
    assert [row["address"] for row in alpha["peer_locators"]] == [B1, B1_ISP2]
    assert [row["proof"] for row in alpha["peer_locators"]] == ["ulid", "dns"]


def test_nothing_was_dropped_but_what_was_too_long_or_overtaken(story: Story) -> None:
    """Both ends may begin at once: then an answer comes when its exchange is over already."""
    counts = {row["reason"]: row["count"] for row in story.alpha_drops}
    assert counts.keys() <= {"TOO_BIG", "WRONG_NONCE", "ILLEGAL_IN_STATE"}
    assert sum(count for reason, count in counts.items() if reason != "TOO_BIG") <= 4


FIREWALL = f"""\
*filter
:FORWARD DROP
-A FORWARD -i wan+ -s {A1_ISP2} -j DROP
-A FORWARD -i wan+ -d {A1_ISP2} -j DROP
-A FORWARD -i wan+ -p 140 -j DROP
-A FORWARD -o wan+ -m conntrack --ctstate ESTABLISHED --ctorigsrc {A1} --ctorigdst {B1} -j ACCEPT
-A FORWARD -i wan+ -s {A1} -d {B1} -m conntrack --ctstate ESTABLISHED -j ACCEPT
-A FORWARD -i wan+ -s {B1} -d {A1} -m conntrack --ctstate ESTABLISHED -j ACCEPT
-A FORWARD -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT
-A FORWARD -i lan0 -m conntrack --ctstate NEW -j ACCEPT
"""
"""Inbound packets have ULIDs in FORWARD. Outbound ones have their locators by then, but belong
to the connection of the ULIDs."""
INTO_BETA = f"-A FORWARD -d {B1} -p tcp --dport 80 -m conntrack --ctstate NEW -j ACCEPT\n"


def _counts(lab: Lab, node: str) -> list[int]:
    """Return how many packets each rule of FORWARD took."""
    text = feed(lab.inside(node, ["ip6tables", "-nvxL", "FORWARD"]), "")
    return [int(line.split()[0]) for line in text.splitlines()[2:]]


def test_stateful_firewalls_see_ulids_and_pass_a_flow_that_moves(lab: Lab, tmp_path: Path) -> None:
    restore_rules(lab, "agw", FIREWALL + "COMMIT\n")
    restore_rules(lab, "bgw", FIREWALL + INTO_BETA + "COMMIT\n")
    fetched = tmp_path / "fetched"
    with both(lab, QUICK) as (alpha, beta), web(lab, tmp_path, 3 << 20, 1 << 19) as sha256:
        fetch = curl(lab, fetched)
        eventually(lambda: _carries(alpha, A1, B1), deadline_s=15, what="a context")
        faults.cut(lab, "alpha.isp1")
        eventually(lambda: alpha.locators(A1, B1) == (A1_ISP2, B1), deadline_s=15, what="re-homed")
        assert fetch.poll() is None, "the flow must move in mid-flight"
        before = {node: _counts(lab, node) for node in ("agw", "bgw")}
        finished(fetch, fetched, sha256, 60)
        for node, counts in before.items():
            after = _counts(lab, node)
            assert after[:3] == [0, 0, 0], f"{node} saw a locator or a shim header"
            assert after[3] > counts[3] and sum(after[4:6]) > sum(counts[4:6])
            tracked = feed(lab.inside(node, ["conntrack", "-L", "-f", "ipv6"]), "")
            flows = [line for line in tracked.splitlines() if line.startswith("tcp ")]
            assert flows and all(A1 in line and A1_ISP2 not in line for line in flows), tracked
        assert beta.context(B1, A1) is not None


def test_a_firewall_that_answers_nobody_keeps_strangers_out(lab: Lab) -> None:
    """The restored packet is judged as any other: a re-homed pair opens no door."""
    with both(lab, QUICK) as (alpha, beta):
        established(lab, alpha, beta)
        faults.cut(lab, "alpha.isp1")
        rehomed(lab, alpha, (A1_ISP2, B1))
        restore_rules(lab, "bgw", FIREWALL + "COMMIT\n")
        done = subprocess.run(
            lab.inside("a1", ["curl", "-sS", "--max-time", "2", f"http://[{B1}]:81/"]),
            capture_output=True,
        )
        assert done.returncode == 28, done.stderr


@pytest.mark.parametrize("direction", ["in", "out"])
@pytest.mark.parametrize("target", ["alpha.isp1", "beta.isp1"])
def test_silence_one_way(lab: Lab, target: str, direction: str) -> None:
    with both(lab, QUICK) as (alpha, beta):
        established(lab, alpha, beta)
        faults.blackhole(lab, target, direction)
        assert not ping(lab, "a1", B1)
        eventually(lambda: ping(lab, "a1", B1), deadline_s=15, what="answers again")
        eventually(
            lambda: ping(lab, "a1", B1, "-c", "5", "-i", "0.2"), deadline_s=15, what="for good"
        )
        for gateway, local, peer in ((alpha, A1, B1), (beta, B1, A1)):
            context = gateway.context(local, peer)
            assert context is not None and context["state"] == "ESTABLISHED"
        assert alpha.locators(A1, B1) != (A1, B1) or beta.locators(B1, A1) != (B1, A1)


def test_both_first_providers_die_at_once(lab: Lab) -> None:
    with both(lab, QUICK) as (alpha, beta):
        established(lab, alpha, beta)
        faults.cut(lab, "alpha.isp1")
        faults.cut(lab, "beta.isp1")
        rehomed(lab, alpha, (A1_ISP2, B1_ISP2))
        assert beta.locators(B1, A1) == (B1_ISP2, A1_ISP2)
        eventually(lambda: ping(lab, "a1", B1), deadline_s=10, what="answers again")


def test_a_link_that_goes_down_moves_its_pairs_before_the_send_timeout(lab: Lab) -> None:
    """The kernel says that the carrier is gone: nobody waits for 60 s of silence."""
    slow = {**QUICK, "send_timeout_s: 3": "send_timeout_s: 60"}
    with both(lab, slow) as (alpha, beta):
        established(lab, alpha, beta)
        began_s = time.monotonic()
        faults.link(lab, "alpha.isp1", is_up=False)
        rehomed(lab, alpha, (A1_ISP2, B1), deadline_s=20)
        assert time.monotonic() - began_s < 20
        eventually(lambda: ping(lab, "a1", B1), deadline_s=10, what="answers again")
        states = {row["name"]: row for row in json.loads(alpha.cli("uplinks", "--json"))}
        assert not states["isp1"]["up"] and "carrier" in states["isp1"]["why"]
        assert (states["isp2"]["up"], states["isp2"]["contexts"]) == (True, 1)
        faults.restore(lab, "alpha.isp1")
        eventually(
            lambda: all(row["up"] for row in alpha.ask("/v1/uplinks")),
            deadline_s=10,
            what="the uplink is up again",
        )
        assert ping(lab, "a1", B1)


def test_a_dead_provider_is_left_by_new_pairs_when_they_notice(lab: Lab) -> None:
    """A new pair begins on its ULIDs, as it must; m6proxy check still says what is wrong."""
    with both(lab, QUICK) as (alpha, beta):
        established(lab, alpha, beta)
        established(lab, alpha, beta, peer=B2, node="a2")
        faults.cut(lab, "alpha.isp1")
        eventually(
            lambda: not ping(lab, "a1", B1) or alpha.locators(A1, B1) == (A1_ISP2, B1),
            deadline_s=15,
            what="moved",
        )
        eventually(
            lambda: ping(lab, "a2", B2) and ping(lab, "a1", B1),
            deadline_s=20,
            what="each pair moves by itself",
        )
        done = m6proxy(lab, "agw", "status", "--json", "--control", str(alpha.control))
        assert json.loads(done.stdout)["contexts"] == {"ESTABLISHED": 2}

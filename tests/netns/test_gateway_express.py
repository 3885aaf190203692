"""Past the gateway's IPv6 stack, while nobody else is there: the real daemon and real rules."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress

import pytest

from m6proxy.daemon.express import LEASE_S
from m6proxy.lab.build import Lab, feed
from m6proxy.lab.topology import ALPHA
from tests.harness import nft
from tests.harness.gateway import B1, Gateway, running
from tests.harness.netns import eventually
from tests.harness.netns import lab as lab
from tests.netns.rehomed_pair import bpf, on_isp2
from tests.steering.namespaces import inside

pytestmark = pytest.mark.netns
HEEDED_S = 3.0
"""Within that a rule holds, a busy machine included."""
BURST, PORT = 40, 5007


def is_on(gateway: Gateway) -> bool:
    """Whether packets may go past the stack."""
    return bool(gateway.ask("/v1/status")["express"]["on"])


def in_the_way(gateway: Gateway) -> list[str]:
    lines = gateway.ask("/v1/status")["express"]["in_the_way"]
    assert isinstance(lines, list)
    return lines


def sent(gateway: Gateway) -> int:
    """How many packets went past the stack."""
    return int(gateway.ask("/v1/status")["packets"]["kernel_express"])


class Flow:
    """Datagrams from a1 to b1, in bursts: behind the first one of a burst they may go straight."""

    def __init__(self, lab: Lab) -> None:
        with inside(lab.namespace("b1")):
            self._receiver = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
            self._receiver.bind((B1, PORT))
        with inside(lab.namespace("a1")):
            self._sender = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
            self._sender.connect((B1, PORT))

    def close(self) -> None:
        self._receiver.close()
        self._sender.close()

    def arrives(self) -> int:
        """Send a burst and count what arrives."""
        self._receiver.setblocking(False)
        with suppress(BlockingIOError):
            while True:
                self._receiver.recv(100)
        for _ in range(BURST):
            self._sender.send(b"x")
        count = 0
        self._receiver.settimeout(0.2)
        with suppress(TimeoutError):
            while count < BURST:
                self._receiver.recv(100)
                count += 1
        return count

    def goes_past(self, gateway: Gateway) -> None:
        """Wait until most of a burst goes past the stack of a gateway, and all of it arrives."""

        def does() -> bool:
            before = sent(gateway)
            return self.arrives() == BURST and sent(gateway) >= before + BURST // 2

        eventually(does, deadline_s=HEEDED_S + 5, what=f"past the stack of {gateway.node}")

    def is_stopped(self) -> None:
        """Wait until nothing arrives."""
        eventually(lambda: not self.arrives(), deadline_s=HEEDED_S, what="the rule holds")


@pytest.fixture
def flow(lab: Lab) -> Iterator[Flow]:
    opened = Flow(lab)
    yield opened
    opened.close()


def ip6tables(lab: Lab, node: str, *words: str) -> None:
    feed(lab.inside(node, ["ip6tables", *words]), "")


def counted(lab: Lab) -> int:
    """How many packets the last rule of alpha's FORWARD took."""
    text = feed(lab.inside("agw", ["ip6tables", "-nvxL", "FORWARD"]), "")
    return int(text.splitlines()[-1].split()[0])


DROP = ("FORWARD", "-d", B1, "-j", "DROP")


@contextmanager
def rule_of_ip6tables(lab: Lab) -> Iterator[str]:
    """Stop what goes to b1 at alpha's gateway; the line that names who is in the way."""
    ip6tables(lab, "agw", "-A", *DROP)
    yield "nftables: table ip6 filter, chain FORWARD (forward): 1 rule"
    ip6tables(lab, "agw", "-D", *DROP)


@contextmanager
def chain_of_nftables(lab: Lab) -> Iterator[str]:
    """The same for all packets, in a table of family inet."""
    with inside(lab.namespace("agw")):
        nft.add_chain(nft.INET, "wall", policy=nft.DROP)
    yield "nftables: table inet wall, chain c (forward): policy drop"
    with inside(lab.namespace("agw")):
        nft.delete_table(nft.INET, "wall")


@pytest.mark.parametrize("obstacle", [rule_of_ip6tables, chain_of_nftables])
def test_a_rule_of_the_operator_holds_at_once_and_leaves_no_trace(
    lab: Lab, flow: Flow, obstacle: Callable[[Lab], AbstractContextManager[str]]
) -> None:
    with running(lab, ALPHA, changes=bpf()) as (alpha,):
        assert is_on(alpha), in_the_way(alpha)
        flow.goes_past(alpha)
        with obstacle(lab) as line:
            flow.is_stopped()
            assert in_the_way(alpha) == [line]
            assert f"off: {line}; packets go the ordinary way" in " ".join(
                alpha.cli("status").split()
            )
        flow.goes_past(alpha)


@pytest.mark.parametrize("mode", ["exthdr", "flowlabel", "dstopt"])
def test_a_re_homed_pair_goes_past_and_heeds_a_rule(lab: Lab, flow: Flow, mode: str) -> None:
    with on_isp2(lab, mode, fast=True) as (alpha, beta):
        for gateway in (alpha, beta):
            flow.goes_past(gateway)
        with rule_of_ip6tables(lab):
            flow.is_stopped()
        for gateway in (alpha, beta):
            flow.goes_past(gateway)


def test_a_filter_behind_our_program_is_heeded(lab: Lab, flow: Flow) -> None:
    with running(lab, ALPHA, changes=bpf()) as (alpha,):
        assert is_on(alpha), in_the_way(alpha)
        feed(lab.inside("agw", ["tc", "qdisc", "add", "dev", "lan0", "clsact"]), "")
        match = ["protocol", "ipv6", "u32", "match", "u32", "0", "0"]
        feed(lab.inside("agw", ["tc", "filter", "add", "dev", "lan0", "ingress", *match]), "")
        eventually(lambda: not is_on(alpha), deadline_s=HEEDED_S, what="the ordinary way")
        (line,) = in_the_way(alpha)
        assert line.startswith("tc: ") and line.endswith(" at the ingress of lan0")
        feed(lab.inside("agw", ["tc", "qdisc", "del", "dev", "lan0", "clsact"]), "")
        flow.goes_past(alpha)


def test_rules_that_come_while_no_daemon_lives_see_all_packets_after_the_lease(
    lab: Lab, flow: Flow
) -> None:
    counting = ("FORWARD", "-p", "udp", "-d", B1)
    with running(lab, ALPHA, changes=bpf()) as (alpha,):
        flow.goes_past(alpha)
        alpha.kill()
        ip6tables(lab, "agw", "-A", *counting)

        def sees_all() -> bool:
            before = counted(lab)
            return flow.arrives() == BURST and counted(lab) == before + BURST

        assert not sees_all(), "the kernel goes on with what it knows"
        eventually(sees_all, deadline_s=LEASE_S + 2, what="all meet the rule")
        with running(lab, ALPHA, changes=bpf()) as (again,):
            assert not is_on(again) and sees_all()
            ip6tables(lab, "agw", "-D", *counting)
            flow.goes_past(again)


def test_the_operator_may_want_the_ordinary_way(lab: Lab, flow: Flow) -> None:
    changes = {**bpf(), "control:": "fast_path: bpf\nexpress: off\ncontrol:"}
    with running(lab, ALPHA, changes=changes) as (alpha,):
        assert flow.arrives() == BURST
        assert in_the_way(alpha) == ["the configuration says off"]
        assert sent(alpha) == 0

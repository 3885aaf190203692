"""``m6proxy explain`` with the real daemon: the engine's word and the kernel's, side by side."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from m6proxy.daemon.explain import _one_hop_on
from m6proxy.dataplane.bpf import layout
from m6proxy.dataplane.bpf.layout import Counter, Mode
from m6proxy.dataplane.bpf.load import read_object
from m6proxy.dataplane.bpf.maps import Map
from m6proxy.dataplane.bpf.syscall import obj_get
from m6proxy.dataplane.bpf.trial import Fate, Interface, KernelOutcome, KernelTrial
from m6proxy.lab.build import Lab, pins_path
from m6proxy.lab.topology import ALPHA, BETA
from m6proxy.names import address
from m6proxy.wire.ipv6 import build_packet
from tests.harness.fastpath import FastGateway, fast
from tests.harness.gateway import (
    A1,
    A1_ISP2,
    B1,
    B1_ISP2,
    C1,
    QUICK,
    Gateway,
    both,
    established,
    mac_of,
)
from tests.harness.netns import lab as lab
from tests.harness.netns import plain_lab as plain_lab
from tests.harness.packets import icmp_error, rewritten, udp
from tests.netns.rehomed_pair import bpf, on_isp2
from tests.netns.test_bpf_path import rehome
from tests.steering.namespaces import inside

pytestmark = pytest.mark.netns

SOURCE = read_object()
STRANGER = "2001:db8:66::1"
TOO_BIG = 2
FRAGMENT = b"\x11\x00\x00\x01\x00\x00\x00\x07" + bytes(40)


class Explained:
    """One answer of the command."""

    def __init__(self, gateway: Gateway, interface: str, packet: bytes) -> None:
        words = ("explain", "--in", interface, "--packet", packet.hex())
        told = json.loads(gateway.cli(*words, "--json"))
        self.engine: dict[str, Any] = told["engine"]
        self.kernel: dict[str, Any] = told["kernel"]
        self.agree: bool | None = told["agree"]
        self.verdicts = self.engine["verdict"], self.kernel["verdict"]
        self.lines = gateway.cli(*words).splitlines()


def _udp(source: str, destination: str) -> bytes:
    return udp(address(source), address(destination), b"explain")


@contextmanager
def _unnoticed(gateway: Gateway) -> Iterator[None]:
    """Nothing that counts packets, or tells of them, may change in the block."""

    def seen() -> list[object]:
        packets = gateway.ask("/v1/status")["packets"]
        control = "kernel_slow_control"  # those go on
        kernel = {name: n for name, n in packets.items() if "kernel" in name and name != control}
        flows = [(flow["packets_out"], flow["packets_in"]) for flow in gateway.ask("/v1/flows")]
        counted = [(c["packets_in"], c["packets_out"]) for c in gateway.contexts()]
        return [kernel, flows, counted, gateway.drops()]

    before = seen()
    yield
    assert seen() == before


def test_plain_packets_and_a_context_on_its_ulids(lab: Lab) -> None:
    with both(lab, bpf()) as (alpha, beta):
        with _unnoticed(alpha):
            told = Explained(alpha, "lan0", _udp(A1, C1))
            assert (told.verdicts, told.agree) == (("unchanged", "unchanged"), True)
            assert told.engine["why"] == "no context claims it"
            assert told.kernel["why"] == "past the queue"
            told = Explained(alpha, "lan0", _udp(STRANGER, B1))
            assert (told.verdicts, told.agree) == (("unchanged", "left"), True)
            told = Explained(alpha, "wan1", _udp(C1, A1))
            assert (told.verdicts, told.agree) == (("unchanged", "unchanged"), True)
        established(lab, alpha, beta)
        for interface, pair in (("lan0", (A1, B1)), ("wan1", (B1, A1))):
            told = Explained(alpha, interface, _udp(*pair))
            assert (told.verdicts, told.agree) == (("unchanged", "unchanged"), True)
            assert told.engine["why"] == "its context is on its ULIDs"
            assert told.lines[-1].split() == ["agree", "yes"]


@pytest.mark.parametrize("mode", ["exthdr", "flowlabel", "dstopt"])
def test_a_re_homed_pair_both_ways(lab: Lab, mode: str) -> None:
    with on_isp2(lab, mode, fast=True) as (alpha, beta), _unnoticed(alpha), _unnoticed(beta):
        for gateway in (alpha, beta):
            assert gateway.ask("/v1/status")["express"] == {"on": True, "in_the_way": []}
        out = Explained(alpha, "lan0", _udp(A1, B1))
        assert (out.verdicts, out.agree) == (("rewritten", "rewritten"), True)
        assert (out.kernel["uplink"], out.kernel["mode"]) == ("isp2", mode)
        assert out.kernel["counters"] == ["REWRITTEN"]
        after = out.kernel["after"]
        assert (after["source"], after["destination"]) == (A1_ISP2, B1_ISP2)
        back = Explained(beta, "wan2", bytes.fromhex(after["packet"]))
        assert (back.verdicts, back.agree) == (("restored", "restored"), True)
        assert back.kernel["after"]["packet"] == _udp(A1, B1).hex()
        tcp = alpha.cli("explain", "--in", "lan0", "--from", A1, "--to", B1, "--proto", "tcp")
        assert f"rewritten: for uplink isp2 in mode {mode}" in tcp
        sent = next(line for line in tcp.splitlines()[::-1] if line.startswith("becomes"))
        assert f"{A1_ISP2} to {B1_ISP2}" in sent
        straight = out.kernel["express"]
        assert (straight["source"], straight["destination"]) == (A1_ISP2, B1_ISP2)
        assert any("EXPRESS" in line for line in out.lines)
        assert back.kernel["express"]["destination"] == B1


def test_what_is_left_to_the_engine_and_why(lab: Lab) -> None:
    with on_isp2(lab, "exthdr", fast=True) as (alpha, _):
        found = alpha.context(A1, B1)
        assert found is not None
        tag, peer_tag = int(found["local_tag"], 16), int(found["peer_tag"], 16)
        there, here = address(B1_ISP2), address(A1_ISP2)
        quoted = rewritten(here, there, peer_tag, 17, _udp(A1, B1)[40:])
        router = address("2001:db8:f2::1")
        with _unnoticed(alpha):
            told = Explained(alpha, "wan2", rewritten(there, here, tag ^ 1, 17, bytes(16)))
            assert (told.verdicts, told.agree) == (("dropped", "python"), True)
            assert told.engine["reason"] == "NO_CONTEXT"
            assert told.kernel["why"] == "left to the engine because SLOW_TAG"
            spoofed = rewritten(address(STRANGER), here, tag, 17, bytes(16))
            told = Explained(alpha, "wan2", spoofed)
            assert (told.verdicts, told.agree) == (("dropped", "python"), True)
            assert told.engine["reason"] == "WRONG_LOCATOR"
            assert told.kernel["counters"] == ["SLOW_LOCATOR"]
            error = icmp_error(router, here, TOO_BIG, 0, 1400, quoted)
            told = Explained(alpha, "wan2", error)
            assert (told.verdicts, told.agree) == (("restored", "python"), True)
            assert told.kernel["counters"] == ["SLOW_ERROR"]
            assert told.engine["after"]["destination"] == A1
            fragment = build_packet(address(A1), address(B1), 44, FRAGMENT)
            told = Explained(alpha, "lan0", fragment)
            assert (told.verdicts, told.agree) == (("rewritten", "python"), True)
            assert told.lines[-2].endswith("left to the engine because SLOW_FRAGMENT")


def test_a_kernel_that_does_something_else_is_told(lab: Lab) -> None:
    with on_isp2(lab, "exthdr", fast=True) as (alpha, _):
        assert Explained(alpha, "lan0", _udp(A1, B1)).agree is True
        out = Map.opened(obj_get(str(pins_path(lab) / "alpha" / f"map_{layout.OUT}")), layout.OUT)
        try:
            assert out.delete(address(A1) + address(B1))
        finally:
            out.close()
        told = Explained(alpha, "lan0", _udp(A1, B1))
        assert (told.verdicts, told.agree) == (("rewritten", "unchanged"), False)
        assert told.lines[-1].split(maxsplit=1) == [
            "agree",
            "no: the kernel and the engine would not do the same",
        ]


@pytest.mark.parametrize("mode", [Mode.EXTHDR, Mode.FLOWLABEL, Mode.IDENTIFIER, Mode.DSTOPT])
def test_what_goes_past_the_ipv6_stack(plain_lab: Lab, mode: Mode) -> None:
    with fast(plain_lab, ALPHA, BETA) as (alpha, beta):
        rehome(alpha, beta, mode)
        out, plain = _udp(A1, B1), _udp(A1, C1)
        for lease in (0, 1 << 62):
            alpha.configure(express_until_ns=lease)
            for interface, packet in (("lan0", out), ("lan0", plain), ("wan1", _udp(C1, A1))):
                told = _tried(alpha, interface, packet)
                assert told.fate is (Fate.SENT if packet == out else Fate.PAST)
                assert (told.express is not None) is bool(lease)
                assert Counter.EXPRESS not in told.counters
                if told.express is not None:
                    assert told.express[7] == told.packet[7] - 1
                    assert (
                        told.express[8:] == told.packet[8:] and told.express[:7] == told.packet[:7]
                    )
            sent = _tried(alpha, "lan0", out).packet
            beta.configure(express_until_ns=lease)
            told = _tried(beta, "wan2", sent)
            assert (told.fate, told.packet) == (Fate.PAST, out)
            assert told.express == (_one_hop_on(out) if lease else None)
            echo = build_packet(address(A1), address(B1), 58, b"\x80" + bytes(15))
            assert _tried(alpha, "lan0", echo).express is None, "it is one of those that do not"
        assert not alpha.count(Counter.EXPRESS) and not alpha.count(Counter.REWRITTEN)


def _tried(gateway: FastGateway, interface: str, packet: bytes) -> KernelOutcome:
    with inside(gateway.namespace):
        lan = socket.if_nametoindex("lan0")
        at = Interface(
            socket.if_nametoindex(interface), mac_of(gateway.lab, gateway.node, interface)
        )
        maps = gateway.loaded.maps
        outbound = interface == "lan0"
        return KernelTrial(SOURCE, maps, packet, at, outbound=outbound, lan_index=lan).run()


def test_without_a_fast_path_it_says_so(lab: Lab) -> None:
    with both(lab, QUICK) as (alpha, _):
        told = Explained(alpha, "lan0", _udp(A1, C1))
        assert (told.verdicts, told.agree) == (("unchanged", "none"), None)
        assert told.lines[-1].split() == ["kernel", "none:", "fast_path", "is", "off"]

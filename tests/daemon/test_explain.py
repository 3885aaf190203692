"""``/v1/explain``: which part of the gateway says what about a packet."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from m6proxy.daemon.config import Config, parse_config
from m6proxy.daemon.explain import explain, with_kernel, without_kernel
from m6proxy.dataplane.bpf.layout import Counter, EventKind, Mode, OutFlow
from m6proxy.dataplane.bpf.trial import Fate, KernelOutcome
from m6proxy.names import Address, address, address_text
from m6proxy.wire.ipv6 import NEXT_UDP
from m6proxy.wire.message import I1
from tests.daemon.test_config import CONTRACT
from tests.harness.packets import control, rewritten, udp
from tests.harness.pair import A1, A1_ISP2, B1, B1_ISP2, Pair

CONFIG = parse_config(CONTRACT, "f.yaml")
LAN = CONFIG.lan[0]
ELSEWHERE = address("2001:db8:c1::7")


def _explained(pair: Pair, interface: str, packet: bytes, config: Config = CONFIG) -> Any:
    return explain(pair.alpha.engine, config, interface, packet, pair.clock.now)


def _ask(pair: Pair, interface: str, packet: bytes) -> Any:
    return _explained(pair, interface, packet)["engine"]


@pytest.mark.parametrize(
    ("source", "destination", "why"),
    [
        (ELSEWHERE, B1, "its source is in none of the site's prefixes"),
        (A1, address("ff0e::1"), "its destination is multicast or link-local"),
        (A1, address("fe80::1"), "its destination is multicast or link-local"),
        (A1, A1_ISP2, "it stays within the site"),
        (A1, address("::1"), "it is for the gateway itself"),
    ],
)
def test_what_the_rules_leave_alone(source: Address, destination: Address, why: str) -> None:
    told = _ask(Pair(), LAN, udp(source, destination, b"x"))
    assert (told["verdict"], told["why"]) == ("unchanged", why)


def test_inbound_rules_and_signalling() -> None:
    pair = Pair()
    told = _ask(pair, "wan1", udp(B1, A1_ISP2, b"x"))
    assert told["why"] == "its destination is not in 2001:db8:a1::/48, the prefix of wan1"
    told = _ask(pair, "wan1", control(B1, A1, I1(1, 2)))
    assert told["verdict"] == "taken" and not list(pair.alpha.engine.contexts())
    assert told["why"] == "a control message: the engine answers it"
    told = _ask(pair, LAN, control(A1, B1, I1(1, 2)))
    assert told["verdict"] == "unchanged", "a host's own signalling is a packet like others"
    told = _ask(pair, "wan1", udp(B1, A1, b"x"))
    assert (told["verdict"], told["why"]) == ("unchanged", "no context claims it")


def test_a_packet_of_a_rehomed_pair_is_shown_before_and_after() -> None:
    pair = Pair()
    pair.establish()
    assert _ask(pair, LAN, udp(A1, B1, b"x"))["why"] == "its context is on its ULIDs"
    pair.cut_provider("a", 1)
    pair.stream(10.0, both=True)
    told = _ask(pair, LAN, udp(A1, B1, b"x"))
    assert told["verdict"] == "rewritten"
    after, context = told["after"], told["context"]
    assert (after["source"], after["next_header"]) == ("2001:db8:a2:1::10", 140)
    assert after["octets"] == len(udp(A1, B1, b"x")) + 8
    assert context["demux"] == "exthdr" and context["state"] == "ESTABLISHED"


def test_the_kernel_agrees_when_it_does_the_same_or_leaves_it_to_the_engine() -> None:
    pair = Pair()
    pair.establish()
    pair.cut_provider("a", 1)
    pair.stream(10.0, both=True)
    packet = udp(A1, B1, b"x")
    told = _explained(pair, LAN, packet)
    after = bytes.fromhex(told["engine"]["after"]["packet"])
    flow = OutFlow(after[8:40], Mode.EXTHDR, 0, 2)
    sent = KernelOutcome(Fate.SENT, after, (Counter.REWRITTEN,), (), 2, flow)
    whole = with_kernel(told, sent, "isp2")
    assert whole["agree"] is True and whole["kernel"]["why"] == "for uplink isp2 in mode exthdr"
    assert with_kernel(told, sent, "isp1")["agree"] is False
    one_hop_on = after[:7] + bytes([after[7] - 1]) + after[8:]
    for express, agree in ((one_hop_on, True), (after, False)):
        whole = with_kernel(told, replace(sent, express=express), "isp2")
        assert whole["agree"] is agree and whole["kernel"]["express"]["packet"] == express.hex()
        assert "past the gateway's IPv6 stack" in whole["kernel"]["effects"][-1]
    elsewhere = replace(sent, express=one_hop_on)
    assert with_kernel(told, elsewhere, "isp1")["agree"] is False, "express mends nothing"
    past = KernelOutcome(Fate.PAST, packet, (), (EventKind.RIPE,))
    whole = with_kernel(told, past, None)
    assert whole["agree"] is False and whole["kernel"]["verdict"] == "unchanged"
    assert whole["kernel"]["effects"] == ["Python is told that the pair deserves a context"]
    left = KernelOutcome(Fate.PYTHON, packet, (Counter.SLOW_FRAGMENT,), ())
    whole = with_kernel(told, left, None)
    assert whole["agree"] is True and whole["kernel"]["counters"] == ["SLOW_FRAGMENT"]
    assert whole["kernel"]["why"] == "left to the engine because SLOW_FRAGMENT"
    dropped = KernelOutcome(Fate.DROPPED, packet, (Counter.DROP_NO_FLOW,), ())
    assert with_kernel(told, dropped, None)["agree"] is False
    whole = without_kernel(told, "fast_path is off")
    assert whole["agree"] is None and whole["kernel"]["verdict"] == "none"


def test_a_drop_has_its_reason_and_an_unclaimed_packet_its_words() -> None:
    told = _ask(Pair(), "wan1", rewritten(B1_ISP2, A1, 99, NEXT_UDP, bytes(9)))
    assert (told["verdict"], told["reason"]) == ("dropped", "NO_CONTEXT")
    assert told["effects"] == [f"a packet is sent: {address_text(A1)} -> {address_text(B1_ISP2)}"]
    told = _ask(Pair(), LAN, udp(A1, B1, b"x"))
    assert (told["verdict"], told["why"]) == ("unchanged", "no context claims it")


def test_what_is_wrong_is_one_line() -> None:
    with pytest.raises(ValueError, match=r"no interface 'eth9' .* it has lan0, wan1, wan2"):
        _ask(Pair(), "eth9", udp(A1, B1, b"x"))
    for octets in (b"", bytes(40), udp(A1, B1, b"x")[:39]):
        with pytest.raises(ValueError, match="no IPv6 packet"):
            _ask(Pair(), LAN, octets)


def test_the_example_has_these_interfaces() -> None:
    text = Path("conf/alpha.yaml").read_text(encoding="utf-8")
    assert parse_config(text, "alpha.yaml").lan == CONFIG.lan

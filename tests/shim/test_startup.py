"""A pair whose ULIDs do not work from the start: the exchange goes over other locators."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest

from m6proxy.discovery.capability import NameData
from m6proxy.names import Address
from m6proxy.reasons import Reason
from m6proxy.shim.core import ShimSettings
from m6proxy.shim.effects import What
from m6proxy.shim.firstpackets import PACKETS_MAX, FirstPackets
from m6proxy.shim.policy import SILENT_START_S
from m6proxy.shim.timers import NO_R1_HOLDDOWN_S
from m6proxy.wire.message import I1, I2, R2
from tests.harness.packets import find_messages, route_of, tcp
from tests.harness.pair import A1, A1_ISP2, B1, B1_ISP2, LATENCY_S, Pair
from tests.shim.exchange import both_established

SYN = tcp(A1, B1, flags=0x02)
SYN_ACK = tcp(B1, A1, flags=0x12)


def holding(hold_s: float, *, capable: bool = True) -> Pair:
    """Two sites whose gateways hold a first packet for so long."""

    def adjust(settings: ShimSettings) -> ShimSettings:
        return replace(settings, hold_first_packet_s=hold_s)

    return Pair(adjust=adjust, capable=capable)


def lose_first_uplink(pair: Pair) -> None:
    """The first provider of alpha is gone, and its gateway knows."""
    pair.cut_provider("a", 1)
    pair.alpha.engine.handle_uplink("isp1", up=False, mtu=1500, now=pair.clock.now)


def syns(pair: Pair, *waits_s: float) -> None:
    """A host opens a connection and sends its first segment again after each wait."""
    pair.host_sends(pair.alpha, SYN)
    for wait_s in waits_s:
        pair.run(wait_s)
        pair.host_sends(pair.alpha, SYN)
    pair.run(0.2)


def arrived(pair: Pair) -> list[float]:
    """When SYNs came to b1."""
    return [when for when, packet in pair.beta.delivered if packet == SYN]


def test_a_first_packet_waits_for_its_context_when_its_uplink_is_down() -> None:
    pair = holding(1.0)
    lose_first_uplink(pair)
    start_s = pair.clock.now
    syns(pair)
    (when_s,) = arrived(pair)
    assert when_s - start_s == pytest.approx(5 * LATENCY_S)
    assert both_established(pair)
    a, b = pair.alpha.context, pair.beta.context
    assert a.route == A1_ISP2 + B1
    assert b.route == B1 + A1_ISP2
    assert a.rehomings == b.rehomings == 0
    pair.host_sends(pair.beta, SYN_ACK)
    pair.run(0.1)
    assert pair.alpha.delivered[-1][1] == SYN_ACK


def test_no_packet_waits_by_default_and_the_next_one_gets_through() -> None:
    pair = Pair()
    lose_first_uplink(pair)
    syns(pair)
    assert not arrived(pair)
    assert SYN in [packet for _, packet in pair.wire]
    assert both_established(pair)
    syns(pair)
    assert len(arrived(pair)) == 1


@pytest.mark.parametrize("hold_s", [0.0, 3.0])
def test_a_first_segment_sent_again_without_answer(hold_s: float) -> None:
    """The peer's provider is dead: I1 goes to its ULID, then to its other locator."""
    pair = holding(hold_s)
    pair.cut_provider("b", 1)
    syns(pair, 1.0)
    pair.run(2.0)
    routes = [route_of(packet) for _, packet, _ in find_messages(pair.alpha.sent, I1)]
    assert routes[0] == (A1, B1)
    assert len(set(routes)) == len(routes) <= 4
    assert both_established(pair)
    assert pair.alpha.context.route[16:] == B1_ISP2
    assert len(arrived(pair)) == (1 if hold_s else 0)
    syns(pair)
    assert len(arrived(pair)) == (2 if hold_s else 1)


def test_pairs_are_tried_one_after_the_other() -> None:
    pair = Pair()
    pair.lose = lambda packet: True
    syns(pair, 1.0)
    pair.run(300.0)
    sent = find_messages(pair.alpha.sent, I1)
    times = [when for when, _, _ in sent]
    gaps = [later - earlier for earlier, later in pairwise(times)]
    assert len(sent) == 8
    assert all(0.25 <= gap <= 0.75 for gap in gaps[:3])
    assert all(gap >= 2.0 for gap in gaps[3:])
    assert {route_of(packet) for _, packet, _ in sent[:4]} == {
        (ours, theirs) for ours in (A1, A1_ISP2) for theirs in (B1, B1_ISP2)
    }
    (failed_s,) = pair.alpha.what(What.FAILED)
    peers = pair.alpha.engine._core.peers
    assert peers.refused_until_s(B1_ISP2, B1, failed_s) == failed_s + NO_R1_HOLDDOWN_S
    assert peers.refused_until_s(B1_ISP2, B1_ISP2, failed_s) == 0.0


def test_a_false_alarm_moves_nothing() -> None:
    """The path works, the host is slow: the exchange is on the ULIDs."""
    pair = Pair()
    syns(pair, 1.0)
    assert both_established(pair)
    assert pair.alpha.context.wire_addresses is None
    assert pair.beta.context.wire_addresses is None


def test_an_answer_or_another_protocol_is_no_failure() -> None:
    pair = Pair()
    pair.host_sends(pair.alpha, SYN)
    pair.run(0.1)
    pair.host_sends(pair.beta, SYN_ACK)
    pair.run(1.0)
    syns(pair, 1.0)
    assert not pair.alpha.what(What.ASKED)
    pair = Pair()
    for _ in range(3):
        pair.talk(pair.alpha, 10)
        pair.run(SILENT_START_S)
    assert not pair.alpha.what(What.ASKED)


@pytest.mark.parametrize("capable", [True, False])
def test_a_packet_is_held_no_longer_than_policy_says(capable: bool) -> None:
    """The plain way goes on: the packet leaves unchanged, and those behind it never wait."""
    pair = holding(1.5, capable=capable)
    pair.lose = lambda packet: True
    lose_first_uplink(pair)
    start_s = pair.clock.now
    for _ in range(3):
        pair.host_sends(pair.alpha, SYN)
    pair.run(3.0)
    plain = [when - start_s for when, packet in pair.wire if packet == SYN]
    assert plain == pytest.approx([0.0, 0.0, 1.5] if capable else [0.0, 0.0, 0.0], abs=0.01)
    assert len(pair.alpha.engine._core.first_packets) == 0


def test_locators_of_an_earlier_context_are_remembered() -> None:
    """DNS is dead when the next connection starts."""
    pair = Pair()
    pair.establish()
    pair.run(400.0)
    assert not list(pair.alpha.engine.contexts())
    pair.dns = False
    pair.data = lambda _: NameData("b1.beta.example")
    pair.cut_provider("b", 1)
    syns(pair, 1.0)
    pair.run(2.0)
    routes = {route_of(packet) for _, packet, _ in find_messages(pair.alpha.sent, I1)}
    assert (A1, B1_ISP2) in routes
    assert both_established(pair)
    assert pair.alpha.context.route == A1 + B1_ISP2


def test_the_responder_wants_proof_of_another_locator() -> None:
    pair = holding(1.0)
    lose_first_uplink(pair)

    def nothing(_: Address) -> NameData | None:
        return None

    asked = pair.data
    pair.data = lambda ulid: asked(ulid) if ulid == B1 else nothing(ulid)
    syns(pair)
    assert find_messages(pair.alpha.sent, I2)
    assert not find_messages(pair.beta.sent, R2)
    assert not list(pair.beta.engine.contexts())
    assert Reason.UNPROVED_ULID in pair.beta.engine.drops


def test_held_packets_are_bounded() -> None:
    held = FirstPackets()
    keys = [number.to_bytes(32) for number in range(PACKETS_MAX + 1)]
    assert [held.put(key, b"x", 5.0) for key in keys] == [True] * PACKETS_MAX + [False]
    assert not held.put(keys[0], b"y", 9.0)
    assert held.next_deadline_s() == 5.0
    assert held.take(keys[0]) == b"x"
    assert held.take(keys[0]) is None
    assert len(held.take_due(5.0)) == PACKETS_MAX - 1
    assert held.next_deadline_s() is None

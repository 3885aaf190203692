"""The one door: what is dropped and why, effects and their order, time, and what stays behind."""

from __future__ import annotations

import gc

import pytest

from m6proxy.names import UlidPair
from m6proxy.reasons import Reason
from m6proxy.shim.effects import (
    AskCapability,
    InstallFlow,
    LearnNames,
    RemoveFlow,
    Report,
    SendPacket,
    Wake,
    What,
)
from m6proxy.shim.transitions import State
from m6proxy.shim.verdict import CONSUMED
from m6proxy.wire.ipv6 import MIN_MTU, build_packet
from m6proxy.wire.message import (
    I1,
    ErrorCode,
    ErrorMessage,
    Keepalive,
    Probe,
    ProbeRecord,
    ProbeState,
    UnknownMessage,
    UpdateAck,
    UpdateRequest,
)
from m6proxy.wire.options import UnknownOption
from tests.harness.packets import control, find_messages, is_control, rewritten, tcp, udp
from tests.harness.pair import A1, A1_ISP2, B1, B1_ISP2, B2, Pair
from tests.shim.moved import established, moved

EVE = bytes.fromhex("20010db800660000000000000000000e")
ALL_NODES = b"\xff\x02" + bytes(13) + b"\x01"
GOOD = control(B1, A1, I1(5, 5))


def flipped(packet: bytes, at: int) -> bytes:
    return packet[:at] + bytes((packet[at] ^ 0xFF,)) + packet[at + 1 :]


@pytest.mark.parametrize(
    ("packet", "reason"),
    [
        (b"", Reason.TRUNCATED),
        (GOOD[:39], Reason.TRUNCATED),
        (build_packet(B1, A1, 140, b"1234567"), Reason.TRUNCATED),
        (GOOD[:48], Reason.BAD_LENGTH),
        (GOOD + b"\0" * 8, Reason.BAD_LENGTH),
        (build_packet(B1, A1, 140, GOOD[40:52]), Reason.BAD_LENGTH),
        (flipped(GOOD, 50), Reason.BAD_CHECKSUM),
        (control(ALL_NODES, A1, I1(5, 5)), Reason.BAD_ADDRESS),
        (control(bytes(16), A1, I1(5, 5)), Reason.BAD_ADDRESS),
        (control(B1, ALL_NODES, I1(5, 5)), Reason.BAD_ADDRESS),
        (control(B1, B2, I1(5, 5)), Reason.NOT_OUR_HOST),
        (control(A1_ISP2, A1, I1(5, 5)), Reason.UNPROVED_ULID),
        (control(B1, A1, UnknownMessage(124, bytes(10))), Reason.UNKNOWN_TYPE),
        (
            control(B1, A1, I1(5, 5, (UnknownOption(99, True, b"x"),))),
            Reason.CRITICAL_OPTION,
        ),
        (control(B1, A1, Keepalive(5)), Reason.NO_CONTEXT),
        (control(B1, A1, UpdateRequest(5, 5)), Reason.NO_CONTEXT),
        (control(B1, A1, UpdateAck(5, 5)), Reason.NO_CONTEXT),
        (
            control(B1, A1, Probe(5, ProbeState.EXPLORING, (ProbeRecord(B1, A1, 1),))),
            Reason.NO_CONTEXT,
        ),
        (control(B1, A1, ErrorMessage(0, 0, bytes(48))), Reason.PEER_ERROR),
        (rewritten(B1, A1, 5, 17, b"x"), Reason.NO_CONTEXT),
    ],
)
def test_what_is_wrong_is_counted_and_dropped(packet: bytes, reason: Reason) -> None:
    pair = Pair()
    assert pair.inject(pair.alpha, packet) is reason
    assert pair.alpha.engine.drops == {reason: 1}
    assert not list(pair.alpha.engine.contexts())
    assert not pair.alpha.delivered


@pytest.mark.parametrize(
    "packet",
    [
        build_packet(B1, A1, 253, b"experiment"),
        build_packet(B1, A1, 89, b"ospf"),
        build_packet(B1, A1, 59, b""),
        build_packet(B1, A1, 50, b"esp"),
        build_packet(B1, A1, 51, bytes(24)),
        build_packet(B1, A1, 44, bytes(24)),
        build_packet(B1, A1, 0, b"\x3b\x00\x01\x04\0\0\0\0"),
        build_packet(B1, A1, 0, b"\x3b\xff"),
        build_packet(B1, A1, 60, b"\x3c\x00" * 60),
        build_packet(B1, A1, 43, b"\x06"),
        build_packet(B1, A1, 58, b""),
        build_packet(B1, A1, 58, b"\x01\x00"),
        build_packet(B1, A1, 17, b""),
        build_packet(B1, A1, 6, b""),
        build_packet(B1, A1, 17, bytes(0xFFFF)),
        b"\x45" + bytes(60),
    ],
)
def test_what_is_not_ours_passes(packet: bytes) -> None:
    pair = Pair()
    assert pair.inject(pair.alpha, packet) is None
    assert pair.alpha.engine.handle_outbound(packet, 1000.0) is None
    assert pair.alpha.engine.drops == {}


def test_errors_are_told_to_the_sender_and_never_about_errors() -> None:
    pair = Pair()
    unknown = control(B1, A1, UnknownMessage(124, bytes(10)))
    pair.inject(pair.alpha, unknown)
    critical = control(B1, A1, I1(5, 5, (UnknownOption(99, True, b"x"),)))
    pair.inject(pair.alpha, critical)
    pair.inject(pair.alpha, control(B1, A1, ErrorMessage(0, 0, unknown)))
    one, two = find_messages(pair.alpha.sent, ErrorMessage)
    assert (one[2].code, one[2].pointer) == (ErrorCode.UNKNOWN_TYPE, 42)
    assert (two[2].code, two[2].pointer) == (ErrorCode.CRITICAL_OPTION, 56)
    assert one[2].packet[: len(unknown)] == unknown
    assert one[1][8:40] == A1 + B1


def test_errors_are_limited_and_small() -> None:
    pair = Pair()
    packet = control(EVE, A1, UnknownMessage(124, bytes(1202)))
    for _ in range(100):
        pair.inject(pair.alpha, packet)
    assert len(pair.alpha.sent) == 10
    assert all(len(sent) <= min(MIN_MTU, len(packet) + 64) for _, sent in pair.alpha.sent)
    outside = control(EVE, B1, UnknownMessage(124, bytes(10)))
    pair.inject(pair.alpha, outside)
    assert len(pair.alpha.sent) == 10


def test_dns_answers_are_learned_and_passed() -> None:
    pair = Pair()
    engine = pair.alpha.engine
    answer = udp(EVE, A1, b"an answer", ports=(53, 4444))
    assert engine.handle_inbound(answer, 1000.0) is None
    assert engine.take_effects() == [LearnNames(b"an answer")]
    for packet in (udp(EVE, A1, b"x", ports=(54, 53)), tcp(EVE, A1), udp(EVE, A1)[:42]):
        assert engine.handle_inbound(packet, 1000.0) is None
    assert engine.take_effects() == []


@pytest.mark.parametrize(
    ("source", "destination"),
    [(EVE, A1), (B1_ISP2, EVE), (B1_ISP2, bytes(16)), (A1, A1_ISP2), (ALL_NODES, A1)],
)
def test_a_payload_header_with_a_right_tag_from_elsewhere(
    source: bytes, destination: bytes
) -> None:
    pair = moved()
    tag = pair.alpha.context.local_tag
    pair.alpha.delivered.clear()
    verdict = pair.inject(pair.alpha, rewritten(source, destination, tag, 17, b"forged"))
    assert verdict is Reason.WRONG_LOCATOR


def test_a_payload_header_that_is_longer_than_it_may_be() -> None:
    pair = moved()
    good = rewritten(B1_ISP2, A1_ISP2, pair.alpha.context.local_tag, 17, bytes(16))
    bad = good[:41] + b"\x01" + good[42:]
    assert pair.inject(pair.alpha, bad) is Reason.BAD_FIELD


def test_a_payload_length_that_lies() -> None:
    pair = moved()
    good = rewritten(B1_ISP2, A1_ISP2, pair.alpha.context.local_tag, 17, bytes(16))
    assert pair.inject(pair.alpha, good[:4] + b"\x00\x05" + good[6:]) is Reason.BAD_LENGTH


def test_payload_from_a_locator_that_is_not_proved() -> None:
    pair = established()
    pair.dns = False
    locator = pair.alpha.context.peer_locators[1]
    locator.proof = type(locator.proof).NONE
    packet = rewritten(B1_ISP2, A1, pair.alpha.context.local_tag, 17, bytes(16))
    for _ in range(50):
        assert pair.inject(pair.alpha, packet) is Reason.UNPROVED_LOCATOR


def test_counters() -> None:
    pair = moved()
    engine = pair.alpha.engine
    before = engine.rewritten, engine.restored, pair.alpha.context.packets_in
    pair.talk(pair.alpha)
    pair.talk(pair.beta)
    pair.run(0.1)
    after = engine.rewritten, engine.restored, pair.alpha.context.packets_in
    assert [b - a for a, b in zip(before, after, strict=True)] == [1, 1, 1]


def test_the_order_of_effects() -> None:
    pair = Pair()
    engine = pair.alpha.engine
    outbox = engine.outbox
    for _ in range(2):
        engine.handle_outbound(udp(A1, B1, bytes(1200)), 1000.0)
    ulids = UlidPair(A1, B1)
    assert outbox is engine.outbox
    assert list(outbox) == [Report(What.ASKED, ulids.local + ulids.peer, ""), AskCapability(ulids)]
    assert engine.take_effects() == [
        Report(What.ASKED, ulids.local + ulids.peer, ""),
        AskCapability(ulids),
    ]
    assert not outbox
    engine.handle_capability(ulids, None, None, 1000.0)
    assert engine.take_effects() == [Report(What.NOT_CAPABLE, ulids.local + ulids.peer, "")]
    pair = established()
    engine = pair.alpha.engine
    pair.talk(pair.alpha)
    assert engine.next_deadline() is not None


def test_the_loop_is_woken_when_a_deadline_comes_earlier() -> None:
    pair = established()
    engine = pair.alpha.engine
    pair.run(10.0)
    engine.take_effects()
    engine.handle_outbound(udp(A1, B1), pair.clock.now)
    assert engine.take_effects() == [Wake()]
    engine.handle_outbound(udp(A1, B1), pair.clock.now)
    assert engine.take_effects() == []


def test_flows_are_installed_and_removed_in_time() -> None:
    pair = moved()
    context = pair.alpha.context
    flow = pair.alpha.flows[context.pair]
    assert flow == InstallFlow(context.pair, context.locators, context.peer_tag)
    assert pair.alpha.engine.next_deadline() is not None
    pair.run(400.0)
    assert not pair.alpha.flows
    assert not list(pair.alpha.engine.contexts())


def test_a_removed_flow_is_told_before_anything_else_is_sent() -> None:
    pair = moved()
    engine, now = pair.alpha.engine, pair.clock.now
    engine.handle_timer(now + 1000.0)
    effects = engine.take_effects()
    kinds = [type(effect) for effect in effects]
    assert RemoveFlow in kinds
    assert SendPacket not in kinds[: kinds.index(RemoveFlow)]


def test_idleness_frees_everything() -> None:
    pair = moved()
    pair.run(400.0)
    for site in pair.sites.values():
        engine = site.engine
        core = engine._core
        gc.collect()
        assert engine.next_deadline() is None
        assert len(core.contexts) == len(core.timers) == len(engine._pending) == 0
        for table in (
            core.contexts.by_tag,
            core.contexts.by_inbound,
            core.contexts.by_outbound,
            core.contexts._by_nonce,
            core.contexts._by_peer_tag,
            core.local_sets._by_ulid,
        ):
            assert len(table) == 0
        assert site.what(What.REMOVED)


def test_a_context_with_traffic_is_never_idle() -> None:
    pair = established()
    for _ in range(80):
        pair.run(10.0)
        pair.talk(pair.beta)
        pair.run(0.1)
    assert pair.alpha.context.state is State.ESTABLISHED


def test_an_uplink_that_nobody_knows() -> None:
    pair = established()
    with pytest.raises(KeyError):
        pair.alpha.engine.handle_uplink("isp9", up=False, mtu=1500, now=pair.clock.now)


def test_a_late_timer_runs_each_context_once() -> None:
    """A machine that slept: everything is due at once, and nothing turns in a circle."""
    pair = moved()
    pair.lose = is_control
    pair.talk(pair.alpha)
    pair.alpha.sent.clear()
    pair.alpha.engine.handle_timer(pair.clock.now + 200.0)
    pair.settle(pair.alpha)
    assert len(pair.alpha.sent) <= 2
    deadline_s = pair.alpha.engine.next_deadline()
    assert deadline_s is not None


def test_control_messages_behind_other_headers() -> None:
    pair = Pair()
    message = GOOD[40:]
    for first in (0, 43, 60):
        packet = build_packet(B1, A1, first, b"\x8c\x00\x01\x04\0\0\0\0" + message)
        assert pair.inject(pair.alpha, packet) is CONSUMED
    assert len(pair.alpha.sent) == 3

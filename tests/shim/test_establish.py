"""The four-way exchange: its messages, losses and crossings, with and without DNS."""

from __future__ import annotations

from itertools import pairwise

import pytest

from m6proxy.discovery.capability import Capability, NameData
from m6proxy.names import UlidPair
from m6proxy.reasons import Reason
from m6proxy.shim.effects import AskCapability, SendPacket, What
from m6proxy.shim.timers import ICMP_HOLDDOWN_S, NO_R1_HOLDDOWN_S
from m6proxy.shim.transitions import State
from m6proxy.shim.verdict import CONSUMED
from m6proxy.wire.message import I1, I2, R1, R2, Message
from m6proxy.wire.options import (
    ForkedInstance,
    UlidPairOption,
)
from tests.harness.packets import (
    control,
    find_messages,
    icmp_error,
    is_control,
    udp,
)
from tests.harness.pair import (
    A1,
    A1_ISP2,
    A2,
    B1,
    B1_ISP2,
    B2,
    NAMES,
    Pair,
    name_data,
)
from tests.shim.exchange import (
    EVE,
    answer_with,
    begin,
    both_established,
    exchange_from,
    kinds,
    lose_first,
)
from tests.shim.moved import established

# --- the exchange ----------------------------------------------------------------------------


def test_four_messages_make_two_contexts() -> None:
    pair = established()
    assert kinds(pair.alpha) == [I1, I2]
    assert kinds(pair.beta) == [R1, R2]
    a, b = pair.alpha.context, pair.beta.context
    assert (a.local_tag, a.peer_tag) == (b.peer_tag, b.local_tag)
    assert {x.address for x in a.peer_locators} == {B1, B1_ISP2}
    assert {x.address for x in b.peer_locators} == {A1, A1_ISP2}
    assert all(x.proved for x in (*a.peer_locators, *b.peer_locators))
    assert (a.peer_name, b.peer_name) == (NAMES[B1], NAMES[A1])
    assert a.wire_addresses is None
    assert a.handshake is None
    assert not pair.alpha.engine.drops
    assert not pair.beta.engine.drops
    assert len(pair.beta.delivered) == 3


def test_no_packet_waits_for_the_exchange() -> None:
    pair = Pair()
    sent = [pair.talk(pair.alpha) for _ in range(5)]
    pair.run(0.011)
    assert [packet for _, packet in pair.beta.delivered] == sent


def test_two_pairs_have_two_contexts() -> None:
    pair = established()
    for _ in range(3):
        pair.host_sends(pair.alpha, udp(A2, B2, bytes(1200)))
        pair.run(0.2)
    for site in pair.sites.values():
        one, two = site.engine.contexts()
        assert one.carries
        assert two.carries
        assert one.local_tag != two.local_tag
        assert one.local_set is not two.local_set
    one, two = pair.alpha.engine.contexts()
    assert (one.pair, two.pair) == (UlidPair(A1, B1), UlidPair(A2, B2))


def test_nothing_is_stored_until_an_i2_is_good() -> None:
    pair = Pair(requests_per_s=1e9)
    engine = pair.beta.engine
    for number in range(1, 5001):
        packet = control(A1, B1, I1(number, number))
        assert engine.handle_inbound(packet, 1000.0) is CONSUMED
        (effect,) = engine.take_effects()
        assert isinstance(effect, SendPacket)
    core = engine._core
    assert len(core.contexts) == len(core.accounts) == len(core.timers) == 0
    assert len(engine._pending) == 0
    assert len(core.responder._keys) == 1
    assert len(core.local_sets._by_ulid) == 0
    assert engine.next_deadline() is None


def test_an_r1_is_not_much_larger_than_its_i1_and_limited() -> None:
    pair = Pair()
    engine = pair.beta.engine
    replies = 0
    for number in range(1, 1001):
        packet = control(A1, B1, I1(number, number))
        engine.handle_inbound(packet, 1000.0)
        for effect in engine.take_effects():
            assert isinstance(effect, SendPacket)
            assert len(effect.packet) <= 2 * len(packet)
            replies += 1
    assert replies == 200
    assert engine.drops == {Reason.RATE_LIMITED: 800}


# --- losses ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [I1, R1, I2, R2])
def test_one_lost_message_costs_one_timeout(kind: type[Message]) -> None:
    pair = Pair()
    lost = lose_first(pair, kind)
    begin(pair)
    pair.run(6.1)
    assert len(lost) == 1
    assert both_established(pair)
    assert kinds(pair.alpha) == [I1, *([I1] if kind in (I1, R1) else []), I2] + (
        [I2] if kind in (I2, R2) else []
    )


def test_i1_is_sent_again_with_backoff_and_spread() -> None:
    firsts = set()
    for seed in range(20):
        pair = Pair(seed=seed)
        pair.lose = is_control
        begin(pair)
        pair.run(200.0)
        times = [when for when, _, _ in find_messages(pair.alpha.sent, I1)]
        assert len(times) == 5
        waits = [later - earlier for earlier, later in pairwise(times)]
        for wait_s, nominal_s in zip(waits, (4, 8, 16, 32), strict=True):
            assert 0.5 * nominal_s <= wait_s <= 1.5 * nominal_s
        firsts.add(round(waits[0], 3))
    assert len(firsts) > 15


def test_i2_is_sent_again_and_then_i1_once_more() -> None:
    pair = Pair()
    pair.lose = lambda packet: bool(find_messages([(0.0, packet)], R2))
    begin(pair)
    pair.run(300.0)
    times = [when for when, _, _ in find_messages(pair.alpha.sent, I2)]
    waits = [later - earlier for earlier, later in pairwise(times[:3])]
    assert 2.0 <= waits[0] <= 6.0
    assert 4.0 <= waits[1] <= 12.0
    assert kinds(pair.alpha)[:5] == [I1, I2, I2, I2, I1]
    assert len(find_messages(pair.alpha.sent, object)) < 20


def test_no_answer_is_remembered_for_a_minute() -> None:
    """Traffic during the hold-down put the next try off by up to 30 s more (§7.8: at most)."""
    pair = Pair()
    pair.lose = is_control
    begin(pair)
    pair.run(190.0)
    (failed_s,) = pair.alpha.what(What.FAILED)
    assert kinds(pair.alpha) == [I1] * 5
    pair = Pair()
    pair.lose = is_control
    begin(pair)
    while pair.clock.now < failed_s + NO_R1_HOLDDOWN_S - 0.2:
        pair.talk(pair.alpha)
        pair.run(0.1)
    assert pair.alpha.context.state is State.E_FAILED
    assert kinds(pair.alpha) == [I1] * 5
    while pair.clock.now < failed_s + NO_R1_HOLDDOWN_S + 1.0:
        pair.talk(pair.alpha)
        pair.run(0.1)
    assert kinds(pair.alpha) == [I1] * 6


def test_what_the_peers_next_header_says_is_remembered_for_ten_minutes() -> None:
    pair = Pair()
    pair.lose = is_control
    begin(pair)
    (_, packet, _) = find_messages(pair.alpha.sent, I1)[0]
    pair.inject(pair.alpha, icmp_error(B1, A1, 4, 1, 6, packet))
    assert pair.alpha.context.state is State.NO_SUPPORT
    for _ in range(int(ICMP_HOLDDOWN_S) - 1):
        pair.run(1.0)
        pair.talk(pair.alpha)
    assert kinds(pair.alpha) == [I1]
    pair.run(2.0)
    assert not list(pair.alpha.engine.contexts())


@pytest.mark.parametrize("state", [State.E_FAILED, State.NO_SUPPORT])
def test_a_peer_that_was_given_up_may_still_come(state: State) -> None:
    pair = Pair()
    pair.lose = is_control
    begin(pair)
    if state is State.NO_SUPPORT:
        (_, packet, _) = find_messages(pair.alpha.sent, I1)[0]
        pair.inject(pair.alpha, icmp_error(B1, A1, 4, 1, 6, packet))
    else:
        pair.run(100.0)
        while pair.alpha.context.state is not State.E_FAILED:
            pair.run(1.0)
    pair.lose = lambda _: False
    for _ in range(3):
        pair.talk(pair.beta)
        pair.run(0.1)
    assert both_established(pair)
    assert pair.alpha.context.holddown_due_s == 0.0


def test_without_traffic_an_unanswered_exchange_leaves_nothing() -> None:
    pair = Pair()
    pair.lose = is_control
    begin(pair)
    pair.run(400.0)
    assert not list(pair.alpha.engine.contexts())
    assert pair.alpha.engine.next_deadline() is None
    core = pair.alpha.engine._core
    assert not core.contexts._by_nonce
    assert not core.contexts.by_tag


# --- crossings -------------------------------------------------------------------------------


def test_two_i1_cross() -> None:
    pair = Pair()
    for _ in range(2):
        pair.talk(pair.alpha)
        pair.talk(pair.beta)
    assert kinds(pair.alpha) == kinds(pair.beta) == [I1]
    pair.run(0.1)
    assert both_established(pair)
    a, b = pair.alpha.context, pair.beta.context
    assert (a.local_tag, a.peer_tag) == (b.peer_tag, b.local_tag)
    assert all(x.proved for x in (*a.peer_locators, *b.peer_locators))
    pair.cut_provider("a", 1)
    pair.stream(8.0, both=True)
    assert pair.alpha.context.rehomings


@pytest.mark.parametrize("delay_s", [0.005, 0.012, 0.015, 0.022, 0.028, 0.035])
def test_an_i1_crosses_a_later_message(delay_s: float) -> None:
    pair = Pair()
    begin(pair)
    pair.run(delay_s)
    for _ in range(2):
        pair.talk(pair.beta)
    pair.run(8.0)
    assert both_established(pair)
    a, b = pair.alpha.context, pair.beta.context
    assert (a.local_tag, a.peer_tag) == (b.peer_tag, b.local_tag)


def test_a_crossing_i1_from_elsewhere_learns_nothing() -> None:
    """While alpha's own I1 was out, any I1 about the pair was answered with R2.

    R2 tells our tag and locators, went wherever the I1 said it came from, and unlimited.
    """
    pair = Pair()
    pair.lose = is_control
    begin(pair)
    pair.alpha.sent.clear()
    ulids = UlidPairOption(B1, A1)
    for _ in range(500):
        pair.inject(pair.alpha, control(EVE, A1, I1(3, 4, (ulids,))))
    assert set(kinds(pair.alpha)) == {R1}
    assert len(pair.alpha.sent) == 200
    for _ in range(500):
        pair.inject(pair.alpha, control(B1, A1, I1(3, 4)))
    assert kinds(pair.alpha).count(R2) == 200


# --- names and DNS ---------------------------------------------------------------------------


def test_with_dead_dns_contexts_work_on_their_ulids_only() -> None:
    pair = Pair(dns=False, probe_unknown=True)
    pair.establish()
    for site in pair.sites.values():
        assert [x.proved for x in site.context.peer_locators] == [True, False]
        assert site.context.peer_name is None
    pair.cut_provider("a", 1)
    pair.cut_provider("b", 1)
    pair.stream(20.0, both=True)
    for site in pair.sites.values():
        assert not site.context.rehomings
        used = {packet[24:40] for _, packet in site.sent}
        assert used <= {pair.other(site).ulid}


def test_a_late_proof_is_taken_when_it_comes() -> None:
    pair = Pair()
    answers = iter([name_data(NAMES[B1], B1, "b")])
    pair.data = lambda ulid: next(answers) if ulid == B1 else None
    begin(pair)
    pair.run(0.1)
    assert [x.proved for x in pair.alpha.context.peer_locators] == [True, True]
    assert [x.proved for x in pair.beta.context.peer_locators] == [True, False]
    pair.data = lambda ulid: name_data(NAMES[ulid], ulid, "a" if ulid == A1 else "b")
    pair.cut_provider("a", 1)
    start_s = pair.clock.now
    arrived = pair.stream(40.0, both=True)
    assert pair.beta.what(What.PROVED)
    assert arrived[-1] - start_s > 39.0


@pytest.mark.parametrize("probe_unknown", [False, True])
def test_a_peer_of_which_dns_says_nothing(probe_unknown: bool) -> None:
    pair = Pair(capable=False, probe_unknown=probe_unknown)
    for _ in range(3):
        pair.talk(pair.alpha)
        pair.run(0.2)
    assert bool(pair.alpha.sent) == probe_unknown
    assert bool(list(pair.beta.engine.contexts())) == probe_unknown
    if probe_unknown:
        assert both_established(pair)
        assert all(x.proved for x in pair.alpha.context.peer_locators)


@pytest.mark.parametrize("probe_unknown", [False, True])
def test_a_peer_that_says_no_is_not_asked(probe_unknown: bool) -> None:
    """``unknown_peers: probe`` also probed peers whose record says that they do not answer."""
    pair = Pair(probe_unknown=probe_unknown)
    pair.data = lambda _: NameData("b1", frozenset({B1}), Capability(accepts=False))
    begin(pair)
    assert not pair.alpha.sent
    assert pair.alpha.what(What.NOT_CAPABLE)


def test_an_unknown_peer_is_asked_about_once_a_minute() -> None:
    pair = Pair(capable=False)
    for _ in range(600):
        pair.talk(pair.alpha)
        pair.run(0.2)
    assert len(pair.alpha.what(What.ASKED)) == 2


def test_capability_that_comes_late() -> None:
    pair = Pair()
    engine, ulids = pair.alpha.engine, UlidPair(A1, B1)
    data = name_data(NAMES[B1], B1, "b")
    pair.establish()
    before = pair.alpha.context
    engine.handle_capability(ulids, data, NAMES[A1], pair.clock.now)
    pair.settle(pair.alpha)
    assert pair.alpha.context is before
    assert before.state is State.ESTABLISHED
    pair.run(2000.0)
    assert not list(engine.contexts())
    engine.handle_capability(ulids, data, NAMES[A1], pair.clock.now)
    engine.handle_capability(ulids, data, NAMES[A1], pair.clock.now)
    pair.settle(pair.alpha)
    pair.run(0.1)
    assert both_established(pair)


def test_proof_for_nothing() -> None:
    pair = Pair()
    engine, ulids = pair.alpha.engine, UlidPair(A1, B1)
    for data in (None, name_data(NAMES[B1], B1, "b")):
        engine.handle_proof(ulids, data, None, pair.clock.now)
    assert engine.take_effects() == []
    assert not list(engine.contexts())


def test_the_site_does_not_talk_to_itself_or_for_others() -> None:
    pair = Pair()
    for source, destination in ((A1, A2), (A1, A1_ISP2), (B2, B1), (EVE, B1)):
        for _ in range(5):
            pair.alpha.engine.handle_outbound(udp(source, destination, bytes(1200)), 1000.0)
    assert not any(isinstance(e, AskCapability) for e in pair.alpha.engine.take_effects())


def test_a_full_table_refuses_politely() -> None:
    pair = Pair(max_contexts=1)
    pair.establish()
    for _ in range(3):
        pair.host_sends(pair.alpha, udp(A2, B2, bytes(1200)))
        pair.run(0.1)
    assert len(list(pair.alpha.engine.contexts())) == 1
    assert pair.alpha.engine.drops == {Reason.TABLE_FULL: 1}
    assert pair.beta.engine.drops == {}
    exchange_from(pair, EVE, None)
    assert pair.beta.engine.drops == {Reason.TABLE_FULL: 1}


def test_waiting_proofs_are_bounded() -> None:
    pair = Pair(requests_per_s=1e9)
    engine = pair.beta.engine
    for number in range(3000):
        source = EVE[:8] + number.to_bytes(8)
        engine.handle_inbound(control(source, B1, I1(number + 1, 1)), 1000.0)
        (effect,) = engine.take_effects()
        assert isinstance(effect, SendPacket)
        ((_, _, r1),) = find_messages([(0.0, effect.packet)], R1)
        for fork in range(3):
            option = (ForkedInstance(fork),) if fork else ()
            i2 = I2(number + 1, 1, r1.responder_nonce, (*r1.options, *option))
            engine.handle_inbound(control(source, B1, i2), 1000.0)
        engine.take_effects()
    assert len(engine._pending) == 1024
    assert not list(engine.contexts())


def test_a_proof_that_comes_too_late_completes_nothing() -> None:
    pair = Pair()
    packet, _ = answer_with(pair, I2)
    engine, now = pair.beta.engine, pair.clock.now
    engine.handle_inbound(packet, now)
    engine.take_effects()
    engine.handle_proof(UlidPair(B1, A1), None, None, now + 7.0)
    assert not list(engine.contexts())

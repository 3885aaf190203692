"""One end lost its contexts: R1bis and I2bis bring them back, sessions go on."""

from __future__ import annotations

import random

import pytest

from m6proxy.names import LocatorPair
from m6proxy.reasons import Reason
from m6proxy.shim.effects import SendPacket
from m6proxy.shim.transitions import State
from m6proxy.shim.verdict import CONSUMED
from m6proxy.wire.message import I1, I2, R2, I2bis, R1bis
from m6proxy.wire.options import (
    ResponderValidator,
)
from tests.harness.packets import (
    control,
    find_messages,
    is_control,
    rewritten,
    udp,
)
from tests.harness.pair import (
    A1,
    B1,
    Pair,
    longest_gap_s,
)
from tests.shim.exchange import (
    EVE,
    answer_with,
    begin,
    both_established,
    kinds,
)
from tests.shim.moved import established, moved

# --- recovery --------------------------------------------------------------------------------


@pytest.mark.parametrize("lost", ["a", "b"])
def test_sessions_go_on_when_a_fresh_daemon_takes_over_a_moved_context(lost: str) -> None:
    pair = moved()
    site = pair.sites[lost]
    pair.restart(site)
    start_s = pair.clock.now
    arrived = pair.stream(6.0, both=True)
    assert both_established(pair)
    assert site.context.wire_addresses is not None
    assert longest_gap_s(arrived, start_s, pair.clock.now) < 1.0
    assert I2bis in kinds(pair.other(site))
    assert R1bis in kinds(site)


@pytest.mark.parametrize("lost", ["a", "b"])
def test_sessions_go_on_when_a_fresh_daemon_takes_over_on_ulids(lost: str) -> None:
    pair = established()
    pair.restart(pair.sites[lost])
    start_s = pair.clock.now
    arrived = pair.stream(20.0, both=True)
    assert longest_gap_s(arrived, start_s, pair.clock.now) < 0.1
    assert both_established(pair)
    pair.cut_provider("a", 1)
    start_s = pair.clock.now
    arrived = pair.stream(10.0, both=True)
    assert longest_gap_s(arrived, start_s, pair.clock.now) <= 5.0


def test_a_lost_i2bis_is_sent_again_and_then_i1() -> None:
    pair = moved()
    pair.restart(pair.beta)
    pair.lose = lambda packet: bool(find_messages([(0.0, packet)], I2bis))
    pair.alpha.sent.clear()
    pair.talk(pair.alpha)
    pair.run(0.1)
    assert pair.alpha.context.state is State.I2BIS_SENT
    pair.run(45.0)
    assert kinds(pair.alpha).count(I2bis) == 3
    assert I1 in kinds(pair.alpha)
    pair.run(20.0)
    assert both_established(pair)


@pytest.mark.parametrize("state", ["nothing", "I1-SENT", "E-FAILED"])
def test_r1bis_where_nothing_was_lost(state: str) -> None:
    pair = Pair()
    if state != "nothing":
        pair.lose = is_control
        begin(pair)
        pair.run(0.1 if state == "I1-SENT" else 150.0)
        assert pair.alpha.context.state.value == state
    forged = R1bis(77, 1, (ResponderValidator(b"x"),))
    assert pair.inject(pair.alpha, control(B1, A1, forged)) is Reason.NO_CONTEXT


def test_a_forged_r1bis_costs_an_exchange_and_no_packet() -> None:
    pair = moved()
    context = pair.alpha.context
    forged = R1bis(context.peer_tag, 1, (ResponderValidator(b"x"),))
    route = LocatorPair(context.route[:16], context.route[16:])
    wrong = control(EVE, route.local, forged)
    assert pair.inject(pair.alpha, wrong) is Reason.NO_CONTEXT
    assert pair.inject(pair.alpha, control(route.peer, route.local, forged)) is CONSUMED
    assert context.state is State.I2BIS_SENT
    start_s = pair.clock.now
    arrived = pair.stream(60.0, both=True)
    assert both_established(pair)
    assert longest_gap_s(arrived, start_s, pair.clock.now) < 1.0


def test_an_r1bis_is_not_larger_than_what_caused_it_by_much_and_limited() -> None:
    pair = Pair()
    engine = pair.beta.engine
    octets_in = octets_out = 0
    for number in range(1000):
        packet = rewritten(EVE, B1, number + 1, 17, bytes(16))
        octets_in += len(packet)
        assert engine.handle_inbound(packet, 1000.0) in (Reason.NO_CONTEXT, Reason.RATE_LIMITED)
        for effect in engine.take_effects():
            assert isinstance(effect, SendPacket)
            octets_out += len(effect.packet)
    assert engine.drops == {Reason.NO_CONTEXT: 200, Reason.RATE_LIMITED: 800}
    assert octets_out <= 2 * octets_in
    assert len(engine._core.contexts) == 0


def test_no_r1bis_for_addresses_outside_the_site() -> None:
    pair = Pair()
    verdict = pair.inject(pair.beta, rewritten(EVE, A1, 5, 17, b"x"))
    assert verdict is Reason.NOT_OUR_HOST
    assert not pair.beta.sent


def test_payload_before_r2_is_delivered_and_answered_with_i2() -> None:
    """A payload header or an Update in I2-SENT started the keepalive timer.

    No context in I2-SENT expires it: the engine's timer loop never ended.
    """
    pair = Pair()
    answer_with(pair, R2)
    context = pair.alpha.context
    assert context.state is State.I2_SENT
    restored = pair.inject(pair.alpha, rewritten(B1, A1, context.local_tag, 17, b"early"))
    assert restored == udp(B1, A1)[:4] + (5).to_bytes(2) + b"\x11\x40" + B1 + A1 + b"early"
    assert kinds(pair.alpha)[-2:] == [I2, I2]
    assert context.keepalive_due_s == 0.0
    random_s = random.Random(1)
    for _ in range(20):
        pair.run(random_s.uniform(0.0, 10.0))
    assert both_established(pair)

"""Update Request and Acknowledgement (RFC 5533 §10)."""

from __future__ import annotations

from itertools import pairwise

import pytest

from m6proxy.names import Address
from m6proxy.proof.judge import Proof
from m6proxy.reasons import Reason
from m6proxy.shim.effects import AskProof
from m6proxy.shim.transitions import State
from m6proxy.shim.verdict import CONSUMED
from m6proxy.wire.message import (
    I2,
    R2,
    ErrorCode,
    ErrorMessage,
    Probe,
    R1bis,
    UpdateAck,
    UpdateRequest,
)
from m6proxy.wire.options import (
    BROKEN,
    METHOD_DNS,
    KeepaliveTimeout,
    LocatorList,
    LocatorPreferences,
    Option,
    Preference,
    SenderName,
)
from tests.harness.packets import control, find_messages, is_control
from tests.harness.pair import A1, A1_ISP2, B1, B1_ISP2, B2, NAMES, Pair
from tests.shim.exchange import begin, lose_first
from tests.shim.moved import established

EVE = bytes.fromhex("20010db800660000000000000000000e")


def down(pair: Pair, *, up: bool = False) -> None:
    pair.alpha.engine.handle_uplink("isp1", up=up, mtu=1500, now=pair.clock.now)
    pair.settle(pair.alpha)


def update(
    pair: Pair, *options: Option, nonce: int = 7, source: Address = B1, tag: int | None = None
) -> object:
    """Beta's side tells alpha something; returns the verdict."""
    receiver = pair.alpha.context.local_tag if tag is None else tag
    return pair.inject(pair.alpha, control(source, A1, UpdateRequest(receiver, nonce, options)))


def listed(*locators: Address, generation: int = 9, method: int = METHOD_DNS) -> LocatorList:
    return LocatorList(generation, (method,) * len(locators), locators)


def preferences(*flags: int, generation: int = 9) -> LocatorPreferences:
    return LocatorPreferences(generation, 1, tuple(Preference(f) for f in flags))


@pytest.mark.parametrize("again", [False, True])
def test_an_uplink_that_goes_between_i2_and_r2_is_told_afterwards(again: bool) -> None:
    """The exchange told the set as it was, and nobody was told the one that is.

    Also when the I2 is sent again with the new one, and an answer to the first comes late.
    """
    pair = Pair()
    answers = lose_first(pair, R2, count=int(again))
    begin(pair)
    while not find_messages(pair.alpha.sent, I2):
        pair.run(0.001)
    pair.alpha.engine.handle_uplink("isp1", up=False, mtu=1500, now=pair.clock.now)
    pair.settle(pair.alpha)
    if again:
        while len(find_messages(pair.alpha.sent, I2)) < 2:
            pair.run(0.001)
        pair.lose = lambda packet: bool(find_messages([(0.0, packet)], I2))
        pair.inject(pair.alpha, answers[0])
        pair.lose = lambda packet: False
    pair.run(1.0)
    assert pair.alpha.context.state is State.ESTABLISHED
    told = {locator.address: locator.broken for locator in pair.beta.context.peer_locators}
    assert told == {A1: True, A1_ISP2: False}
    assert pair.beta.context.peer_generation == pair.alpha.context.local_set.generation
    assert pair.alpha.context.update is None


def test_a_lost_uplink_is_announced_and_acknowledged() -> None:
    pair = established()
    down(pair)
    pair.run(1.0)
    ((_, _, request),) = find_messages(pair.alpha.sent, UpdateRequest)
    ((_, _, ack),) = find_messages(pair.beta.sent, UpdateAck)
    assert ack.request_nonce == request.request_nonce
    assert (request.receiver_tag, ack.receiver_tag) == (
        pair.beta.context.local_tag,
        pair.alpha.context.local_tag,
    )
    assert pair.alpha.context.update is None
    assert {x.address: x.broken for x in pair.beta.context.peer_locators} == {
        A1: True,
        A1_ISP2: False,
    }
    assert pair.beta.context.peer_generation == pair.alpha.context.local_set.generation
    down(pair, up=True)
    pair.run(1.0)
    assert not any(x.broken for x in pair.beta.context.peer_locators)


def test_an_mtu_that_changes_is_nobodys_business() -> None:
    pair = established()
    pair.alpha.engine.handle_uplink("isp1", up=True, mtu=1400, now=pair.clock.now)
    pair.settle(pair.alpha)
    assert not find_messages(pair.alpha.sent, UpdateRequest)


def test_it_is_sent_again_for_ever_with_a_backoff_that_ends_at_two_minutes() -> None:
    pair = established()
    pair.lose = is_control
    down(pair)
    for _ in range(1500):
        pair.talk(pair.alpha)
        pair.talk(pair.beta)
        pair.run(1.0)
    requests = find_messages(pair.alpha.sent, UpdateRequest)
    waits = [later[0] - earlier[0] for earlier, later in pairwise(requests)]
    assert len({request.request_nonce for _, _, request in requests}) == 1
    for number, wait_s in enumerate(waits):
        nominal_s = min(120.0, 4.0 * 2**number)
        assert 0.5 * nominal_s <= wait_s <= 1.5 * nominal_s + 0.01
    assert len(waits) >= 8
    pair.lose = lambda _: False
    for _ in range(200):
        pair.talk(pair.alpha)
        pair.talk(pair.beta)
        pair.run(1.0)
    assert pair.alpha.context.update is None


def test_newer_information_abandons_the_older() -> None:
    pair = established()
    pair.lose = is_control
    down(pair)
    pair.run(0.01)
    ((_, _, first),) = find_messages(pair.alpha.sent, UpdateRequest)
    down(pair, up=True)
    pair.run(0.01)
    second = find_messages(pair.alpha.sent, UpdateRequest)[-1][2]
    assert second.request_nonce != first.request_nonce
    tag = pair.alpha.context.local_tag
    for nonce, verdict in ((first.request_nonce, Reason.WRONG_NONCE), (5, Reason.WRONG_NONCE)):
        assert pair.inject(pair.alpha, control(B1, A1, UpdateAck(tag, nonce))) is verdict
        assert pair.alpha.context.update is not None
    ack = UpdateAck(tag, second.request_nonce)
    assert pair.inject(pair.alpha, control(B1, A1, ack)) is CONSUMED
    assert pair.alpha.context.update is None
    assert pair.inject(pair.alpha, control(B1, A1, ack)) is Reason.WRONG_NONCE


def test_the_peers_current_locator_becomes_broken() -> None:
    """The peer's own Update put an end to the test that it had just started."""
    pair = established()
    pair.stream(1.0, both=True)
    assert update(pair, listed(B1, B1_ISP2), preferences(BROKEN, 0)) is CONSUMED
    pair.stream(1.0, both=True)
    assert find_messages(pair.alpha.sent, Probe)
    assert pair.alpha.context.route[16:] == B1_ISP2


def test_a_list_without_the_current_locator() -> None:
    pair = established()
    assert update(pair, listed(B1_ISP2)) is CONSUMED
    assert {x.address: x.broken for x in pair.alpha.context.peer_locators} == {
        B1_ISP2: False,
        B1: True,
    }
    pair.run(1.0)
    assert pair.alpha.context.route[16:] == B1_ISP2


def test_new_locators_are_used_only_after_their_proof() -> None:
    pair = established()
    pair.dns = False
    assert update(pair, listed(B1, B1_ISP2, EVE)) is CONSUMED
    proofs = {x.address: x.proof for x in pair.alpha.context.peer_locators}
    assert proofs == {B1: Proof.ULID, B1_ISP2: Proof.DNS, EVE: Proof.NONE}
    pair.cut_provider("b", 1)
    pair.cut_provider("b", 2)
    pair.stream(20.0)
    assert all(packet[24:40] != EVE for _, packet in pair.wire)


def test_a_name_that_the_exchange_gave_stays() -> None:
    """An Update with another name replaced the peer's, and with it who may prove locators.

    Whoever saw our tag once could name itself the peer and have its own locators proved.
    """
    pair = established()
    assert update(pair, listed(B1, B1_ISP2, EVE), SenderName("eve.example")) is CONSUMED
    assert pair.alpha.context.peer_name == NAMES[B1]
    assert not pair.alpha.context.peer_locators[2].proved


def test_questions_to_dns_are_limited() -> None:
    pair = established()
    engine = pair.alpha.engine
    for number in range(1000):
        request = UpdateRequest(pair.alpha.context.local_tag, number, (listed(B1, EVE),))
        engine.handle_inbound(control(B1, A1, request), pair.clock.now)
    asked = sum(isinstance(effect, AskProof) for effect in engine.take_effects())
    assert 0 < asked <= 200


@pytest.mark.parametrize(
    ("options", "reason", "code", "pointer"),
    [
        ((listed(B1, method=1),), Reason.BAD_METHOD, ErrorCode.METHOD_FAILED, 65),
        (
            (LocatorList(9, (METHOD_DNS, 2), (B1, B1_ISP2)),),
            Reason.BAD_METHOD,
            ErrorCode.METHOD_FAILED,
            66,
        ),
        (
            (listed(B1), preferences(0, generation=8)),
            Reason.GENERATION_MISMATCH,
            ErrorCode.GENERATION_OUT_OF_SYNC,
            92,
        ),
        ((preferences(0),), Reason.GENERATION_MISMATCH, ErrorCode.GENERATION_OUT_OF_SYNC, 60),
        (
            (listed(B1), preferences(0, 0)),
            Reason.PREFERENCE_COUNT,
            ErrorCode.PREFERENCE_COUNT,
            90,
        ),
    ],
)
def test_what_cannot_be_taken_in_is_told_where(
    options: tuple[Option, ...], reason: Reason, code: ErrorCode, pointer: int
) -> None:
    """§10.4. The pointer always was that of the message type."""
    pair = established()
    before = [(x.address, x.broken, x.proof) for x in pair.alpha.context.peer_locators]
    pair.alpha.sent.clear()
    assert update(pair, *options) is reason
    ((_, packet, error),) = find_messages(pair.alpha.sent, ErrorMessage)
    assert (error.code, error.pointer) == (code, pointer)
    assert packet[24:40] == B1
    assert [(x.address, x.broken, x.proof) for x in pair.alpha.context.peer_locators] == before


def test_preferences_alone_are_about_the_last_list() -> None:
    pair = established()
    generation = pair.beta.context.local_set.generation
    assert update(pair, preferences(0, BROKEN, generation=generation)) is CONSUMED
    assert [x.broken for x in pair.alpha.context.peer_locators] == [False, True]


@pytest.mark.parametrize(("seconds", "kept_s"), [(0, 1.0), (1, 1.0), (20, 20.0), (65535, 65535.0)])
def test_a_new_send_timeout_of_the_peer(seconds: int, kept_s: float) -> None:
    pair = established()
    update(pair, KeepaliveTimeout(seconds))
    assert pair.alpha.context.keepalive_timeout_s == kept_s


def test_without_a_context_or_from_elsewhere_it_gets_r1bis() -> None:
    pair = established()
    pair.alpha.sent.clear()
    assert update(pair, tag=pair.alpha.context.local_tag ^ 1) is Reason.NO_CONTEXT
    assert update(pair, source=B2) is Reason.NO_CONTEXT
    assert [type(m) for _, _, m in find_messages(pair.alpha.sent, object)] == [R1bis, R1bis]


def test_a_pending_update_follows_the_peers_new_tag() -> None:
    """A peer that came back with a new tag was told the news under its old one for ever."""
    pair = established()
    pair.lose = is_control
    down(pair)
    pair.run(0.1)
    pair.lose = lambda _: False
    pair.restart(pair.beta)
    for _ in range(150):
        pair.talk(pair.beta)
        pair.talk(pair.alpha)
        pair.run(0.2)
    assert pair.beta.context.state is State.ESTABLISHED
    assert pair.alpha.context.update is None
    assert {x.address: x.broken for x in pair.beta.context.peer_locators}[A1]


def test_before_r2_only_i2_goes_back() -> None:
    """The acknowledgement went to tag 0, and a keepalive timer ran that nothing expired."""
    pair = Pair()
    pair.lose = lambda packet: bool(find_messages([(0.0, packet)], R2))
    for _ in range(2):
        pair.talk(pair.alpha)
    pair.run(0.1)
    assert pair.alpha.context.state is State.I2_SENT
    for message in (UpdateRequest, UpdateAck):
        packet = control(B1, A1, message(pair.alpha.context.local_tag, 5))
        assert pair.inject(pair.alpha, packet) is CONSUMED
    assert not find_messages(pair.alpha.sent, UpdateAck)
    pair.lose = lambda _: False
    pair.run(15.0)
    assert pair.alpha.context.carries


def test_an_update_does_not_outlive_its_context() -> None:
    """A recovery that failed went back to I1-SENT with the update's timer still running.

    In that state nothing expires it: the engine's timer loop never ended.
    """
    pair = established()
    pair.lose = is_control
    down(pair)
    pair.run(0.005)
    context = pair.alpha.context
    forged = R1bis(context.peer_tag, 1, find_r1bis_options())
    pair.inject(pair.alpha, control(B1, A1, forged))
    assert context.state is State.I2BIS_SENT
    assert context.update is not None
    pair.run(45.0)
    assert not context.carries
    assert context.update is None
    pair.run(200.0)


def find_r1bis_options() -> tuple[Option, ...]:
    """The options of any R1bis."""
    pair = Pair()
    pair.inject(pair.beta, control(A1, B1, UpdateRequest(5, 5)))
    ((_, _, message),) = find_messages(pair.beta.sent, R1bis)
    return message.options

"""Messages of the exchange that are wrong, stolen, contradictory or too many."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from m6proxy.discovery.capability import Capability, NameData
from m6proxy.names import UlidPair
from m6proxy.reasons import Reason
from m6proxy.shim.effects import AskProof
from m6proxy.shim.transitions import State
from m6proxy.shim.verdict import CONSUMED
from m6proxy.wire.message import I1, I2, R1, R2, I2bis, Keepalive, Message, R1bis, find
from m6proxy.wire.options import (
    METHOD_DNS,
    ForkedInstance,
    LocatorList,
    LocatorPreferences,
    Option,
    Preference,
    ResponderValidator,
    SenderName,
    UlidPairOption,
)
from tests.harness.packets import (
    control,
    find_messages,
    is_control,
    route_of,
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
)
from tests.shim.exchange import (
    EVE,
    answer_with,
    begin,
    both_established,
    exchange_from,
    kinds,
)
from tests.shim.moved import established, moved

# --- forgeries -------------------------------------------------------------------------------


def test_r1_with_a_wrong_nonce_or_from_elsewhere() -> None:
    pair = Pair()
    packet, message = answer_with(pair, R1)
    assert isinstance(message, R1)
    forged = R1(message.initiator_nonce ^ 1, message.responder_nonce, message.options)
    assert pair.inject(pair.alpha, control(B1, A1, forged)) is Reason.WRONG_NONCE
    for source, destination in ((B1_ISP2, A1), (B1, A1_ISP2), (EVE, A1)):
        verdict = pair.inject(pair.alpha, control(source, destination, message))
        assert verdict is Reason.WRONG_LOCATOR
    assert pair.alpha.context.state is State.I1_SENT
    assert pair.inject(pair.alpha, packet) is CONSUMED
    assert pair.inject(pair.alpha, packet) is Reason.ILLEGAL_IN_STATE
    pair.run(0.1)
    assert both_established(pair)


def test_an_r1_whose_validator_could_not_be_sent_back() -> None:
    pair = Pair()
    _, message = answer_with(pair, R1)
    assert isinstance(message, R1)
    for octets, verdict in ((513, Reason.BAD_OPTION), (512, CONSUMED)):
        option = (ResponderValidator(bytes(octets)),)
        forged = R1(message.initiator_nonce, message.responder_nonce, option)
        assert pair.inject(pair.alpha, control(B1, A1, forged)) is verdict
    assert kinds(pair.alpha)[-1] is I2


def test_r2_with_a_wrong_nonce_or_from_elsewhere() -> None:
    pair = Pair()
    packet, message = answer_with(pair, R2)
    assert isinstance(message, R2)
    forged = R2(message.responder_tag, message.initiator_nonce ^ 1, message.options)
    assert pair.inject(pair.alpha, control(B1, A1, forged)) is Reason.WRONG_NONCE
    verdict = pair.inject(pair.alpha, control(B1_ISP2, A1, message))
    assert verdict is Reason.WRONG_LOCATOR
    assert pair.inject(pair.alpha, packet) is CONSUMED
    assert both_established(pair)
    assert pair.inject(pair.alpha, packet) is Reason.WRONG_NONCE


@pytest.mark.parametrize("method", [1, 2, 99])
def test_r2_with_a_method_that_we_do_not_have(method: int) -> None:
    pair = Pair()
    _, message = answer_with(pair, R2)
    assert isinstance(message, R2)
    forged = R2(message.responder_tag, message.initiator_nonce, (LocatorList(1, (method,), (B1,)),))
    assert pair.inject(pair.alpha, control(B1, A1, forged)) is Reason.BAD_METHOD
    assert pair.alpha.context.state is State.I2_SENT
    pair.run(8.0)
    assert both_established(pair)


Change = Callable[[I2], Message]


def with_options(message: I2, *options: Option) -> I2:
    kept = tuple(o for o in message.options if not isinstance(o, tuple(type(x) for x in options)))
    return I2(
        message.initiator_tag, message.initiator_nonce, message.responder_nonce, (*kept, *options)
    )


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda m: I2(m.initiator_tag ^ 1, 5, m.responder_nonce, m.options), Reason.BAD_VALIDATOR),
        (lambda m: I2(m.initiator_tag, 5, m.responder_nonce - 1, m.options), Reason.BAD_VALIDATOR),
        (lambda m: I2(m.initiator_tag, 5, m.responder_nonce + 1, m.options), Reason.OLD_VALIDATOR),
        (lambda m: with_options(m, ResponderValidator(bytes(16))), Reason.BAD_VALIDATOR),
        (lambda m: with_options(m, ForkedInstance(7)), Reason.BAD_VALIDATOR),
        (lambda m: with_options(m, UlidPairOption(B2, B1)), Reason.UNPROVED_ULID),
        (lambda m: with_options(m, UlidPairOption(A2, B1)), Reason.BAD_VALIDATOR),
        (lambda m: with_options(m, UlidPairOption(A1, A1)), Reason.NOT_OUR_HOST),
        (lambda m: with_options(m, UlidPairOption(A1, B2)), Reason.NOT_OUR_HOST),
        (lambda m: with_options(m, UlidPairOption(bytes(16), B1)), Reason.BAD_ADDRESS),
        (lambda m: with_options(m, UlidPairOption(b"\xff" * 16, B1)), Reason.BAD_ADDRESS),
    ],
)
def test_i2_that_does_not_repeat_what_r1_said(change: Change, reason: Reason) -> None:
    pair = Pair()
    packet, message = answer_with(pair, I2)
    assert isinstance(message, I2)
    assert pair.inject(pair.beta, control(A1, B1, change(message))) is reason
    assert not list(pair.beta.engine.contexts())
    assert len(pair.beta.engine._pending) == 0
    assert pair.inject(pair.beta, packet) is CONSUMED
    assert pair.beta.context.state is State.ESTABLISHED


def test_i2_with_an_old_validator_makes_the_initiator_start_again() -> None:
    pair = Pair()
    packet, _ = answer_with(pair, I2)
    pair.lose = is_control
    pair.run(62.0)
    assert pair.inject(pair.beta, packet) is Reason.OLD_VALIDATOR
    pair.lose = lambda _: False
    pair.run(100.0)
    begin(pair)
    pair.run(30.0)
    assert both_established(pair)


@pytest.mark.parametrize(
    "options",
    [
        (LocatorList(1, (1,), (A1,)),),
        (LocatorList(1, (METHOD_DNS,), (A1,)), LocatorPreferences(2, 1, (Preference(0),))),
        (LocatorList(1, (METHOD_DNS,), (A1,)), LocatorPreferences(1, 1, (Preference(0),) * 2)),
        (LocatorPreferences(9, 1, (Preference(0),)),),
    ],
)
def test_an_i2_that_contradicts_itself_leaves_nothing(options: tuple[Option, ...]) -> None:
    """The context was made first and then the I2 was refused: it stayed in IDLE for ever.

    Anybody could fill the table so, and the pair never got a context any more.
    """
    pair = Pair()
    packet, message = answer_with(pair, I2)
    assert isinstance(message, I2)
    validator = find(message.options, ResponderValidator)
    assert validator is not None
    forged = I2(
        message.initiator_tag,
        message.initiator_nonce,
        message.responder_nonce,
        (validator, *options),
    )
    pair.inject(pair.beta, control(A1, B1, forged))
    assert not list(pair.beta.engine.contexts())
    assert sum(pair.beta.engine.drops.values()) == 1
    assert pair.inject(pair.beta, packet) is CONSUMED
    assert pair.beta.context.state is State.ESTABLISHED


LIST_OF_EVE = LocatorList(1, (METHOD_DNS, METHOD_DNS), (A1, EVE))


def test_a_thief_with_a_name_of_its_own_proves_no_ulid() -> None:
    pair = Pair()
    pair.data = lambda _: NameData("eve.example", frozenset({A1, EVE}), Capability())
    exchange_from(pair, EVE, UlidPairOption(A1, B1), LIST_OF_EVE, SenderName("eve.example"))
    assert not list(pair.beta.engine.contexts())
    assert pair.beta.engine.drops == {Reason.UNPROVED_ULID: 1}


def test_a_thief_with_the_name_of_another_proves_no_source() -> None:
    pair = Pair()
    exchange_from(pair, EVE, UlidPairOption(A1, B1), LIST_OF_EVE, SenderName(NAMES[A1]))
    assert pair.beta.engine.drops == {Reason.UNPROVED_LOCATOR: 1}
    exchange_from(pair, EVE, UlidPairOption(A1, B1), SenderName(NAMES[A1]))
    assert pair.beta.engine.drops[Reason.WRONG_LOCATOR] == 1
    assert not list(pair.beta.engine.contexts())


def test_from_another_locator_with_proof_it_works() -> None:
    pair = Pair()
    listed = LocatorList(1, (METHOD_DNS,) * 2, (A1, A1_ISP2))
    exchange_from(pair, A1_ISP2, UlidPairOption(A1, B1), listed, SenderName(NAMES[A1]))
    assert pair.beta.context.state is State.ESTABLISHED
    assert pair.beta.context.route == B1 + A1_ISP2


def test_a_message_about_one_host_at_the_locator_of_another_is_refused() -> None:
    """Any address of the site was taken as a locator of the ULID in the option.

    An I2bis could so move a host's packets to a source that belongs to another host.
    """
    pair = moved()
    pair.restart(pair.beta)
    pair.talk(pair.alpha)
    pair.run(0.015)
    ((_, packet, message),) = find_messages(pair.beta.sent, R1bis)[-1:]
    other = pair.beta.engine.uplinks[1].prefix.graft(B2)
    assert pair.inject(pair.beta, control(A1_ISP2, other, I1(1, 1, (UlidPairOption(A1, B1),)))) is (
        Reason.NOT_OUR_HOST
    )
    route = route_of(packet)
    options = (*message.options, UlidPairOption(A1, B1))
    i2bis = I2bis(1, 1, message.responder_nonce, message.packet_tag, options)
    assert pair.inject(pair.beta, control(route.peer, other, i2bis)) is Reason.NOT_OUR_HOST


def test_two_claims_at_once_are_judged_by_their_own_names() -> None:
    """The answer about one name completed a message that claimed another one."""
    pair = Pair()
    packet, _ = answer_with(pair, I2)
    engine, now = pair.beta.engine, pair.clock.now
    engine.handle_inbound(packet, now)
    (ask,) = (e for e in engine.take_effects() if isinstance(e, AskProof))
    evil = NameData("eve.example", frozenset({A1, A1_ISP2}), Capability(), owns_ulid=True)
    engine.handle_proof(ask.pair, evil, None, now)
    assert [x.proved for x in pair.beta.context.peer_locators] == [True, False]


# --- forks -----------------------------------------------------------------------------------


def test_a_fork_has_a_context_of_its_own_and_no_flow() -> None:
    """A fork that moved installed a flow for the packets of the main context."""
    pair = established()
    tag = 0xF0F
    pair.inject(pair.beta, control(A1, B1, I1(tag, 1, (ForkedInstance(5),))))
    (_, _, r1) = find_messages(pair.beta.sent, R1)[-1]
    listed = LocatorList(1, (METHOD_DNS,) * 2, (A1, A1_ISP2))
    options = (*r1.options, ForkedInstance(5), listed, SenderName(NAMES[A1]))
    pair.inject(pair.beta, control(A1, B1, I2(tag, 1, r1.responder_nonce, options)))
    main, fork = pair.beta.engine.contexts()
    assert (main.fii, fork.fii, fork.peer_tag) == (0, 5, tag)
    assert fork.state is State.ESTABLISHED
    pair.inject(pair.beta, control(A1_ISP2, B1, Keepalive(fork.local_tag ^ 1)))
    (_, _, r1bis) = find_messages(pair.beta.sent, R1bis)[-1]
    i2bis = I2bis(
        tag + 1, 2, r1bis.responder_nonce, r1bis.packet_tag, (*r1bis.options, *options[1:])
    )
    ulids = UlidPairOption(A1, B1)
    i2bis = I2bis(tag + 1, 2, r1bis.responder_nonce, r1bis.packet_tag, (*i2bis.options, ulids))
    assert pair.inject(pair.beta, control(A1_ISP2, B1, i2bis)) is CONSUMED
    assert fork.peer_tag == tag + 1
    assert fork.wire_addresses is not None
    assert not pair.beta.flows
    assert pair.beta.engine.handle_outbound(udp(B1, A1, b"main"), pair.clock.now) is None


# --- confusion -------------------------------------------------------------------------------


def second_context_with_tag(pair: Pair, tag: int) -> None:
    """A peer at A2 comes and uses a tag; it lists A1 as its locator too."""
    listed = LocatorList(1, (METHOD_DNS,) * 2, (A2, A1))
    exchange_from(pair, A2, None, listed, SenderName(NAMES[A2]), tag=tag)


def test_a_tag_that_the_peer_uses_again_removes_the_older_context() -> None:
    pair = established()
    second_context_with_tag(pair, pair.beta.context.peer_tag)
    (context,) = pair.beta.engine.contexts()
    assert context.pair == UlidPair(B1, A2)
    assert pair.beta.engine.drops == {Reason.CONTEXT_CONFUSED: 1}


def test_the_same_tag_of_another_peer_is_no_confusion() -> None:
    """Whoever listed another's address and saw its tag could remove that one's context."""
    pair = established()
    pair.data = lambda ulid: NameData(NAMES[ulid], frozenset({ulid}), Capability())
    second_context_with_tag(pair, pair.beta.context.peer_tag)
    assert len(list(pair.beta.engine.contexts())) == 2
    assert pair.beta.engine.drops == {}

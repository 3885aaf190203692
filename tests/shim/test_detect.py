"""Finding out whether a peer has a shim, in the order that policy gives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from m6proxy.discovery.capability import Capability, NameData
from m6proxy.names import Prefix, UlidPair
from m6proxy.reasons import Reason
from m6proxy.shim import detect
from m6proxy.shim.core import ShimSettings
from m6proxy.shim.effects import AskCapability, SendPacket, What
from m6proxy.shim.features import Feature
from m6proxy.shim.inquiries import INQUIRIES_MAX, WAITING_MAX
from m6proxy.shim.policy import Detection, EstablishPolicy
from m6proxy.shim.timers import ICMP_HOLDDOWN_S, NO_R1_HOLDDOWN_S
from m6proxy.shim.verdict import CONSUMED
from m6proxy.wire.message import (
    I1,
    R1,
    CapabilityReply,
    CapabilityRequest,
    ErrorCode,
    ErrorMessage,
)
from m6proxy.wire.options import Features
from tests.harness.packets import control, find_messages, icmp_error, udp
from tests.harness.pair import A1, A2, B1, B2, Pair
from tests.shim.exchange import EVE, begin, both_established, kinds

PROBE = (Detection.CONFIGURATION, Detection.DNS, Detection.PROBE)


def asking(
    *detection: Detection, probe_unknown: bool = True, capable: tuple[Prefix, ...] = ()
) -> Callable[[ShimSettings], ShimSettings]:
    """Settings with these ways of detection."""
    return lambda settings: replace(
        settings, detection=detection or PROBE, probe_unknown=probe_unknown, capable=capable
    )


def unanswered(pair: Pair) -> None:
    """Let the request and its repetitions go unanswered."""
    pair.lose = lambda packet: bool(find_messages([(0.0, packet)], CapabilityRequest))
    begin(pair)
    pair.run(60.0)


def test_a_peer_that_replies_gets_an_exchange() -> None:
    pair = Pair(capable=False, adjust=asking())
    begin(pair)
    pair.run(0.5)
    assert kinds(pair.alpha)[:2] == [CapabilityRequest, I1]
    assert kinds(pair.beta)[:2] == [CapabilityReply, R1]
    assert both_established(pair)
    assert len(pair.alpha.engine._core.inquiries) == 0


def test_the_operators_word_needs_neither_record_nor_question() -> None:
    prefix = Prefix.parse("2001:db8:b1::/48")
    pair = Pair(capable=False, adjust=asking(probe_unknown=False, capable=(prefix,)))
    begin(pair)
    pair.run(0.5)
    assert kinds(pair.alpha)[0] is I1
    assert both_established(pair)


@pytest.mark.parametrize("method", [Detection.PROBE, Detection.I1])
def test_peers_without_a_record_are_left_alone_by_default(method: Detection) -> None:
    pair = Pair(capable=False, adjust=asking(method, probe_unknown=False))
    begin(pair)
    pair.run(60.0)
    assert not pair.alpha.sent
    assert len(pair.alpha.what(What.NOT_CAPABLE)) == 1


@pytest.mark.parametrize("accepts", [True, False])
def test_the_order_is_that_of_the_policy(accepts: bool) -> None:
    """A peer with a record is asked when the question comes first; never if it says no."""
    pair = Pair(adjust=asking(Detection.PROBE, Detection.DNS, probe_unknown=False))
    data = NameData("b1.beta.example", frozenset({B1}), Capability(accepts=accepts))
    pair.data = lambda _: data
    begin(pair)
    pair.run(0.5)
    assert kinds(pair.alpha)[:1] == ([CapabilityRequest] if accepts else [])


def test_silence_leads_to_the_next_way() -> None:
    pair = Pair(capable=False, adjust=asking(*PROBE, Detection.I1))
    unanswered(pair)
    assert kinds(pair.alpha)[:4] == [CapabilityRequest] * 3 + [I1]
    assert both_established(pair)


def test_silence_at_the_end_is_remembered_for_the_peers_address() -> None:
    pair = Pair(capable=False, adjust=asking(), policy=EstablishPolicy(after_octets=1))
    unanswered(pair)
    (refused_s,) = pair.alpha.what(What.NOT_CAPABLE)
    asked = len(pair.alpha.what(What.ASKED))
    pair.lose = lambda _: False
    pair.host_sends(pair.alpha, udp(A2, B1, bytes(900)))
    assert len(pair.alpha.what(What.ASKED)) == asked
    pair.host_sends(pair.alpha, udp(A2, B2, bytes(900)))
    assert len(pair.alpha.what(What.ASKED)) == asked + 1
    pair.run(refused_s + NO_R1_HOLDDOWN_S + 1.0 - pair.clock.now)
    pair.host_sends(pair.alpha, udp(A2, B1, bytes(900)))
    pair.run(0.5)
    assert any(c.pair == UlidPair(A2, B1) and c.carries for c in pair.alpha.engine.contexts())


def test_a_failed_exchange_is_remembered_for_the_ulid_and_not_for_the_pair() -> None:
    """RFC 5533 §7.8: not to try again with that ULID, whoever of our hosts talks to it."""
    pair = Pair(policy=EstablishPolicy(after_octets=1))
    pair.lose = lambda packet: bool(find_messages([(0.0, packet)], I1))
    pair.talk(pair.alpha)
    while not pair.alpha.what(What.FAILED):
        pair.run(1.0)
    pair.lose = lambda _: False
    pair.host_sends(pair.alpha, udp(A2, B1, bytes(900)))
    pair.run(0.5)
    assert len(pair.alpha.what(What.ASKED)) == 1
    assert not list(pair.beta.engine.contexts())
    pair.talk(pair.beta)
    pair.run(0.5)
    assert both_established(pair)
    pair.run(30.0)
    pair.host_sends(pair.alpha, udp(A2, B1, bytes(900)))
    assert len(pair.alpha.what(What.ASKED)) == 2


def test_unrecognized_next_header_is_an_answer() -> None:
    pair = Pair(capable=False, adjust=asking(*PROBE, Detection.I1))
    pair.lose = lambda packet: True
    begin(pair)
    ((_, request, _),) = find_messages(pair.alpha.sent, CapabilityRequest)
    forged = bytearray(request)
    forged[48] ^= 1
    assert pair.inject(pair.alpha, icmp_error(B1, A1, 4, 1, 6, bytes(forged))) is CONSUMED
    assert len(pair.alpha.engine._core.inquiries) == 1
    assert pair.inject(pair.alpha, icmp_error(B1, A1, 4, 1, 6, request)) is CONSUMED
    assert len(pair.alpha.engine._core.inquiries) == 0
    peers = pair.alpha.engine._core.peers
    assert peers.refused_until_s(B1, B1, pair.clock.now) == pair.clock.now + ICMP_HOLDDOWN_S
    pair.run(100.0)
    assert kinds(pair.alpha) == [CapabilityRequest]


def test_a_shim_that_does_not_know_the_question_has_answered_it() -> None:
    pair = Pair(capable=False, adjust=asking())
    pair.lose = lambda packet: bool(find_messages([(0.0, packet)], CapabilityRequest))
    begin(pair)
    ((_, request, _),) = find_messages(pair.alpha.sent, CapabilityRequest)
    for quoted in (request[:41], control(A1, B1, CapabilityRequest(1)), control(A1, B1, I1(1, 1))):
        error = control(B1, A1, ErrorMessage(ErrorCode.UNKNOWN_TYPE, 42, quoted))
        assert pair.inject(pair.alpha, error) is Reason.PEER_ERROR
    error = control(B1, A1, ErrorMessage(ErrorCode.UNKNOWN_TYPE, 42, request))
    assert pair.inject(pair.alpha, error) is CONSUMED
    pair.run(0.5)
    assert both_established(pair)


def test_what_was_seen_once_is_not_asked_again() -> None:
    pair = Pair(capable=False, adjust=asking())
    begin(pair)
    pair.run(0.5)
    pair.run(400.0)
    assert not list(pair.alpha.engine.contexts())
    pair.alpha.sent.clear()
    begin(pair)
    pair.run(0.5)
    assert kinds(pair.alpha)[0] is I1
    assert both_established(pair)


def test_a_reply_is_no_larger_than_its_request_and_limited() -> None:
    pair = Pair()
    engine = pair.beta.engine
    for request in (CapabilityRequest(7), CapabilityRequest(7, (Features(Feature.CLOSE),))):
        packet = control(EVE, B1, request)
        replies = []
        for _ in range(300):
            engine.handle_inbound(packet, 1000.0)
            replies += [x.packet for x in engine.take_effects() if isinstance(x, SendPacket)]
        assert all(len(reply) <= len(packet) for reply in replies)
    assert engine.drops == {Reason.RATE_LIMITED: 400}
    assert not list(engine.contexts())


@pytest.mark.parametrize(
    ("packet", "reason"),
    [
        (control(EVE, A1[:4] + b"\x77" + A1[5:], CapabilityRequest(7)), Reason.NOT_OUR_HOST),
        (control(B1, A1, CapabilityReply(7)), Reason.WRONG_NONCE),
    ],
)
def test_what_gets_no_answer(packet: bytes, reason: Reason) -> None:
    pair = Pair()
    assert pair.inject(pair.alpha, packet) is reason
    assert not pair.alpha.sent


def test_the_reply_must_come_from_the_peer_with_the_nonce() -> None:
    pair = Pair(capable=False, adjust=asking())
    pair.lose = lambda _: True
    begin(pair)
    ((_, _, request),) = find_messages(pair.alpha.sent, CapabilityRequest)
    for source, nonce in ((EVE, request.nonce), (B1, request.nonce ^ 1)):
        packet = control(source, A1, CapabilityReply(nonce))
        assert pair.inject(pair.alpha, packet) is Reason.WRONG_NONCE
    assert not list(pair.alpha.engine.contexts())


def test_the_extensions_of_both_are_told_to_people(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(detect, "OURS", Feature.CLOSE | Feature.PARK)
    pair = Pair(capable=False, adjust=asking())
    begin(pair)
    pair.run(0.5)
    (report,) = [r for _, r in pair.alpha.reports if r.what is What.CAPABLE]
    assert report.detail == "replied: CLOSE|PARK"


def test_questions_and_those_who_wait_for_them_are_bounded() -> None:
    pair = Pair(capable=False, adjust=asking())
    engine = pair.alpha.engine
    for number in range(INQUIRIES_MAX + 50):
        peer = B1[:13] + number.to_bytes(3)
        engine.handle_capability(UlidPair(A1, peer), None, None, 1000.0)
    for number in range(WAITING_MAX + 50):
        engine.handle_capability(UlidPair(A1[:13] + number.to_bytes(3), peer), None, None, 1000.0)
    inquiries = engine._core.inquiries
    assert len(inquiries) == INQUIRIES_MAX
    assert all(len(one.waiting) <= WAITING_MAX for one in inquiries.due(1e9))
    now = 1000.0
    while (due_s := engine.next_deadline()) is not None:
        now = due_s
        engine.handle_timer(now)
    assert len(inquiries) == 0
    assert now < 1000.0 + 43.0
    assert not any(isinstance(effect, AskCapability) for effect in engine.take_effects())

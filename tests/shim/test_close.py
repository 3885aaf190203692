"""Close and its acknowledgement: contexts end at both ends, and forgeries cost little."""

from __future__ import annotations

from itertools import pairwise

import pytest

from m6proxy.names import LocatorPair
from m6proxy.reasons import Reason
from m6proxy.shim.closed import ClosedTags
from m6proxy.shim.effects import What
from m6proxy.shim.policy import EstablishPolicy
from m6proxy.shim.timers import CLOSE_SENT_MAX, CLOSED_QUIET_S, MIN_IDLE_S
from m6proxy.shim.transitions import State
from m6proxy.shim.verdict import CONSUMED
from m6proxy.wire.message import I1, Close, CloseAck, ErrorMessage, R1bis
from tests.harness.packets import (
    control,
    find_messages,
    is_control,
    rewritten,
    route_of,
    tcp,
)
from tests.harness.pair import A1, A1_ISP2, B1, B1_ISP2, Pair, Site, name_data
from tests.shim.exchange import EVE
from tests.shim.moved import established, moved


def stop(pair: Pair, site: Site) -> None:
    """The gateway of a site is told to stop."""
    site.engine.close_all(pair.clock.now)
    pair.settle(site)


def close_to(site: Site, *, tag_off: int = 0, sender_off: int = 0) -> Close:
    """A Close that the peer of a site's context could send."""
    context = site.context
    return Close(context.local_tag ^ tag_off, 7, context.peer_tag ^ sender_off)


def nothing_left(site: Site) -> bool:
    return not list(site.engine.contexts()) and not site.flows


# --- the exchange --------------------------------------------------------------------------------


def test_a_gateway_that_stops_takes_the_peers_context_with_it() -> None:
    """The peer went on sending payload headers to a gateway that restored none any more."""
    pair = moved()
    tags = pair.alpha.context.local_tag, pair.beta.context.local_tag
    pair.cut.clear()
    pair.wire.clear()
    stop(pair, pair.alpha)
    pair.run(0.05)
    ((_, packet, close),) = find_messages(pair.wire, Close)
    ((_, answer, ack),) = find_messages(pair.wire, CloseAck)
    assert (close.sender_tag, close.receiver_tag) == tags
    assert (ack.receiver_tag, ack.sender_tag, ack.nonce) == (*tags, close.nonce)
    assert route_of(answer) == LocatorPair(packet[24:40], packet[8:24])
    assert nothing_left(pair.alpha) and nothing_left(pair.beta)
    assert pair.alpha.engine.closing == 0
    assert pair.alpha.what(What.REMOVED) and pair.beta.what(What.REMOVED)
    sent = pair.talk(pair.beta)
    pair.run(0.05)
    assert pair.wire[-1][1] == sent, "plain again"
    assert pair.alpha.delivered[-1][1] == sent
    assert pair.alpha.engine.drops == pair.beta.engine.drops == {}


def test_idleness_ends_a_context_at_both_ends() -> None:
    pair = moved()
    for site in pair.sites.values():
        assert site.flows
    pair.wire.clear()
    pair.run(MIN_IDLE_S + 5.0)
    assert find_messages(pair.wire, Close)
    assert find_messages(pair.wire, CloseAck)
    assert nothing_left(pair.alpha) and nothing_left(pair.beta)
    assert pair.alpha.engine.next_deadline() is None
    assert pair.beta.engine.next_deadline() is None


def test_both_close_at_once() -> None:
    pair = established()
    for site in pair.sites.values():
        stop(pair, site)
    pair.run(1.0)
    assert nothing_left(pair.alpha) and nothing_left(pair.beta)
    assert len(find_messages(pair.wire, Close)) == 2
    assert pair.alpha.engine.drops == pair.beta.engine.drops == {}


def test_it_is_sent_again_over_other_pairs_and_then_forgotten() -> None:
    pair = established()
    pair.lose = is_control
    start_s = pair.clock.now
    stop(pair, pair.alpha)
    context = pair.alpha.context
    assert context.state is State.CLOSING
    assert pair.talk(pair.alpha) == pair.wire[-1][1], "nothing is rewritten any more"
    pair.run(10.0)
    found = find_messages(pair.alpha.sent, Close)
    assert len(found) == CLOSE_SENT_MAX
    assert len({route_of(packet) for _, packet, _ in found}) == CLOSE_SENT_MAX
    assert len({message for _, _, message in found}) == 1
    waits = [later[0] - earlier[0] for earlier, later in pairwise(found)]
    assert 0.375 <= waits[0] <= 0.625 and 0.75 <= waits[1] <= 1.25
    assert found[-1][0] - start_s < 2.0, "a gateway that stops waits no longer"
    assert nothing_left(pair.alpha)
    assert pair.alpha.engine.closing == 0


def test_a_lost_acknowledgement_is_repeated_without_a_context() -> None:
    pair = established()
    pair.lose = lambda packet: bool(find_messages([(0.0, packet)], CloseAck))
    stop(pair, pair.alpha)
    pair.run(0.1)
    assert nothing_left(pair.beta)
    assert pair.alpha.engine.closing == 1
    pair.lose = lambda _: False
    pair.run(1.0)
    assert nothing_left(pair.alpha)
    assert len(find_messages(pair.beta.sent, CloseAck)) == 2
    assert pair.beta.engine.drops == {}


def test_over_a_dead_path_another_one_brings_it() -> None:
    pair = established()
    pair.cut_provider("a", 1)
    stop(pair, pair.alpha)
    pair.run(2.0)
    assert nothing_left(pair.alpha) and nothing_left(pair.beta)


def test_what_the_peer_sent_before_it_heard_is_restored() -> None:
    pair = moved()
    pair.lose = is_control
    tag = pair.alpha.context.local_tag
    stop(pair, pair.alpha)
    verdict = pair.inject(pair.alpha, rewritten(B1_ISP2, A1_ISP2, tag, 17, bytes(8)))
    assert isinstance(verdict, bytes)
    assert (verdict[8:24], verdict[24:40]) == (B1, A1)
    assert pair.alpha.context.state is State.CLOSING


def test_a_peer_that_does_not_know_it_is_left_alone() -> None:
    pair = established()
    for site in pair.sites.values():
        site.context.peer_features = 0
    stop(pair, pair.alpha)
    pair.run(1.0)
    assert not find_messages(pair.wire, Close)
    assert pair.alpha.context.state is State.ESTABLISHED
    verdict = pair.inject(pair.alpha, control(B1, A1, close_to(pair.alpha)))
    assert verdict is Reason.NO_CONTEXT, "nobody may close who did not say that it would"
    pair.run(MIN_IDLE_S + 5.0)
    assert nothing_left(pair.alpha) and nothing_left(pair.beta)
    assert not find_messages(pair.wire, Close)


def test_many_are_closed_one_after_the_other_and_all_within_a_second() -> None:
    pair = Pair(policy=EstablishPolicy(after_packets=1), requests_per_s=1e6)
    pair.data = lambda ulid: name_data(f"h{ulid[-1]}", ulid, "ab"[ulid[5] >= 0xB0])
    for number in range(1, 51):
        pair.host_sends(pair.alpha, tcp(A1[:15] + bytes((number,)), B1))
        pair.run(0.001)
    pair.run(1.0)
    assert sum(context.carries for context in pair.beta.engine.contexts()) == 50
    start_s = pair.clock.now
    stop(pair, pair.alpha)
    assert pair.alpha.engine.closing == 50
    assert not find_messages(pair.alpha.sent, Close)
    pair.run(0.2)
    times = [when for when, _, _ in find_messages(pair.alpha.sent, Close)]
    assert len(times) == 50
    assert all(later - earlier > 0.0003 for earlier, later in pairwise(times))
    assert times[-1] - start_s < 0.03
    assert nothing_left(pair.alpha) and nothing_left(pair.beta)


def test_a_gateway_that_stops_begins_nothing() -> None:
    pair = established()
    stop(pair, pair.alpha)
    pair.run(0.1)
    pair.alpha.sent.clear()
    for _ in range(20):
        pair.talk(pair.alpha)
        pair.run(1.0)
    assert not find_messages(pair.alpha.sent, I1)
    assert nothing_left(pair.alpha)


# --- afterwards ----------------------------------------------------------------------------------


def test_late_packets_of_a_closed_context_invite_no_recovery() -> None:
    """For a while only: a peer that goes on in earnest has not closed, and gets R1bis."""
    pair = moved()
    tags = {"a": pair.alpha.context.local_tag, "b": pair.beta.context.local_tag}
    pair.cut.clear()
    stop(pair, pair.alpha)
    pair.run(0.05)
    late = {
        "a": rewritten(B1_ISP2, A1_ISP2, tags["a"], 17, bytes(8)),
        "b": rewritten(A1_ISP2, B1_ISP2, tags["b"], 17, bytes(8)),
    }
    for seconds, invited in ((0.0, False), (CLOSED_QUIET_S - 1.0, False), (2.0, True)):
        pair.run(seconds)
        for letter, site in pair.sites.items():
            site.sent.clear()
            assert pair.inject(site, late[letter]) is Reason.NO_CONTEXT
            assert bool(find_messages(site.sent, R1bis)) is invited


def test_after_a_close_the_peer_does_not_ask_again_at_once() -> None:
    """Its I1 met a host without a shim, whose ICMPv6 error kept the pair apart for 10 minutes."""
    pair = established()
    stop(pair, pair.alpha)
    pair.run(0.1)
    pair.beta.sent.clear()
    for _ in range(50):
        pair.talk(pair.beta)
        pair.run(1.0)
    assert not find_messages(pair.beta.sent, I1)
    for _ in range(20):
        pair.talk(pair.beta)
        pair.run(1.0)
    assert find_messages(pair.beta.sent, I1)


def test_a_gateway_that_comes_back_is_welcome_at_once() -> None:
    pair = established()
    stop(pair, pair.alpha)
    pair.run(0.1)
    pair.restart(pair.alpha)
    pair.establish()


# --- forgeries -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "destination", "sender_off", "reason"),
    [
        (EVE, A1, 0, Reason.WRONG_LOCATOR),
        (B1, A1[:15] + b"\x77", 0, Reason.WRONG_LOCATOR),
        (B1, A1, 1, Reason.NO_CONTEXT),
    ],
)
def test_both_tags_and_a_known_locator_are_needed(
    source: bytes, destination: bytes, sender_off: int, reason: Reason
) -> None:
    """Whoever sees packets one way knows one tag: every payload header has it in the clear."""
    pair = moved()
    pair.alpha.sent.clear()
    message = close_to(pair.alpha, sender_off=sender_off)
    assert pair.inject(pair.alpha, control(source, destination, message)) is reason
    assert pair.alpha.context.state is State.ESTABLISHED
    assert not pair.alpha.sent, "neither an acknowledgement nor R1bis"


def test_an_acknowledgement_of_nothing_or_of_another_close() -> None:
    pair = established()
    context = pair.alpha.context
    ack = CloseAck(context.local_tag, 7, context.peer_tag)
    assert pair.inject(pair.alpha, control(B1, A1, ack)) is Reason.ILLEGAL_IN_STATE
    unknown = CloseAck(context.local_tag ^ 1, 7, context.peer_tag)
    assert pair.inject(pair.alpha, control(B1, A1, unknown)) is Reason.NO_CONTEXT
    pair.lose = is_control
    stop(pair, pair.alpha)
    assert pair.inject(pair.alpha, control(B1, A1, ack)) is Reason.WRONG_NONCE
    assert context.state is State.CLOSING


def test_a_close_of_nothing_stores_nothing_and_is_limited() -> None:
    pair = Pair()
    message = Close(5, 7, 6)
    verdicts = [pair.inject(pair.alpha, control(B1, A1, message)) for _ in range(1000)]
    assert set(verdicts) == {CONSUMED, Reason.RATE_LIMITED}
    answers = find_messages(pair.alpha.sent, CloseAck)
    assert 0 < len(answers) <= 200
    assert answers[0][2] == CloseAck(6, 7, 5)
    assert len(answers[0][1]) == len(control(B1, A1, message)), "no amplification"
    assert not find_messages(pair.alpha.sent, R1bis)
    assert not find_messages(pair.alpha.sent, ErrorMessage)
    assert not list(pair.alpha.engine.contexts())
    verdict = pair.inject(pair.alpha, control(A1, EVE, message))
    assert verdict is Reason.NOT_OUR_HOST


def test_a_forged_close_costs_seconds_and_not_the_session() -> None:
    """Who saw both tags can end a context at one end; the other end's packets bring it back."""
    pair = moved()
    pair.inject(pair.alpha, control(B1, A1, close_to(pair.alpha)))
    assert nothing_left(pair.alpha)
    start_s, already = pair.clock.now, len(pair.alpha.delivered)
    pair.stream(CLOSED_QUIET_S + 2.0, both=True)
    assert pair.alpha.context.state is State.ESTABLISHED
    assert pair.alpha.context.wire_addresses is not None
    arrived = [when for when, _ in pair.alpha.delivered[already:]]
    assert arrived[0] - start_s < CLOSED_QUIET_S + 1.0


def test_the_memory_of_closed_tags_is_bounded_and_empties_itself() -> None:
    closed = ClosedTags(limit=10)
    for tag in range(20):
        closed.add(tag, 1.0)
    assert len(closed) == 10
    assert closed.recently(19, 1.0) and not closed.recently(0, 1.0)
    for tag in range(20, 40):
        closed.add(tag, 100.0)
    assert not closed.recently(19, 100.0)
    assert len(closed) == 10

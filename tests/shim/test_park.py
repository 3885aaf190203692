"""A site goes away for a while: contexts wait for it, whoever is away, and whatever is lost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from m6proxy.reasons import Reason
from m6proxy.shim.core import ShimSettings
from m6proxy.shim.effects import What
from m6proxy.shim.features import Feature
from m6proxy.shim.park import Away
from m6proxy.shim.policy import FailbackMode
from m6proxy.shim.timers import NEVER, PARK_GRACE_S, PARK_QUIET_S, PARK_SENT_MAX
from m6proxy.shim.transitions import ReapState, State
from m6proxy.shim.verdict import CONSUMED
from m6proxy.wire.ipv6 import NEXT_ICMPV6
from m6proxy.wire.message import (
    I2bis,
    Keepalive,
    Probe,
    ProbeRecord,
    ProbeState,
    UpdateAck,
    UpdateRequest,
)
from m6proxy.wire.options import LocatorList, ParkTime, find
from tests.harness.packets import control, find_messages, icmp_error, rewritten, tcp, udp
from tests.harness.pair import A1, A1_ISP2, B1, Pair, Site
from tests.shim.exchange import lose_first
from tests.shim.moved import established, moved

FOR_S = 600


def park(pair: Pair, site: Site, for_s: float = FOR_S) -> None:
    site.engine.park(for_s, pair.clock.now)
    pair.settle(site)


def unpark(pair: Pair, site: Site) -> None:
    site.engine.unpark(pair.clock.now)
    pair.settle(site)


def darken(pair: Pair, *letters: str) -> None:
    """All providers of these sites die."""
    for letter in letters:
        for number in (1, 2):
            pair.cut_provider(letter, number)


def parked(for_s: float = FOR_S, *, max_s: float = 3600.0) -> Pair:
    """Alpha is away, and beta, which may not wait longer than ``max_s``, heard it."""

    def adjust(settings: ShimSettings) -> ShimSettings:
        return replace(settings, park_max_s=max_s)

    pair = Pair(adjust=adjust)
    pair.establish()
    pair.run(1.0)
    park(pair, pair.alpha, for_s)
    pair.run(1.0)
    return pair


def is_parked(site: Site) -> bool:
    return site.context.parking is not None


def goes_through(pair: Pair) -> bool:
    """Whether packets of both hosts arrive."""
    arrived = []
    for site in pair.sites.values():
        packet = pair.talk(site, payload=b"%f" % pair.clock.now)
        pair.run(0.1)
        arrived.append(packet in [octets for _, octets in pair.other(site).delivered])
    return all(arrived)


# --- the exchange --------------------------------------------------------------------------------


def test_an_empty_list_with_a_time_parks_at_both_ends() -> None:
    pair = parked()
    ((_, _, request),) = find_messages(pair.alpha.sent, UpdateRequest)
    ((_, _, ack),) = find_messages(pair.beta.sent, UpdateAck)
    listed = find(request.options, LocatorList)
    assert listed is not None and listed.locators == ()
    assert listed.generation != pair.alpha.context.local_set.generation
    assert find(request.options, ParkTime) == ParkTime(FOR_S)
    assert ack.options == (ParkTime(FOR_S),)
    assert is_parked(pair.alpha) and is_parked(pair.beta)
    assert pair.alpha.engine.away == Away(pair.clock.now - 1.0 + FOR_S, granted=1, shortest_s=FOR_S)
    assert pair.beta.engine.away is None
    assert pair.alpha.what(What.PARKED) and pair.beta.what(What.PARKED)
    assert len(pair.beta.context.peer_locators) == 2, "the set is kept for the return"
    assert not pair.alpha.engine.drops and not pair.beta.engine.drops


@pytest.mark.parametrize("start", [established, moved])
def test_nothing_is_sent_while_parked_and_sessions_go_on_afterwards(
    start: Callable[[], Pair],
) -> None:
    """Longer than the idle time, and than any search would take."""
    pair = start()
    pair.cut.clear()
    park(pair, pair.alpha)
    pair.run(1.0)
    darken(pair, "a")
    pair.wire.clear()
    for _ in range(400):
        pair.talk(pair.alpha, 100)
        pair.talk(pair.beta, 100)
        pair.run(1.0)
    assert pair.wire == []
    assert pair.beta.context.reap_state is ReapState.OPERATIONAL
    assert pair.beta.engine.drops[Reason.PARKED] == pair.alpha.engine.drops[Reason.PARKED] == 400
    pair.cut.clear()
    unpark(pair, pair.alpha)
    pair.run(1.0)
    assert not is_parked(pair.alpha) and not is_parked(pair.beta)
    assert pair.alpha.what(What.RESUMED) and pair.beta.what(What.RESUMED)
    assert goes_through(pair)


def test_a_peer_without_the_feature_is_not_asked_and_not_parked() -> None:
    pair = established()
    pair.alpha.context.peer_features &= ~Feature.PARK
    park(pair, pair.alpha)
    pair.run(1.0)
    assert not find_messages(pair.alpha.sent, UpdateRequest)
    assert not is_parked(pair.alpha)
    away = pair.alpha.engine.away
    assert away is not None and (away.deaf, away.granted) == (1, 0)
    assert goes_through(pair)


def test_an_empty_list_of_a_peer_that_did_not_announce_it_is_a_set_like_any_other() -> None:
    pair = established()
    pair.beta.context.peer_features &= ~Feature.PARK
    park(pair, pair.alpha)
    pair.run(0.1)
    assert not is_parked(pair.beta)
    assert all(locator.broken for locator in pair.beta.context.peer_locators)


def test_the_peer_waits_no_longer_than_its_policy_says() -> None:
    pair = parked(max_s=60.0)
    away = pair.alpha.engine.away
    assert away is not None and away.shortest_s == 60.0
    darken(pair, "a")
    pair.run(60.0 + PARK_GRACE_S - 1.5)
    assert is_parked(pair.beta)
    pair.run(1.0)
    assert not list(pair.beta.engine.contexts())
    (removed,) = [report for _, report in pair.beta.reports if report.what is What.REMOVED]
    assert removed.detail == "park time over"


def test_a_peer_that_will_not_wait_says_so() -> None:
    pair = parked(max_s=0.0)
    away = pair.alpha.engine.away
    assert away is not None and (away.refused, away.granted) == (1, 0)
    assert not is_parked(pair.beta)
    darken(pair, "a")
    pair.stream(5.0, both=True)
    assert pair.beta.context.reap_state is ReapState.EXPLORING, "as if nobody had said anything"
    pair.cut.clear()
    unpark(pair, pair.alpha)
    pair.run(20.0)
    assert goes_through(pair)


def test_the_site_is_back_by_itself_when_its_time_is_over() -> None:
    pair = parked(for_s=30)
    darken(pair, "a")
    pair.run(20.0)
    pair.cut.clear()
    pair.run(9.5)
    assert not is_parked(pair.alpha) and not is_parked(pair.beta)
    assert pair.alpha.engine.away is None
    assert goes_through(pair)


def test_a_new_time_replaces_the_one_before() -> None:
    pair = parked(for_s=30)
    park(pair, pair.alpha, 300)
    away = pair.alpha.engine.away
    assert away is not None and (away.asked, away.granted) == (1, 0), "it is asked anew"
    pair.run(60.0)
    assert is_parked(pair.alpha) and is_parked(pair.beta)


# --- losses --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [UpdateRequest, UpdateAck])
def test_a_lost_message_costs_a_repetition(kind: type[UpdateRequest | UpdateAck]) -> None:
    pair = established()
    lost = lose_first(pair, kind)
    park(pair, pair.alpha)
    pair.run(7.0)
    assert len(lost) == 1
    assert is_parked(pair.alpha) and is_parked(pair.beta)
    away = pair.alpha.engine.away
    assert away is not None and away.granted == 1


def test_who_gets_no_answer_is_away_all_the_same_and_soon_silent() -> None:
    pair = established()
    darken(pair, "a")
    park(pair, pair.alpha)
    pair.run(300.0)
    assert len(find_messages(pair.alpha.sent, UpdateRequest)) == PARK_SENT_MAX
    away = pair.alpha.engine.away
    assert away is not None and (away.asked, away.granted) == (1, 0)
    assert is_parked(pair.alpha)


def test_a_lost_return_is_told_again() -> None:
    pair = parked()
    lost = lose_first(pair, UpdateRequest)
    pair.run(10.0)
    unpark(pair, pair.alpha)
    pair.run(7.0)
    assert len(lost) == 1
    assert goes_through(pair)
    assert pair.alpha.context.update is None


def test_what_was_under_way_does_not_take_the_context_up() -> None:
    pair = moved()
    pair.cut.clear()
    alpha, beta = pair.alpha.context, pair.beta.context
    late = [
        rewritten(*alpha.locators, alpha.peer_tag, 17, b"late"),
        control(*alpha.locators, Keepalive(alpha.peer_tag)),
    ]
    park(pair, pair.alpha)
    pair.run(PARK_QUIET_S - 1.0)
    assert isinstance(pair.inject(pair.beta, late[0]), bytes), "it is delivered"
    assert pair.inject(pair.beta, late[1]) is Reason.PARKED
    assert beta.parking is not None
    pair.wire.clear()
    pair.run(30.0)
    assert pair.wire == [], "nor does it start a timer"


# --- signs of a return without a word ------------------------------------------------------------


def test_packets_of_the_peer_take_the_context_up() -> None:
    """Its word was lost, or it has forgotten that it was away."""
    for sign in ("payload", "plain", "keepalive", "probe"):
        pair = moved()
        pair.cut.clear()
        park(pair, pair.alpha)
        pair.run(PARK_QUIET_S + 1.0)
        alpha = pair.alpha.context
        record = ProbeRecord(*alpha.locators, 1, 0)
        packet = {
            "payload": rewritten(*alpha.locators, alpha.peer_tag, 17, b"here"),
            "plain": udp(A1, B1, b"here"),
            "keepalive": control(*alpha.locators, Keepalive(alpha.peer_tag)),
            "probe": control(
                *alpha.locators, Probe(alpha.peer_tag, ProbeState.EXPLORING, (record,), ())
            ),
        }[sign]
        pair.inject(pair.beta, packet)
        assert not is_parked(pair.beta), sign


def test_a_site_that_lost_its_state_while_away_goes_on_by_recovery() -> None:
    pair = moved()
    pair.cut.clear()
    park(pair, pair.alpha)
    pair.run(10.0)
    pair.restart(pair.alpha)
    pair.talk(pair.alpha)
    pair.run(2.0)
    pair.talk(pair.beta)
    pair.run(2.0)
    assert find_messages(pair.beta.sent, I2bis)
    assert goes_through(pair)


def test_a_peer_that_lost_its_state_meanwhile_recovers_on_the_return() -> None:
    pair = parked()
    pair.restart(pair.beta)
    pair.run(10.0)
    unpark(pair, pair.alpha)
    pair.run(3.0)
    assert find_messages(pair.alpha.sent, I2bis)
    assert pair.alpha.context.state is pair.beta.context.state is State.ESTABLISHED
    assert goes_through(pair)


def test_a_peer_that_recovers_while_we_are_away_is_told_again() -> None:
    """It answers a late packet of ours with R1bis."""
    pair = moved()
    pair.cut.clear()
    pair.restart(pair.beta)
    park(pair, pair.alpha)
    pair.run(15.0)
    assert find_messages(pair.alpha.sent, I2bis)
    assert is_parked(pair.alpha) and is_parked(pair.beta)


# --- both are away -------------------------------------------------------------------------------


@pytest.mark.parametrize("first", ["a", "b"])
def test_both_away_and_back_one_after_the_other(first: str) -> None:
    """Whoever is back first waits, and says so again, until the other one hears it."""
    pair = established()
    park(pair, pair.alpha)
    park(pair, pair.beta)
    pair.run(1.0)
    for site in pair.sites.values():
        away = site.engine.away
        assert away is not None and away.granted == 1
        parking = site.context.parking
        assert parking is not None and parking.local and parking.peer_until_s != NEVER
    darken(pair, "a", "b")
    pair.run(60.0)
    early = pair.sites[first]
    unpark(pair, early)
    pair.run(60.0)
    assert is_parked(early)
    pair.cut.clear()
    unpark(pair, pair.other(early))
    pair.run(3.0)
    assert not is_parked(pair.alpha) and not is_parked(pair.beta)
    assert goes_through(pair)


def test_an_away_site_that_still_hears_acknowledges_and_is_not_taken_for_back() -> None:
    pair = established()
    park(pair, pair.alpha)
    park(pair, pair.beta)
    pair.run(10.0)
    unpark(pair, pair.beta)
    pair.run(10.0)
    assert pair.beta.context.update is None, "acknowledged"
    ack = find_messages(pair.alpha.sent, UpdateAck)[-1][2]
    assert find(ack.options, ParkTime) is not None
    assert is_parked(pair.beta)
    unpark(pair, pair.alpha)
    pair.run(1.0)
    assert goes_through(pair)


# --- what changes meanwhile ----------------------------------------------------------------------


def test_an_update_that_was_under_way_is_repeated_only_after_the_return() -> None:
    pair = established()
    pair.lose = lambda packet: bool(find_messages([(0.0, packet)], UpdateRequest))
    pair.beta.engine.handle_uplink("isp2", up=False, mtu=1500, now=pair.clock.now)
    pair.settle(pair.beta)
    pair.run(1.0)
    assert pair.beta.context.update is not None
    pair.lose = lambda packet: False
    park(pair, pair.alpha)
    pair.run(1.0)
    pair.beta.sent.clear()
    pair.run(200.0)
    assert not pair.beta.sent
    unpark(pair, pair.alpha)
    pair.run(5.0)
    broken = [one.broken for one in pair.alpha.context.peer_locators]
    assert broken == [False, True] and pair.beta.context.update is None


def test_uplinks_that_changed_meanwhile_are_told_on_the_return() -> None:
    pair = parked()
    sent = len(pair.alpha.sent)
    pair.run(10.0)
    pair.cut_provider("a", 1)
    pair.cut_provider("b", 1)
    for site in pair.sites.values():
        site.engine.handle_uplink("isp1", up=False, mtu=1500, now=pair.clock.now)
        pair.settle(site)
    pair.run(30.0)
    assert len(pair.alpha.sent) == sent, "nothing meanwhile"
    unpark(pair, pair.alpha)
    pair.run(15.0)
    for site in pair.sites.values():
        told = {x.address: x.broken for x in pair.other(site).context.peer_locators}
        assert told[site.ulid]
    assert goes_through(pair)


def test_a_return_over_another_provider_finds_a_path() -> None:
    pair = parked()
    darken(pair, "a")
    pair.run(30.0)
    pair.cut -= {("a", 2, "in"), ("a", 2, "out")}
    unpark(pair, pair.alpha)
    pair.run(5.0)
    assert pair.alpha.context.route[:16] == A1_ISP2
    assert goes_through(pair)


# --- what hosts notice ---------------------------------------------------------------------------


def test_a_segment_that_waited_goes_out_on_the_return() -> None:
    pair = parked()
    segment = tcp(B1, A1, b"still here")
    pair.host_sends(pair.beta, segment)
    pair.host_sends(pair.beta, segment)
    pair.run(10.0)
    before = len(pair.alpha.delivered)
    unpark(pair, pair.alpha)
    pair.run(0.5)
    assert segment in [packet for _, packet in pair.alpha.delivered[before:]]


def test_new_connections_hear_of_it_and_established_ones_do_not() -> None:
    pair = parked()
    pair.beta.delivered.clear()
    pair.host_sends(pair.beta, tcp(B1, A1, b"data"))
    assert pair.beta.delivered == []
    opening = tcp(B1, A1, flags=0x02)
    for _ in range(20):
        pair.host_sends(pair.beta, opening)
        pair.host_sends(pair.beta, udp(B1, A1, b"x"))
        pair.run(0.1)
    answers = [packet for _, packet in pair.beta.delivered if packet[6] == NEXT_ICMPV6]
    assert len(answers) == 2, "one in a second"
    assert answers[0][40:42] == b"\x01\x03"
    assert answers[0][48:] == opening
    error = icmp_error(B1, A1, 1, 0, 0, udp(A1, B1))
    pair.run(2.0)
    pair.host_sends(pair.beta, error)
    assert len(pair.beta.delivered) == 2, "an error is not answered with an error"


def test_a_parked_context_may_be_closed() -> None:
    pair = parked()
    pair.beta.engine.close_all(pair.clock.now)
    pair.settle(pair.beta)
    pair.run(1.0)
    assert not list(pair.beta.engine.contexts())
    assert not list(pair.alpha.engine.contexts())
    packet = pair.talk(pair.beta)
    pair.run(0.1)
    assert pair.alpha.delivered[-1][1] == packet, "plain"


def test_an_acknowledgement_of_nothing_changes_nothing() -> None:
    pair = parked()
    alpha = pair.alpha.context
    forged = UpdateAck(alpha.local_tag, 4711, (ParkTime(0),))
    assert pair.inject(pair.alpha, control(B1, A1, forged)) is Reason.WRONG_NONCE
    away = pair.alpha.engine.away
    assert away is not None and away.granted == 1
    ((_, packet, _),) = find_messages(pair.alpha.sent, UpdateRequest)
    assert pair.inject(pair.beta, packet) is CONSUMED
    assert is_parked(pair.beta)


def test_a_quiet_context_ends_in_time_when_its_peer_stays_away() -> None:
    """Its next deadline was the idle timer's, minutes away, and it was not woken before."""
    pair = established()
    pair.run(60.0)
    park(pair, pair.alpha, 20.0)
    pair.run(1.0)
    darken(pair, "a")
    assert is_parked(pair.beta)
    pair.run(20.0 + PARK_GRACE_S)
    assert not list(pair.beta.engine.contexts())


def test_the_way_back_to_a_better_pair_begins_anew_after_a_park() -> None:
    """What was due meanwhile is not due at once, and answers from before do not count."""
    pair = Pair(adjust=lambda settings: replace(settings, failback=FailbackMode.HARD))
    pair.establish()
    pair.cut_provider("a", 1)
    pair.stream(30.0, both=True)
    failback = pair.alpha.context.failback
    assert failback is not None
    failback.answers = 2
    park(pair, pair.alpha)
    pair.run(FOR_S / 2)
    unpark(pair, pair.alpha)
    assert failback.answers == 0
    assert failback.due_s > pair.clock.now

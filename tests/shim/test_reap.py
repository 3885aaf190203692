"""Reachability: keepalives, silence, exploration and re-homing (RFC 5534)."""

from __future__ import annotations

from itertools import pairwise

import pytest

from m6proxy.discovery.capability import NameData
from m6proxy.names import Address
from m6proxy.reasons import Reason
from m6proxy.shim.effects import What
from m6proxy.shim.exploration import RECORDS_MAX
from m6proxy.shim.timers import SEND_TIMEOUT_S
from m6proxy.shim.transitions import ReapState
from m6proxy.shim.verdict import CONSUMED
from m6proxy.wire.message import (
    I2,
    R2,
    Keepalive,
    Probe,
    ProbeRecord,
    ProbeState,
    UpdateRequest,
    find,
)
from m6proxy.wire.options import KeepaliveTimeout
from tests.harness.packets import control, find_messages, is_control, route_of, tcp
from tests.harness.pair import A1, A1_ISP2, B1, B1_ISP2, NAMES, Pair, Site, longest_gap_s, name_data
from tests.shim.moved import established, moved

EVE = bytes.fromhex("20010db800660000000000000000000e")
Cut = set[tuple[str, int, str]]


def both(letter: str, number: int) -> Cut:
    return {(letter, number, "in"), (letter, number, "out")}


FAILURES: dict[str, Cut] = {
    "alpha isp1": both("a", 1),
    "beta isp1": both("b", 1),
    "both isp1": both("a", 1) | both("b", 1),
    "alpha isp1 out": {("a", 1, "out")},
    "alpha isp1 in": {("a", 1, "in")},
    "beta isp1 out": {("b", 1, "out")},
    "beta isp1 in": {("b", 1, "in")},
    "out here, in there": {("a", 1, "out"), ("b", 2, "in")},
    "disjoint ways": {("a", 1, "out"), ("b", 1, "out"), ("a", 2, "in"), ("b", 2, "in")},
    "disjoint ways, mirrored": {("a", 2, "out"), ("b", 2, "out"), ("a", 1, "in"), ("b", 1, "in")},
    "alpha out 1, in 2": {("a", 1, "out"), ("a", 2, "in")},
    "crossed": both("a", 1) | both("b", 2),
}


def probes(site: Site) -> list[tuple[float, bytes, Probe]]:
    return find_messages(site.sent, Probe)


def keepalives(site: Site) -> list[float]:
    return [when for when, _, _ in find_messages(site.sent, Keepalive)]


def forget(pair: Pair) -> None:
    for site in pair.sites.values():
        site.sent.clear()


# --- keepalives --------------------------------------------------------------------------


@pytest.mark.parametrize("send_timeout_s", [3.0, SEND_TIMEOUT_S, 30.0])
def test_traffic_one_way_is_answered_by_keepalives(send_timeout_s: float) -> None:
    pair = Pair(send_timeout_s=send_timeout_s)
    pair.establish()
    forget(pair)
    pair.stream(send_timeout_s * 10, interval_s=send_timeout_s / 20)
    times = keepalives(pair.beta)
    waits = [later - earlier for earlier, later in pairwise(times)]
    assert len(times) >= 19
    # The last one before the Keepalive Timer expires comes early (§6.3), no other.
    assert sum(wait_s < send_timeout_s / 3 * 0.99 for wait_s in waits) <= len(waits) / 3 + 1
    assert max(waits) <= send_timeout_s / 2 * 1.01
    assert not keepalives(pair.alpha)
    assert not probes(pair.alpha)
    assert not probes(pair.beta)


def test_no_keepalives_when_both_talk() -> None:
    pair = established()
    forget(pair)
    pair.stream(20.0, both=True, interval_s=0.1)
    assert not pair.alpha.sent
    assert not pair.beta.sent


def test_after_the_last_packet_keepalives_end_and_nothing_is_suspected() -> None:
    pair = established()
    pair.run(10.0)
    forget(pair)
    pair.run(280.0)
    assert not pair.alpha.sent
    assert not pair.beta.sent
    assert not pair.alpha.what(What.SILENCE)


def test_one_lost_keepalive_raises_no_alarm() -> None:
    pair = established()
    lost = [0]

    def lose(packet: bytes) -> bool:
        if find_messages([(0.0, packet)], Keepalive):
            lost[0] += 1
            return lost[0] % 2 == 1
        return False

    pair.lose = lose
    pair.stream(60.0, interval_s=0.1)
    assert lost[0] > 20
    assert not pair.alpha.context.rehomings


def test_the_keepalive_timeout_is_the_peers_send_timeout() -> None:
    pair = established()
    assert pair.alpha.context.keepalive_timeout_s == 3.0
    pair = Pair(send_timeout_s=SEND_TIMEOUT_S)
    pair.establish()
    assert pair.alpha.context.keepalive_timeout_s == SEND_TIMEOUT_S
    assert 0.9 * SEND_TIMEOUT_S <= pair.alpha.context.send_timeout_s <= SEND_TIMEOUT_S


def test_the_send_timeout_is_told_once() -> None:
    """RFC 5534 §5.3: the exchange told it, so that no Update has to."""
    pair = established()
    pair.alpha.engine.handle_uplink("isp1", up=False, mtu=1500, now=pair.clock.now)
    pair.run(1.0)
    messages = [found for *_, found in find_messages(pair.wire_control(), object)]
    told = [
        find(message.options, KeepaliveTimeout) is not None
        for message in messages
        if isinstance(message, I2 | R2 | UpdateRequest)
    ]
    assert told == [True, True, False]
    assert pair.beta.context.keepalive_timeout_s == 3.0


# --- failures ----------------------------------------------------------------------------


def bound_s(failure: str, both_ways: bool) -> float:
    """How long a stream may pause, with a Send Timeout of 3 s.

    When only the way there dies and the traffic has no way back, the peer goes on to send
    keepalives until its Keepalive Timeout of 3 s is over (RFC 5534 §4.1, 5), and only then
    the silence begins.
    """
    if not both_ways and not FAILURES[failure] & {("a", 1, "in"), ("b", 1, "out")}:
        return 7.5
    return 5.0 if len(FAILURES[failure]) <= 2 or failure == "both isp1" else 6.5


@pytest.mark.parametrize("both_ways", [False, True], ids=["one way", "both ways"])
@pytest.mark.parametrize("failure", FAILURES)
def test_every_failure_is_survived_in_time(failure: str, both_ways: bool) -> None:
    for seed in range(5):
        pair = Pair(seed=seed)
        pair.establish()
        pair.stream(1.0 + seed * 0.37, both=both_ways)
        start_s = pair.clock.now
        pair.cut |= FAILURES[failure]
        arrived = pair.stream(15.0, both=both_ways)
        gap_s = longest_gap_s(arrived, start_s, pair.clock.now)
        assert gap_s <= bound_s(failure, both_ways), seed
        for site in pair.sites.values():
            assert site.context.reap_state is ReapState.OPERATIONAL


def test_the_way_back_is_found_when_the_new_provider_dies_and_the_old_one_lives() -> None:
    pair = established()
    pair.stream(2.0, both=True)
    for dead, alive in ((1, 2), (2, 1), (1, 2)):
        pair.cut = both("a", dead)
        start_s = pair.clock.now
        arrived = pair.stream(12.0, both=True)
        assert longest_gap_s(arrived, start_s, pair.clock.now) <= 5.0
        assert pair.alpha.context.route[:16] == (A1, A1_ISP2)[alive - 1]


def test_back_on_their_ulids_packets_are_plain_again() -> None:
    pair = moved()
    assert pair.alpha.flows
    pair.cut = both("a", 2)
    pair.stream(12.0, both=True)
    for site in pair.sites.values():
        if site.context.route == site.context.outbound_key:
            assert site.context.wire_addresses is None
            assert not site.flows
    assert pair.alpha.context.route[:16] == A1


def test_a_false_alarm_moves_nothing() -> None:
    pair = established()
    pair.stream(1.0)
    pair.lose = lambda packet: bool(find_messages([(0.0, packet)], Keepalive))
    pair.stream(3.2)
    pair.lose = lambda _: False
    assert pair.alpha.what(What.SILENCE)
    pair.stream(5.0)
    for site in pair.sites.values():
        assert site.context.rehomings == 0
        assert site.context.reap_state is ReapState.OPERATIONAL


def test_a_total_outage_is_survived_after_it_ends() -> None:
    pair = established()
    everything = set().union(*(both(letter, n) for letter in "ab" for n in (1, 2)))
    for outage_s in (5.0, 20.0, 60.0):
        pair.cut = set(everything)
        pair.stream(outage_s, both=True, interval_s=0.1)
        assert pair.alpha.context.reap_state is ReapState.EXPLORING
        pair.cut.clear()
        start_s = pair.clock.now
        arrived = pair.stream(70.0, both=True, interval_s=0.1)
        assert arrived[0] - start_s < 1.0
        for site in pair.sites.values():
            assert site.context.reap_state is ReapState.OPERATIONAL


def test_an_unanswered_segment_goes_out_once_more_after_the_move() -> None:
    pair = established()
    pair.talk(pair.beta)
    pair.run(0.1)
    pair.cut_provider("a", 1)
    segment = tcp(A1, B1, b"typed")
    pair.host_sends(pair.alpha, segment)
    pair.run(10.0)
    assert [packet for _, packet in pair.beta.delivered].count(segment) == 1


# --- probes ------------------------------------------------------------------------------


def test_probe_timing() -> None:
    pair = established()
    everything = set().union(*(both(letter, n) for letter in "ab" for n in (1, 2)))
    pair.cut = everything
    forget(pair)
    pair.stream(400.0, interval_s=0.5)
    times = [when for when, _, _ in probes(pair.alpha)]
    waits = [later - earlier for earlier, later in pairwise(times)]
    for number, wait_s in enumerate(waits):
        nominal_s = min(60.0, 0.5 * 2 ** max(0, number - 3))
        assert 0.9 * nominal_s <= wait_s <= 1.1 * nominal_s + 0.01
    assert waits[-1] > 50.0
    tried = {route_of(packet) for _, packet, _ in probes(pair.alpha)}
    assert len(tried) == 4


def test_every_probe_describes_itself_and_stays_small() -> None:
    pair = moved()
    assert probes(pair.alpha)
    for site in pair.sites.values():
        nonces = []
        for _, packet, probe in probes(site):
            first = probe.sent[0]
            assert (first.src, first.dst) == (packet[8:24], packet[24:40])
            assert len(probe.sent) <= RECORDS_MAX
            assert len(probe.received) <= RECORDS_MAX
            assert len(packet) <= 1280
            nonces.append(first.nonce)
        assert len(set(nonces)) == len(nonces)


def test_unproved_locators_get_no_packet() -> None:
    pair = Pair()

    def without_isp2(ulid: Address) -> NameData:
        return NameData(NAMES[ulid], frozenset({ulid}), name_data("x", ulid, "a").capability)

    pair.data = without_isp2
    pair.establish()
    pair.cut_provider("b", 1)
    pair.wire.clear()
    pair.stream(20.0, both=True)
    assert all(packet[24:40] != B1_ISP2 for _, packet in pair.wire if packet[8:24] != B1)
    assert not pair.alpha.context.rehomings


def test_payload_goes_nowhere_before_a_probe_was_answered() -> None:
    for failure in FAILURES.values():
        pair = established()
        pair.cut |= failure
        pair.wire.clear()
        pair.stream(12.0, both=True)
        answered: set[tuple[bytes, bytes]] = {(A1, B1), (B1, A1)}
        reported: set[tuple[bytes, bytes]] = set()
        for _, packet in pair.wire:
            if is_control(packet):
                for _, _, probe in find_messages([(0.0, packet)], Probe):
                    reported |= {(r.src, r.dst) for r in probe.received}
            else:
                assert (packet[8:24], packet[24:40]) in answered | reported


def probe_to(pair: Pair, state: ProbeState, *, received: tuple[ProbeRecord, ...] = ()) -> Probe:
    record = ProbeRecord(B1, A1, 99)
    return Probe(pair.alpha.context.local_tag, state, (record,), received)


def test_a_probe_that_lies_about_itself() -> None:
    pair = established()
    probe = probe_to(pair, ProbeState.EXPLORING)
    assert pair.inject(pair.alpha, control(B1_ISP2, A1, probe)) is Reason.BAD_FIELD
    assert pair.inject(pair.alpha, control(B1, A1_ISP2, probe)) is Reason.BAD_FIELD
    assert pair.alpha.context.reap_state is ReapState.OPERATIONAL
    assert pair.inject(pair.alpha, control(B1, A1, probe)) is CONSUMED
    assert pair.alpha.context.reap_state.name == "INBOUND_OK"


def test_a_probe_from_outside_the_set() -> None:
    pair = established()
    record = ProbeRecord(EVE, A1, 1)
    probe = Probe(pair.alpha.context.local_tag, ProbeState.EXPLORING, (record,))
    assert pair.inject(pair.alpha, control(EVE, A1, probe)) is Reason.NO_CONTEXT
    assert pair.alpha.context.reap_state is ReapState.OPERATIONAL


@pytest.mark.parametrize("state", list(ProbeState))
def test_reports_of_probes_that_nobody_sent_move_nothing(state: ProbeState) -> None:
    pair = established()
    for received in ((ProbeRecord(A1_ISP2, B1_ISP2, 5),), (ProbeRecord(A1, EVE, 5),)):
        pair.inject(pair.alpha, control(B1, A1, probe_to(pair, state, received=received)))
    assert pair.alpha.context.route == A1 + B1
    pair.run(5.0)
    assert pair.alpha.context.rehomings == 0


def test_a_keepalive_with_a_right_tag_from_elsewhere_stops_no_timer() -> None:
    pair = established()
    pair.talk(pair.alpha)
    due_s = pair.alpha.context.send_due_s
    assert due_s
    keepalive = Keepalive(pair.alpha.context.local_tag)
    assert pair.inject(pair.alpha, control(EVE, A1, keepalive)) is Reason.NO_CONTEXT
    assert pair.alpha.context.send_due_s == due_s
    assert pair.inject(pair.alpha, control(B1, A1, keepalive)) is CONSUMED
    assert pair.alpha.context.send_due_s == 0.0


def test_an_exploration_is_forgotten_in_the_end() -> None:
    pair = moved()
    pair.run(5.0)
    assert pair.alpha.context.exploration is not None
    pair.run(70.0)
    assert pair.alpha.context.exploration is None


# --- uplinks -----------------------------------------------------------------------------


def uplink_down(pair: Pair, site: Site, name: str = "isp1") -> None:
    pair.cut_provider(site.letter, int(name[-1]))
    site.engine.handle_uplink(name, up=False, mtu=1500, now=pair.clock.now)
    pair.settle(site)


@pytest.mark.parametrize("both_ways", [False, True])
@pytest.mark.parametrize("letter", ["a", "b"])
def test_an_uplink_that_goes_down_moves_its_contexts_at_once(letter: str, both_ways: bool) -> None:
    pair = established()
    pair.stream(2.0, both=both_ways)
    start_s = pair.clock.now
    uplink_down(pair, pair.sites[letter])
    arrived = pair.stream(10.0, both=both_ways)
    assert longest_gap_s(arrived, start_s, pair.clock.now) <= 0.7
    assert pair.sites[letter].context.route[:16] == (A1_ISP2 if letter == "a" else B1_ISP2)


def test_packets_on_another_path_do_not_call_the_suspicion_off() -> None:
    """A packet that came in before its turn put an end to the test of a lost uplink.

    It may come over another of our uplinks and says nothing about the lost one.
    """
    pair = established()
    pair.alpha.engine.handle_uplink("isp1", up=False, mtu=1500, now=pair.clock.now)
    pair.settle(pair.alpha)
    pair.cut.add(("a", 1, "out"))
    pair.talk(pair.beta)
    pair.inject(pair.alpha, pair.talk(pair.beta))
    pair.run(0.5)
    assert pair.alpha.context.route[:16] == A1_ISP2


def test_what_reports_nothing_ends_no_search_from_a_pair_that_is_known_dead() -> None:
    """Both ends search; the peer heard something of us, its acknowledgement of an Update made it
    InboundOk, and its Probe says so before it heard any of ours. We stayed on the dead pair.
    """
    pair = established()
    context = pair.alpha.context
    uplink_down(pair, pair.alpha)
    pair.cut_provider("b", 1)
    pair.run(0.01)
    (_, _, ours), *_ = probes(pair.alpha)
    for number, received in enumerate(((), (), ours.sent[:1])):
        assert context.reap_state is not ReapState.OPERATIONAL and not context.rehomings
        record = ProbeRecord(B1, A1_ISP2, number)
        probe = Probe(context.local_tag, ProbeState.INBOUND_OK, (record,), received)
        pair.inject(pair.alpha, control(B1, A1_ISP2, probe))
    assert context.reap_state is ReapState.OPERATIONAL
    assert context.route == A1_ISP2 + B1


def test_when_nothing_better_is_left_the_path_is_kept() -> None:
    pair = established()
    for name in ("isp1", "isp2"):
        uplink_down(pair, pair.alpha, name)
    pair.stream(30.0, both=True)
    assert pair.alpha.context.reap_state is ReapState.EXPLORING
    assert pair.alpha.context.rehomings == 0
    pair.cut.clear()
    pair.alpha.engine.handle_uplink("isp2", up=True, mtu=1500, now=pair.clock.now)
    pair.settle(pair.alpha)
    start_s = pair.clock.now
    arrived = pair.stream(5.0, both=True)
    assert arrived[0] - start_s < 1.0

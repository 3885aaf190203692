"""How many probes a context sends, at the most: RFC 5534 §4.3, whatever the network does."""

from __future__ import annotations

import pytest

from m6proxy.shim.transitions import ReapState
from m6proxy.wire.message import Keepalive, Probe, ProbeRecord, ProbeState, UpdateRequest
from m6proxy.wire.options import KeepaliveTimeout
from tests.harness.packets import control, find_messages
from tests.harness.pair import A1, B1, Pair, Site
from tests.shim.moved import established
from tests.shim.test_reap import FAILURES, both

WINDOW_S = 2.0
OWN_IN_WINDOW = 5
"""Half a second apart, less a tenth: what fits, with both ends of the window."""


def times(packets: list[tuple[float, bytes]]) -> list[float]:
    return [when for when, _, _ in find_messages(packets, Probe)]


def assert_rate(pair: Pair, site: Site) -> None:
    """Each probe is one of our own rate, or the answer to one of the peer."""
    sent, heard = times(site.sent), times(pair.other(site).sent)
    for start_s in sent:
        own = sum(start_s <= when < start_s + WINDOW_S for when in sent)
        answered = sum(start_s - 0.1 <= when < start_s + WINDOW_S for when in heard)
        assert own <= OWN_IN_WINDOW + answered


@pytest.mark.parametrize("failure", FAILURES)
def test_never_more_than_the_rate_and_one_for_each_of_the_peer(failure: str) -> None:
    pair = established()
    pair.stream(1.0, both=True)
    pair.cut |= FAILURES[failure]
    pair.stream(15.0, both=True)
    for site in pair.sites.values():
        assert times(site.sent)
        assert_rate(pair, site)


def test_a_search_that_nothing_answers_slows_down() -> None:
    pair = established()
    pair.cut = set().union(*(both(letter, n) for letter in "ab" for n in (1, 2)))
    pair.stream(300.0, both=True, interval_s=0.5)
    for site in pair.sites.values():
        assert len(times(site.sent)) <= 15


@pytest.mark.parametrize("period_s", [0.3, 1.0, 4.0, 7.0])
def test_a_flapping_provider_does_not_raise_the_rate(period_s: float) -> None:
    pair = established()
    for _ in range(int(40 / period_s / 2)):
        pair.cut_provider("a", 1)
        pair.stream(period_s, both=True, interval_s=0.1)
        pair.cut.clear()
        pair.stream(period_s, both=True, interval_s=0.1)
    for site in pair.sites.values():
        assert_rate(pair, site)
        assert site.context.rehomings <= 1
    arrived = pair.stream(2.0, both=True)
    assert arrived


def test_answers_that_report_nothing_of_ours_are_no_storm() -> None:
    """Each end took the other's answer for the next question, faster than any report came.

    On a path of four seconds that doubles packets the two sent a thousand probes a second.
    """
    pair = established()
    tag = pair.alpha.context.local_tag
    strange = (ProbeRecord(A1, B1, 12345),)
    pair.lose = lambda packet: bool(find_messages([(0.0, packet)], Probe))
    for number in range(20):
        heard = Probe(tag, ProbeState.INBOUND_OK, (ProbeRecord(B1, A1, number),), strange)
        pair.inject(pair.alpha, control(B1, A1, heard))
    assert pair.alpha.context.reap_state is ReapState.INBOUND_OK
    assert len(find_messages(pair.alpha.sent, Probe)) == 2, "one begins, one answers"
    pair.run(0.6)
    assert len(find_messages(pair.alpha.sent, Probe)) == 3, "then it is the timer's turn"


@pytest.mark.parametrize("letter", ["a", "b"])
def test_uplink_events_that_flap_do_not_raise_the_rate(letter: str) -> None:
    pair = established()
    site = pair.sites[letter]
    for number in range(60):
        site.engine.handle_uplink("isp1", up=number % 2 == 1, mtu=1500, now=pair.clock.now)
        pair.settle(site)
        pair.stream(0.1, both=True)
    for each in pair.sites.values():
        assert_rate(pair, each)


@pytest.mark.parametrize(("told_s", "per_minute"), [(0, 190), (1, 190), (3, 65), (65_535, 3)])
def test_no_keepalive_timeout_of_a_peer_makes_a_flood(told_s: int, per_minute: int) -> None:
    pair = established()
    tag = pair.beta.context.local_tag
    update = UpdateRequest(tag, 5, (KeepaliveTimeout(told_s),))
    pair.inject(pair.beta, control(A1, B1, update))
    pair.run(1.0)
    pair.beta.sent.clear()
    pair.lose = lambda packet: bool(find_messages([(0.0, packet)], Probe))
    pair.alpha.context.send_timeout_s = 1e6
    pair.stream(60.0, interval_s=0.05)
    assert len(find_messages(pair.beta.sent, Keepalive)) <= per_minute

"""Going back to a better pair: when, how slowly, and when not."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest

from m6proxy.shim.core import ShimSettings
from m6proxy.shim.effects import What
from m6proxy.shim.engine import Engine
from m6proxy.shim.failback import ANSWERS_NEEDED, HOLD_FACTOR_MAX
from m6proxy.shim.policy import FailbackMode
from m6proxy.shim.transitions import ReapState
from m6proxy.wire.message import Probe
from tests.harness.entropy import SeededEntropy
from tests.harness.packets import find_messages, tcp
from tests.harness.pair import A1, A1_ISP2, B1, B1_ISP2, Pair, Site, longest_gap_s

HOLD_S = 20.0


def on_backup(mode: FailbackMode = FailbackMode.HARD, *, hold_s: float = HOLD_S) -> Pair:
    """Alpha had to leave its first provider, which is still dead."""
    pair = Pair()
    for seed, site in enumerate(pair.sites.values()):
        site.settings = replace(site.settings, failback=mode, failback_hold_s=hold_s)
        site.engine = Engine(site.settings, SeededEntropy(seed))
    pair.establish()
    pair.cut_provider("a", 1)
    pair.stream(8.0, both=True, interval_s=0.1)
    assert pair.alpha.context.route == A1_ISP2 + B1
    assert pair.beta.context.route == B1 + A1_ISP2
    return pair


def trials(pair: Pair, site: Site) -> list[float]:
    """When the site's probes that test a better pair went out."""
    better = {"a": (A1, B1), "b": (B1, A1)}[site.letter]
    return [
        when
        for when, packet, probe in find_messages(site.sent, Probe)
        if (packet[8:24], packet[24:40]) == better and not probe.received and probe.state == 2
    ]


def forget(pair: Pair) -> None:
    for site in pair.sites.values():
        site.sent.clear()
        site.reports.clear()


def test_both_ends_go_back_after_the_hold_time_and_nothing_is_lost() -> None:
    pair = on_backup(hold_s=HOLD_S)
    pair.cut.clear()
    forget(pair)
    start_s = pair.clock.now
    arrived = pair.stream(HOLD_S * 3.5, both=True, interval_s=0.1)
    assert longest_gap_s(arrived, start_s, pair.clock.now) < 0.2
    for site in pair.sites.values():
        assert site.context.route == site.context.outbound_key
        assert site.context.wire_addresses is None
        assert not site.what(What.SILENCE)
        assert not site.what(What.PEER_EXPLORES)
        times = trials(pair, site)
        in_a_row = times[-ANSWERS_NEEDED:]
        assert in_a_row[-1] - in_a_row[0] >= HOLD_S * (ANSWERS_NEEDED - 1) / ANSWERS_NEEDED
    assert len(set(arrived)) == len(arrived)


@pytest.mark.parametrize("mode", [FailbackMode.NEVER, FailbackMode.SOFT])
def test_without_the_policy_a_context_stays(mode: FailbackMode) -> None:
    pair = on_backup(mode)
    pair.cut.clear()
    forget(pair)
    pair.stream(HOLD_S * 4, both=True, interval_s=0.2)
    assert pair.alpha.context.route == A1_ISP2 + B1
    assert pair.alpha.context.failback is None
    assert not find_messages(pair.alpha.sent, Probe)


def test_a_path_is_not_left_for_one_that_does_not_answer() -> None:
    pair = on_backup()
    forget(pair)
    start_s = pair.clock.now
    arrived = pair.stream(HOLD_S * 6, both=True, interval_s=0.2)
    assert pair.alpha.context.route == A1_ISP2 + B1
    assert longest_gap_s(arrived, start_s, pair.clock.now) < 0.5
    times = trials(pair, pair.alpha)
    waits = [later - earlier for earlier, later in pairwise(times)]
    assert len(waits) >= 3
    assert all(later > earlier * 1.5 for earlier, later in pairwise(waits))
    assert pair.alpha.context.reap_state is ReapState.OPERATIONAL


def test_the_hold_time_grows_to_a_limit() -> None:
    pair = on_backup(hold_s=10.0)
    pair.stream(900.0, both=True, interval_s=1.0)
    failback = pair.alpha.context.failback
    assert failback is not None
    assert failback.hold_s == 10.0 * HOLD_FACTOR_MAX


@pytest.mark.parametrize("way", ["in", "out"])
def test_a_pair_that_works_one_way_is_used_that_way(way: str) -> None:
    pair = on_backup()
    pair.cut = {("a", 1, way)}
    start_s = pair.clock.now
    arrived = pair.stream(HOLD_S * 5, both=True, interval_s=0.1)
    assert longest_gap_s(arrived, start_s, pair.clock.now) < 0.3
    alpha_back = way == "in"
    assert (pair.alpha.context.route == A1 + B1) is alpha_back
    assert (pair.beta.context.route == B1 + A1) is not alpha_back


def test_a_flapping_provider_moves_nothing() -> None:
    """It comes and goes faster than the hold time: each outage starts the count again."""
    pair = on_backup()
    forget(pair)
    start_s = pair.clock.now
    for _ in range(10):
        pair.cut.clear()
        pair.stream(HOLD_S * 0.5, both=True, interval_s=0.2)
        pair.cut_provider("a", 1)
        pair.stream(HOLD_S * 0.4, both=True, interval_s=0.2)
    assert not pair.alpha.what(What.REHOMED)
    assert not pair.beta.what(What.REHOMED)
    assert pair.clock.now - start_s > HOLD_S * 8


def test_who_has_to_leave_again_waits_twice_as_long() -> None:
    pair = on_backup()
    pair.cut.clear()
    while pair.alpha.context.route != A1 + B1:
        pair.stream(0.5, both=True, interval_s=0.1)
    pair.cut_provider("a", 1)
    pair.stream(8.0, both=True, interval_s=0.1)
    assert pair.alpha.context.route == A1_ISP2 + B1
    failback = pair.alpha.context.failback
    assert failback is not None
    assert failback.hold_s >= 2 * HOLD_S


def test_who_stays_long_enough_has_nothing_left_of_it() -> None:
    pair = on_backup()
    pair.cut.clear()
    pair.stream(HOLD_S * 6, both=True, interval_s=0.2)
    for site in pair.sites.values():
        assert site.context.failback is None


def test_an_uplink_that_is_down_is_not_tested() -> None:
    pair = on_backup()
    pair.alpha.engine.handle_uplink("isp1", up=False, mtu=1500, now=pair.clock.now)
    pair.settle(pair.alpha)
    pair.stream(2.0, both=True)
    forget(pair)
    pair.stream(HOLD_S * 3, both=True, interval_s=0.2)
    assert not trials(pair, pair.alpha)
    pair.cut.clear()
    pair.alpha.engine.handle_uplink("isp1", up=True, mtu=1500, now=pair.clock.now)
    pair.settle(pair.alpha)
    pair.stream(HOLD_S * 2, both=True, interval_s=0.2)
    assert pair.alpha.context.route == A1 + B1


def test_an_idle_context_is_not_tested() -> None:
    pair = on_backup()
    pair.cut.clear()
    pair.run(HOLD_S * 1.5)
    forget(pair)
    pair.run(HOLD_S * 3)
    assert not pair.alpha.sent
    pair.stream(HOLD_S * 2, both=True, interval_s=0.2)
    assert pair.alpha.context.route == A1 + B1


def test_traffic_one_way_goes_back_too() -> None:
    pair = on_backup()
    pair.cut.clear()
    forget(pair)
    start_s = pair.clock.now
    arrived = pair.stream(HOLD_S * 4, interval_s=0.1)
    assert longest_gap_s(arrived, start_s, pair.clock.now) < 0.3
    assert pair.alpha.context.route == A1 + B1
    assert not pair.alpha.what(What.SILENCE)
    assert not pair.beta.what(What.SILENCE)


def test_the_next_better_pair_when_the_best_stays_dead() -> None:
    pair = on_backup()
    pair.cut_provider("b", 1)
    pair.stream(10.0, both=True, interval_s=0.1)
    assert pair.alpha.context.route == A1_ISP2 + B1_ISP2
    pair.cut = {("b", 1, "in"), ("b", 1, "out")}
    pair.stream(HOLD_S * 15, both=True, interval_s=0.2)
    assert pair.alpha.context.route == A1 + B1_ISP2
    assert pair.beta.context.route == B1_ISP2 + A1


def test_a_recovered_context_of_the_restarted_end_goes_back() -> None:
    pair = on_backup()
    pair.restart(pair.beta)
    pair.stream(3.0, both=True, interval_s=0.1)
    pair.cut.clear()
    pair.stream(HOLD_S * 4, both=True, interval_s=0.2)
    assert pair.beta.context.route == B1 + A1


def test_a_context_that_began_elsewhere_goes_to_its_ulids() -> None:
    """Alpha's first provider was dead when the session began."""

    def adjust(settings: ShimSettings) -> ShimSettings:
        return replace(
            settings,
            hold_first_packet_s=1.0,
            failback=FailbackMode.HARD,
            failback_hold_s=HOLD_S,
        )

    pair = Pair(adjust=adjust)
    pair.cut_provider("a", 1)
    pair.alpha.engine.handle_uplink("isp1", up=False, mtu=1500, now=pair.clock.now)
    pair.host_sends(pair.alpha, tcp(A1, B1, flags=0x02))
    pair.run(1.0)
    assert pair.alpha.context.route == A1_ISP2 + B1
    pair.cut.clear()
    pair.alpha.engine.handle_uplink("isp1", up=True, mtu=1500, now=pair.clock.now)
    pair.settle(pair.alpha)
    pair.stream(HOLD_S * 4, both=True, interval_s=0.2)
    for site in pair.sites.values():
        assert site.context.route == site.context.outbound_key

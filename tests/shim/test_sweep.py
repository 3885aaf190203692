"""An uplink event reaches every context, at the configured rate, whatever happens meanwhile."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m6proxy.names import Address
from m6proxy.shim.context import Context
from m6proxy.shim.engine import EXPIRED_AT_ONCE
from m6proxy.shim.pace import CATCH_UP_S
from m6proxy.shim.policy import EstablishPolicy
from m6proxy.shim.sweep import AT_ONCE, TICK_S
from m6proxy.shim.transitions import ReapState
from m6proxy.wire.message import Probe, UpdateRequest
from tests.harness.packets import find_messages, tcp
from tests.harness.pair import A1, A1_ISP2, B1, Pair, Site, name_data

RATE_PER_S = 40.0


def crowd(hosts: int = 60, *, rate_per_s: float = RATE_PER_S, seed: int = 1) -> Pair:
    """So many hosts of alpha have a context with b1."""
    pair = Pair(
        seed=seed,
        policy=EstablishPolicy(after_packets=1),
        requests_per_s=1e6,
        adjust=lambda settings: replace(settings, probes_per_s=rate_per_s),
    )
    pair.data = lambda ulid: name_data(_name(ulid), ulid, "ab"[ulid[5] >= 0xB0])
    pair.names[B1] = _name(B1)
    for number in range(1, hosts + 1):
        pair.names[_host(number)] = _name(_host(number))
        pair.host_sends(pair.alpha, tcp(_host(number), B1))
        pair.run(0.001)
    pair.run(40.0)
    assert sum(context.carries for context in pair.alpha.engine.contexts()) == hosts
    for site in pair.sites.values():
        site.sent.clear()
    return pair


def _host(number: int) -> Address:
    return A1[:14] + number.to_bytes(2)


def _name(ulid: Address) -> str:
    return f"h{int.from_bytes(ulid[14:])}"


def event(pair: Pair, name: str, *, up: bool) -> None:
    """The kernel of alpha says so, and it is so."""
    if up:
        pair.cut -= {("a", int(name[-1]), "in"), ("a", int(name[-1]), "out")}
    else:
        pair.cut_provider("a", int(name[-1]))
    pair.alpha.engine.handle_uplink(name, up=up, mtu=1500, now=pair.clock.now)
    pair.settle(pair.alpha)


def searches(site: Site) -> list[float]:
    """When probes went out that answer nothing."""
    return [when for when, _, probe in find_messages(site.sent, Probe) if probe.state == 1]


def assert_paced(site: Site, rate_per_s: float) -> None:
    times = searches(site)
    for first, start_s in enumerate(times):
        for last in range(first, len(times)):
            window_s = times[last] - start_s
            assert last - first + 1 <= rate_per_s * (window_s + CATCH_UP_S) + 1.001


def off_the_first(context: Context) -> bool:
    return context.route[:6] == A1_ISP2[:6] and context.reap_state is ReapState.OPERATIONAL


def contexts(site: Site) -> list[Context]:
    return list(site.engine.contexts())


@given(
    st.lists(
        st.tuples(st.sampled_from(["isp1", "isp2"]), st.floats(0.0, 2.0)), min_size=1, max_size=8
    ),
    st.sampled_from([7.0, 40.0, 1000.0]),
)
@settings(max_examples=20, deadline=None)
def test_never_more_than_the_rate_and_all_arrive(
    changes: list[tuple[str, float]], rate_per_s: float
) -> None:
    """Events in any order, the next before the one before is worked off: all end on what works."""
    pair = crowd(30, rate_per_s=rate_per_s)
    state = {"isp1": True, "isp2": True}
    for name, wait_s in changes:
        state[name] = not state[name]
        event(pair, name, up=state[name])
        pair.run(wait_s)
    for name, up in (("isp1", False), ("isp2", True)):
        if state[name] is not up:
            event(pair, name, up=up)
    pair.run(90.0)
    assert_paced(pair.alpha, rate_per_s)
    assert all(off_the_first(context) for context in contexts(pair.alpha))
    told = {context.peer_locators[0].broken for context in contexts(pair.beta)}
    assert told == {True}


def test_all_contexts_explore_at_the_rate() -> None:
    pair = crowd(60)
    start_s = pair.clock.now
    event(pair, "isp1", up=False)
    pair.run(0.5)
    moved = sum(off_the_first(context) for context in contexts(pair.alpha))
    assert 15 <= moved <= 21
    pair.run(1.5)
    assert all(off_the_first(context) for context in contexts(pair.alpha))
    times = searches(pair.alpha)
    assert len(times) == 60
    assert times[-1] - start_s == pytest.approx(60 / RATE_PER_S, rel=0.05)
    assert_paced(pair.alpha, RATE_PER_S)


def test_probes_that_are_repeated_keep_to_the_rate_too() -> None:
    """Nothing works: every context has to probe again after half a second."""
    pair = crowd(60)
    for number in (1, 2):
        pair.cut_provider("b", number)
    event(pair, "isp1", up=False)
    pair.run(20.0)
    assert len(searches(pair.alpha)) > 2 * 60
    assert_paced(pair.alpha, RATE_PER_S)
    pair.cut.clear()
    pair.run(70.0)
    assert all(off_the_first(context) for context in contexts(pair.alpha))


def test_contexts_with_traffic_come_first() -> None:
    pair = crowd(60)
    busy = {_host(number) for number in (58, 59, 60)}
    for host in busy:
        pair.host_sends(pair.alpha, tcp(host, B1))
    event(pair, "isp1", up=False)
    pair.run(0.2)
    early = {c.outbound_key[:16] for c in contexts(pair.alpha) if off_the_first(c)}
    assert busy <= early
    assert len(early) < 15


def test_those_that_need_not_move_are_told_last() -> None:
    pair = crowd(40)
    for context in contexts(pair.alpha)[::2]:
        context.route = A1_ISP2[:6] + context.outbound_key[6:]
    event(pair, "isp1", up=False)
    pair.run(0.45)
    assert len(searches(pair.alpha)) >= 15
    assert len(find_messages(pair.alpha.sent, UpdateRequest)) <= 20
    pair.run(1.0)
    assert len(searches(pair.alpha)) == 20
    assert len(find_messages(pair.alpha.sent, UpdateRequest)) == 40


def test_an_uplink_that_comes_back_meanwhile_stops_the_move() -> None:
    """Who was not reached stays, without a probe, and the peers know in the end that it is up."""
    pair = crowd(60)
    event(pair, "isp1", up=False)
    pair.run(0.5)
    event(pair, "isp1", up=True)
    probed = len(searches(pair.alpha))
    assert probed <= 0.5 * RATE_PER_S + 2
    pair.run(10.0)
    assert len(searches(pair.alpha)) == probed
    stayed = [c for c in contexts(pair.alpha) if c.route == c.outbound_key]
    assert len(stayed) == 60 - probed
    assert not any(c.update for c in contexts(pair.alpha))
    assert not any(c.peer_locators[0].broken for c in contexts(pair.beta))


def test_a_second_event_meanwhile_starves_nobody() -> None:
    """The other uplink flaps twice a second while the first one's contexts still wait."""
    pair = crowd(60)
    event(pair, "isp1", up=False)
    for number in range(16):
        pair.run(0.25)
        pair.alpha.engine.handle_uplink(
            "isp2", up=True, mtu=1500 - number % 2 * 100, now=pair.clock.now
        )
        pair.settle(pair.alpha)
    assert all(off_the_first(context) for context in contexts(pair.alpha))
    assert {context.mtu for context in contexts(pair.alpha)} == {1400}
    assert_paced(pair.alpha, RATE_PER_S)


def test_one_call_reaches_only_the_first_of_many() -> None:
    """``handle_uplink`` took 57 us for each context: the packets of 100,000 waited six seconds."""
    pair = crowd(AT_ONCE + 60, rate_per_s=1000.0)
    engine, old = pair.alpha.engine, contexts(pair.alpha)[0].local_set.generation
    engine.handle_uplink("isp1", up=False, mtu=1500, now=pair.clock.now)
    assert engine.next_deadline() == pair.clock.now
    seen = [context for context in contexts(pair.alpha) if context.local_set.broken[0]]
    assert len(seen) == AT_ONCE
    engine.handle_timer(pair.clock.now)
    assert all(context.local_set.generation != old for context in contexts(pair.alpha))
    pair.settle(pair.alpha)
    pair.run(AT_ONCE / 1000.0 + TICK_S)
    assert_paced(pair.alpha, 1000.0)


@pytest.mark.parametrize("late_s", [0.0, 0.001, 0.02, 0.2, 0.44])
def test_a_search_that_its_timer_went_on_with_is_not_probed_twice(late_s: float) -> None:
    """The timer's probe went out after the event, and the sweep's right behind it."""
    pair = crowd(30, rate_per_s=1000.0)
    event(pair, "isp1", up=False)
    pair.cut_provider("a", 2)
    pair.run(2.0 + late_s)
    for site in pair.sites.values():
        site.sent.clear()
    pair.alpha.engine.handle_uplink("isp1", up=True, mtu=1500, now=pair.clock.now)
    pair.settle(pair.alpha)
    pair.run(0.4)
    tags = [probe.receiver_tag for _, _, probe in find_messages(pair.alpha.sent, Probe)]
    assert sorted(tags) == sorted(set(tags))


def test_contexts_that_end_meanwhile_are_passed_over() -> None:
    pair = crowd(20)
    event(pair, "isp1", up=False)
    pair.alpha.engine.close_all(pair.clock.now)
    pair.settle(pair.alpha)
    pair.run(5.0)
    assert not any(context.carries for context in contexts(pair.alpha))
    assert len(searches(pair.alpha)) <= 2


def test_one_call_expires_only_some_of_many() -> None:
    """Everything that was due came in one call: 250 ms in which no packet passed."""
    pair = crowd(EXPIRED_AT_ONCE + 30)
    engine, now = pair.alpha.engine, pair.clock.now + 400.0
    engine.handle_timer(now)
    assert sum(context.carries for context in contexts(pair.alpha)) == 30
    due_s = engine.next_deadline()
    assert due_s is not None and due_s <= now
    engine.handle_timer(now)
    assert not any(context.carries for context in contexts(pair.alpha))

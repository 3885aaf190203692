"""Packets that only the kernel sees: timers, counters and re-homing as if the engine had."""

from __future__ import annotations

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from m6proxy.names import UlidPair
from m6proxy.shim import flows, lifecycle
from m6proxy.shim.context import Context
from m6proxy.shim.demux import DemuxMode
from m6proxy.shim.effects import Effect, InstallFlow, What
from m6proxy.shim.policy import EstablishPolicy, Selector, Traffic
from m6proxy.shim.transitions import Input, ReapState
from tests.harness.packets import tcp
from tests.harness.pair import A1, A1_ISP2, B1, B1_ISP2, Pair, Site, longest_gap_s
from tests.shim.moved import moved
from tests.shim.test_forks import adjust

MODES = [
    (DemuxMode.EXTHDR,),
    (DemuxMode.FLOWLABEL, DemuxMode.EXTHDR),
    (DemuxMode.DSTOPT, DemuxMode.EXTHDR),
]
SEND_TIMEOUT_S = 3.0
UNEVEN_LATENCY_S = 0.010_371_3
"""No sum of the steps: one packet never arrives in the very moment in which another leaves,
when two times of last sight cannot tell which was first."""


def pair_of(*, kernel: bool) -> Pair:
    pair = Pair(kernel=kernel)
    pair.latency_s = lambda: UNEVEN_LATENCY_S
    pair.establish()
    pair.run(5.0)
    return pair


def timers(context: Context) -> tuple[float, ...]:
    return (
        context.send_due_s,
        context.keepalive_due_s,
        context.last_traffic_s,
        context.packets_out,
        context.packets_in,
        context.octets_out,
        context.octets_in,
    )


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.floats(0.001, 1.4), st.sampled_from("ab")), min_size=1, max_size=30))
def test_timers_are_those_that_the_packet_path_gives(steps: list[tuple[float, str]]) -> None:
    """Whatever goes to and fro: at every moment somebody looks, both engines agree."""
    seen, unseen = pair_of(kernel=False), pair_of(kernel=True)
    kernel = unseen.alpha.kernel
    assert kernel is not None
    before = kernel.moved
    for gap_s, letter in steps:
        for pair in (seen, unseen):
            pair.run(gap_s)
            pair.talk(pair.sites[letter], 100)
    for pair in (seen, unseen):
        pair.run(0.5)
    # beta's keepalives come at random times: one more or less is another story
    assume(len(seen.wire_control()) == len(unseen.wire_control()))
    unseen.alpha.engine.handle_all_activity(unseen.clock.now)
    assert kernel.moved > before
    a, b = seen.alpha.context, unseen.alpha.context
    assert (a.reap_state, a.last_traffic_s) == (b.reap_state, b.last_traffic_s)
    if a.reap_state is ReapState.OPERATIONAL and not seen.alpha.what(What.SILENCE):
        assert timers(b) == pytest.approx(timers(a), abs=SEND_TIMEOUT_S / 4)
        if not _keepalives(seen):
            assert timers(b) == timers(a), "no control message came between"


def _keepalives(pair: Pair) -> bool:
    return any(packet[42] & 0x7F == 66 for _, packet in pair.wire_control())


@pytest.mark.parametrize("demux", MODES, ids=lambda modes: modes[0].name.lower())
def test_a_re_homed_pair_needs_the_engine_no_more(demux: tuple[DemuxMode, ...]) -> None:
    pair = moved(demux=demux, kernel=True)
    for site in pair.sites.values():
        kernel = site.kernel
        assert kernel is not None
        rewritten, restored = site.engine.rewritten, site.engine.restored
        before, other = kernel.moved, pair.other(site)
        delivered = len(other.delivered)
        packets = [pair.talk(site, 100 + n) for n in range(20)]
        pair.run(0.1)
        assert [packet for _, packet in other.delivered[delivered:]] == packets
        assert kernel.moved >= before + 20
        assert (site.engine.rewritten, site.engine.restored) == (rewritten, restored)


def test_a_silent_failure_is_found_as_fast_as_by_the_packet_path() -> None:
    gaps = []
    for kernel in (False, True):
        pair = pair_of(kernel=kernel)
        pair.stream(5.0, both=True)
        start_s = pair.clock.now
        pair.cut_provider("a", 1)
        pair.cut_provider("b", 1)
        times = pair.stream(10.0, both=True)
        gaps.append(longest_gap_s(times, start_s, pair.clock.now))
    assert gaps[1] < gaps[0] + 0.3


def test_one_way_traffic_without_a_failure_moves_nothing() -> None:
    pair = pair_of(kernel=True)
    pair.stream(60.0, interval_s=0.2)
    for site in pair.sites.values():
        assert not site.what(What.SILENCE)
        assert site.context.route == site.context.outbound_key


def test_an_idle_context_ends_at_its_time_and_one_with_traffic_does_not() -> None:
    pair = pair_of(kernel=True)
    pair.stream(400.0, both=True, interval_s=2.0)
    assert pair.alpha.context.carries
    pair.run(280.0)
    assert pair.alpha.context.carries
    pair.run(60.0)
    assert not list(pair.alpha.engine.contexts())


def test_nobody_looks_at_a_quiet_context() -> None:
    pair = pair_of(kernel=True)
    flow = pair.alpha.context.flow
    assert flow is not None and not flow.look_due_s
    pair.talk(pair.alpha)
    assert flow.look_due_s, "the kernel reported the first packet"


def test_what_the_kernel_is_told_follows_the_context() -> None:
    pair = Pair(kernel=True, demux=MODES[1])
    told: list[InstallFlow] = []
    carry_out = pair.carry_out

    def note(site: Site, effect: Effect) -> None:
        if site is pair.alpha and isinstance(effect, InstallFlow):
            told.append(effect)
        carry_out(site, effect)

    pair.carry_out = note
    pair.establish()
    context = pair.alpha.context
    entry = told[-1].kernel
    assert entry is not None and not entry.slow
    assert tuple(told[-1].locators) == tuple(told[-1].ulids)
    assert dict(entry.tags) == {
        DemuxMode.EXTHDR: context.local_tag,
        DemuxMode.FLOWLABEL: context.label,
    }
    assert entry.peer_locators == (B1, B1_ISP2) and entry.local_locators == (A1, A1_ISP2)
    pair.run(1.0)
    count = len(told)
    pair.stream(2.0, both=True)
    flows.install(pair.alpha.engine._core, context)
    pair.settle(pair.alpha)
    assert len(told) == count, "packets change nothing, and what was told is not told again"
    pair.cut_provider("a", 1)
    pair.stream(8.0, both=True)
    entry = told[-1].kernel
    assert told[-1].locators.local == A1_ISP2
    assert entry is not None and (entry.uplink, entry.mode) == ("isp2", DemuxMode.FLOWLABEL)
    assert entry.label == context.peer_label
    pair.alpha.engine.handle_uplink("isp2", up=True, mtu=1400, now=pair.clock.now)
    pair.settle(pair.alpha)
    entry = told[-1].kernel
    assert entry is not None and entry.mtu == 1400


def test_a_context_that_ends_gives_its_slot_back() -> None:
    pair = moved(kernel=True)
    slots = pair.alpha.engine._core.slots
    assert slots is not None and len(slots.by_slot) == 1
    pair.run(2000)
    assert not slots.by_slot and pair.alpha.kernel is not None and not pair.alpha.kernel.flows


def test_without_a_slot_packets_come_through_the_engine() -> None:
    pair = Pair(kernel=True)
    for site in pair.sites.values():
        slots = site.engine._core.slots
        assert slots is not None
        slots._limit = 0
    pair.establish()
    assert pair.alpha.flows[pair.alpha.context.pair].kernel is None
    pair.cut_provider("a", 1)
    pair.cut_provider("b", 1)
    pair.stream(8.0, both=True, interval_s=0.1)
    before = len(pair.beta.delivered)
    packet = pair.talk(pair.alpha)
    pair.run(0.1)
    assert [arrived for _, arrived in pair.beta.delivered[before:]] == [packet]
    assert pair.alpha.kernel is not None and not pair.alpha.kernel.moved


@pytest.mark.parametrize(
    ("traffic", "asked"),
    [
        (Traffic(3, 2048, 999.0, True, True, False), True),
        (Traffic(3, 2047, 999.0, True, True, False), False),
        (Traffic(3, 2048, 999.0, False, True, False), False),
        (Traffic(2, 100, 985.0, True, True, False), True),
        (Traffic(2, 100, 999.0, True, False, True), True),
        (Traffic(2, 100, 999.0, True, True, True), False),
    ],
    ids=["octets", "too few", "only received", "long", "silent start", "answered"],
)
def test_what_the_kernel_counted_makes_a_pair_ripe(traffic: Traffic, asked: bool) -> None:
    pair = Pair(kernel=True)
    pair.alpha.engine.handle_ripe(UlidPair(A1, B1), traffic, pair.clock.now)
    pair.settle(pair.alpha)
    assert bool(pair.alpha.what(What.ASKED)) is asked
    if asked:
        pair.run(0.5)
        assert pair.alpha.context.carries


def test_a_pair_that_must_not_have_a_context_is_not_ripe() -> None:
    never = EstablishPolicy(never=(Selector.parse("2001:db8:b1::/48"),))
    pair = Pair(kernel=True, policy=never)
    traffic = Traffic(9, 9999, 900.0, True, True, False)
    pair.alpha.engine.handle_ripe(UlidPair(A1, B1), traffic, pair.clock.now)
    assert not pair.alpha.engine.take_effects()


def test_an_unanswered_segment_is_sent_once_more_over_the_new_path() -> None:
    """Decision 9: what TCP sends again while nothing answers comes through the engine."""
    pair = pair_of(kernel=True)
    pair.stream(2.0, both=True)
    pair.cut_provider("a", 1)
    segment = tcp(A1, B1, b"again")
    times = []
    for wait_s in (0.2, 0.4, 0.8, 1.6, 3.2):
        pair.host_sends(pair.alpha, segment)
        times.append(pair.clock.now)
        pair.run(wait_s)
    arrived = [when for when, packet in pair.beta.delivered if packet == segment]
    assert arrived and arrived[0] == pytest.approx(pair.alpha.context.rehomed_s, abs=0.05)
    flow = pair.alpha.context.flow
    assert flow is not None
    pair.stream(1.0, both=True)
    assert not flow.doubted


def test_a_segment_that_was_repeated_early_waits_for_the_new_path_too() -> None:
    """The sender's timer had doubled: nothing came between 1.4 s and the move after 3 s."""
    pair = pair_of(kernel=True)
    pair.stream(2.0, both=True)
    pair.cut_provider("a", 1)
    segment = tcp(A1, B1, b"again")
    for wait_s in (0.2, 0.4, 0.8, 4.0):
        pair.host_sends(pair.alpha, segment)
        pair.run(wait_s)
    arrived = [when for when, packet in pair.beta.delivered if packet == segment]
    assert arrived and arrived[0] == pytest.approx(pair.alpha.context.rehomed_s, abs=0.05)


def test_while_an_answer_is_overdue_the_host_is_heard_by_the_engine() -> None:
    pair = pair_of(kernel=True)
    pair.stream(2.0, both=True)
    context = pair.alpha.context

    def is_watched() -> bool:
        entry = pair.alpha.flows[context.pair].kernel
        assert entry is not None
        return entry.watched

    pair.cut_provider("a", 1)
    for seconds, watched in ((1.0, False), (1.5, True)):
        pair.stream(seconds, both=True)
        assert is_watched() is watched and not context.rehomings
    pair.stream(8.0, both=True)
    assert context.rehomings and not is_watched()


def test_a_fork_that_ends_leaves_its_pair_to_the_kernel() -> None:
    pair = Pair(adjust=adjust, kernel=True)
    for _ in range(3):
        pair.talk(pair.alpha)
        pair.run(0.2)
    core = pair.alpha.engine._core
    main, fork = sorted(core.contexts, key=lambda context: context.fii)
    lifecycle.remove(core, fork, Input.IDLE_TIMEOUT, pair.clock.now)
    pair.settle(pair.alpha)
    assert list(core.contexts) == [main] and main.pair in pair.alpha.flows


def test_a_one_way_flow_with_keepalives_is_never_doubted() -> None:
    pair = pair_of(kernel=True)
    kernel = pair.alpha.kernel
    assert kernel is not None
    pair.stream(1.0)
    before, rewritten = kernel.moved, pair.alpha.context.packets_out
    count = len(pair.stream(30.0, interval_s=0.1))
    assert kernel.moved == before + count
    pair.alpha.engine.handle_all_activity(pair.clock.now)
    assert pair.alpha.context.packets_out > rewritten

"""A daemon that dies and a new one that takes over what the kernel still has."""

from __future__ import annotations

from dataclasses import replace

import pytest

from m6proxy.names import LocatorPair, UlidPair, address
from m6proxy.shim.adopt import LeftContext
from m6proxy.shim.demux import DemuxMode
from m6proxy.shim.effects import InstallFlow, What
from m6proxy.shim.engine import Engine
from m6proxy.shim.transitions import ReapState, State
from m6proxy.wire.message import UpdateAck, UpdateRequest
from tests.harness.entropy import SeededEntropy
from tests.harness.packets import find_messages, is_control
from tests.harness.pair import A1, B1, Pair, Site
from tests.shim.moved import moved

MODES = [
    (DemuxMode.EXTHDR,),
    (DemuxMode.FLOWLABEL, DemuxMode.EXTHDR),
    (DemuxMode.DSTOPT, DemuxMode.EXTHDR),
]


def left_of(flow: InstallFlow) -> LeftContext:
    """What a kernel knows of a flow."""
    entry = flow.kernel
    assert entry is not None
    tags = dict(entry.tags)
    return LeftContext(
        flow.ulids,
        flow.locators,
        entry.slot,
        tags[DemuxMode.EXTHDR],
        tags.get(DemuxMode.FLOWLABEL, 0),
        flow.peer_tag,
        entry.wanted,
        entry.label,
        entry.features,
        entry.peer_locators,
    )


def restart(pair: Pair, site: Site, *, down_s: float = 0.5) -> list[LeftContext]:
    """The daemon dies, its maps and programs go on, and another takes over."""
    kernel = site.kernel
    assert kernel is not None
    site.engine = Engine(site.settings, SeededEntropy(99), kernel.read)
    site.queued_timer_s = None
    end_s = pair.clock.now + down_s
    while pair.clock.now < end_s:
        pair.talk(pair.alpha, 100)
        pair.talk(pair.beta, 100)
        pair.run(0.05)
    left = [left_of(flow) for flow in kernel.flows.values()]
    assert site.engine.adopt(left, pair.clock.now) == len(left)
    pair.settle(site)
    return left


@pytest.mark.parametrize("demux", MODES, ids=lambda modes: modes[0].name.lower())
def test_nothing_is_lost_and_the_context_is_the_same(demux: tuple[DemuxMode, ...]) -> None:
    pair = moved(demux=demux, kernel=True)
    before = pair.alpha.context
    pair.run(0.1)
    arrived = [len(site.delivered) for site in (pair.alpha, pair.beta)]
    sent = len(pair.wire)
    restart(pair, pair.alpha)
    after = pair.alpha.context
    assert after is not before and after.state is State.ESTABLISHED
    for name in ("local_tag", "peer_tag", "route", "label", "peer_label", "peer_mode", "demux"):
        assert getattr(after, name) == getattr(before, name), name
    pair.stream(5.0, both=True, interval_s=0.05)
    pair.run(0.1)
    hosts = [packet for _, packet in pair.wire[sent:] if not is_control(packet)]
    got = 0
    for site, count in zip((pair.alpha, pair.beta), arrived, strict=True):
        got += len([packet for _, packet in site.delivered[count:] if packet[6] == 17])
        assert not any(when > pair.clock.now - 5.5 for when in site.what(What.SILENCE))
    assert got == len(hosts) > 200
    assert after.reap_state is ReapState.OPERATIONAL
    assert after.route == before.route


def test_the_peer_is_told_our_set_and_answers() -> None:
    pair = moved(kernel=True)
    restart(pair, pair.alpha)
    start_s = pair.clock.now
    pair.run(1.0)
    updates = [m for m in find_messages(pair.wire_control(), UpdateRequest) if m[0] >= start_s]
    acks = [m for m in find_messages(pair.wire_control(), UpdateAck) if m[0] >= start_s]
    assert len(updates) == len(acks) == 1
    assert pair.alpha.context.told_set is pair.alpha.context.local_set


def test_a_path_that_dies_later_is_left() -> None:
    pair = moved(kernel=True)
    restart(pair, pair.alpha)
    pair.stream(2.0, both=True, interval_s=0.1)
    pair.cut.clear()
    pair.cut_provider("a", 2)
    pair.cut_provider("b", 2)
    pair.stream(10.0, both=True, interval_s=0.1)
    before = len(pair.beta.delivered)
    packet = pair.talk(pair.alpha)
    pair.run(0.1)
    assert [got for _, got in pair.beta.delivered[before:]] == [packet]


def test_a_peer_that_died_too_is_found_out() -> None:
    pair = moved(kernel=True)
    restart(pair, pair.alpha)
    pair.restart(pair.beta)
    pair.run(1.0)
    assert pair.beta.context.carries, "the Update Request was answered with R1bis"


def test_an_idle_context_is_taken_over_without_a_search() -> None:
    pair = moved(kernel=True)
    pair.run(60.0)
    restart(pair, pair.alpha, down_s=0.0)
    pair.run(30.0)
    assert not [when for when in pair.alpha.what(What.SILENCE) if when > pair.clock.now - 60]
    assert pair.alpha.context.carries


@pytest.mark.parametrize(
    "change",
    [
        {"ulids": UlidPair(address("2001:db8:c::1"), B1)},
        {"ulids": UlidPair(A1, A1)},
        {"locators": LocatorPair(address("2001:db8:c::1"), B1)},
    ],
)
def test_what_does_not_fit_the_configuration_is_passed_over(change: dict[str, object]) -> None:
    pair = moved(kernel=True)
    (left,) = restart(pair, pair.alpha)
    engine = Engine(pair.alpha.settings, SeededEntropy(5), pair.alpha.kernel.read)  # type: ignore[union-attr]
    assert engine.adopt([replace(left, **change)], pair.clock.now) == 0  # type: ignore[arg-type]
    assert engine.adopt([left, left], pair.clock.now) == 1, "a pair, a tag and a slot only once"


def test_slots_that_were_free_stay_free() -> None:
    pair = moved(kernel=True)
    (left,) = restart(pair, pair.alpha)
    engine = Engine(pair.alpha.settings, SeededEntropy(5), pair.alpha.kernel.read)  # type: ignore[union-attr]
    engine.adopt([replace(left, slot=3)], pair.clock.now)
    slots = engine._core.slots
    assert slots is not None
    (context,) = engine.contexts()
    taken = [slots.take(context) for _ in range(4)]
    assert sorted(flow.slot for flow in taken if flow is not None) == [0, 1, 2, 4]

"""A daemon that dies and a new one that takes over what the kernel still has."""

from __future__ import annotations

from dataclasses import replace

import pytest

from m6proxy.names import LocatorPair, UlidPair, address
from m6proxy.proof.judge import Proof
from m6proxy.shim.adopt import LeftContext
from m6proxy.shim.demux import DemuxMode
from m6proxy.shim.effects import Effect, InstallFlow, Remember, What
from m6proxy.shim.engine import Engine
from m6proxy.shim.locators import PeerLocator
from m6proxy.shim.memo import PairMemo
from m6proxy.shim.timers import NEVER
from m6proxy.shim.transitions import ReapState, State
from m6proxy.wire.ipv6 import NEXT_DESTINATION
from m6proxy.wire.message import UpdateAck, UpdateRequest
from tests.harness.entropy import SeededEntropy
from tests.harness.packets import find_messages, is_control
from tests.harness.pair import A1, A1_ISP2, B1, B1_ISP2, NAMES, Pair, Site, nsquare
from tests.shim.moved import moved
from tests.shim.test_forks import adjust, bulk
from tests.shim.test_identifier import A1_AT_2, ADDRESSES, B1_AT_1, one_moved

MODES = [
    (DemuxMode.EXTHDR,),
    (DemuxMode.FLOWLABEL, DemuxMode.EXTHDR),
    (DemuxMode.DSTOPT, DemuxMode.EXTHDR),
]


def left_of(flow: InstallFlow) -> LeftContext:
    """What a kernel knows of a flow."""
    entry = flow.kernel
    assert entry is not None
    tags = dict(entry.tags) if not entry.slow else {DemuxMode.EXTHDR: 0}
    wire = entry.addresses
    return LeftContext(
        flow.ulids,
        LocatorPair(wire[:16], wire[16:]),
        entry.slot,
        tags[DemuxMode.EXTHDR],
        tags.get(DemuxMode.FLOWLABEL, 0),
        flow.peer_tag,
        entry.wanted,
        entry.label,
        entry.features,
        entry.peer_locators if not entry.slow else (),
        entry.untagged if not entry.slow else (),
        entry.mode is DemuxMode.EXTHDR and wire != flow.ulids.local + flow.ulids.peer,
    )


def memos_of(site: Site) -> dict[bytes, PairMemo]:
    """What a daemon has written of all pairs."""
    memos = map(site.engine.memo_of, {context.pair for context in site.engine.contexts()})
    return {memo.key: memo for memo in memos if memo is not None}


def restart(
    pair: Pair, site: Site, *, down_s: float = 0.5, remembers: bool = False
) -> list[LeftContext]:
    """The daemon dies, its maps and programs go on, and another takes over."""
    kernel = site.kernel
    assert kernel is not None
    memos = memos_of(site) if remembers else {}
    site.engine = Engine(site.settings, SeededEntropy(99), kernel.read)
    site.queued_timer_s = None
    end_s = pair.clock.now + down_s
    while pair.clock.now < end_s:
        pair.talk(pair.alpha, 100)
        pair.talk(pair.beta, 100)
        pair.run(0.05)
    left = [left_of(flow) for flow in kernel.flows.values()]
    forks = sum(len(memo.forks) for memo in memos.values())
    assert site.engine.adopt(left, pair.clock.now, memos) == len(left) + forks
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


@pytest.mark.parametrize("letter", ["a", "b"])
def test_a_path_that_lost_a_mode_is_not_tried_again(letter: str) -> None:
    """Each restart of either end cost two Send Timeouts in which nothing arrived."""
    pair = moved(demux=MODES[2], kernel=True)
    pair.lose = lambda packet: packet[8:24] == A1_ISP2 and packet[6] == NEXT_DESTINATION
    pair.stream(10.0, both=True, interval_s=0.1)
    restart(pair, pair.sites[letter])
    assert len(pair.stream(10.0, both=True, interval_s=0.1)) >= 99
    assert [site.context.demux for site in pair.sites.values()] == ["exthdr", "dstopt"]


def test_the_peers_name_and_its_whole_list_are_remembered() -> None:
    """Five locators, one of them not proved: the kernel's entry has room for four proved ones."""
    pair = moved(kernel=True)
    before = pair.alpha.context
    more = [B1[:8] + bytes(7) + bytes([number]) for number in range(1, 4)]
    more.append(address("2001:db8:66::1"))
    before.peer_locators += tuple(PeerLocator(octets, Proof.DNS) for octets in more[:-1])
    before.peer_locators += (PeerLocator(more[-1], Proof.NONE, priority=7, broken=True),)
    before.peer_locators[-1].listed = True
    before.peer_order, before.peer_updated = (B1, B1_ISP2), True
    before.peer_parameters, before.keepalive_timeout_s = b"parameters", 9.5
    restart(pair, pair.alpha, remembers=True)
    after = pair.alpha.context
    assert after is not before and after.peer_name == NAMES[B1] == before.peer_name
    assert after.peer_generation == before.peer_generation != 0
    known = [[(one.address, one.proof, one.flags, one.priority) for one in each.peer_locators]
             for each in (before, after)]  # fmt: skip
    assert known[0] == known[1] and len(known[1]) == 6
    for name in ("peer_order", "peer_updated", "peer_parameters", "keepalive_timeout_s"):
        assert getattr(after, name) == getattr(before, name), name


def test_what_is_remembered_counts_only_for_the_same_tags() -> None:
    pair = moved(kernel=True)
    (left,) = restart(pair, pair.alpha)
    (key, memo), *_ = memos_of(pair.alpha).items()
    for change in ({"peer_tag": 7}, {"local_tag": 7}):
        other = replace(memo, main=replace(memo.main, peer_name="else", **change))  # type: ignore[arg-type]
        engine = Engine(pair.alpha.settings, SeededEntropy(5), pair.alpha.kernel.read)  # type: ignore[union-attr]
        assert engine.adopt([left], pair.clock.now, {key: other}) == 1
        (context,) = engine.contexts()
        assert context.peer_name is None and context.local_tag == left.local_tag


def test_forks_are_taken_over_with_their_pair() -> None:
    pair = Pair(adjust=adjust, kernel=True)
    for _ in range(3):
        pair.talk(pair.alpha)
        pair.run(0.2)
    before = sorted(pair.alpha.engine.contexts(), key=lambda one: one.fii)
    assert len(before) == 2
    restart(pair, pair.alpha, down_s=0.0, remembers=True)
    main, fork = sorted(pair.alpha.engine.contexts(), key=lambda one: one.fii)
    assert main.forks == ((main.forks[0][0], fork),)
    for old, new in zip(before, (main, fork), strict=True):
        for name in ("fii", "local_tag", "peer_tag", "route", "peer_name", "state"):
            assert getattr(new, name) == getattr(old, name), name
        assert new.armed_s != NEVER
    taken = bulk(pair)
    assert pair.wire[-1][1][8:24] == A1_ISP2
    pair.run(0.1)
    assert pair.beta.delivered[-1][1] == taken
    pair.stream(5.0, both=True, interval_s=0.1)
    assert len(list(pair.alpha.engine.contexts())) == 2


def test_a_fork_goes_on_in_the_mode_that_its_peer_asked_for() -> None:
    pair = Pair(adjust=adjust, kernel=True)
    for _ in range(3):
        pair.talk(pair.alpha)
        pair.run(0.2)
    _, fork = sorted(pair.alpha.engine.contexts(), key=lambda one: one.fii)
    fork.peer_mode, fork.peer_label = DemuxMode.FLOWLABEL, 77
    assert pair.alpha.kernel is not None
    left = map(left_of, pair.alpha.kernel.flows.values())
    engine = Engine(pair.alpha.settings, SeededEntropy(5), pair.alpha.kernel.read)
    assert engine.adopt(left, pair.clock.now, memos_of(pair.alpha)) == 2
    _, taken = sorted(engine.contexts(), key=lambda one: one.fii)
    assert (taken.peer_mode, taken.peer_label) == (DemuxMode.FLOWLABEL, 77)
    assert taken.peer_features == fork.peer_features != 0


def test_a_pair_with_forks_is_not_taken_over_without_being_remembered() -> None:
    pair = Pair(adjust=adjust, kernel=True)
    for _ in range(3):
        pair.talk(pair.alpha)
        pair.run(0.2)
    assert pair.alpha.kernel is not None
    (left,) = map(left_of, pair.alpha.kernel.flows.values())
    engine = Engine(pair.alpha.settings, SeededEntropy(5), pair.alpha.kernel.read)
    assert engine.adopt([left], pair.clock.now) == 0


@pytest.mark.parametrize("letter", ["a", "b"])
def test_what_stands_in_for_a_ulid_is_remembered(letter: str) -> None:
    pair = one_moved(letter, kernel=True)
    before = pair.alpha.context
    if letter == "a":
        assert before.wire_addresses == A1_AT_2 + B1_AT_1 != before.route
    restart(pair, pair.alpha, remembers=True)
    after = pair.alpha.context
    for name in ("local_tag", "peer_tag", "route", "wire_addresses", "wire_label", "demux"):
        assert getattr(after, name) == getattr(before, name), name
    for site in pair.sites.values():
        packet, count = pair.talk(site), len(pair.other(site).delivered)
        pair.run(0.1)
        assert [got for _, got in pair.other(site).delivered[count:]] == [packet]


def test_pairs_of_addresses_without_a_tag_are_known_from_the_kernel() -> None:
    pair = moved(demux=ADDRESSES, locator_map=nsquare, kernel=True)
    known = pair.alpha.engine._core.contexts.untagged(pair.alpha.context)
    restart(pair, pair.alpha)
    assert set(pair.alpha.engine._core.contexts.untagged(pair.alpha.context)) >= set(known) != set()
    assert pair.alpha.context.demux == "identifier"


def test_a_pair_is_remembered_when_something_is_told_and_not_when_it_moves() -> None:
    pair = Pair(kernel=True)
    heard: list[str] = []
    carried_out = pair.alpha.engine.take_effects

    def take_effects() -> list[Effect]:
        effects = carried_out()
        heard.extend(type(effect).__name__ for effect in effects)
        return effects

    pair.alpha.engine.take_effects = take_effects  # type: ignore[method-assign]
    pair.establish()
    assert heard.count(Remember.__name__)
    pair.run(1.0)
    pair.cut_provider("a", 1)
    heard.clear()
    pair.stream(8.0, both=True, interval_s=0.1)
    assert pair.alpha.context.wire_addresses is not None
    assert heard.count(InstallFlow.__name__) and not heard.count(Remember.__name__)


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


def test_without_a_memo_only_the_locator_in_use_was_tested() -> None:
    pair = moved(kernel=True)
    restart(pair, pair.alpha)
    tested = {one.address: one.tested for one in pair.alpha.context.peer_locators}
    assert tested == {B1: False, B1_ISP2: True}


def test_a_pair_that_is_parked_or_gone_is_not_remembered() -> None:
    pair = moved(kernel=True)
    ulids = pair.alpha.context.pair
    assert pair.alpha.engine.memo_of(ulids) is not None
    pair.alpha.engine.park(600, pair.clock.now)
    assert pair.alpha.engine.memo_of(ulids) is None
    assert pair.alpha.engine.memo_of(UlidPair(A1, A1)) is None

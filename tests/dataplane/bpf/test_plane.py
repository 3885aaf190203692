"""Flows in real maps, and what comes back: no program is attached here."""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pytest

from m6proxy.dataplane.bpf import layout
from m6proxy.dataplane.bpf import plane as plane_module
from m6proxy.dataplane.bpf import site as site_module
from m6proxy.dataplane.bpf.entries import entries
from m6proxy.dataplane.bpf.flowmaps import FlowMaps
from m6proxy.dataplane.bpf.layout import Miss, MissFlag, Mode, OutFlag, OutFlow
from m6proxy.dataplane.bpf.load import create_map, read_object
from m6proxy.dataplane.bpf.maps import Map
from m6proxy.dataplane.bpf.plane import BpfDataPlane
from m6proxy.dataplane.bpf.site import BpfSettings, BpfSite, BpfUplink
from m6proxy.dataplane.memory import MemoryDataPlane
from m6proxy.names import LocatorPair, Prefix, UlidPair
from m6proxy.shim.demux import DemuxMode
from m6proxy.shim.effects import InstallFlow, KernelEntry, RemoveFlow
from m6proxy.shim.policy import EstablishPolicy, Selector, Traffic
from tests.harness.pair import A1, A1_ISP2, B1, B1_ISP2
from tests.steering.namespaces import inside

pytestmark = pytest.mark.netns

PAIR = UlidPair(A1, B1)
NUMBERS = {"isp1": 1, "isp2": 2}
ROOM = 8
LOCAL_TAG, PEER_TAG, LABEL = 0x123456789ABC, 0x7BCDEF012345, 0xABCDE
ENTRY = KernelEntry(
    slot=3,
    addresses=A1_ISP2 + B1_ISP2,
    mode=DemuxMode.EXTHDR,
    wanted=DemuxMode.EXTHDR,
    label=0,
    features=0x5F,
    mtu=1500,
    uplink="isp2",
    slow=False,
    watched=False,
    tags=((DemuxMode.EXTHDR, LOCAL_TAG), (DemuxMode.FLOWLABEL, LABEL)),
    untagged=(),
    local_locators=(A1, A1_ISP2),
    peer_locators=(B1_ISP2, B1),
)


def flow(number: int = 0, *, plain: bool = False, **changes: object) -> InstallFlow:
    """A flow; others than number 0 have other ULIDs and tags."""
    peer = B1[:-2] + (int.from_bytes(B1[-2:]) + number).to_bytes(2)
    ulids = UlidPair(A1, peer)
    locators = LocatorPair(A1, peer) if plain else LocatorPair(A1_ISP2, B1_ISP2)
    tags = ((DemuxMode.EXTHDR, LOCAL_TAG + number),)
    addresses = A1 + peer if plain else A1_ISP2 + B1_ISP2
    given = {
        "slot": 3 + number,
        "addresses": addresses,
        "tags": tags if number else ENTRY.tags,
        **changes,
    }
    return InstallFlow(ulids, locators, PEER_TAG, ENTRY._replace(**given))  # type: ignore[arg-type]


@pytest.fixture
def maps() -> Iterator[dict[str, Map]]:
    """The maps of the object, small ones."""
    made = {
        spec.name: create_map(replace(spec, max_entries=min(spec.max_entries, ROOM)))
        for spec in read_object().maps.values()
        if spec.name != layout.EVENTS
    }
    yield made
    for each in made.values():
        each.close()


def contents(maps: dict[str, Map]) -> dict[tuple[str, bytes], bytes]:
    """All entries of the hash maps of flows."""
    names = (layout.OUT, layout.TAG, layout.PAIR, layout.SENT, layout.MISSES)
    return {(name, key): value for name in names for key, value in maps[name].items()}


def wanted(*flows: InstallFlow) -> dict[tuple[str, bytes], bytes]:
    return {tuple(k): v for one in flows for k, v in entries(one, NUMBERS).items()}  # type: ignore[misc]


def test_maps_follow_every_change(maps: dict[str, Map]) -> None:
    kernel = FlowMaps(maps, NUMBERS)
    steps = [
        flow(plain=True),
        flow(),
        flow(mode=DemuxMode.FLOWLABEL, wanted=DemuxMode.FLOWLABEL, label=77),
        flow(mode=DemuxMode.DSTOPT, wanted=DemuxMode.DSTOPT),
        flow(mode=DemuxMode.IDENTIFIER, wanted=DemuxMode.IDENTIFIER, untagged=(B1_ISP2 + A1,)),
        flow(slow=True),
        flow(watched=True),
        flow(mtu=1400, peer_locators=(B1_ISP2, B1, A1_ISP2)),
        flow(plain=True),
    ]
    for step in steps:
        kernel.apply({PAIR: step})
        assert contents(maps) == wanted(step)
        assert kernel.is_slow(PAIR) is bool(step.kernel and step.kernel.slow)
        assert kernel.labels == (0 if kernel.is_slow(PAIR) else 1)
    kernel.apply({PAIR: None})
    assert not contents(maps) and not len(kernel) and not kernel.labels and not kernel.sent_labels


class _Noting(Map):
    """A map that writes down which maps were changed."""

    changed: ClassVar[list[str]] = []

    def update_batch(self, keys: Sequence[bytes], values: Sequence[bytes]) -> list[int]:
        self.changed.append(self.spec.name)
        return super().update_batch(keys, values)

    def delete_batch(self, keys: Sequence[bytes]) -> int:
        self.changed.append(f"-{self.spec.name}")
        return super().delete_batch(keys)


def test_a_flow_that_moves_changes_one_entry_or_two(maps: dict[str, Map]) -> None:
    """And never the entry for packets from the peer, whatever the order of its locators."""
    noting = {name: _Noting(one.descriptor, one.spec) for name, one in maps.items()}
    kernel = FlowMaps(noting, NUMBERS)
    for mode in (DemuxMode.EXTHDR, DemuxMode.FLOWLABEL):
        label = 77 if mode is DemuxMode.FLOWLABEL else 0
        at_home = flow(plain=True, mode=mode, label=label)
        kernel.apply({PAIR: at_home})
        _Noting.changed.clear()
        moved = flow(peer_locators=(B1, B1_ISP2), mode=mode, label=label)
        kernel.apply({PAIR: moved})
        kernel.apply({PAIR: moved._replace(locators=LocatorPair(A1_ISP2, B1))})
        assert set(_Noting.changed) == ({layout.OUT, layout.SENT} if label else {layout.OUT})
        assert contents(maps) == wanted(moved)
        kernel.apply({PAIR: at_home})
        assert contents(maps) == wanted(at_home)


def test_maps_follow_whatever_the_order_of_changes(maps: dict[str, Map]) -> None:
    """Several flows at once, which take each other's labels, in batches."""
    chance = random.Random(20)
    kernel = FlowMaps(maps, NUMBERS)
    now: dict[UlidPair, InstallFlow] = {}
    for _ in range(300):
        numbers = chance.sample(range(3), chance.randint(1, 3))
        labels = chance.sample((0x71, 0x72, 0x73), 3)
        changes: dict[UlidPair, InstallFlow | None] = {}
        for number in range(3):
            one = flow(number)
            given = {
                "addresses": chance.choice((A1 + one.ulids.peer, A1_ISP2 + one.ulids.peer)),
                "mode": chance.choice(list(DemuxMode)),
                "label": labels[number],
                "slow": chance.random() < 0.2,
                "tags": ((DemuxMode.EXTHDR, number), (DemuxMode.FLOWLABEL, labels[number])),
                "peer_locators": chance.choice(((B1, B1_ISP2), (B1_ISP2, B1), (B1,))),
            }
            one = one._replace(kernel=(one.kernel or ENTRY)._replace(**given))  # type: ignore[arg-type]
            if number in numbers or one.ulids in now:
                changes[one.ulids] = one if chance.random() < 0.8 else None
        kernel.apply(changes)
        now.update({pair: one for pair, one in changes.items() if one is not None})
        for pair in [pair for pair, one in changes.items() if one is None]:
            now.pop(pair, None)
        assert contents(maps) == wanted(*now.values())
        assert len(kernel) == len(now)
        in_kernel = [one.kernel for one in now.values() if one.kernel and not one.kernel.slow]
        assert kernel.labels == len(in_kernel)
        assert kernel.sent_labels == len(dict(maps[layout.SENT].items()))


def test_a_move_finds_room_where_the_old_entry_goes(maps: dict[str, Map]) -> None:
    """The new entry is written before the old one goes, and the map is full."""
    kernel = FlowMaps(maps, NUMBERS)

    def all_of_them(addresses: bytes) -> dict[UlidPair, InstallFlow | None]:
        mode = DemuxMode.FLOWLABEL
        numbers = range(1, ROOM + 1)
        flows = [flow(n, mode=mode, label=n, addresses=addresses) for n in numbers]
        return {one.ulids: one for one in flows}

    for addresses in (A1_ISP2 + B1_ISP2, A1_ISP2 + B1):
        kernel.apply(all_of_them(addresses))
        assert not kernel.is_full and not kernel.overflowed
        assert len(dict(maps[layout.SENT].items())) == kernel.sent_labels == ROOM


def test_an_entry_has_what_packets_need(maps: dict[str, Map]) -> None:
    FlowMaps(maps, NUMBERS).apply({PAIR: flow()})
    out = OutFlow.unpack(maps[layout.OUT].lookup(A1 + B1) or b"")
    assert (out.locators, out.mode, out.uplink) == (A1_ISP2 + B1_ISP2, Mode.EXTHDR, 2)
    assert out.tail == b"\x00" + (1 << 47 | PEER_TAG).to_bytes(6)
    assert not out.flags & OutFlag.SLOW and out.slot == 3 and out.mtu == 1500


def test_what_finds_no_room_goes_the_slow_way_until_there_is_some(maps: dict[str, Map]) -> None:
    kernel = FlowMaps(maps, NUMBERS)
    flows = [flow(number) for number in range(ROOM + 3)]
    for one in flows:
        kernel.apply({one.ulids: one})
    assert kernel.is_full and kernel.overflowed >= 3
    assert len(kernel) <= ROOM
    whole = {key for name, key in contents(maps) if name == layout.OUT}
    assert len(whole) == len(kernel), "no flow is there in part"
    kernel.apply(dict.fromkeys([one.ulids for one in flows[:4]]))
    assert len(kernel) == ROOM - 1 and not kernel.is_full


def test_a_flow_without_a_slot_goes_the_slow_way(maps: dict[str, Map]) -> None:
    kernel = FlowMaps(maps, NUMBERS)
    kernel.apply({PAIR: InstallFlow(PAIR, LocatorPair(A1, B1), PEER_TAG)})
    assert kernel.is_full and not contents(maps)
    kernel.apply({PAIR: None})
    assert not kernel.is_full


@pytest.mark.parametrize(
    "left",
    [
        flow(),
        flow(plain=True),
        flow(mode=DemuxMode.FLOWLABEL, wanted=DemuxMode.FLOWLABEL, label=77),
        flow(plain=True, mode=DemuxMode.FLOWLABEL, wanted=DemuxMode.FLOWLABEL, label=77),
        flow(mode=DemuxMode.DSTOPT, wanted=DemuxMode.DSTOPT),
        flow(plain=True, mode=DemuxMode.DSTOPT, wanted=DemuxMode.DSTOPT),
        flow(mode=DemuxMode.EXTHDR, wanted=DemuxMode.DSTOPT),
    ],
)
def test_a_successor_finds_all_of_a_context(maps: dict[str, Map], left: InstallFlow) -> None:
    FlowMaps(maps, NUMBERS).apply({PAIR: left})
    before = contents(maps)
    successor = FlowMaps(maps, NUMBERS)
    (found,) = successor.inherit()
    entry = left.kernel
    assert entry is not None
    assert (found.ulids, found.locators, found.slot) == (PAIR, left.locators, 3)
    assert (found.local_tag, found.peer_tag, found.label) == (LOCAL_TAG, PEER_TAG, LABEL)
    assert (found.peer_mode, found.peer_label) == (entry.wanted, entry.label)
    assert (found.peer_features, set(found.peer_locators)) == (0x5F, set(entry.peer_locators))
    successor.apply({PAIR: left})
    successor.disown()
    assert contents(maps) == before and len(successor) == 1
    successor.apply({PAIR: None})
    assert not contents(maps)


def test_what_nobody_takes_over_is_removed(maps: dict[str, Map]) -> None:
    FlowMaps(maps, NUMBERS).apply({one.ulids: one for one in (flow(), flow(1), flow(2, slow=True))})
    maps[layout.TAG].update(layout.tag_key(Mode.EXTHDR, 99), contents(maps)[
        layout.TAG, layout.tag_key(Mode.EXTHDR, LOCAL_TAG)
    ])  # fmt: skip
    maps[layout.OUT].delete(A1 + B1)
    successor = FlowMaps(maps, NUMBERS)
    known = {left.slot: left.local_tag for left in successor.inherit()}
    assert known.keys() == {4, 5} and known[4] and not known[5], "of a slow one no tag is known"
    successor.disown()
    assert not contents(maps)


# --- the plane -----------------------------------------------------------------------------------


class _Heard:
    def __init__(self) -> None:
        self.awake: list[int] = []
        self.ripe: list[tuple[UlidPair, Traffic]] = []
        self.names: list[bytes] = []
        self.lost = 0

    def flow_awake(self, slot: int) -> None:
        self.awake.append(slot)

    def pair_ripe(self, pair: UlidPair, traffic: Traffic) -> None:
        self.ripe.append((pair, traffic))

    def names_heard(self, payload: bytes) -> None:
        self.names.append(payload)

    def notices_lost(self) -> None:
        self.lost += 1


PREFIXES = layout.PREFIXES_MAX * layout.SitePrefix.LAYOUT.size
"""Octets of the settings that do not depend on interfaces."""
Story = Callable[[BpfDataPlane, BpfSite, _Heard], Iterable[None]]


def told(tmp_path: Path, story: Story, policy: EstablishPolicy | None = None) -> None:
    """Run a story with a plane; each ``yield`` gives the loop a turn. No interface is there."""
    uplinks = tuple(
        BpfUplink(f"isp{n}", f"m6none{n}", Prefix.parse(f"2001:db8:a{n}::/48")) for n in (1, 2)
    )
    settings = BpfSettings(("m6none0",), uplinks, policy or EstablishPolicy(), 24, ROOM)

    async def run() -> None:
        site = BpfSite(settings, tmp_path / "bpf" / "site")
        heard = _Heard()
        plane = BpfDataPlane(MemoryDataPlane(), site)
        try:
            plane.open(outbound=lambda _: None, inbound=lambda _: None)
            plane.listen(heard)
            for _ in story(plane, site, heard):
                await asyncio.sleep(0.01)
        finally:
            plane.close()

    name = f"m6u-{os.getpid()}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        with inside(name):
            asyncio.run(run())
    finally:
        subprocess.run(["ip", "netns", "delete", name], check=True)
    assert not (tmp_path / "bpf" / "site").exists()


def test_flows_are_written_once_in_a_turn(tmp_path: Path) -> None:
    def story(plane: BpfDataPlane, site: BpfSite, heard: _Heard) -> Iterable[None]:
        plane.apply_flows([flow(plain=True)])
        plane.apply_flows([flow(mode=DemuxMode.FLOWLABEL, label=77)])
        assert not dict(site.maps[layout.OUT].items())
        yield
        assert plane.flows == 1
        octets = site.maps[layout.SETTINGS].lookup(bytes(4))
        flags = layout.SettingsFlag.LABELS | layout.SettingsFlag.SENT_LABELS
        assert octets is not None
        assert octets[:PREFIXES] == replace(site.settings, flags=flags).pack()[:PREFIXES]
        plane.apply_flows([RemoveFlow(PAIR)])
        yield
        assert not plane.flows and not dict(site.maps[layout.OUT].items())

    told(tmp_path, story)


def test_many_flows_are_written_in_several_turns_the_oldest_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plane_module, "FLUSHED_IN_A_TURN", 2)

    def story(plane: BpfDataPlane, site: BpfSite, heard: _Heard) -> Iterable[None]:
        loop = asyncio.get_running_loop()
        seen: list[int] = []

        def look() -> None:
            seen.append(plane.flows)
            if plane.flows < 5:
                loop.call_soon(look)

        plane.apply_flows([flow(number) for number in range(6)])
        plane.apply_flows([flow(0, plain=True), RemoveFlow(flow(5).ulids)])
        loop.call_soon(look)
        yield
        assert seen == [2, 4, 5]
        plane.apply_flows([RemoveFlow(flow(number).ulids) for number in range(5)])
        yield
        assert not dict(site.maps[layout.OUT].items())

    told(tmp_path, story)


def test_the_programs_hear_again_and_again_that_the_daemon_lives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plane_module, "_ATTEND_S", 0.001)

    def until_ns(site: BpfSite) -> int:
        return layout.Settings.unpack(
            site.maps[layout.SETTINGS].lookup(bytes(4)) or b""
        ).attended_until_ns

    def story(plane: BpfDataPlane, site: BpfSite, heard: _Heard) -> Iterable[None]:
        first_ns = until_ns(site)
        assert 0 < first_ns - time.monotonic_ns() <= plane_module.ATTENDED_NS
        assert site._written is not None
        generation = site._generation
        yield
        assert until_ns(site) > first_ns and site._generation == generation

    told(tmp_path, story)


def test_a_slots_activity_is_read_in_seconds(tmp_path: Path) -> None:
    def story(plane: BpfDataPlane, site: BpfSite, heard: _Heard) -> Iterable[None]:
        seen = layout.Activity(5_000_000_000, 4_000_000_000, 4_500_000_000, 0, 7, 700, 3, 300)
        site.maps[layout.ACTIVE].update((2).to_bytes(4, "little"), seen.pack())
        assert plane.read_activity(2) == (5.0, 4.0, 4.5, 0.0, 7, 700, 3, 300)
        assert not any(plane.read_activity(3))
        yield

    told(tmp_path, story)


def test_a_prefix_whose_uplink_is_down_is_for_the_engine(tmp_path: Path) -> None:
    def story(plane: BpfDataPlane, site: BpfSite, heard: _Heard) -> Iterable[None]:
        for down in (frozenset({"isp2"}), frozenset[str]()):
            plane.note_uplinks(down)
            octets = site.maps[layout.SETTINGS].lookup(bytes(4))
            assert octets is not None
            assert octets[:PREFIXES] == site.settings_with(down).pack()[:PREFIXES]
        yield

    told(tmp_path, story)


def test_packets_may_go_past_the_stack_until_a_moment_that_is_told(tmp_path: Path) -> None:
    def story(plane: BpfDataPlane, site: BpfSite, heard: _Heard) -> Iterable[None]:
        for until_ns in (0, 1 << 40, 0):
            plane.note_express(until_ns)
            octets = site.maps[layout.SETTINGS].lookup(bytes(4))
            assert octets is not None
            assert int.from_bytes(octets[-8:], sys.byteorder) == until_ns
        yield

    told(tmp_path, story)


def test_with_selectors_of_protocols_the_engine_sees_a_ripe_pairs_packets(tmp_path: Path) -> None:
    def story(plane: BpfDataPlane, site: BpfSite, heard: _Heard) -> Iterable[None]:
        misses = site.maps[layout.MISSES]
        miss = Miss(1, 0, 0, 5000, 9, MissFlag.OUTBOUND)
        misses.update(A1 + B1, miss.pack())
        event = layout.Event(layout.EventKind.RIPE, 1, A1 + B1, 0, layout.Ripe.THRESHOLD)
        plane._ripe(event, heard)
        assert not heard.ripe
        assert Miss.unpack(misses.lookup(A1 + B1) or b"").flags & MissFlag.SLOW
        plane._unwatch(A1 + B1)
        after = Miss.unpack(misses.lookup(A1 + B1) or b"")
        assert not after.flags & MissFlag.SLOW and after.quiet_until_ns > 1
        yield

    told(tmp_path, story, EstablishPolicy(never=(Selector.parse("udp/53"),)))


def test_a_ripe_pair_is_told_with_what_was_counted(tmp_path: Path) -> None:
    def story(plane: BpfDataPlane, site: BpfSite, heard: _Heard) -> Iterable[None]:
        miss = Miss(2_000_000_000, 0, 0, 5000, 9, MissFlag.OUTBOUND)
        site.maps[layout.MISSES].update(A1 + B1, miss.pack())
        event = layout.Event(layout.EventKind.RIPE, 1, A1 + B1, 0, layout.Ripe.SILENT)
        plane._ripe(event, heard)
        assert heard.ripe == [(PAIR, Traffic(9, 5000, 2.0, True, False, True))]
        yield

    told(tmp_path, story)


def test_an_interface_may_go_at_any_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    """PPP hung up between two questions about it: the daemon told the programs nothing any more."""
    monkeypatch.setattr(site_module, "_index", lambda interface: 7)
    assert site_module._variant("uplink_out", "gone0") == "uplink_out"

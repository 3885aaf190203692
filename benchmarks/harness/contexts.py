"""Flows as the engine tells them to a data plane in the kernel, by the hundred thousand."""

from __future__ import annotations

import time
from collections.abc import Iterator

from benchmarks.harness.load import IDLE_S
from benchmarks.harness.world import NO_LIMIT_PER_S, World, host
from m6proxy.daemon.entropy import SystemEntropy
from m6proxy.names import Address, LocatorPair, UlidPair, address
from m6proxy.shim import flows
from m6proxy.shim.core import ShimSettings
from m6proxy.shim.demux import DemuxMode
from m6proxy.shim.effects import InstallFlow, KernelEntry
from m6proxy.shim.engine import Engine
from m6proxy.shim.slots import Activity
from m6proxy.wire.dstopt import short_tag
from tests.harness.pair import uplinks

NUMBERS = {"isp1": 1, "isp2": 2}
LOCAL_HOSTS = 1000
_TAG = 0x5A5A_0000_0000
_SECOND = {letter: address(f"2001:db8:{letter}2::")[:8] for letter in "ab"}
_FEATURES = 127


def context_flows(count: int, mode: DemuxMode) -> Iterator[InstallFlow]:
    """The flows of so many contexts on their ULIDs.

    Each has the entries of an engine that asks for options, and with FLOWLABEL for labels too.
    """
    places = [_places("a", number) for number in range(1, LOCAL_HOSTS + 1)]
    for number in range(count):
        local_locators = places[number % LOCAL_HOSTS]
        peer_locators = _places("b", number + 1)
        ulids = UlidPair(local_locators[0], peer_locators[0])
        tag = _TAG + number
        tags = [(DemuxMode.EXTHDR, tag), (DemuxMode.DSTOPT, short_tag(tag))]
        if mode is DemuxMode.FLOWLABEL:
            tags.append((mode, number + 1 & 0xFFFFF))
        entry = KernelEntry(
            slot=number,
            addresses=ulids.local + ulids.peer,
            mode=mode,
            wanted=mode,
            label=number + 1 & 0xFFFFF if mode is DemuxMode.FLOWLABEL else 0,
            features=_FEATURES,
            mtu=1500,
            uplink="isp1",
            slow=False,
            watched=False,
            tags=tuple(tags),
            untagged=(),
            local_locators=local_locators,
            peer_locators=peer_locators,
        )
        yield InstallFlow(ulids, LocatorPair(*ulids), tag, entry)


def moved_flow(flow: InstallFlow) -> InstallFlow:
    """The same on the second uplink; what stays is the same object, as the engine makes it."""
    assert flow.kernel is not None
    locators = LocatorPair(flow.kernel.local_locators[1], flow.ulids.peer)
    addresses = locators.local + locators.peer
    entry = flow.kernel._replace(addresses=addresses, uplink="isp2")
    return InstallFlow(flow.ulids, locators, flow.peer_tag, entry)


def building_s(contexts: int, mode: DemuxMode) -> float:
    """CPU seconds of one context in which an engine makes the effect of a new pair of locators."""
    world = World(_engine("a", mode), _engine("b", mode))
    for number in range(contexts):
        world.connect("a", host("a", number % LOCAL_HOSTS + 1), host("b", number + 1))
    core = world.engines["a"]._core
    found = list(world.engines["a"].contexts())
    core.effects.clear()
    for context in found:
        context.route = context.local_set.locators[1] + context.route[16:]
        context.wire_addresses, context.wire_label = context.route, context.peer_label
    start_ns = time.thread_time_ns()
    for context in found:
        flows.install(core, context)
    spent_ns = time.thread_time_ns() - start_ns
    assert sum(isinstance(effect, InstallFlow) for effect in core.effects) == len(found) == contexts
    return spent_ns / 1e9 / contexts


def _engine(letter: str, mode: DemuxMode) -> Engine:
    settings = ShimSettings(
        uplinks=uplinks(letter),
        idle_s=IDLE_S,
        requests_per_s=NO_LIMIT_PER_S,
        demux=tuple(dict.fromkeys((mode, DemuxMode.DSTOPT, DemuxMode.EXTHDR))),
    )
    return Engine(settings, SystemEntropy(), lambda slot: Activity())


def _places(letter: str, number: int) -> tuple[Address, Address]:
    return host(letter, number), _SECOND[letter] + number.to_bytes(8)

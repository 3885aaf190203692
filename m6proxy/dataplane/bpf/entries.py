"""From a flow of the engine to the entries of the maps, and back at a restart. Pure.

An inbound entry has room for LOCATORS_MAX locators of either end. A packet between others goes
the slow way, where the engine knows them all.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Final, NamedTuple

from m6proxy.dataplane.bpf import layout
from m6proxy.dataplane.bpf.layout import InFlag, InFlow, Mode, OutFlag, OutFlow, PairFlow
from m6proxy.names import TAG_MASK, LocatorPair, UlidPair
from m6proxy.shim.adopt import LeftContext
from m6proxy.shim.demux import DemuxMode
from m6proxy.shim.effects import InstallFlow, KernelEntry
from m6proxy.wire.dstopt import SHORT_BITS, option_tail
from m6proxy.wire.payload import payload_header

MODES: Final = {
    DemuxMode.EXTHDR: Mode.EXTHDR,
    DemuxMode.FLOWLABEL: Mode.FLOWLABEL,
    DemuxMode.IDENTIFIER: Mode.IDENTIFIER,
    DemuxMode.DSTOPT: Mode.DSTOPT,
}
_WANTED_SHIFT: Final = 4
_FEATURES_SHIFT: Final = 8
_MODE_SHIFT: Final = 56
ORDER: Final = (layout.TAG, layout.PAIR, layout.MISSES, layout.SENT, layout.OUT)
"""Inbound first: what a peer may answer with is known before the first packet is sent."""


class Place(NamedTuple):
    """Where an entry is."""

    map: str
    key: bytes


def entries(flow: InstallFlow, numbers: dict[str, int]) -> dict[Place, bytes]:
    """All entries of a flow that has a slot; ``numbers`` are those of the uplinks by name."""
    entry = flow.kernel
    if entry is None:
        return {}
    return dict(_entries(flow, entry, numbers))


def _entries(
    flow: InstallFlow, entry: KernelEntry, numbers: dict[str, int]
) -> Iterator[tuple[Place, bytes]]:
    out_key = flow.ulids.local + flow.ulids.peer
    in_key = flow.ulids.peer + flow.ulids.local
    plain = entry.addresses == out_key
    mode = Mode.ULIDS if plain else MODES[entry.mode]
    out = OutFlow(
        entry.addresses,
        mode,
        entry.slot,
        numbers.get(entry.uplink or "", 0),
        0xFFFF if plain else entry.mtu,
        option_tail(flow.peer_tag) if mode is Mode.DSTOPT else payload_header(0, flow.peer_tag)[1:],
        flow.peer_tag >> SHORT_BITS if mode is Mode.DSTOPT else entry.label,
        _flags(entry),
    )
    yield Place(layout.OUT, out_key), out.pack()
    if entry.slow:
        miss = layout.Miss(flags=layout.MissFlag.SLOW)
        yield Place(layout.MISSES, out_key), miss.pack()
        return
    if mode in (Mode.FLOWLABEL, Mode.IDENTIFIER):
        sent = layout.sent_key(entry.addresses, entry.label if mode is Mode.FLOWLABEL else None)
        yield Place(layout.SENT, sent), entry.slot.to_bytes(4, sys.byteorder)
    pair = PairFlow(in_key, entry.slot, Mode.ULIDS)
    yield Place(layout.PAIR, in_key), pair.pack()
    bare = PairFlow(in_key, entry.slot, Mode.IDENTIFIER).pack()
    for addresses in entry.untagged:
        yield Place(layout.PAIR, addresses), bare
    peer, local = entry.peer_locators, entry.local_locators
    complete = max(len(peer), len(local)) <= layout.LOCATORS_MAX
    inbound = InFlow(
        in_key,
        entry.slot,
        peer[: layout.LOCATORS_MAX],
        local[: layout.LOCATORS_MAX],
        InFlag.COMPLETE if complete else 0,
    ).pack()
    for demux, tag in entry.tags:
        yield Place(layout.TAG, layout.tag_key(MODES[demux], tag)), inbound


def _flags(entry: KernelEntry) -> int:
    """What the programs heed, and above it what only a successor of ours reads."""
    slow = OutFlag.SLOW if entry.slow or entry.watched else 0
    return slow | entry.wanted << _WANTED_SHIFT | entry.features << _FEATURES_SHIFT


class Left:
    """The entries that a predecessor left, sorted by the contexts that they are of."""

    def __init__(self) -> None:
        self.by_pair: dict[UlidPair, dict[Place, bytes]] = {}
        self.stray: list[Place] = []
        """Entries without an outbound one: of no use."""
        self._outs: dict[UlidPair, OutFlow] = {}
        self._tags: dict[UlidPair, list[tuple[Mode, int, InFlow]]] = {}
        self._pair_of_slot: dict[int, UlidPair] = {}

    def take_out(self, key: bytes, value: bytes) -> None:
        """An entry of OUT; these first."""
        pair, out = UlidPair(key[:16], key[16:]), OutFlow.unpack(value)
        self._outs[pair] = out
        self._pair_of_slot[out.slot] = pair
        self.by_pair[pair] = {Place(layout.OUT, key): value}

    def take_tag(self, key: bytes, value: bytes) -> None:
        """An entry of TAG."""
        flow = InFlow.unpack(value)
        pair = UlidPair(flow.ulids[16:], flow.ulids[:16])
        number = int.from_bytes(key, sys.byteorder)
        mode, tag = Mode(number >> _MODE_SHIFT), number & TAG_MASK
        self._tags.setdefault(pair, []).append((mode, tag, flow))
        self._take(pair, Place(layout.TAG, key), value)

    def take_pair(self, key: bytes, value: bytes) -> None:
        """An entry of PAIR."""
        ulids = PairFlow.unpack(value).ulids
        self._take(UlidPair(ulids[16:], ulids[:16]), Place(layout.PAIR, key), value)

    def take_sent(self, key: bytes, value: bytes) -> None:
        """An entry of SENT."""
        pair = self._pair_of_slot.get(int.from_bytes(value, sys.byteorder))
        self._take(pair, Place(layout.SENT, key), value)

    def contexts(self) -> list[LeftContext]:
        """Those of which everything is there; not those whose packets all went the slow way."""
        found = []
        for pair, out in self._outs.items():
            tags = {mode: (tag, flow) for mode, tag, flow in self._tags.get(pair, ())}
            if Mode.EXTHDR in tags:
                found.append(_left_context(pair, out, tags))
        return found

    def _take(self, pair: UlidPair | None, place: Place, value: bytes) -> None:
        if pair in self.by_pair:
            self.by_pair[pair][place] = value
        else:
            self.stray.append(place)


def _left_context(
    pair: UlidPair, out: OutFlow, tags: dict[Mode, tuple[int, InFlow]]
) -> LeftContext:
    tag, inbound = tags[Mode.EXTHDR]
    peer_tag = int.from_bytes(out.tail[1:]) & TAG_MASK
    if out.mode is Mode.DSTOPT:
        peer_tag = out.label << SHORT_BITS | int.from_bytes(out.tail[3:])
    return LeftContext(
        ulids=pair,
        locators=LocatorPair(out.locators[:16], out.locators[16:]),
        slot=out.slot,
        local_tag=tag,
        label=tags[Mode.FLOWLABEL][0] if Mode.FLOWLABEL in tags else 0,
        peer_tag=peer_tag,
        peer_mode=DemuxMode(out.flags >> _WANTED_SHIFT & 0xF),
        peer_label=0 if out.mode is Mode.DSTOPT else out.label,
        peer_features=out.flags >> _FEATURES_SHIFT,
        peer_locators=inbound.peer,
    )

"""From a flow of the engine to the entries of the maps, and back at a restart. Pure.

An inbound entry has room for LOCATORS_MAX locators of either end. A packet between others goes
the slow way, where the engine knows them all.
"""

from __future__ import annotations

import sys
from typing import Final, NamedTuple, TypeAlias

from m6proxy.dataplane.bpf import layout
from m6proxy.dataplane.bpf.layout import (
    InFlag,
    InFlow,
    Mode,
    OutFlag,
    OutFlow,
    PairFlow,
    pack_in,
    pack_out,
)
from m6proxy.names import TAG_MASK, LocatorPair, Tag, UlidPair
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
_FLOWLABEL: Final = DemuxMode.FLOWLABEL
_IDENTIFIER: Final = DemuxMode.IDENTIFIER
"""To look a member up in an Enum costs as much as a call, and 100,000 flows may move at once."""
_SLOW_MISS: Final = layout.Miss(flags=layout.MissFlag.SLOW).pack()
_WANTED_SHIFT: Final = 4
_FEATURES_SHIFT: Final = 8
_MODE_SHIFT: Final = 56
ORDER: Final = (layout.TAG, layout.PAIR, layout.MISSES, layout.SENT, layout.OUT)
"""Inbound first: what a peer may answer with is known before the first packet is sent."""


class Place(NamedTuple):
    """Where an entry is."""

    map: str
    key: bytes


Written: TypeAlias = tuple[str, bytes, bytes]
"""Map, key and value."""


def entries(flow: InstallFlow, numbers: dict[str, int]) -> dict[Place, bytes]:
    """All entries of a flow that has a slot; ``numbers`` are those of the uplinks by name."""
    return {Place(name, key): value for name, key, value in each_entry(flow, numbers)}


def each_entry(flow: InstallFlow, numbers: dict[str, int]) -> list[Written]:
    """The same in the order of making."""
    entry = flow.kernel
    if entry is None:
        return []
    out_key = flow.ulids.local + flow.ulids.peer
    found = [(layout.OUT, out_key, out_value(out_key, flow.peer_tag, entry, numbers))]
    if entry.slow:
        found.append((layout.MISSES, out_key, _SLOW_MISS))
        return found
    sent = sent_key(out_key, entry)
    if sent is not None:
        found.append((layout.SENT, sent, slot_value(entry)))
    in_key = flow.ulids.peer + flow.ulids.local
    found.append((layout.PAIR, in_key, PairFlow(in_key, entry.slot, Mode.ULIDS).pack()))
    if entry.untagged:
        bare = PairFlow(in_key, entry.slot, Mode.IDENTIFIER).pack()
        found += [(layout.PAIR, addresses, bare) for addresses in entry.untagged]
    inbound = _in_value(in_key, entry)
    found += [(layout.TAG, layout.tag_key(MODES[demux], tag), inbound) for demux, tag in entry.tags]
    return found


def out_value(out_key: bytes, peer_tag: Tag, entry: KernelEntry, numbers: dict[str, int]) -> bytes:
    """The value in OUT; ``out_key`` are the ULIDs, 32 octets, and the key there."""
    slot, addresses, demux, wanted, label, features, mtu, uplink, slow, watched, *_ = entry
    if addresses == out_key:
        mode, mtu = Mode.ULIDS, 0xFFFF
    else:
        mode = MODES[demux]
    if mode is Mode.DSTOPT:
        tail, label = option_tail(peer_tag), peer_tag >> SHORT_BITS
    else:
        tail = payload_header(0, peer_tag)[1:]
    # what the programs heed, and above it what only a successor of ours reads
    flags = wanted << _WANTED_SHIFT | features << _FEATURES_SHIFT
    if slow or watched:
        flags |= OutFlag.SLOW if slow else OutFlag.WATCHED
    number = numbers.get(uplink, 0) if uplink is not None else 0
    return pack_out(addresses, mode, slot, number, mtu, tail, label, flags)


def sent_key(out_key: bytes, entry: KernelEntry) -> bytes | None:
    """The key in SENT; its value is ``slot_value``. None where packets cannot be mistaken."""
    mode, addresses = entry.mode, entry.addresses
    if (mode is not _FLOWLABEL and mode is not _IDENTIFIER) or addresses == out_key:
        return None
    return layout.sent_key(addresses, entry.label if mode is _FLOWLABEL else None)


def slot_value(entry: KernelEntry) -> bytes:
    """A slot's number as a value."""
    return entry.slot.to_bytes(4, sys.byteorder)


def _in_value(in_key: bytes, entry: KernelEntry) -> bytes:
    """The value in TAG.

    Where there is room for all locators, their order is always the same: the engine has the
    current one first, and the entry need not change whenever the context moves.
    """
    most = layout.LOCATORS_MAX
    peer, local = entry.peer_locators, entry.local_locators
    if len(peer) <= most and len(local) <= most:
        return pack_in(in_key, entry.slot, tuple(sorted(peer)), local, InFlag.COMPLETE)
    return pack_in(in_key, entry.slot, peer[:most], local[:most], 0)


def differs_outbound_alone(old: KernelEntry, new: KernelEntry) -> bool:
    """Whether nothing but the entries of OUT and SENT can differ: the usual re-homing."""
    before, after = old.peer_locators, new.peer_locators
    return (
        not old.slow
        and not new.slow
        and old.slot == new.slot
        and old.tags == new.tags
        and old.untagged == new.untagged
        and old.local_locators == new.local_locators
        and (
            before == after
            or (
                len(before) == len(after) <= layout.LOCATORS_MAX >= len(new.local_locators)
                and set(before) == set(after)
            )
        )
    )


class Left:
    """The entries that a predecessor left, sorted by the contexts that they are of."""

    def __init__(self) -> None:
        self.by_pair: dict[UlidPair, dict[Place, bytes]] = {}
        self.stray: list[Place] = []
        """Entries without an outbound one: of no use."""
        self._outs: dict[UlidPair, OutFlow] = {}
        self._tags: dict[UlidPair, list[tuple[Mode, int, InFlow]]] = {}
        self._untagged: dict[UlidPair, tuple[bytes, ...]] = {}
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
        flow = PairFlow.unpack(value)
        pair = UlidPair(flow.ulids[16:], flow.ulids[:16])
        if flow.mode is Mode.IDENTIFIER:
            self._untagged[pair] = (*self._untagged.get(pair, ()), key)
        self._take(pair, Place(layout.PAIR, key), value)

    def take_sent(self, key: bytes, value: bytes) -> None:
        """An entry of SENT."""
        pair = self._pair_of_slot.get(int.from_bytes(value, sys.byteorder))
        self._take(pair, Place(layout.SENT, key), value)

    def contexts(self) -> list[LeftContext]:
        """All; of those whose packets all went the slow way the tag of ours is not known."""
        found = []
        for pair, out in self._outs.items():
            tags = {mode: (tag, flow) for mode, tag, flow in self._tags.get(pair, ())}
            if Mode.EXTHDR in tags or out.flags & OutFlag.SLOW:
                found.append(_left_context(pair, out, tags, self._untagged.get(pair, ())))
        return found

    def _take(self, pair: UlidPair | None, place: Place, value: bytes) -> None:
        if pair in self.by_pair:
            self.by_pair[pair][place] = value
        else:
            self.stray.append(place)


def _left_context(
    pair: UlidPair,
    out: OutFlow,
    tags: dict[Mode, tuple[int, InFlow]],
    untagged: tuple[bytes, ...],
) -> LeftContext:
    tag, inbound = tags.get(Mode.EXTHDR, (0, None))
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
        peer_locators=inbound.peer if inbound is not None else (),
        untagged=untagged,
        has_header=out.mode is Mode.EXTHDR,
    )

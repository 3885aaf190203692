"""The engine's flows in the maps of the kernel: changed in batches, whole flow by whole flow.

A map that is full, or a context without a slot, leaves a flow to the slow path; while there is
one, packets that the kernel knows nothing of are all for the engine. It is tried again when
others leave.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from itertools import islice
from typing import Final

from m6proxy.dataplane.bpf import layout
from m6proxy.dataplane.bpf.entries import ORDER, Left, Place, entries
from m6proxy.dataplane.bpf.layout import Miss, MissFlag, Mode
from m6proxy.dataplane.bpf.maps import Map
from m6proxy.names import UlidPair
from m6proxy.shim.adopt import LeftContext
from m6proxy.shim.effects import InstallFlow

_AGAIN_AT_ONCE: Final = 64


class FlowMaps:
    """What is installed, and the way to change it. Raises OSError when the kernel refuses."""

    def __init__(self, maps: Mapping[str, Map], numbers: dict[str, int]) -> None:
        self._maps = maps
        self._numbers = numbers
        self._installed: dict[UlidPair, InstallFlow] = {}
        self._inherited: dict[UlidPair, dict[Place, bytes]] = {}
        self._left_out: dict[UlidPair, InstallFlow] = {}
        self.overflowed = 0
        """Flows that found no room, since the start."""
        self.labels = 0
        """Entries that are found by a flow label."""
        self.sent_labels = 0

    def __len__(self) -> int:
        """How many flows the kernel moves."""
        return len(self._installed)

    @property
    def is_full(self) -> bool:
        """Whether flows are left to the slow path for want of room."""
        return bool(self._left_out)

    def is_slow(self, pair: UlidPair) -> bool:
        """Whether every packet of a context is for the engine."""
        flow = self._installed.get(pair)
        return flow is not None and flow.kernel is not None and flow.kernel.slow

    def inherit(self) -> list[LeftContext]:
        """Know of the entries that a predecessor left, and return what contexts they are of.

        Those that nobody takes over by a change of ``apply`` are removed by ``disown``.
        """
        left = Left()
        for name, take in (
            (layout.OUT, left.take_out),
            (layout.TAG, left.take_tag),
            (layout.PAIR, left.take_pair),
            (layout.SENT, left.take_sent),
        ):
            for key, value in self._maps[name].items():
                take(key, value)
        for key, value in self._maps[layout.MISSES].items():
            if Miss.unpack(value).flags & MissFlag.SLOW:
                left.stray.append(Place(layout.MISSES, key))
        self._delete(left.stray)
        self._inherited = left.by_pair
        for of_flow in left.by_pair.values():
            self._count(of_flow, 1)
        return left.contexts()

    def disown(self) -> None:
        """Remove inherited entries that nobody took over."""
        self.apply(dict.fromkeys(self._inherited))

    def apply(self, changes: Mapping[UlidPair, InstallFlow | None]) -> None:
        """Bring the kernel to what is wanted of these pairs; None takes a flow out."""
        writes: dict[Place, tuple[bytes, UlidPair]] = {}
        gone: dict[Place, None] = {}
        wanted = dict(changes)
        if any(flow is None for flow in changes.values()):
            again = islice(self._left_out.items(), _AGAIN_AT_ONCE)
            wanted = {**dict(again), **wanted}
        for pair, flow in wanted.items():
            old = self._take_out(pair)
            new = entries(flow, self._numbers) if flow is not None else {}
            if flow is not None and not new:
                self._leave_out(pair, flow)
            elif flow is not None:
                self._installed[pair] = flow
                self._count(new, 1)
            writes |= {place: (new[place], pair) for place in new if old.get(place) != new[place]}
            gone |= dict.fromkeys(place for place in old if place not in new)
        self._delete([place for place in gone if place not in writes])
        for pair in self._write(writes):
            flow = self._installed[pair]
            self._delete(list(self._take_out(pair)))
            self._leave_out(pair, flow)

    def _take_out(self, pair: UlidPair) -> dict[Place, bytes]:
        self._left_out.pop(pair, None)
        flow = self._installed.pop(pair, None)
        old = self._inherited.pop(pair, {})
        if flow is not None:
            old = entries(flow, self._numbers)
        self._count(old, -1)
        return old

    def _leave_out(self, pair: UlidPair, flow: InstallFlow) -> None:
        self._left_out[pair] = flow
        self.overflowed += 1

    def _write(self, writes: Mapping[Place, tuple[bytes, UlidPair]]) -> set[UlidPair]:
        refused: set[UlidPair] = set()
        for name in ORDER:
            of_map = [(place.key, value, pair) for place, (value, pair) in writes.items()
                      if place.map == name]  # fmt: skip
            if of_map:
                keys, values, pairs = zip(*of_map, strict=True)
                refused |= {pairs[n] for n in self._maps[name].update_batch(keys, values)}
        return refused

    def _delete(self, places: list[Place]) -> None:
        for name in reversed(ORDER):
            keys = [place.key for place in places if place.map == name]
            if keys:
                self._maps[name].delete_batch(keys)

    def _count(self, of_flow: Mapping[Place, bytes], step: int) -> None:
        for place in of_flow:
            if place.map == layout.SENT:
                self.sent_labels += step
            elif place.map == layout.TAG and _mode_of(place.key) is Mode.FLOWLABEL:
                self.labels += step


def _mode_of(key: bytes) -> Mode:
    return Mode(int.from_bytes(key, sys.byteorder) >> 56)

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
from m6proxy.dataplane.bpf.entries import (
    ORDER,
    Left,
    Place,
    Written,
    differs_outbound_alone,
    each_entry,
    out_value,
    sent_key,
    slot_value,
)
from m6proxy.dataplane.bpf.layout import Miss, MissFlag, Mode
from m6proxy.dataplane.bpf.maps import Map
from m6proxy.names import UlidPair
from m6proxy.shim.adopt import LeftContext
from m6proxy.shim.effects import InstallFlow

_AGAIN_AT_ONCE: Final = 64
_MODE_AT: Final = 7 if sys.byteorder == "little" else 0
"""The octet of a key of TAG that tells the mode."""


class _Batch:
    """Changes of entries, by map."""

    def __init__(self) -> None:
        self.writes: dict[str, tuple[list[bytes], list[bytes], list[UlidPair]]] = {}
        """Keys, values, and whose they are."""
        self._removes: dict[str, list[bytes]] = {}

    def write(self, name: str, key: bytes, value: bytes, pair: UlidPair) -> None:
        if name not in self.writes:
            self.writes[name] = [], [], []
        keys, values, pairs = self.writes[name]
        keys.append(key)
        values.append(value)
        pairs.append(pair)

    def remove(self, name: str, key: bytes) -> None:
        self._removes.setdefault(name, []).append(key)

    def gone(self) -> dict[str, list[bytes]]:
        """The keys that are removed and not written by another flow."""
        written = {name: set(keys) for name, (keys, _, _) in self.writes.items()
                   if name in self._removes}  # fmt: skip
        if not written:
            return self._removes
        return {
            name: [key for key in keys if key not in written.get(name, ())]
            for name, keys in self._removes.items()
        }


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
        stray = _Batch()
        for name, key in left.stray:
            stray.remove(name, key)
        self._delete(stray.gone())
        self._inherited = left.by_pair
        for of_flow in left.by_pair.values():
            for name, key in of_flow:
                self._count(name, key, 1)
        return left.contexts()

    def disown(self) -> None:
        """Remove inherited entries that nobody took over."""
        self.apply(dict.fromkeys(self._inherited))

    def apply(self, changes: Mapping[UlidPair, InstallFlow | None]) -> None:
        """Bring the kernel to what is wanted of these pairs; None takes a flow out.

        New entries are written before old ones go: a packet meets the one or the other.
        """
        wanted = changes
        if self._left_out and None in changes.values():
            again = islice(self._left_out.items(), _AGAIN_AT_ONCE)
            wanted = {**dict(again), **changes}
        batch = _Batch()
        for pair, flow in wanted.items():
            if not self._moved(batch, pair, flow):
                self._replaced(batch, pair, flow)
        refused = self._write(batch)
        self._delete(batch.gone())
        if refused:
            self._squeeze(refused)

    def _moved(self, batch: _Batch, pair: UlidPair, flow: InstallFlow | None) -> bool:
        """The usual re-homing, which 100,000 contexts may have at once: one entry, or two."""
        installed = self._installed.get(pair)
        if installed is None or flow is None:
            return False
        before, after = installed.kernel, flow.kernel
        if before is None or after is None or not differs_outbound_alone(before, after):
            return False
        key = pair.local + pair.peer
        old, new = sent_key(key, before), sent_key(key, after)
        if old != new:
            if old is not None:
                batch.remove(layout.SENT, old)
                self.sent_labels -= 1
            if new is not None:
                batch.write(layout.SENT, new, slot_value(after), pair)
                self.sent_labels += 1
        value = out_value(key, flow.peer_tag, after, self._numbers)
        batch.write(layout.OUT, key, value, pair)
        self._installed[pair] = flow
        return True

    def _replaced(self, batch: _Batch, pair: UlidPair, flow: InstallFlow | None) -> None:
        old = {(name, key): value for name, key, value in self._take_out(pair)}
        new = each_entry(flow, self._numbers) if flow is not None else []
        if flow is not None and not new:
            self._leave_out(pair, flow)
        elif flow is not None:
            self._installed[pair] = flow
        for name, key, value in new:
            self._count(name, key, 1)
            if old.pop((name, key), None) != value:
                batch.write(name, key, value, pair)
        for name, key in old:
            batch.remove(name, key)

    def _take_out(self, pair: UlidPair) -> list[Written]:
        """Forget a flow, and return the entries that it has."""
        self._left_out.pop(pair, None)
        flow = self._installed.pop(pair, None)
        inherited = self._inherited.pop(pair, {})
        if flow is not None:
            old = each_entry(flow, self._numbers)
        else:
            old = [(name, key, value) for (name, key), value in inherited.items()]
        for name, key, _ in old:
            self._count(name, key, -1)
        return old

    def _leave_out(self, pair: UlidPair, flow: InstallFlow) -> None:
        self._left_out[pair] = flow
        self.overflowed += 1

    def _write(self, batch: _Batch) -> _Batch | None:
        """Write it; return those for which there was no room, None when there are none."""
        refused = _Batch()
        for name in ORDER:
            if name in batch.writes:
                keys, values, pairs = batch.writes[name]
                for n in self._maps[name].update_batch(keys, values):
                    refused.write(name, keys[n], values[n], pairs[n])
        return refused if refused.writes else None

    def _squeeze(self, refused: _Batch) -> None:
        """There may be room now that old entries went; whole flows without it are left out."""
        again = self._write(refused)
        if again is None:
            return
        pairs = dict.fromkeys(pair for _, _, pairs in again.writes.values() for pair in pairs)
        whole = _Batch()
        for pair in pairs:
            flow = self._installed[pair]
            for name, key, _ in self._take_out(pair):
                whole.remove(name, key)
            self._leave_out(pair, flow)
        self._delete(whole.gone())

    def _delete(self, keys: Mapping[str, list[bytes]]) -> None:
        for name in reversed(ORDER):
            if keys.get(name):
                self._maps[name].delete_batch(keys[name])

    def _count(self, name: str, key: bytes, step: int) -> None:
        if name == layout.SENT:
            self.sent_labels += step
        elif name == layout.TAG and key[_MODE_AT] == Mode.FLOWLABEL:
            self.labels += step

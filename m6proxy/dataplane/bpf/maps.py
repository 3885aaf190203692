"""A BPF map as Python sees it: octets in, octets out, in batches where there are many."""

from __future__ import annotations

import errno
import mmap
import os
import struct
from collections.abc import Iterator, Sequence
from enum import IntEnum
from pathlib import Path
from typing import Final

from m6proxy.dataplane.bpf import syscall
from m6proxy.dataplane.bpf.btf import MapSpec

PAGE_ENTRIES: Final = 4096
"""Entries that are read in one call."""
PAGE_ENTRIES_MAX: Final = 1 << 20
_POSSIBLE_CPUS = Path("/sys/devices/system/cpu/possible")
_INFO = struct.Struct("=IIIIII16s")


class MapKind(IntEnum):
    """enum bpf_map_type, those that we use."""

    HASH = 1
    ARRAY = 2
    PERCPU_HASH = 5
    PERCPU_ARRAY = 6
    LRU_HASH = 9
    LRU_PERCPU_HASH = 10
    RINGBUF = 27


class MapFlag(IntEnum):
    """Flags at creation, those that we use."""

    NO_PREALLOC = 1 << 0
    RDONLY_PROG = 1 << 7
    MMAPABLE = 1 << 10


_PER_CPU = {MapKind.PERCPU_HASH, MapKind.PERCPU_ARRAY, MapKind.LRU_PERCPU_HASH}


class Map:
    """One map. Methods raise OSError with the kernel's errno; keys and values have fixed sizes."""

    def __init__(self, descriptor: int, spec: MapSpec) -> None:
        self.descriptor = descriptor
        self.spec = spec
        self.is_per_cpu = spec.kind in _PER_CPU
        self.value_room = spec.value_size
        """Octets of what ``lookup`` returns: for a per-CPU map all CPUs' values, each rounded
        up to 8 octets."""
        if self.is_per_cpu:
            self.value_room = (spec.value_size + 7) // 8 * 8 * possible_cpus()

    @classmethod
    def create(cls, spec: MapSpec) -> Map:
        """Create an empty map."""
        descriptor = syscall.map_create(
            spec.kind, spec.key_size, spec.value_size, spec.max_entries, spec.flags, spec.name
        )
        return cls(descriptor, spec)

    @classmethod
    def opened(cls, descriptor: int, name: str) -> Map:
        """Take over a descriptor; the sizes are the kernel's."""
        kind, _, key_size, value_size, max_entries, flags, _ = _INFO.unpack_from(
            syscall.obj_info(descriptor, _INFO.size)
        )
        return cls(descriptor, MapSpec(name, kind, key_size, value_size, max_entries, flags))

    def close(self) -> None:
        """Close the descriptor; safe to call twice."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1

    def lookup(self, key: bytes) -> bytes | None:
        """Return the value, or None."""
        self._check(key)
        return syscall.map_lookup(self.descriptor, key, self.value_room)

    def lookup_per_cpu(self, key: bytes) -> list[bytes]:
        """Return the value of each possible CPU; none when there is no such key."""
        octets = self.lookup(key) or b""
        step = (self.spec.value_size + 7) // 8 * 8
        size = self.spec.value_size
        return [octets[place : place + size] for place in range(0, len(octets), step)]

    def update(self, key: bytes, value: bytes) -> None:
        """Write one entry. E2BIG when the map is full."""
        self._check(key, value)
        syscall.map_update(self.descriptor, key, value)

    def delete(self, key: bytes) -> bool:
        """Remove one entry; tell whether it was there."""
        self._check(key)
        return syscall.map_delete(self.descriptor, key)

    def update_batch(self, keys: Sequence[bytes], values: Sequence[bytes]) -> list[int]:
        """Write many entries; return the places in ``keys`` of those for which there is no room.

        Each entry is written whole or not at all; the batch as such is not one transaction.
        """
        if len(keys) != len(values):
            raise ValueError(f"{len(keys)} keys and {len(values)} values")
        left_out: list[int] = []
        place = 0
        while place < len(keys):
            count = len(keys) - place
            all_keys, all_values = b"".join(keys[place:]), b"".join(values[place:])
            self._check_many(all_keys, all_values, count)
            done = syscall.map_update_batch(self.descriptor, all_keys, all_values, count)
            place += done.count
            if done.errno in {errno.E2BIG, errno.ENOMEM}:
                left_out += self._squeeze(keys, values, place)
                break
            if done.errno:
                raise OSError(done.errno, os.strerror(done.errno))
        return left_out

    def _squeeze(self, keys: Sequence[bytes], values: Sequence[bytes], start: int) -> list[int]:
        """The map is full: entries that are in it already can still be changed, one by one."""
        left_out = []
        for place in range(start, len(keys)):
            try:
                syscall.map_update(self.descriptor, keys[place], values[place])
            except OSError as refused:
                if refused.errno not in {errno.E2BIG, errno.ENOMEM}:
                    raise
                left_out.append(place)
        return left_out

    def delete_batch(self, keys: Sequence[bytes]) -> int:
        """Remove many entries; return how many of them were there."""
        deleted = 0
        place = 0
        while place < len(keys):
            count = len(keys) - place
            together = b"".join(keys[place:])
            self._check_many(together, None, count)
            done = syscall.map_delete_batch(self.descriptor, together, count)
            deleted += done.count
            place += done.count
            if done.errno == errno.ENOENT:
                place, more = self._skip_absent(keys, place)
                deleted += more
            elif done.errno:
                raise OSError(done.errno, os.strerror(done.errno))
        return deleted

    def _skip_absent(self, keys: Sequence[bytes], place: int) -> tuple[int, int]:
        """Go on one by one until a key is there again; return the next place and the removed."""
        while place < len(keys):
            place += 1
            if syscall.map_delete(self.descriptor, keys[place - 1]):
                return place, 1
        return place, 0

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """Read all entries, many in each call. What changes meanwhile may be missed or doubled."""
        key_size, room = self.spec.key_size, self.value_room
        count = min(PAGE_ENTRIES, max(self.spec.max_entries, 1))
        after: bytes | None = None
        while True:
            try:
                page = syscall.map_lookup_batch(self.descriptor, after, count, key_size, room)
            except OSError as refused:
                if refused.errno != errno.ENOSPC or count >= PAGE_ENTRIES_MAX:
                    raise
                count *= 2
                continue
            for number in range(page.count):
                yield (
                    page.keys[number * key_size : (number + 1) * key_size],
                    page.values[number * room : (number + 1) * room],
                )
            if page.following is None:
                return
            after = page.following

    def mapped(self, *, writable: bool = False) -> mmap.mmap:
        """Map an array (MMAPABLE) into memory: entry n at n times the value size rounded to 8.

        Reading costs no system call; close the mapping before or after the map, as you like.
        """
        step = (self.spec.value_size + 7) // 8 * 8
        protection = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        return mmap.mmap(self.descriptor, step * self.spec.max_entries, mmap.MAP_SHARED, protection)

    def _check(self, key: bytes, value: bytes | None = None) -> None:
        if len(key) != self.spec.key_size:
            raise ValueError(f"{self.spec.name}: a key of {len(key)} octets")
        if value is not None and len(value) != self.value_room:
            raise ValueError(f"{self.spec.name}: a value of {len(value)} octets")

    def _check_many(self, keys: bytes, values: bytes | None, count: int) -> None:
        """The kernel reads as many octets as the sizes say: never let it read beyond."""
        if len(keys) != count * self.spec.key_size:
            raise ValueError(f"{self.spec.name}: a key of the wrong length")
        if values is not None and len(values) != count * self.value_room:
            raise ValueError(f"{self.spec.name}: a value of the wrong length")


def possible_cpus(path: Path = _POSSIBLE_CPUS) -> int:
    """Return how many values a per-CPU map has: CPUs that the kernel could ever have."""
    last = path.read_text().strip().split(",")[-1]
    return int(last.split("-")[-1]) + 1

"""The reading end of a BPF ring buffer: records from the kernel without a system call each.

The memory has three parts: a page with how far we have read, which we write; a page with how
far the kernel has written; and the data, mapped twice in a row, so that no record is broken
at the end. A record has 8 octets of header, its length with two flags, and is rounded to 8.
"""

from __future__ import annotations

import mmap
import struct
from typing import Final

from m6proxy.dataplane.bpf.maps import Map

READ_RECORDS: Final = 256
"""Records for one turn of the loop."""
_BUSY, _DISCARDED = 1 << 31, 1 << 30
_HEADER_OCTETS = 8
_LENGTH = struct.Struct("@I")


class RingReader:
    """Reads one ring buffer. ``fileno`` is readable while records wait (epoll, add_reader)."""

    def __init__(self, ring: Map) -> None:
        self._ring = ring
        self._octets = ring.spec.max_entries
        page = mmap.PAGESIZE
        self._consumer = mmap.mmap(
            ring.descriptor, page, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE
        )
        self._producer = mmap.mmap(
            ring.descriptor, page + 2 * self._octets, mmap.MAP_SHARED, mmap.PROT_READ, offset=page
        )
        # Positions are read and written as whole words, which struct with "=" would not do.
        self._read_to = memoryview(self._consumer).cast("Q")
        self._written_to = memoryview(self._producer).cast("Q")

    def fileno(self) -> int:
        """The map's descriptor."""
        return self._ring.descriptor

    def read(self, limit: int = READ_RECORDS) -> list[bytes]:
        """Return up to ``limit`` records, oldest first; none when there is nothing to read."""
        records: list[bytes] = []
        place, end = self._read_to[0], self._written_to[0]
        data = mmap.PAGESIZE
        while place < end and len(records) < limit:
            start = data + place % self._octets
            length = _LENGTH.unpack_from(self._producer, start)[0]
            if length & _BUSY:  # reserved, and not written yet
                break
            octets = length & ~_DISCARDED
            if not length & _DISCARDED:
                start += _HEADER_OCTETS
                records.append(self._producer[start : start + octets])
            place += (_HEADER_OCTETS + octets + 7) // 8 * 8
            self._read_to[0] = place
        return records

    def close(self) -> None:
        """Unmap; the map itself stays open. Safe to call twice."""
        self._read_to.release()
        self._written_to.release()
        self._consumer.close()
        self._producer.close()

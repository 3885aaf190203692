"""Maps in the kernel: single entries, batches, per-CPU values, memory mappings."""

from __future__ import annotations

import errno
import os
import struct
from pathlib import Path

import pytest

from m6proxy.dataplane.bpf.btf import MapSpec
from m6proxy.dataplane.bpf.load import Loaded, create_map
from m6proxy.dataplane.bpf.maps import Map, MapFlag, MapKind, possible_cpus
from m6proxy.errors import SetupError
from tests.dataplane.bpf.trial import ETHERNET
from tests.dataplane.bpf.trial import trial as trial

pytestmark = pytest.mark.netns


def keys(count: int, start: int = 0) -> list[bytes]:
    return [number.to_bytes(32, "big") for number in range(start, start + count)]


def test_an_entry_is_written_read_and_removed(trial: Loaded) -> None:
    pairs = trial.maps["pairs"]
    (key,) = keys(1)
    assert pairs.lookup(key) is None
    pairs.update(key, b"0123456789abcdef")
    assert pairs.lookup(key) == b"0123456789abcdef"
    assert pairs.delete(key)
    assert not pairs.delete(key)


def test_a_batch_is_read_back_whole(trial: Loaded) -> None:
    pairs = trial.maps["pairs"]
    values = [struct.pack("=QQ", number, 0) for number in range(1000)]
    assert pairs.update_batch(keys(1000), values) == []
    assert dict(pairs.items()) == dict(zip(keys(1000), values, strict=True))


def test_what_finds_no_room_is_said_and_what_is_there_still_changes(trial: Loaded) -> None:
    pairs = trial.maps["pairs"]
    assert pairs.update_batch(keys(1024), [bytes(16)] * 1024) == []
    new_and_old = [*keys(10, 5000), *keys(5)]
    assert pairs.update_batch(new_and_old, [b"x" * 16] * 15) == list(range(10))
    assert pairs.lookup(keys(1)[0]) == b"x" * 16


def test_a_batch_of_removals_passes_over_what_is_not_there(trial: Loaded) -> None:
    pairs = trial.maps["pairs"]
    pairs.update_batch(keys(100), [bytes(16)] * 100)
    wanted = [*keys(3, 900), *keys(50), *keys(4, 950), *keys(50, 50), *keys(1, 999)]
    assert pairs.delete_batch(wanted) == 100
    assert list(pairs.items()) == []


def test_entries_of_the_wrong_size_never_reach_the_kernel(trial: Loaded) -> None:
    pairs = trial.maps["pairs"]
    with pytest.raises(ValueError, match="key of 31 octets"):
        pairs.update(bytes(31), bytes(16))
    with pytest.raises(ValueError, match="value of 15 octets"):
        pairs.update(bytes(32), bytes(15))
    with pytest.raises(ValueError, match="wrong length"):
        pairs.update_batch([bytes(32)], [bytes(8)])


def test_a_map_with_full_buckets_is_read_whole() -> None:
    """The kernel wants room for a whole bucket; the page grows until it has it."""
    many = create_map(MapSpec("many", MapKind.HASH, 4, 4, 200_000, MapFlag.NO_PREALLOC))
    names = [number.to_bytes(4, "little") for number in range(200_000)]
    assert many.update_batch(names, names) == []
    assert dict(many.items()) == dict(zip(names, names, strict=True))
    many.close()


def test_each_cpu_counts_for_itself(trial: Loaded) -> None:
    trial.programs["mark_pair"].trial(ETHERNET + bytes(60), repeat=7)
    values = trial.maps["counters"].lookup_per_cpu(bytes([1, 0, 0, 0]))
    assert len(values) == possible_cpus()
    assert sum(int.from_bytes(value, "little") for value in values) == 7


def test_possible_cpus_are_counted_from_the_kernels_list(tmp_path: Path) -> None:
    listing = tmp_path / "possible"
    listing.write_text("0-3,8-11\n")
    assert possible_cpus(listing) == 12


def test_an_array_is_read_without_a_system_call(trial: Loaded) -> None:
    with trial.maps["seen"].mapped() as view:
        trial.programs["count_all"].trial(ETHERNET + bytes(6) + b"\x11" + bytes(53), repeat=9)
        assert struct.unpack_from("=Q", view, 0) == (9,)
        with pytest.raises(TypeError):
            view[0:8] = bytes(8)


def test_a_descriptor_tells_what_it_is(trial: Loaded) -> None:
    opened = Map.opened(os.dup(trial.maps["pairs"].descriptor), "pairs")
    assert opened.spec == trial.maps["pairs"].spec
    opened.close()


def test_a_map_that_cannot_be_is_refused_by_name() -> None:
    with pytest.raises(SetupError, match=r"BPF map odd of 3 entries: the kernel refuses it"):
        create_map(MapSpec("odd", MapKind.RINGBUF, 0, 0, 3))


def test_errors_of_the_kernel_keep_their_number(trial: Loaded) -> None:
    with pytest.raises(OSError) as refused:
        trial.maps["seen"].update((64).to_bytes(4, "little"), bytes(8))
    assert refused.value.errno == errno.E2BIG

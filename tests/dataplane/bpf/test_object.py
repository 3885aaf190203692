"""What the parsers make of clang's output, and of everything else."""

from __future__ import annotations

import random
import struct
import subprocess
from pathlib import Path

import pytest

from m6proxy.dataplane.bpf.btf import Field, MapSpec
from m6proxy.dataplane.bpf.load import parse_object, read_object
from m6proxy.dataplane.bpf.maps import MapFlag, MapKind
from m6proxy.dataplane.bpf.programs import ProgramKind
from m6proxy.errors import SetupError
from tests.dataplane.bpf.trial import compiled, trial_object

MUTATIONS = 3000


def test_maps_are_as_the_source_defines_them() -> None:
    maps = trial_object().maps
    assert maps["pairs"] == MapSpec("pairs", MapKind.HASH, 32, 16, 1024, MapFlag.NO_PREALLOC)
    assert maps["seen"] == MapSpec("seen", MapKind.ARRAY, 4, 8, 64, MapFlag.MMAPABLE)
    assert maps["events"] == MapSpec("events", MapKind.RINGBUF, 0, 0, 4096)
    assert set(maps) == {"pairs", "seen", "counters", "misses", "events"}


def test_programs_have_kinds_and_references() -> None:
    source = trial_object()
    assert source.license_text == b"GPL"
    assert source.programs["count_all"].kind is ProgramKind.SCHED_CLS
    assert source.programs["pass_early"].kind is ProgramKind.XDP
    references = source.programs["mark_pair"].references
    assert {each.map for each in references} == {"pairs", "counters", ".rodata"}
    assert source.rodata[".rodata"] == struct.pack("=4I", 11, 22, 33, 44)


def test_struct_layouts_come_from_the_types() -> None:
    layout = trial_object().types.layout("entry")
    assert layout.size == 16
    assert layout.fields[0] == Field("mark", 0, 4)
    assert layout.fields[-1] == Field("seen_ns", 8, 8)
    with pytest.raises(SetupError, match="no struct nothing"):
        trial_object().types.layout("nothing")


def test_an_object_that_is_not_there_is_named_with_its_remedy(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=r"absent\.o cannot be read .*make bpf"):
        read_object(tmp_path / "absent.o")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ('int counter; SEC("tc") int f(void *c) { return counter++; }', "neither a map nor a"),
        (
            "__attribute__((noinline)) static int g(volatile int *x) { return *x; }"
            ' SEC("tc") int f(void *c) { int y = 1; return g(&y); }',
            "function g is in section .text",
        ),
        ('SEC("kprobe/x") int f(void *c) { return 0; }', "section kprobe/x"),
        (
            'struct { __uint(type, 1); __uint(numa_node, 3); } m SEC(".maps");'
            ' SEC("tc") int f(void *c) { return 0; }',
            "map m has numa_node",
        ),
    ],
)
def test_what_the_loader_does_not_do_is_refused_by_name(
    text: str, complaint: str, tmp_path: Path
) -> None:
    source = tmp_path / "odd.bpf.c"
    source.write_text(f"#include <linux/bpf.h>\n#include <bpf/bpf_helpers.h>\n{text}\n")
    with pytest.raises(SetupError, match=complaint):
        parse_object(compiled(source), "odd.bpf.o")


def test_an_object_for_another_machine_is_refused(tmp_path: Path) -> None:
    source = tmp_path / "host.c"
    source.write_text("int main(void) { return 0; }\n")
    subprocess.run(["clang", "-c", str(source), "-o", str(tmp_path / "host.o")], check=True)
    with pytest.raises(SetupError, match="not a relocatable object for BPF"):
        read_object(tmp_path / "host.o")


def test_a_name_that_is_no_text_never_gets_into_a_complaint() -> None:
    """It would have made two lines of one."""
    with pytest.raises(SetupError, match="or not of letters"):
        parse_object(compiled().replace(b"\0count_all\0", b"\0count\nall\0"), "odd.bpf.o")


def test_garbage_raises_nothing_but_the_one_error() -> None:
    """Cut, overwritten and shuffled objects: parsed, or refused with SetupError."""
    good = compiled()
    randomness = random.Random(20260)
    refused = 0
    for _ in range(MUTATIONS):
        octets = bytearray(good)
        for _ in range(randomness.randint(1, 8)):
            place = randomness.randrange(len(octets))
            match randomness.randrange(4):
                case 0:
                    octets[place] ^= 1 << randomness.randrange(8)
                case 1:
                    octets[place : place + 4] = randomness.randbytes(4)
                case 2:
                    octets[place : place + 8] = b"\xff" * 8
                case 3:
                    del octets[place + 1 :]
        try:
            parse_object(bytes(octets), "garbage.o")
        except SetupError as complaint:
            assert "\n" not in str(complaint)
            refused += 1
    assert refused > MUTATIONS // 4


def test_every_octet_of_the_headers_and_types_may_be_anything() -> None:
    """Aim at the tables: the ELF header, the section headers and the type section."""
    good = compiled()
    randomness = random.Random(5533)
    headers_at = int.from_bytes(good[40:48], "little")
    types_at = good.index(b"\x9f\xeb\x01\x00")
    places = [*range(64), *range(headers_at, len(good)), *range(types_at, types_at + 1500)]
    for place in places:
        octets = bytearray(good)
        octets[place] = randomness.randrange(256)
        try:
            parse_object(bytes(octets), "garbage.o")
        except SetupError:
            continue

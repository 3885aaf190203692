"""The object that the loader's tests load, compiled once for the whole run."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from hatch_build import compile_bpf
from m6proxy.dataplane.bpf.links import tcx_works
from m6proxy.dataplane.bpf.load import BpfObject, Loaded, load, parse_object

SOURCE = Path(__file__).with_name("trial.bpf.c")
ETHERNET = bytes(12) + b"\x86\xdd"
COUNT_ALL, COUNT_ALL_AGAIN = (number.to_bytes(4, "little") for number in (0, 1))
"""Where the programs of these names count, in map ``seen``."""


_scratch = tempfile.TemporaryDirectory()


@functools.cache
def object_file(source: Path = SOURCE) -> Path:
    """Compile a BPF program; the source cannot change while the tests run."""
    target = Path(_scratch.name) / f"{len(list(Path(_scratch.name).iterdir()))}.bpf.o"
    compile_bpf(source, target)
    return target


def compiled(source: Path = SOURCE) -> bytes:
    """Return the octets of the object."""
    return object_file(source).read_bytes()


def trial_object() -> BpfObject:
    """Return the object, parsed."""
    return parse_object(compiled(), "trial.bpf.o")


def needs_tcx() -> None:
    """Skip a test of tcx links on kernels before 6.6."""
    if not tcx_works():
        pytest.skip("this kernel has no tcx")


@pytest.fixture
def trial() -> Iterator[Loaded]:
    """The object in the kernel, unpinned and attached to nothing."""
    loaded = load(trial_object())
    yield loaded
    loaded.close()

"""What the kernel offers to the fast path: found out by trying, and nothing is left behind."""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pyroute2 import IPRoute, NetlinkError

from m6proxy.dataplane.bpf import syscall
from m6proxy.dataplane.bpf.btf import MapSpec
from m6proxy.dataplane.bpf.links import LOOPBACK_INDEX, Side, add_filter, ensure_clsact, tcx_works
from m6proxy.dataplane.bpf.load import BpfObject, load
from m6proxy.dataplane.bpf.maps import Map, MapFlag, MapKind
from m6proxy.dataplane.bpf.programs import ProgramKind

_VMLINUX_BTF = Path("/sys/kernel/btf/vmlinux")
_FILE_SYSTEMS = Path("/proc/filesystems")
_JIT = Path("/proc/sys/net/core/bpf_jit_enable")
_CLONE_NEWNET = 0x4000_0000
_libc = ctypes.CDLL(None, use_errno=True)
_RING_OCTETS = 4096
_TRIAL_ENTRIES = 16
_RETURN_2 = bytes.fromhex("b700000002000000 9500000000000000")
"""r0 = 2; exit: drop for a classifier, pass for XDP; it is never attached."""


@dataclass(frozen=True, slots=True)
class Offer:
    """What there is. ``refusal`` says why bpf(2) as such cannot be used, or is empty."""

    refusal: str
    tcx: bool = False
    """Since Linux 6.6: several programs per interface, replaced in place."""
    clsact: bool = False
    """What is used instead of tcx on older kernels."""
    xdp: bool = False
    btf: bool = False
    """The kernel's own types; m6proxy's programs work without."""
    ring_buffer: bool = False
    mmapable: bool = False
    """Arrays that are read without a system call."""
    bpffs: bool = False
    """A place where programs and maps outlive the daemon."""
    veth: bool = False
    """Interfaces in which large packets of mode exthdr are segmented."""
    jit: bool = True
    """Programs run as machine code."""

    @property
    def named(self) -> dict[str, bool]:
        """All that a kernel may have or lack, by the words that people know."""
        return {
            "tcx": self.tcx,
            "clsact": self.clsact,
            "XDP": self.xdp,
            "BTF": self.btf,
            "ring buffer": self.ring_buffer,
            "mmapable arrays": self.mmapable,
            "bpffs": self.bpffs,
            "veth": self.veth,
        }

    @property
    def missing(self) -> list[str]:
        """What the fast path cannot do without, and is not there."""
        needed = {
            "tcx or clsact": self.tcx or self.clsact,
            "ring buffer": self.ring_buffer,
            "mmapable arrays": self.mmapable,
            "bpffs": self.bpffs,
        }
        return [] if self.refusal else [name for name, there in needed.items() if not there]


def probe() -> Offer:
    """Try everything. Takes about 20 ms, most of it for a network namespace of a moment."""
    refusal = _refusal()
    if refusal:
        return Offer(refusal)
    return Offer(
        "",
        tcx=tcx_works(),
        clsact=_in_a_namespace(_filter_is_taken),
        xdp=_loads(ProgramKind.XDP),
        btf=_VMLINUX_BTF.exists(),
        ring_buffer=_creates(MapSpec("m6p_probe", MapKind.RINGBUF, 0, 0, _RING_OCTETS)),
        mmapable=_creates(MapSpec("m6p_probe", MapKind.ARRAY, 4, 8, 1, MapFlag.MMAPABLE)),
        bpffs="bpf" in _FILE_SYSTEMS.read_text().split(),
        veth=_in_a_namespace(_veth_is_made),
        jit=not _JIT.exists() or _JIT.read_text().strip() != "0",
    )


def try_programs(source: BpfObject) -> int:
    """Let the verifier see all programs of an object; return how many. Raises SetupError."""
    sizes = {
        spec.name: min(spec.max_entries, _TRIAL_ENTRIES)
        for spec in source.maps.values()
        if spec.kind != MapKind.RINGBUF
    }
    load(source, max_entries=sizes).close()
    return len(source.programs)


def _refusal() -> str:
    try:
        os.close(syscall.map_create(MapKind.ARRAY, 4, 4, 1, 0, "m6p_probe"))
        os.close(syscall.prog_load(ProgramKind.SCHED_CLS, _RETURN_2, b"GPL", "m6p_probe")[0])
    except OSError as refused:
        return refused.strerror or str(refused)
    return ""


def _creates(spec: MapSpec) -> bool:
    try:
        Map.create(spec).close()
    except OSError:
        return False
    return True


def _loads(kind: ProgramKind) -> bool:
    try:
        os.close(syscall.prog_load(kind, _RETURN_2, b"GPL", "m6p_probe")[0])
    except OSError:
        return False
    return True


def _in_a_namespace(works: Callable[[], bool]) -> bool:
    """Try it in a network namespace that ends with this thread."""
    found: list[bool] = []

    def act() -> None:
        with contextlib.suppress(OSError, NetlinkError):
            found.append(not _libc.unshare(_CLONE_NEWNET) and works())

    thread = threading.Thread(target=act)
    thread.start()
    thread.join()
    return found == [True]


def _filter_is_taken() -> bool:
    """On the loopback interface."""
    program = syscall.prog_load(ProgramKind.SCHED_CLS, _RETURN_2, b"GPL", "m6p_probe")[0]
    try:
        with IPRoute() as route:
            ensure_clsact(route, LOOPBACK_INDEX)
            add_filter(route, program, "m6p_probe", LOOPBACK_INDEX, Side.INGRESS)
    finally:
        os.close(program)
    return True


def _veth_is_made() -> bool:
    with IPRoute() as route:
        route.link("add", ifname="m6p0", kind="veth", peer={"ifname": "m6p1"})
    return True

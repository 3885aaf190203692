"""A loaded BPF program, and the trial runs of it on packets of our own."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Final

from m6proxy.dataplane.bpf import syscall
from m6proxy.errors import SetupError

LOG_OCTETS: Final = 1 << 20
_LOG_LINES = 30
_STATUS = Path("/proc/thread-self/status")
_CAP_NET_ADMIN, _CAP_SYS_ADMIN = 12, 21
_CAPABILITIES = {"CAP_NET_ADMIN": _CAP_NET_ADMIN, "CAP_PERFMON": 38, "CAP_BPF": 39}
_ROOM_EXTRA = 512
"""How much longer a packet may become in a test run."""


class ProgramKind(IntEnum):
    """enum bpf_prog_type, those that we use."""

    SCHED_CLS = 3
    XDP = 6


class ProgramRefused(SetupError):
    """The kernel's verifier does not accept a program; ``log`` has its last lines."""

    def __init__(self, name: str, why: str, log: list[str]) -> None:
        remedy = "set fast_path: off, or use a kernel that accepts it"
        super().__init__(f"BPF program {name}: the kernel refuses it: {why}; {remedy}")
        self.log = log


_WORD = struct.Struct("=I")
_CONTEXT_OCTETS = 192
_MARK_AT, _PRIORITY_AT, _INGRESS_AT, _INTERFACE_AT = 8, 32, 36, 40
_CALLBACK_AT = 48
_GSO_SEGMENTS_AT, _GSO_SIZE_AT = 164, 176
"""Places in struct __sk_buff; the tests hold them against the compiler's header."""


@dataclass(frozen=True, slots=True)
class SkBuff:
    """What a program sees beside the octets (struct __sk_buff), as far as a trial may set it.

    An interface index must be one of our namespace; 0 leaves it to the kernel (loopback).
    """

    mark: int = 0
    priority: int = 0
    ingress_index: int = 0
    interface_index: int = 0
    callback: tuple[int, int, int, int, int] = (0, 0, 0, 0, 0)
    gso_segments: int = 0
    gso_size: int = 0

    def encode(self) -> bytes:
        """Return it as the kernel takes it: 192 octets."""
        octets = bytearray(_CONTEXT_OCTETS)
        for place, word in self._words():
            _WORD.pack_into(octets, place, word)
        return bytes(octets)

    def _words(self) -> Iterator[tuple[int, int]]:
        yield _MARK_AT, self.mark
        yield _PRIORITY_AT, self.priority
        yield _INGRESS_AT, self.ingress_index
        yield _INTERFACE_AT, self.interface_index
        for number, word in enumerate(self.callback):
            yield _CALLBACK_AT + 4 * number, word
        yield _GSO_SEGMENTS_AT, self.gso_segments
        yield _GSO_SIZE_AT, self.gso_size


@dataclass(frozen=True, slots=True)
class Trial:
    """What a program did with a packet."""

    verdict: int
    packet: bytes
    mark: int
    duration_ns: int
    """The mean of one run."""


class Program:
    """One program. Methods raise OSError with the kernel's errno."""

    def __init__(self, descriptor: int, name: str) -> None:
        self.descriptor = descriptor
        self.name = name

    def close(self) -> None:
        """Close the descriptor; safe to call twice. Attached, the program goes on."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1

    def trial(self, packet: bytes, context: SkBuff | None = None, *, repeat: int = 1) -> Trial:
        """Run a SCHED_CLS program on a frame: 14 octets of Ethernet header, then the packet.

        Nothing is sent or redirected; maps are changed as by any packet.
        """
        given = (context or SkBuff()).encode()
        run = syscall.prog_test_run(
            self.descriptor, packet, given, room=len(packet) + _ROOM_EXTRA, repeat=repeat
        )
        mark = _WORD.unpack_from(run.context, _MARK_AT)[0]
        return Trial(run.verdict, run.packet, mark, run.duration_ns)


def load_program(kind: ProgramKind, instructions: bytes, license_text: bytes, name: str) -> Program:
    """Give a program to the verifier.

    Raises ProgramRefused with the end of the verifier's log, SetupError for want of privileges.
    """
    try:
        return Program(syscall.prog_load(kind, instructions, license_text, name)[0], name)
    except OSError as refused:
        why = refused.strerror or str(refused)
    lacking = missing_capabilities()
    if lacking:
        raise SetupError(
            f"BPF program {name}: the kernel refuses it without {' and '.join(lacking)}; "
            "give m6proxy these, or run it as root"
        )
    try:
        descriptor, log = syscall.prog_load(
            kind, instructions, license_text, name, log_octets=LOG_OCTETS
        )
    except OSError:
        raise ProgramRefused(name, why, []) from None
    if descriptor >= 0:  # it was refused for want of something that is there now
        return Program(descriptor, name)
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    telling = [line for line in lines if not line.startswith("processed ")]
    raise ProgramRefused(name, " | ".join([why, *telling[-2:]]), lines[-_LOG_LINES:])


def missing_capabilities(status: Path = _STATUS) -> list[str]:
    """Return those that loading our programs takes and we have not.

    Without CAP_PERFMON the verifier forbids arithmetic that is harmless in a program of root's.
    """
    effective = 0
    for line in status.read_text().splitlines():
        if line.startswith("CapEff:"):
            effective = int(line.split()[1], 16)
    has_all = effective >> _CAP_SYS_ADMIN & 1
    return [
        name
        for name, bit in _CAPABILITIES.items()
        if not effective >> bit & 1 and not (has_all and bit != _CAP_NET_ADMIN)
    ]

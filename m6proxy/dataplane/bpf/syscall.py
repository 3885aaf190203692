"""bpf(2): one function for each command that we use. Nothing here decides or remembers.

Every function raises OSError with the kernel's errno; descriptors are the caller's to close.
``union bpf_attr`` is packed by hand: each format below is the head of one of its members.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
from dataclasses import dataclass
from typing import Final

NAME_OCTETS_MAX: Final = 15
"""The kernel's names of maps and programs, without the zero at the end."""

_NUMBERS = {"x86_64": 321, "aarch64": 280, "riscv64": 280, "loongarch64": 280, "ppc64le": 361}
_NUMBER = {**_NUMBERS, "s390x": 351}.get(platform.machine())
_ATTEMPTS = 5

_MAP_CREATE, _MAP_LOOKUP, _MAP_UPDATE, _MAP_DELETE, _MAP_NEXT = 0, 1, 2, 3, 4
_PROG_LOAD, _OBJ_PIN, _OBJ_GET, _PROG_TEST_RUN = 5, 6, 7, 10
_OBJ_INFO, _PROG_QUERY, _MAP_FREEZE = 15, 16, 22
_BATCH_LOOKUP, _BATCH_UPDATE, _BATCH_DELETE = 24, 26, 27
_LINK_CREATE, _LINK_UPDATE, _LINK_DETACH = 28, 29, 34

_MAP_ATTR = struct.Struct("=IIIIIII16s")
_ELEMENT_ATTR = struct.Struct("=IxxxxQQQ")
_BATCH_ATTR = struct.Struct("=QQQQIIQQ")
_LOAD_ATTR = struct.Struct("=IIQQIIQII16s")
_OBJECT_ATTR = struct.Struct("=QII")
_INFO_ATTR = struct.Struct("=IIQ")
_TEST_ATTR = struct.Struct("=IiIIQQIIIIQQIII")
_LINK_ATTR = struct.Struct("=IIIII")
_UPDATE_ATTR = struct.Struct("=IIII")
_QUERY_ATTR = struct.Struct("=IIIIQIxxxxQQQQ")
_WORD = struct.Struct("=I")
_BATCH_COUNT_AT: Final = 32
_LINKS_MAX = 256

_libc = ctypes.CDLL(None, use_errno=True)
_syscall = _libc.syscall
_syscall.restype = ctypes.c_long
_syscall.argtypes = [ctypes.c_long, ctypes.c_int, ctypes.c_void_p, ctypes.c_uint]

_bytes_at = ctypes.pythonapi.PyBytes_AsString
_bytes_at.restype = ctypes.c_void_p
_bytes_at.argtypes = [ctypes.py_object]


def _bpf(command: int, attributes: ctypes.Array[ctypes.c_char]) -> int:
    if _NUMBER is None:
        raise OSError(errno.ENOSYS, f"no number of bpf(2) is known for {platform.machine()}")
    result: int = _syscall(_NUMBER, command, attributes, len(attributes))
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def _attributes(packed: bytes) -> ctypes.Array[ctypes.c_char]:
    return ctypes.create_string_buffer(packed, len(packed))


def _address(octets: bytes | ctypes.Array[ctypes.c_char] | None) -> int:
    """Where the octets lie; the caller keeps them alive during the call."""
    if not octets:
        return 0
    if isinstance(octets, bytes):
        return int(_bytes_at(octets))
    return ctypes.addressof(octets)


def map_create(
    kind: int, key_size: int, value_size: int, max_entries: int, flags: int, name: str
) -> int:
    """Create a map and return its descriptor."""
    label = name.encode()[:NAME_OCTETS_MAX]
    attributes = _MAP_ATTR.pack(kind, key_size, value_size, max_entries, flags, 0, 0, label)
    return _bpf(_MAP_CREATE, _attributes(attributes))


def map_lookup(descriptor: int, key: bytes, room: int) -> bytes | None:
    """Return the value of ``room`` octets, all CPUs' together for a per-CPU map, or None."""
    value = ctypes.create_string_buffer(room)
    packed = _ELEMENT_ATTR.pack(descriptor, _address(key), _address(value), 0)
    try:
        _bpf(_MAP_LOOKUP, _attributes(packed))
    except OSError as refused:
        if refused.errno == errno.ENOENT:
            return None
        raise
    return value.raw


def map_update(descriptor: int, key: bytes, value: bytes, flags: int = 0) -> None:
    """Write one entry."""
    packed = _ELEMENT_ATTR.pack(descriptor, _address(key), _address(value), flags)
    _bpf(_MAP_UPDATE, _attributes(packed))


def map_delete(descriptor: int, key: bytes) -> bool:
    """Remove one entry; tell whether it was there."""
    try:
        _bpf(_MAP_DELETE, _attributes(_ELEMENT_ATTR.pack(descriptor, _address(key), 0, 0)))
    except OSError as refused:
        if refused.errno == errno.ENOENT:
            return False
        raise
    return True


def map_freeze(descriptor: int) -> None:
    """Forbid all further changes from user space."""
    _bpf(_MAP_FREEZE, _attributes(_WORD.pack(descriptor)))


@dataclass(frozen=True, slots=True)
class BatchDone:
    """How far a batch came: entries done, and the errno that ended it, or 0."""

    count: int
    errno: int


def map_update_batch(descriptor: int, keys: bytes, values: bytes, count: int) -> BatchDone:
    """Write ``count`` entries in one call, until one is refused."""
    return _batch(_BATCH_UPDATE, descriptor, keys, values, count)


def map_delete_batch(descriptor: int, keys: bytes, count: int) -> BatchDone:
    """Remove ``count`` entries in one call, until one is not there."""
    return _batch(_BATCH_DELETE, descriptor, keys, None, count)


def _batch(
    command: int, descriptor: int, keys: bytes, values: bytes | None, count: int
) -> BatchDone:
    packed = _BATCH_ATTR.pack(0, 0, _address(keys), _address(values), count, descriptor, 0, 0)
    attributes = _attributes(packed)
    try:
        _bpf(command, attributes)
    except OSError as refused:
        if refused.errno == errno.EFAULT:  # then the kernel has not written how many it did
            raise
        done = _WORD.unpack_from(attributes, _BATCH_COUNT_AT)[0]
        return BatchDone(min(done, count), refused.errno or 0)
    return BatchDone(count, 0)


@dataclass(frozen=True, slots=True)
class Page:
    """Some entries of a map, and where the next ones begin; ``following`` is None at the end."""

    keys: bytes
    values: bytes
    count: int
    following: bytes | None


def map_lookup_batch(
    descriptor: int, after: bytes | None, count: int, key_size: int, value_room: int
) -> Page:
    """Read up to ``count`` entries in one call. ENOSPC means that a bucket has more than that."""
    keys = ctypes.create_string_buffer(count * key_size)
    values = ctypes.create_string_buffer(count * value_room)
    following = ctypes.create_string_buffer(max(key_size, 4))
    packed = _BATCH_ATTR.pack(
        _address(after), _address(following), _address(keys), _address(values), count, descriptor,
        0, 0,
    )  # fmt: skip
    attributes = _attributes(packed)
    at_end = False
    try:
        _bpf(_BATCH_LOOKUP, attributes)
    except OSError as refused:
        if refused.errno != errno.ENOENT:
            raise
        at_end = True
    found = min(_WORD.unpack_from(attributes, _BATCH_COUNT_AT)[0], count)
    return Page(
        keys.raw[: found * key_size],
        values.raw[: found * value_room],
        found,
        None if at_end else following.raw,
    )


def prog_load(
    kind: int, instructions: bytes, license_text: bytes, name: str, *, log_octets: int = 0
) -> tuple[int, str]:
    """Load a program; return its descriptor, or -1 with the verifier's log.

    Without room for a log a refusal raises OSError, as with every command.
    """
    log = ctypes.create_string_buffer(log_octets) if log_octets else None
    text = license_text + b"\0"
    packed = _LOAD_ATTR.pack(
        kind, len(instructions) // 8, _address(instructions), _address(text),
        1 if log else 0, log_octets, _address(log), 0, 0, name.encode()[:NAME_OCTETS_MAX],
    )  # fmt: skip
    for left in reversed(range(_ATTEMPTS)):
        try:
            return _bpf(_PROG_LOAD, _attributes(packed)), ""
        except OSError as refused:
            # EAGAIN: a signal came while the verifier was at work.
            if refused.errno == errno.EAGAIN and left:
                continue
            if log is None:
                raise
            return -1, log.value.decode(errors="replace")
    raise AssertionError("the last attempt returns or raises")


@dataclass(frozen=True, slots=True)
class Run:
    """What a program did in a test run."""

    verdict: int
    """Signed, so that TC_ACT_UNSPEC is -1."""
    packet: bytes
    context: bytes
    duration_ns: int
    """The mean of one run."""


def prog_test_run(descriptor: int, packet: bytes, context: bytes, *, room: int, repeat: int) -> Run:
    """Let a program run on a packet of our own, link-layer header included for tc."""
    out = ctypes.create_string_buffer(room)
    context_out = ctypes.create_string_buffer(max(len(context), 1))
    packed = _TEST_ATTR.pack(
        descriptor, 0, len(packet), room, _address(packet), _address(out), repeat, 0,
        len(context), len(context), _address(context), _address(context_out if context else None),
        0, 0, 0,
    )  # fmt: skip
    attributes = _attributes(packed)
    _bpf(_PROG_TEST_RUN, attributes)
    fields = _TEST_ATTR.unpack(attributes.raw)
    verdict, length, duration_ns, context_length = fields[1], fields[3], fields[7], fields[9]
    return Run(verdict, out.raw[:length], context_out.raw[:context_length], duration_ns)


def obj_pin(descriptor: int, path: str) -> None:
    """Give a map, program or link a name in a bpffs, by which it outlives us."""
    name = path.encode() + b"\0"
    _bpf(_OBJ_PIN, _attributes(_OBJECT_ATTR.pack(_address(name), descriptor, 0)))


def obj_get(path: str) -> int:
    """Return a descriptor of what has this name in a bpffs."""
    name = path.encode() + b"\0"
    return _bpf(_OBJ_GET, _attributes(_OBJECT_ATTR.pack(_address(name), 0, 0)))


def obj_info(descriptor: int, room: int) -> bytes:
    """Return struct bpf_map_info, bpf_prog_info or bpf_link_info, as long as the kernel's is."""
    info = ctypes.create_string_buffer(room)
    attributes = _attributes(_INFO_ATTR.pack(descriptor, room, _address(info)))
    _bpf(_OBJ_INFO, attributes)
    return info.raw[: _INFO_ATTR.unpack(attributes.raw)[1]]


def link_create(program: int, interface_index: int, attach_type: int) -> int:
    """Attach a program to an interface for as long as the returned descriptor, or a pin, lives."""
    return _bpf(
        _LINK_CREATE, _attributes(_LINK_ATTR.pack(program, interface_index, attach_type, 0, 0))
    )


def link_update(link: int, program: int) -> None:
    """Put another program into a link; each packet meets the one or the other."""
    _bpf(_LINK_UPDATE, _attributes(_UPDATE_ATTR.pack(link, program, 0, 0)))


def link_detach(link: int) -> None:
    """Take the program off its interface although the link is still held or pinned."""
    _bpf(_LINK_DETACH, _attributes(_WORD.pack(link)))


def link_ids(interface_index: int, attach_type: int) -> list[int]:
    """Return the numbers of the links at one side of an interface. EINVAL without tcx."""
    return [link for link in attached(interface_index, attach_type) if link]


def attached(interface_index: int, attach_type: int) -> list[int]:
    """Return the link of each program at one side of an interface, in the order of packets.

    0 is one that was attached without a link. EINVAL without tcx.
    """
    programs = (ctypes.c_uint32 * _LINKS_MAX)()
    links = (ctypes.c_uint32 * _LINKS_MAX)()
    packed = _QUERY_ATTR.pack(
        interface_index, attach_type, 0, 0, ctypes.addressof(programs), _LINKS_MAX,
        0, ctypes.addressof(links), 0, 0,
    )  # fmt: skip
    attributes = _attributes(packed)
    _bpf(_PROG_QUERY, attributes)
    count = _QUERY_ATTR.unpack(attributes.raw)[5]
    return list(links[:count])

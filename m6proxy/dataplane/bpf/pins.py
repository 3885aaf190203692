"""Names in a bpffs, by which maps and links outlive the process that made them.

One folder belongs to one site, and one process at a time holds it: the descriptor by which
we reach it is also the lock, and the kernel lets go of it however we end.

The folder must be there for the next process too. A mount that is made under ``ip netns
exec``, or in a service with a file system of its own, is gone with the process. So a mount
that we found is the best (whoever starts us can make it beforehand: ``mount -t bpf m6proxy
FOLDER``); else it is made in the mount namespace of process 1 or of our parent, if we may;
and else in ours.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

from m6proxy.dataplane.bpf import syscall
from m6proxy.errors import SetupError

MOUNT_SOURCE: Final = "m6proxy"
"""What stands as the source of our mounts in mountinfo: by it we know them again."""

_MOUNTINFO = Path("/proc/thread-self/mountinfo")
_CLONE_FS, _CLONE_NEWNS = 0x0000_0200, 0x0002_0000
_MS_NOSUID, _MS_NODEV, _MS_NOEXEC = 2, 4, 8
_MNT_DETACH = 2

_T = TypeVar("_T")

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Mount:
    """One line of mountinfo."""

    at: str
    kind: str
    source: str


def mounts(path: Path = _MOUNTINFO) -> list[Mount]:
    """Return what is mounted in our mount namespace, the later over the earlier."""
    found = []
    for line in path.read_text().splitlines():
        before, _, after = line.partition(" - ")
        place, (kind, source, *_) = before.split()[4], after.split()
        found.append(Mount(place.encode().decode("unicode_escape"), kind, source))
    return found


def mount_of(folder: Path, among: list[Mount]) -> Mount | None:
    """Return the mount that the folder, or the nearest existing folder above it, lies on."""
    holding = [m for m in among if folder == Path(m.at) or Path(m.at) in folder.parents]
    return max(reversed(holding), key=lambda each: len(each.at), default=None)


@dataclass(frozen=True, slots=True)
class _Reached:
    descriptor: int
    process: int | None = None
    """Whose mount namespace it is in; None for ours."""
    is_lasting: bool = True


class PinFolder:
    """The pins of one site. Only one process at a time can hold it."""

    def __init__(self, path: Path, reached: _Reached) -> None:
        self.path = path
        self.is_lasting = reached.is_lasting
        """Whether the pins outlive us; False where only a mount of our own could be made."""
        self._mounted_by_way_of = reached.process
        self._descriptor = reached.descriptor

    @classmethod
    def claim(cls, path: Path) -> PinFolder:
        """Make and mount the folder if it is not there, and hold it. Raises SetupError."""
        path = path.absolute()
        try:
            reached = _reach(path)
        except OSError as refused:
            why = refused.strerror or str(refused)
            remedy = f"mount -t bpf {MOUNT_SOURCE} {path}, or run m6proxy as root"
            raise SetupError(f"bpffs at {path}: {why}; {remedy}") from None
        try:
            fcntl.flock(reached.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(reached.descriptor)
            raise SetupError(
                f"bpffs at {path}: another process holds it; is m6proxy running already? "
                "Two sites on one machine need a folder each"
            ) from None
        return cls(path, reached)

    @property
    def is_held(self) -> bool:
        """Whether the folder is still ours."""
        return self._descriptor >= 0

    def names(self) -> list[str]:
        """Return the names of all pins and notes; names with a dot are the kernel's own."""
        names = (each.name for each in Path(self._place("")).iterdir())
        return sorted(name for name in names if "." not in name)

    def pin(self, name: str, descriptor: int) -> None:
        """Give a name to a map, program or link; what had it before loses it. Raises OSError."""
        passing = f"next_{name}"
        with contextlib.suppress(FileNotFoundError):
            os.unlink(passing, dir_fd=self._descriptor)
        syscall.obj_pin(descriptor, self._place(passing))
        os.rename(passing, name, src_dir_fd=self._descriptor, dst_dir_fd=self._descriptor)

    def get(self, name: str) -> int | None:
        """Return a new descriptor of what has this name, or None. Raises OSError."""
        try:
            return syscall.obj_get(self._place(name))
        except FileNotFoundError:
            return None

    def note(self, name: str) -> None:
        """Remember a word for our successor: an empty folder of this name."""
        with contextlib.suppress(FileExistsError):
            os.mkdir(name, dir_fd=self._descriptor)

    def unpin(self, name: str) -> None:
        """Take a name or a note away; what nobody else holds ends. Absent names are no fault."""
        with contextlib.suppress(FileNotFoundError):
            try:
                os.unlink(name, dir_fd=self._descriptor)
            except IsADirectoryError:
                os.rmdir(name, dir_fd=self._descriptor)

    def release(self) -> None:
        """Let go of the folder and leave the pins to the next process; safe to call twice."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def remove(self) -> None:
        """Take all pins away, and the folder and the mount if they are ours. Ends the hold."""
        if self._descriptor < 0:
            return
        for name in self.names():
            self.unpin(name)
        self.release()
        with contextlib.suppress(OSError):
            if self._mounted_by_way_of is None:
                _dismantle(self.path)
            else:
                _in_mounts_of(self._mounted_by_way_of, lambda: _dismantle(self.path))

    def _place(self, name: str) -> str:
        return f"/proc/self/fd/{self._descriptor}/{name}"


def _reach(path: Path) -> _Reached:
    """Open the folder, mounted where it lasts longest."""
    mounted = mount_of(path, mounts())
    outliving = {1: _mounts_of(1), os.getppid(): _mounts_of(os.getppid())}
    if (mounted is not None and mounted.kind == "bpf") or _mounts_of("self") in outliving.values():
        return _Reached(_open_mounted(path))
    for process, namespace in outliving.items():
        if namespace is not None:
            with contextlib.suppress(OSError):
                descriptor = _in_mounts_of(process, lambda: _open_mounted(path))
                return _Reached(descriptor, process)
    return _Reached(_open_mounted(path), is_lasting=False)


def _mounts_of(process: int | str) -> Path | None:
    """Return the name of a process's mount namespace, None if we may not know."""
    try:
        return Path(f"/proc/{process}/ns/mnt").readlink()
    except OSError:
        return None


def _open_mounted(path: Path) -> int:
    """Open the folder; make it, and mount a bpffs on it, if it does not lie on one."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    above = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(above, fcntl.LOCK_EX)  # not two of us at once
        mounted = mount_of(path, mounts())
        if mounted is None or mounted.kind != "bpf":
            _mount(path)
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    finally:
        os.close(above)


def _dismantle(path: Path) -> None:
    mounted = mount_of(path, mounts())
    if mounted is not None and mounted == Mount(str(path), "bpf", MOUNT_SOURCE):
        _checked(_libc.umount2(os.fsencode(path), _MNT_DETACH))
    path.rmdir()


def _mount(path: Path) -> None:
    flags = _MS_NOSUID | _MS_NODEV | _MS_NOEXEC
    _checked(
        _libc.mount(
            MOUNT_SOURCE.encode(), os.fsencode(path), b"bpf", ctypes.c_ulong(flags), b"mode=0700"
        )
    )


def _checked(result: int) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _in_mounts_of(process: int, act: Callable[[], _T]) -> _T:
    """Let a thread do it in another process's mount namespace, and end. Raises OSError.

    A thread may change its mount namespace as soon as it has a working directory of its own.
    """
    outcome: list[_T | OSError] = []

    def work() -> None:
        try:
            namespace = os.open(f"/proc/{process}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
            try:
                _checked(_libc.unshare(_CLONE_FS))
                _checked(_libc.setns(namespace, _CLONE_NEWNS))
            finally:
                os.close(namespace)
            outcome.append(act())
        except OSError as refused:
            outcome.append(refused)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    if isinstance(outcome[0], OSError):
        raise outcome[0]
    return outcome[0]

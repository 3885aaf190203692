"""Put an object into the kernel for a site, in the place of what a predecessor left there.

The order is what keeps packets right. Maps first: those of the same layout are taken over as
they are; others are filled from their predecessors and only then get the pin. Then the
programs are loaded with them. Then each interface's link gets the new program in place. What
nobody needs any more goes last. A process that is killed between any two steps leaves
something that passes packets, and that the next one takes over.

The layout of a map is told by its name: ``m6p_out_v1`` is version 1 of ``m6p_out``.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Collection, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, TypeAlias

from m6proxy.dataplane.bpf.btf import MapSpec
from m6proxy.dataplane.bpf.links import Attachments, ClsactFilters, Side, TcxLinks, tcx_works
from m6proxy.dataplane.bpf.load import BpfObject, create_map, load
from m6proxy.dataplane.bpf.maps import Map, MapKind
from m6proxy.dataplane.bpf.pins import PinFolder
from m6proxy.dataplane.bpf.programs import Program
from m6proxy.errors import SetupError

Entry: TypeAlias = tuple[bytes, bytes]
"""Key and value."""
Migration: TypeAlias = Callable[[bytes, bytes], Entry | None]
"""Makes an entry of the next layout version from one of this, or None to leave it out."""
Migrations: TypeAlias = Mapping[tuple[str, int], Migration]
"""By name without version, and the version that it starts from."""

_COPY_ENTRIES: Final = 8192
_VERSIONED = re.compile(r"(.+)_v(\d+)")
_INDEXED = {MapKind.ARRAY, MapKind.PERCPU_ARRAY}


@dataclass(frozen=True, slots=True)
class Heritage:
    """What came from a predecessor; ``str`` is a line for people, "" if nothing was changed."""

    taken_over: tuple[str, ...] = ()
    """Maps that are the predecessor's own."""
    copied: tuple[tuple[str, int], ...] = ()
    """Maps that were filled from another layout or size, with their numbers of entries."""
    left_out: int = 0
    """Entries for which there was no room in the new map, or no place in the new layout."""
    forgotten: tuple[str, ...] = ()
    """Predecessor's maps of which we do not know how to make ours."""

    def __str__(self) -> str:
        told = [f"{name} with {count:,} entries" for name, count in self.copied]
        told += [f"{self.left_out:,} entries left out"] if self.left_out else []
        told += [f"{name} not" for name in self.forgotten]
        return ", ".join(told)


class Installation:
    """A site's maps and programs in the kernel, for as long as this process holds the folder."""

    def __init__(
        self,
        folder: PinFolder,
        attachments: Attachments,
        source: BpfObject,
        maps: dict[str, Map],
        heritage: Heritage,
    ) -> None:
        self.maps = maps
        self.heritage = heritage
        self.is_lasting = folder.is_lasting
        """Whether all this outlives us: a successor can take over."""
        self._folder = folder
        self._attachments = attachments
        self._source = source
        self._programs: dict[str, Program] = {}

    def load(self, *programs: str) -> None:
        """Give programs to the verifier, which takes its time, if they are not loaded yet.

        Raises SetupError.
        """
        for name in programs:
            if name not in self._programs:
                alone = replace(self._source, programs={name: self._source.programs[name]})
                self._programs |= load(alone, given=self.maps).programs

    def attach(self, program: str, interface_index: int, side: Side) -> bool:
        """Let a program see an interface's packets; tell whether it replaced a predecessor's.

        Raises SetupError.
        """
        self.load(program)
        return self._attachments.attach(self._programs[program], interface_index, side)

    def detach(self, interface_index: int, side: Side) -> None:
        """Take the program off; no fault if the interface is gone."""
        self._attachments.detach(interface_index, side)

    def behind(self, interface_index: int, side: Side) -> int:
        """How many programs and filters of others see a packet after ours. Raises OSError."""
        return self._attachments.behind(interface_index, side)

    def settle(self) -> None:
        """All is attached: remove what the predecessor had and we do not need."""
        self._attachments.detach_rest()
        ours = {_pin_name(name) for name in self.maps}
        for name in self._folder.names():
            if name.startswith(("map_", "next_")) and name not in ours:
                self._folder.unpin(name)

    def release(self) -> None:
        """Leave everything to a successor; safe to call twice."""
        self._close()
        self._folder.release()

    def remove(self) -> None:
        """Take everything of ours out of the kernel; safe to call twice, and after ``release``."""
        if self.is_held:
            self._attachments.detach_all()
        self._close()
        self._folder.remove()

    @property
    def is_held(self) -> bool:
        """Whether the folder is still ours."""
        return self._folder.is_held

    def _close(self) -> None:
        for program in self._programs.values():
            program.close()
        for each in self.maps.values():
            each.close()


def install(
    source: BpfObject,
    path: Path,
    *,
    programs: Collection[str] | None = None,
    max_entries: Mapping[str, int] | None = None,
    migrations: Migrations | None = None,
    use_tcx: bool | None = None,
) -> Installation:
    """Claim the site's folder, take over or make the maps, load the programs; attach nothing yet.

    ``programs`` are those that are loaded now, all if None; the others are when they are attached.
    ``max_entries`` replaces what the object says; ``use_tcx`` is the kernel's to say if None.
    Raises SetupError; what a predecessor left is then still there (``remove_leftovers``).
    """
    with ExitStack() as undo:
        folder = PinFolder.claim(path)
        undo.callback(folder.release)
        maps: dict[str, Map] = {}
        heir = _Heir(folder, migrations or {})
        for spec in source.maps.values():
            entries = (max_entries or {}).get(spec.name, spec.max_entries)
            maps[spec.name] = heir.obtain(replace(spec, max_entries=entries))
            undo.callback(maps[spec.name].close)
        with_tcx = tcx_works() if use_tcx is None else use_tcx
        attachments = TcxLinks(folder) if with_tcx else ClsactFilters(folder)
        installation = Installation(folder, attachments, source, maps, heir.heritage())
        installation.load(*(source.programs if programs is None else programs))
        undo.pop_all()
    return installation


def remove_leftovers(path: Path) -> None:
    """Take out of the kernel what a dead predecessor left under ``path``, if there is any.

    Raises SetupError when another process holds it.
    """
    if not path.exists():
        return
    folder = PinFolder.claim(path)
    TcxLinks(folder).detach_all()
    ClsactFilters(folder).detach_all()
    folder.remove()


class _Heir:
    """Finds for each map what a predecessor left, and writes down what became of it."""

    def __init__(self, folder: PinFolder, migrations: Migrations) -> None:
        self._folder = folder
        self._migrations = migrations
        self._taken_over: list[str] = []
        self._copied: list[tuple[str, int]] = []
        self._left_out = 0
        self._forgotten: list[str] = []

    def heritage(self) -> Heritage:
        return Heritage(
            tuple(self._taken_over), tuple(self._copied), self._left_out, tuple(self._forgotten)
        )

    def obtain(self, spec: MapSpec) -> Map:
        """Return the predecessor's map, or a new one that is filled from it, pinned."""
        found = self._predecessor(spec)
        if found is not None and found.spec == spec:
            self._taken_over.append(spec.name)
            return found
        try:
            fresh = create_map(spec)
            if found is not None:
                self._fill(fresh, found)
            self._folder.pin(_pin_name(spec.name), fresh.descriptor)
        except OSError as refused:
            raise SetupError(
                f"BPF map {spec.name} cannot be kept under {self._folder.path}: "
                f"{refused.strerror}; look at that folder, or set fast_path: off"
            ) from None
        finally:
            if found is not None:
                found.close()
        return fresh

    def _predecessor(self, spec: MapSpec) -> Map | None:
        """Return the map of this name, or else of the newest other version of it."""
        stem, _ = _stem_and_version(spec.name)
        names = [
            name.removeprefix("map_") for name in self._folder.names() if name.startswith("map_")
        ]
        versions = [name for name in names if _stem_and_version(name)[0] == stem]
        versions.sort(key=lambda name: (name == spec.name, _stem_and_version(name)[1]))
        if not versions:
            return None
        descriptor = self._folder.get(_pin_name(versions[-1]))
        return None if descriptor is None else Map.opened(descriptor, versions[-1])

    def _fill(self, fresh: Map, old: Map) -> None:
        steps = self._steps(fresh.spec, old.spec)
        if steps is None:
            self._forgotten.append(old.spec.name)
            return
        copied = left_out = 0
        entries: list[Entry] = []
        for entry in old.items():
            changed = _through(steps, entry)
            if changed is None or not _has_place(fresh.spec, changed[0]):
                left_out += 1
                continue
            entries.append(changed)
            if len(entries) == _COPY_ENTRIES:
                refused = _write(fresh, entries)
                copied, left_out = copied + len(entries) - refused, left_out + refused
                entries.clear()
        refused = _write(fresh, entries)
        self._copied.append((fresh.spec.name, copied + len(entries) - refused))
        self._left_out += left_out + refused

    def _steps(self, new: MapSpec, old: MapSpec) -> list[Migration] | None:
        """The way from the old layout to ours, or None if there is none."""
        if MapKind.RINGBUF in {new.kind, old.kind}:
            return None
        stem, wanted = _stem_and_version(new.name)
        _, version = _stem_and_version(old.name)
        if version == wanted:
            same_sizes = (old.key_size, old.value_size) == (new.key_size, new.value_size)
            return [] if same_sizes else None
        steps = [self._migrations.get((stem, number)) for number in range(version, wanted)]
        known = [step for step in steps if step is not None]
        return known if steps and len(known) == len(steps) else None


def _through(steps: list[Migration], entry: Entry) -> Entry | None:
    changed: Entry | None = entry
    for step in steps:
        if changed is None:
            return None
        changed = step(*changed)
    return changed


def _has_place(spec: MapSpec, key: bytes) -> bool:
    return spec.kind not in _INDEXED or int.from_bytes(key, sys.byteorder) < spec.max_entries


def _write(target: Map, entries: list[Entry]) -> int:
    """Write the entries; return how many found no room."""
    keys, values = [key for key, _ in entries], [value for _, value in entries]
    return len(target.update_batch(keys, values)) if entries else 0


def _pin_name(map_name: str) -> str:
    return f"map_{map_name}"


def _stem_and_version(name: str) -> tuple[str, int]:
    found = _VERSIONED.fullmatch(name)
    return (found[1], int(found[2])) if found else (name, 0)

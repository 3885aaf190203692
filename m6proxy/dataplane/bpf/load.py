"""From an object file to maps and programs in the kernel.

An object defines its maps in ``.maps`` (BTF), one program per function in an executable
section whose name begins with ``tc`` or ``xdp``, and constants in ``.rodata``. Variables
(``.data``, ``.bss``) and calls between BPF functions are refused: state belongs into maps,
and functions are inlined.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Final

from m6proxy.dataplane.bpf import btf, elf, syscall
from m6proxy.dataplane.bpf.btf import Btf, MapSpec
from m6proxy.dataplane.bpf.elf import Elf, Section, Symbol, SymbolKind
from m6proxy.dataplane.bpf.maps import Map, MapFlag, MapKind
from m6proxy.dataplane.bpf.programs import Program, ProgramKind, load_program
from m6proxy.errors import SetupError

OBJECT_NAME: Final = "m6proxy.bpf.o"
INSTRUCTION_OCTETS: Final = 8

_KINDS = {"tc": ProgramKind.SCHED_CLS, "tcx": ProgramKind.SCHED_CLS, "xdp": ProgramKind.XDP}
_RODATA = ".rodata"
_WIDE_LOAD = 0x18
_SOURCE_MAP, _SOURCE_MAP_VALUE = 1, 2
_RELOCATE_64 = 1
_INSTRUCTION = struct.Struct("=BBhi")


@dataclass(frozen=True, slots=True)
class Reference:
    """An instruction that needs a map's descriptor, or the address of octets in it."""

    offset: int
    """Octets from the start of the program."""
    map: str
    place: int | None
    """Offset into the map's only value, or None where the map itself is meant."""


@dataclass(frozen=True, slots=True)
class ProgramSpec:
    """A program as the object has it."""

    name: str
    kind: ProgramKind
    instructions: bytes
    references: tuple[Reference, ...]


@dataclass(frozen=True, slots=True)
class BpfObject:
    """A parsed object: everything that ``load`` needs, and its types for whoever checks them."""

    where: str
    license_text: bytes
    maps: dict[str, MapSpec]
    programs: dict[str, ProgramSpec]
    rodata: dict[str, bytes]
    types: Btf


@dataclass(frozen=True, slots=True)
class Loaded:
    """Maps and programs in the kernel, by name. Unpinned and unattached they end with us."""

    maps: dict[str, Map]
    programs: dict[str, Program]

    def close(self) -> None:
        """Close all descriptors; safe to call twice."""
        for program in self.programs.values():
            program.close()
        for each in self.maps.values():
            each.close()


def read_object(path: Path | None = None) -> BpfObject:
    """Read and parse an object file, the package's own by default. Raises SetupError."""
    where = path.name if path is not None else OBJECT_NAME
    try:
        if path is not None:
            octets = path.read_bytes()
        else:
            octets = resources.files(__package__).joinpath(OBJECT_NAME).read_bytes()
    except OSError as missing:
        raise SetupError(
            f"{path or OBJECT_NAME} cannot be read ({missing.strerror}); "
            "`make bpf` builds it in a source tree, else install the package again"
        ) from None
    return parse_object(octets, where)


def parse_object(octets: bytes, where: str) -> BpfObject:
    """Parse an object; ``where`` names it in complaints. Raises SetupError."""
    file = elf.parse(octets, where)
    types = file.section(".BTF")
    if types is None:
        raise _bad(where, "it has no BTF (compile with -g)")
    parsed = btf.parse(types.octets, where)
    license_section = file.section("license")
    rodata = {
        section.name: section.octets
        for section in file.sections
        if section.name.startswith(_RODATA) and section.size
    }
    return BpfObject(
        where,
        license_section.octets.rstrip(b"\0") if license_section else b"",
        {spec.name: spec for spec in parsed.maps()},
        _programs(file, where),
        rodata,
        parsed,
    )


def _programs(file: Elf, where: str) -> dict[str, ProgramSpec]:
    programs = {}
    for symbol in file.symbols:
        if symbol.kind != SymbolKind.FUNCTION or not 0 < symbol.section < len(file.sections):
            continue
        section = file.sections[symbol.section]
        kind = _KINDS.get(section.name.split("/")[0])
        if kind is None or not section.is_executable:
            raise _bad(where, f"function {symbol.name} is in section {section.name}")
        if symbol.name in programs:
            raise _bad(where, f"two programs with the name {symbol.name}")
        programs[symbol.name] = _program(file, section, symbol, kind, where)
    return programs


def _program(
    file: Elf, section: Section, symbol: Symbol, kind: ProgramKind, where: str
) -> ProgramSpec:
    start, end = symbol.value, symbol.value + symbol.size
    if end > len(section.octets) or symbol.size % INSTRUCTION_OCTETS or not symbol.size:
        raise _bad(where, f"program {symbol.name} does not lie in its section")
    instructions = section.octets[start:end]
    references = []
    for relocation in section.relocations:
        if not start <= relocation.offset < end:
            continue
        offset = relocation.offset - start
        what = f"program {symbol.name} at instruction {offset // INSTRUCTION_OCTETS}"
        if relocation.kind != _RELOCATE_64:
            raise _bad(where, f"{what}: it calls {relocation.symbol.name!r}, which is not inlined")
        if offset % INSTRUCTION_OCTETS or offset + 2 * INSTRUCTION_OCTETS > symbol.size:
            raise _bad(where, f"{what}: a relocation in the midst of an instruction")
        code, _, _, addend = _INSTRUCTION.unpack_from(instructions, offset)
        if code != _WIDE_LOAD:
            raise _bad(where, f"{what}: a relocation of something else than a wide load")
        references.append(_reference(file, relocation.symbol, offset, addend, f"{where}: {what}"))
    return ProgramSpec(symbol.name, kind, instructions, tuple(references))


def _reference(file: Elf, symbol: Symbol, offset: int, addend: int, what: str) -> Reference:
    target = file.sections[symbol.section].name if symbol.section < len(file.sections) else ""
    if target == ".maps":
        return Reference(offset, symbol.name, None)
    if target.startswith(_RODATA):
        return Reference(offset, target, symbol.value + addend)
    raise _bad(what, f"it refers to {symbol.name!r}, which is neither a map nor a constant")


def load(
    source: BpfObject,
    *,
    given: Mapping[str, Map] | None = None,
    max_entries: Mapping[str, int] | None = None,
) -> Loaded:
    """Create the maps and load all programs of an object.

    ``given`` maps are used instead of new ones; ``max_entries`` replaces what the object says.
    Raises SetupError, and then leaves nothing behind.
    """
    with ExitStack() as undo:
        maps = dict(given or {})
        for spec in source.maps.values():
            if spec.name not in maps:
                entries = (max_entries or {}).get(spec.name, spec.max_entries)
                maps[spec.name] = create_map(replace(spec, max_entries=entries))
                undo.callback(maps[spec.name].close)
        constants = {}
        for name, octets in source.rodata.items():
            constants[name] = _frozen(name, octets)
            undo.callback(constants[name].close)
        programs = {}
        for name, program in source.programs.items():
            programs[name] = _load_program(source, program, {**maps, **constants})
            undo.callback(programs[name].close)
        undo.pop_all()
    for constant in constants.values():
        constant.close()  # the programs hold it
    return Loaded(maps, programs)


def create_map(spec: MapSpec) -> Map:
    """Create a map. Raises SetupError that names it."""
    try:
        return Map.create(spec)
    except OSError as refused:
        raise SetupError(
            f"BPF map {spec.name} of {spec.max_entries} entries: the kernel refuses it "
            f"({refused.strerror}); run as root or with CAP_BPF, or lower policy.max_contexts"
        ) from None


def _frozen(name: str, octets: bytes) -> Map:
    spec = MapSpec(name, MapKind.ARRAY, 4, len(octets), 1, MapFlag.RDONLY_PROG)
    constant = create_map(replace(spec, name=name.replace(".", "_")))
    constant.update(bytes(4), octets)
    syscall.map_freeze(constant.descriptor)
    return constant


def _load_program(source: BpfObject, spec: ProgramSpec, maps: Mapping[str, Map]) -> Program:
    instructions = bytearray(spec.instructions)
    for reference in spec.references:
        if reference.map not in maps:
            raise _bad(source.where, f"program {spec.name} uses map {reference.map} without type")
        _point(instructions, reference, maps[reference.map].descriptor)
    return load_program(spec.kind, bytes(instructions), source.license_text, spec.name)


def _point(instructions: bytearray, reference: Reference, descriptor: int) -> None:
    """Write a descriptor into a wide load: two instructions with 32 bits of the value each."""
    code, registers, distance, _ = _INSTRUCTION.unpack_from(instructions, reference.offset)
    source = _SOURCE_MAP if reference.place is None else _SOURCE_MAP_VALUE
    _INSTRUCTION.pack_into(
        instructions, reference.offset, code, registers & 0xF | source << 4, distance, descriptor
    )
    second = reference.offset + INSTRUCTION_OCTETS
    _INSTRUCTION.pack_into(instructions, second, 0, 0, 0, reference.place or 0)


def _bad(where: str, why: str) -> SetupError:
    return SetupError(f"{where} is no usable BPF object: {why}; install the package again")

"""BTF, the types that clang writes beside a BPF program: map definitions and struct layouts.

The input is trusted no more than a packet: whatever is wrong with it raises SetupError.
Format: the kernel's Documentation/bpf/btf.rst.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from m6proxy.errors import SetupError

POINTER_OCTETS: Final = 8
_DEPTH_MAX = 32
_MAPS_SECTION = ".maps"

_HEADER = struct.Struct("=HBBIIIII")
_MAGIC = 0xEB9F
_TYPE = struct.Struct("=III")


class Kind(IntEnum):
    """What a type is."""

    VOID = 0
    INT = 1
    POINTER = 2
    ARRAY = 3
    STRUCT = 4
    UNION = 5
    ENUM = 6
    FORWARD = 7
    TYPEDEF = 8
    VOLATILE = 9
    CONST = 10
    RESTRICT = 11
    FUNCTION = 12
    PROTOTYPE = 13
    VARIABLE = 14
    SECTION = 15
    FLOAT = 16
    DECLARATION_TAG = 17
    TYPE_TAG = 18
    ENUM64 = 19


_1, _2, _3 = struct.Struct("=I"), struct.Struct("=Ii"), struct.Struct("=III")
_WORDS = {
    Kind.INT: _1,
    Kind.ARRAY: _3,
    Kind.STRUCT: _3,
    Kind.UNION: _3,
    Kind.ENUM: _2,
    Kind.PROTOTYPE: _2,
    Kind.VARIABLE: _1,
    Kind.SECTION: _3,
    Kind.DECLARATION_TAG: _1,
    Kind.ENUM64: _3,
}
"""What stands behind a type, once or as often as it says."""
_MANY = {Kind.STRUCT, Kind.UNION, Kind.ENUM, Kind.PROTOTYPE, Kind.SECTION, Kind.ENUM64}
_SIZED = {Kind.INT, Kind.STRUCT, Kind.UNION, Kind.ENUM, Kind.FLOAT, Kind.ENUM64, Kind.SECTION}
_TRANSPARENT = {Kind.TYPEDEF, Kind.VOLATILE, Kind.CONST, Kind.RESTRICT, Kind.TYPE_TAG}


@dataclass(frozen=True, slots=True)
class Type:
    """One type; what ``target`` and ``rest`` mean depends on the kind."""

    kind: Kind
    name: str
    has_bit_fields: bool
    target: int
    """Size in octets, or the number of the type that this one is about."""
    rest: tuple[tuple[int, ...], ...]
    """Members, parameters or array dimensions as they stand, three numbers at most each."""


@dataclass(frozen=True, slots=True)
class Field:
    """A member of a struct; offset and size in octets."""

    name: str
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class Layout:
    """A struct as the compiler laid it out; size in octets, members in their order."""

    name: str
    size: int
    fields: tuple[Field, ...]


@dataclass(frozen=True, slots=True)
class MapSpec:
    """A map as the object defines it; sizes in octets."""

    name: str
    kind: int
    key_size: int
    value_size: int
    max_entries: int
    flags: int = 0


class Btf:
    """The types of one object, by number and by name."""

    def __init__(self, types: list[Type], names: bytes, where: str) -> None:
        self._types = types
        self._names = names
        self._where = where

    def layout(self, name: str) -> Layout:
        """Return the layout of ``struct name``. Raises SetupError when there is none."""
        for found in self._types:
            if found.kind is Kind.STRUCT and found.name == name:
                return Layout(name, found.target, tuple(self._fields(found)))
        raise self._bad(f"no struct {name}")

    def enumeration(self, name: str) -> dict[str, int]:
        """Return the values of ``enum name``. Raises SetupError when there is none."""
        for found in self._types:
            if found.kind is Kind.ENUM and found.name == name:
                return {self._name_at(each[0]): each[1] for each in found.rest}
        raise self._bad(f"no enum {name}")

    def maps(self) -> list[MapSpec]:
        """Return the maps that the object defines in its section ``.maps``."""
        specs = []
        for section in self._types:
            if section.kind is Kind.SECTION and section.name == _MAPS_SECTION:
                specs += [self._map(self._at(number)) for number, _, _ in section.rest]
        return specs

    def _map(self, variable: Type) -> MapSpec:
        if variable.kind is not Kind.VARIABLE:
            raise self._bad("something in .maps is no variable")
        what = f"map {variable.name}"
        definition = self._resolved(variable.target)
        if definition.kind is not Kind.STRUCT:
            raise self._bad(f"{what} is no struct")
        told: dict[str, int] = {}
        for name_offset, number, _ in definition.rest:
            name = self._name_at(name_offset)
            pointed = self._pointed(number, what)
            if name in {"key", "value"}:
                told[f"{name}_size"] = self.size(pointed)
            elif name in {"type", "max_entries", "map_flags", "key_size", "value_size"}:
                told[name] = self._array_length(pointed, what)
            else:
                raise self._bad(f"{what} has {name}, which this loader does not know")
        if "type" not in told:
            raise self._bad(f"{what} has no type")
        return MapSpec(
            variable.name,
            told["type"],
            told.get("key_size", 0),
            told.get("value_size", 0),
            told.get("max_entries", 0),
            told.get("map_flags", 0),
        )

    def size(self, number: int) -> int:
        """Return the octets that a value of this type takes."""
        factor = 1
        for _ in range(_DEPTH_MAX):
            found = self._resolved(number)
            if found.kind is Kind.ARRAY:
                number, _, length = found.rest[0]
                factor *= length
            elif found.kind is Kind.POINTER:
                return factor * POINTER_OCTETS
            elif found.kind in _SIZED:
                return factor * found.target
            else:
                break
        raise self._bad("a type without a size")

    def _fields(self, definition: Type) -> list[Field]:
        fields = []
        for name_offset, number, place in definition.rest:
            name = self._name_at(name_offset)
            if (definition.has_bit_fields and place >> 24) or place % 8:
                raise self._bad(f"struct {definition.name} has bit fields")
            fields.append(Field(name, place // 8, self.size(number)))
        return fields

    def _pointed(self, number: int, what: str) -> int:
        pointer = self._resolved(number)
        if pointer.kind is not Kind.POINTER:
            raise self._bad(f"{what} is not defined with __uint and __type")
        return pointer.target

    def _array_length(self, number: int, what: str) -> int:
        array = self._resolved(number)
        if array.kind is not Kind.ARRAY:
            raise self._bad(f"{what} is not defined with __uint and __type")
        return array.rest[0][2]

    def _resolved(self, number: int) -> Type:
        """Look through names and qualifiers."""
        for _ in range(_DEPTH_MAX):
            found = self._at(number)
            if found.kind not in _TRANSPARENT:
                return found
            number = found.target
        raise self._bad("types that go round in a circle")

    def _at(self, number: int) -> Type:
        if number >= len(self._types):
            raise self._bad("a type that is not there")
        return self._types[number]

    def _name_at(self, offset: int) -> str:
        return _text(self._names, offset, self._where)

    def _bad(self, why: str) -> SetupError:
        return _bad(self._where, why)


def parse(octets: bytes, where: str) -> Btf:
    """Parse the section ``.BTF`` of the object ``where``. Raises SetupError for anything else."""
    try:
        return _parse(octets, where)
    except struct.error:
        raise _bad(where, "its types end early") from None


def _parse(octets: bytes, where: str) -> Btf:
    fields = _HEADER.unpack_from(octets)
    magic, version, _, header, types_at, types_octets, names_at, names_octets = fields
    if magic != _MAGIC or version != 1:
        raise _bad(where, "its types are no BTF of version 1 in this machine's byte order")
    names = octets[header + names_at : header + names_at + names_octets]
    content = octets[header + types_at : header + types_at + types_octets]
    if len(names) != names_octets or len(content) != types_octets:
        raise _bad(where, "its types end early")
    types = [Type(Kind.VOID, "", False, 0, ())]
    offset = 0
    while offset < len(content):
        found, offset = _parse_type(content, offset, names, where)
        types.append(found)
    return Btf(types, names, where)


def _parse_type(content: bytes, offset: int, names: bytes, where: str) -> tuple[Type, int]:
    name_offset, info, target = _TYPE.unpack_from(content, offset)
    offset += _TYPE.size
    number = info >> 24 & 0x1F
    if number not in Kind.__members__.values():
        raise _bad(where, f"a type of kind {number}")
    kind = Kind(number)
    words: list[tuple[int, ...]] = []
    if kind in _WORDS:
        count, layout = (info & 0xFFFF if kind in _MANY else 1), _WORDS[kind]
        if offset + count * layout.size > len(content):
            raise _bad(where, "its types end early")
        words = list(layout.iter_unpack(content[offset : offset + count * layout.size]))
        offset += count * layout.size
    name = _text(names, name_offset, where)
    return Type(kind, name, bool(info >> 31), target, tuple(words)), offset


def _text(names: bytes, offset: int, where: str) -> str:
    end = names.find(b"\0", offset)
    if end < 0:
        raise _bad(where, "a type name reaches beyond its table")
    found = names[offset:end]
    if len(found) > 255 or not (found.isascii() and found.decode("latin-1").isprintable()):
        raise _bad(where, "a type name of more than 255 octets, or not of letters")
    return found.decode("ascii")


def _bad(where: str, why: str) -> SetupError:
    return SetupError(f"{where} is no usable BPF object: {why}; install the package again")

"""ELF as clang writes it for BPF: sections, symbols and relocations, nothing else.

The input is trusted no more than a packet: whatever is wrong with it raises SetupError.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from m6proxy.errors import SetupError

OBJECT_OCTETS_MAX: Final = 16 << 20

_HEADER = struct.Struct("=16sHHIQQQIHHHHHH")
_SECTION = struct.Struct("=IIQQQQIIQQ")
_SYMBOL = struct.Struct("=IBBHQQ")
_RELOCATION = struct.Struct("=QQ")

_MAGIC = b"\x7fELF"
_CLASS_64 = 2
_HERE = 1 if sys.byteorder == "little" else 2
_RELOCATABLE = 1
_MACHINE_BPF = 247
_TYPE_SYMBOLS, _TYPE_NO_BITS, _TYPE_RELOCATIONS = 2, 8, 9
_FLAG_EXECUTABLE = 4


class SymbolKind(IntEnum):
    """The low four bits of st_info that matter here."""

    NONE = 0
    OBJECT = 1
    FUNCTION = 2
    SECTION = 3


@dataclass(frozen=True, slots=True)
class Symbol:
    """A name for a place in a section."""

    name: str
    kind: int
    section: int
    """Index into the sections; 0 is undefined, above 0xff00 has a meaning of its own."""
    value: int
    """Octets from the start of the section."""
    size: int


@dataclass(frozen=True, slots=True)
class Relocation:
    """A place in a section that depends on where a symbol is."""

    offset: int
    """Octets from the start of the section that is changed."""
    kind: int
    symbol: Symbol


@dataclass(frozen=True, slots=True)
class Section:
    """A named part of the file; ``octets`` is empty for one that holds only zeroes."""

    name: str
    octets: bytes
    size: int
    is_executable: bool
    relocations: tuple[Relocation, ...] = ()


@dataclass(frozen=True, slots=True)
class Elf:
    """One object file."""

    sections: tuple[Section, ...]
    symbols: tuple[Symbol, ...]

    def section(self, name: str) -> Section | None:
        """Return the first section of this name."""
        return next((each for each in self.sections if each.name == name), None)


@dataclass(frozen=True, slots=True)
class _Header:
    name_offset: int
    kind: int
    flags: int
    offset: int
    size: int
    link: int
    info: int


def parse(octets: bytes, where: str) -> Elf:
    """Parse an object for BPF in this machine's byte order.

    ``where`` names it in complaints. Raises SetupError for anything else than such an object.
    """
    if len(octets) > OBJECT_OCTETS_MAX:
        raise _bad(where, f"more than {OBJECT_OCTETS_MAX} octets")
    try:
        return _parse(octets, where)
    except struct.error:
        raise _bad(where, "a table reaches beyond its end") from None


def _parse(octets: bytes, where: str) -> Elf:
    headers, names_index = _section_headers(octets, where)
    if names_index >= len(headers):
        raise _bad(where, "no section names")
    names = _content(octets, headers[names_index], where)
    symbols: list[Symbol] = []
    for header in headers:
        if header.kind == _TYPE_SYMBOLS:
            if symbols:
                raise _bad(where, "two symbol tables")
            symbols = _symbols(octets, headers, header, names, where)
    relocations: dict[int, tuple[Relocation, ...]] = {}
    for header in headers:
        if header.kind == _TYPE_RELOCATIONS:
            relocations[header.info] = _relocations(octets, header, symbols, where)
    sections = [
        Section(
            _text(names, header.name_offset, where),
            _content(octets, header, where),
            header.size,
            bool(header.flags & _FLAG_EXECUTABLE),
            relocations.get(index, ()),
        )
        for index, header in enumerate(headers)
    ]
    return Elf(tuple(sections), tuple(symbols))


def _section_headers(octets: bytes, where: str) -> tuple[list[_Header], int]:
    fields = _HEADER.unpack_from(octets)
    identity, kind, machine = fields[:3]
    if identity[:4] != _MAGIC:
        raise _bad(where, "not an ELF file")
    if identity[4] != _CLASS_64 or kind != _RELOCATABLE or machine != _MACHINE_BPF:
        raise _bad(where, "not a relocatable object for BPF")
    if identity[5] != _HERE:
        raise _bad(where, f"not for a {sys.byteorder}-endian machine")
    offset, entry_octets, count, names_index = fields[6], fields[11], fields[12], fields[13]
    if count and entry_octets != _SECTION.size:
        raise _bad(where, f"section headers of {entry_octets} octets")
    if offset + count * _SECTION.size > len(octets):
        raise _bad(where, "its section headers reach beyond its end")
    headers = []
    for number in range(count):
        name, kind, flags, _, start, size, link, info, _, _ = _SECTION.unpack_from(
            octets, offset + number * _SECTION.size
        )
        headers.append(_Header(name, kind, flags, start, size, link, info))
    _refuse_overlaps(headers, where)
    return headers, names_index


def _refuse_overlaps(headers: list[_Header], where: str) -> None:
    """No octet belongs to two sections: so a small file cannot become a large value."""
    end = 0
    for header in sorted(headers, key=lambda each: (each.offset, each.size)):
        if header.kind == _TYPE_NO_BITS or not header.size:
            continue
        if header.offset < end:
            raise _bad(where, "sections overlap")
        end = header.offset + header.size


def _content(octets: bytes, header: _Header, where: str) -> bytes:
    if header.kind == _TYPE_NO_BITS:
        return b""
    if header.offset + header.size > len(octets):
        raise _bad(where, "a section reaches beyond its end")
    return octets[header.offset : header.offset + header.size]


def _symbols(
    octets: bytes, headers: list[_Header], header: _Header, section_names: bytes, where: str
) -> list[Symbol]:
    if header.link >= len(headers):
        raise _bad(where, "no symbol names")
    names = _content(octets, headers[header.link], where)
    symbols = []
    for fields in _entries(_SYMBOL, _content(octets, header, where), where):
        name, info, _, section, value, size = fields
        kind = info & 0xF
        if kind == SymbolKind.SECTION and section < len(headers):
            text = _text(section_names, headers[section].name_offset, where)
        else:
            text = _text(names, name, where)
        symbols.append(Symbol(text, kind, section, value, size))
    return symbols


def _relocations(
    octets: bytes, header: _Header, symbols: list[Symbol], where: str
) -> tuple[Relocation, ...]:
    relocations = []
    for offset, info in _entries(_RELOCATION, _content(octets, header, where), where):
        if info >> 32 >= len(symbols):
            raise _bad(where, "a relocation without its symbol")
        relocations.append(Relocation(offset, info & 0xFFFF_FFFF, symbols[info >> 32]))
    return tuple(relocations)


def _entries(layout: struct.Struct, content: bytes, where: str) -> Iterator[tuple[int, ...]]:
    if len(content) % layout.size:
        raise _bad(where, "a table ends within an entry")
    return layout.iter_unpack(content)


def _text(names: bytes, offset: int, where: str) -> str:
    end = names.find(b"\0", offset)
    if end < 0:
        raise _bad(where, "a name reaches beyond its table")
    found = names[offset:end]
    if len(found) > 255 or not (found.isascii() and found.decode("latin-1").isprintable()):
        raise _bad(where, "a name of more than 255 octets, or not of letters")
    return found.decode("ascii")


def _bad(where: str, why: str) -> SetupError:
    return SetupError(f"{where} is no usable BPF object: {why}; install the package again")

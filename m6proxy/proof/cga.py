"""Cryptographically generated addresses: the parameters and their verification (RFC 3972).

An interface identifier is a hash of the CGA Parameter Data Structure, so that whoever holds
the structure shows that the address was made with it. SHA-1 is what RFC 3972 prescribes for
Sec 0, 1 and 2 (RFC 4982 §4); other values of Sec name hashes that nobody defined.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Final

from m6proxy.errors import MalformedMessage
from m6proxy.names import Address
from m6proxy.reasons import Reason

PREFIX_OCTETS: Final = 8
EXTENSIONS_MAX: Final = 16
SEC_MAX: Final = 2

_MODIFIER_OCTETS: Final = 16
_FIXED_OCTETS: Final = _MODIFIER_OCTETS + PREFIX_OCTETS + 1
_COLLISIONS_MAX: Final = 2
_COMPARED: Final = 0x1CFFFFFFFFFFFFFF
"""Of the interface identifier: not the three bits of Sec, not the u and g bits (§5, step 4)."""
_SEQUENCE: Final = 0x30


@dataclass(frozen=True, slots=True)
class Extension:
    """One extension field (RFC 4581 §2)."""

    number: int
    """16 bits."""
    data: bytes

    def encode(self) -> bytes:
        """Type, length without these four octets, data."""
        return self.number.to_bytes(2) + len(self.data).to_bytes(2) + self.data


@dataclass(frozen=True, slots=True)
class CgaParameters:
    """The CGA Parameter Data Structure (RFC 3972 §3), checked at parsing."""

    modifier: bytes
    """16 octets."""
    prefix: bytes
    """8 octets."""
    collisions: int
    """0 to 255 on the wire; verification allows 0 to 2."""
    public_key: bytes
    """DER of a SubjectPublicKeyInfo."""
    extensions: tuple[Extension, ...] = ()

    @classmethod
    def parse(cls, octets: bytes) -> CgaParameters:
        """Parse a whole structure; nothing may follow it. Raises MalformedMessage."""
        if len(octets) < _FIXED_OCTETS + 2:
            raise _malformed("shorter than its fixed fields", len(octets))
        key_end = _FIXED_OCTETS + _der_octets(octets, _FIXED_OCTETS)
        return cls(
            octets[:_MODIFIER_OCTETS],
            octets[_MODIFIER_OCTETS : _MODIFIER_OCTETS + PREFIX_OCTETS],
            octets[_FIXED_OCTETS - 1],
            octets[_FIXED_OCTETS:key_end],
            _parse_extensions(octets, key_end),
        )

    def encode(self, prefix: bytes | None = None) -> bytes:
        """The octets that are hashed; with another subnet prefix (8 octets) on request."""
        return b"".join(
            (self.modifier, prefix or self.prefix, bytes([self.collisions]), self._tail())
        )

    def verify(self, address: Address) -> bool:
        """Tell whether the address was made with these parameters (RFC 3972 §5)."""
        return address[:PREFIX_OCTETS] == self.prefix and self.verify_under(address)

    def verify_under(self, address: Address) -> bool:
        """The same with the address's own prefix put into the structure (RFC 5535 §7.2)."""
        if self.collisions > _COLLISIONS_MAX:
            return False
        identifier = int.from_bytes(address[PREFIX_OCTETS:])
        hash1 = hashlib.sha1(self.encode(address[:PREFIX_OCTETS]), usedforsecurity=False)
        if (int.from_bytes(hash1.digest()[:8]) ^ identifier) & _COMPARED:
            return False
        sec = identifier >> 61
        if sec > SEC_MAX:
            return False
        hash2 = hashlib.sha1(self.modifier + bytes(9) + self._tail(), usedforsecurity=False)
        return not any(hash2.digest()[: 2 * sec])

    def _tail(self) -> bytes:
        return self.public_key + b"".join(extension.encode() for extension in self.extensions)


def _der_octets(octets: bytes, start: int) -> int:
    """How long the DER SEQUENCE at ``start`` is, with its header."""
    if octets[start] != _SEQUENCE:
        raise _malformed("the public key is no DER sequence", start)
    first = octets[start + 1]
    if first < 0x80:
        header, length = 2, first
    else:
        count = first & 0x7F
        if not 1 <= count <= 2 or start + 2 + count > len(octets):
            raise _malformed("the length of the public key", start + 1)
        header, length = 2 + count, int.from_bytes(octets[start + 2 : start + 2 + count])
    if start + header + length > len(octets):
        raise _malformed("the public key goes past the end", start)
    return header + length


def _parse_extensions(octets: bytes, start: int) -> tuple[Extension, ...]:
    found: list[Extension] = []
    while start < len(octets):
        if start + 4 > len(octets) or len(found) == EXTENSIONS_MAX:
            raise _malformed("the extension fields", start)
        end = start + 4 + int.from_bytes(octets[start + 2 : start + 4])
        if end > len(octets):
            raise _malformed("an extension goes past the end", start)
        number = int.from_bytes(octets[start : start + 2])
        found.append(Extension(number, octets[start + 4 : end]))
        start = end
    return tuple(found)


def _malformed(what: str, pointer: int) -> MalformedMessage:
    return MalformedMessage(Reason.BAD_OPTION, f"CGA parameters: {what}", pointer)

"""The types that the whole project shares: addresses, tags, prefixes, pairs.

An address is 16 octets in network order, a plain ``bytes``: the packet path slices it
out of a packet and uses it as a dictionary key without building an object.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

Address: TypeAlias = bytes
"""An IPv6 address: 16 octets, network order."""

Tag: TypeAlias = int
"""A context tag: 47 bits, chosen by its receiver (RFC 5533 §4.1). Never 0 in m6proxy."""

ADDRESS_OCTETS = 16
TAG_BITS = 47
TAG_MASK = (1 << TAG_BITS) - 1

UNSPECIFIED: Address = bytes(ADDRESS_OCTETS)


def address(text: str) -> Address:
    """Turn the text form of an IPv6 address into 16 octets.

    Raises ValueError for anything else (a zone such as ``%eth0`` included).
    """
    parsed = ipaddress.IPv6Address(text)
    if parsed.scope_id is not None:
        raise ValueError(f"{text!r} has a zone; an address without one is needed")
    return parsed.packed


def address_text(octets: Address) -> str:
    """Turn 16 octets into the text form of RFC 5952. Raises ValueError for another length."""
    return str(ipaddress.IPv6Address(octets))


def is_multicast(octets: Address) -> bool:
    """Tell whether the 16 octets are in ff00::/8."""
    return octets[0] == 0xFF


@dataclass(frozen=True, slots=True)
class Prefix:
    """An IPv6 prefix; host bits are zero."""

    network: Address
    """The 16 octets, those past the length all zero."""
    length: int
    """0 to 128, in bits."""

    def __post_init__(self) -> None:
        if len(self.network) != ADDRESS_OCTETS or not 0 <= self.length <= 128:
            raise ValueError("a prefix is 16 octets and a length from 0 to 128")
        if int.from_bytes(self.network) & self._host_mask():
            raise ValueError(f"{self} has host bits set")

    @classmethod
    def parse(cls, text: str) -> Prefix:
        """Parse ``2001:db8::/48``. Raises ValueError when it is not a prefix or has host bits."""
        network = ipaddress.IPv6Network(text)
        return cls(network.network_address.packed, network.prefixlen)

    def _host_mask(self) -> int:
        return (1 << (128 - self.length)) - 1

    def contains(self, octets: Address) -> bool:
        """Tell whether an address (16 octets) lies in the prefix."""
        shift = 128 - self.length
        return int.from_bytes(octets) >> shift == int.from_bytes(self.network) >> shift

    def overlaps(self, other: Prefix) -> bool:
        """Tell whether one of the two prefixes contains the other."""
        if self.length <= other.length:
            return self.contains(other.network)
        return other.contains(self.network)

    def graft(self, octets: Address) -> Address:
        """Return the address with its first ``length`` bits replaced by this prefix."""
        host = int.from_bytes(octets) & self._host_mask()
        return (int.from_bytes(self.network) | host).to_bytes(ADDRESS_OCTETS)

    def __str__(self) -> str:
        return f"{address_text(self.network)}/{self.length}"


class UlidPair(NamedTuple):
    """The two addresses that the hosts see; the key of a context together with its fork."""

    local: Address
    peer: Address

    def __str__(self) -> str:
        return f"{address_text(self.local)} <-> {address_text(self.peer)}"


class LocatorPair(NamedTuple):
    """The two addresses on the wire, seen from this end."""

    local: Address
    peer: Address

    def __str__(self) -> str:
        return f"{address_text(self.local)} -> {address_text(self.peer)}"

"""Which addresses a host has under each of its site's prefixes (l3-shim-approach §9.1).

Four mappings from a ULID to its locators:

``prefix``     the ULID with its prefix replaced. Each of them may be a ULID as well, for the
               host may have it.
``neutral``    the same, with one 16-bit word changed so that the sum of the address stays what it
               was (RFC 6296): transport checksums are right over ULIDs and locators alike.
``nsquare``    one set of addresses for each prefix that a ULID may come from. In its own prefix
               it is itself; in another one it is locator-only: the same address with the number
               of the ULID's prefix in a few bits, the *mark*, that are 0 in every address of a
               host. So no two sets meet, and the gateway needs no memory to turn one back. With
               the mark of its own prefix in its own prefix, the ULID has a *stand-in* besides: a
               locator-only address for packets that go to the ULID's own place.
``preagreed``  hosts have addresses from one prefix only; all others are locator-only.

A locator-only address is nobody's: no host has it, and it stands in no AAAA record. Prefixes
are numbered by their value from 1 on, so that both ends count alike, whatever is preferred.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum, unique
from typing import Final

from m6proxy.names import ADDRESS_OCTETS, Address, Prefix, address_text
from m6proxy.wire.checksum import checksum

_BITS: Final = 8 * ADDRESS_OCTETS
SUBNET_BITS: Final = 64
"""Behind so many bits of an address its interface identifier begins, where hosts may put
anything: the mark of n-square addresses stands there only by word of the operator."""

NEUTRAL_BITS: Final = 48
"""Prefixes up to this length leave a subnet number to keep the sum with."""
_ONES: Final = 0xFFFF
_NO_BITS: Final = Address(bytes(ADDRESS_OCTETS))


@unique
class MapKind(Enum):
    """The mappings by the words of configuration and capability record."""

    PREFIX = "prefix"
    NEUTRAL = "neutral"
    NSQUARE = "nsquare"
    PREAGREED = "preagreed"


@dataclass(frozen=True, slots=True)
class Pattern:
    """A set of addresses: those with these bits under this mask."""

    bits: Address
    mask: Address

    def __str__(self) -> str:
        return f"{address_text(self.bits)}/{address_text(self.mask)}"


class LocatorMap(ABC):
    """How the locators of a site's hosts follow from their ULIDs."""

    __slots__ = ()

    @abstractmethod
    def locator(self, ulid: Address, prefix: Prefix) -> Address:
        """The locator of a ULID (16 octets each) in one of the site's prefixes."""

    def stand_in(self, ulid: Address) -> Address | None:
        """The locator-only address in the ULID's own prefix, where the mapping has one."""
        return None

    def meant(self, octets: Address) -> Address:
        """The ULID that an address stands in for, or the address itself."""
        return octets

    @abstractmethod
    def is_locator_only(self, octets: Address) -> bool:
        """Tell whether an address (16 octets) of the site can be no host's."""

    @abstractmethod
    def patterns(self) -> tuple[Pattern, ...]:
        """All locator-only addresses of the site: each has one of these patterns."""

    def marks(self, prefix: Prefix) -> Address | None:
        """The bits of which a locator-only address in one of the site's prefixes has at least one.

        None: all addresses of that prefix are locator-only.
        """
        return _NO_BITS


class PrefixMap(LocatorMap):
    """The ULID with its prefix replaced; no address is locator-only."""

    __slots__ = ()

    def locator(self, ulid: Address, prefix: Prefix) -> Address:
        """The locator of a ULID in a prefix."""
        return prefix.graft(ulid)

    def is_locator_only(self, octets: Address) -> bool:
        """None is."""
        return False

    def patterns(self) -> tuple[Pattern, ...]:
        """None."""
        return ()


class NeutralMap(PrefixMap):
    """The ULID with its prefix replaced and its sum kept; no address is locator-only."""

    __slots__ = ("_prefixes",)

    def __init__(self, prefixes: Iterable[Prefix]) -> None:
        """Raises ValueError when a prefix leaves no interface identifier (more than 64 bits)."""
        self._prefixes = tuple(prefixes)
        longest = max((prefix.length for prefix in self._prefixes), default=0)
        if longest > SUBNET_BITS:
            raise ValueError(f"a prefix of {longest} bits leaves no word to keep the sum with")

    def locator(self, ulid: Address, prefix: Prefix) -> Address:
        """The locator of a ULID in a prefix.

        The word is the subnet number behind /48 and shorter prefixes (RFC 6296 §3.4), else the
        first of the interface identifier that is not 0xFFFF (§3.5). Where all are, as with
        subnet 0xFFFF, the sum is not kept: RFC 6296 drops such packets, and we need not.
        """
        grafted = prefix.graft(ulid)
        own = next((one for one in self._prefixes if one.contains(ulid)), prefix)
        at = _neutral_word(ulid, max(own.length, prefix.length))
        if own == prefix or at is None:
            return grafted
        word = _ONES ^ checksum(ulid[: at + 2] + checksum(grafted[:at]).to_bytes(2))
        if word == _ONES:
            word = 0
        return grafted[:at] + word.to_bytes(2) + grafted[at + 2 :]


class NsquareMap(LocatorMap):
    """N sets of n addresses, told apart by a mark in each locator-only one."""

    __slots__ = ("_mask", "_shift", "mark_at", "prefixes", "width")

    def __init__(self, prefixes: Iterable[Prefix], mark_at: int) -> None:
        """``mark_at``: how many bits of an address stand before the mark.

        Raises ValueError when there is no room for it behind every prefix.
        """
        self.prefixes = tuple(sorted(set(prefixes), key=lambda p: (p.network, p.length)))
        """In the order of their numbers, from 1 on."""
        self.mark_at = mark_at
        self.width = len(self.prefixes).bit_length()
        """How many bits the mark has."""
        longest = max((prefix.length for prefix in self.prefixes), default=_BITS)
        if not longest <= mark_at <= _BITS - self.width:
            raise ValueError(f"{self.width} bits at {mark_at} are not behind /{longest}")
        self._shift = _BITS - mark_at - self.width
        self._mask = ((1 << self.width) - 1) << self._shift

    def locator(self, ulid: Address, prefix: Prefix) -> Address:
        """The locator of a ULID in a prefix. Raises ValueError for what can be no ULID."""
        if prefix.contains(ulid):
            return ulid
        number = self._number(ulid)
        if not number or self.is_locator_only(ulid):
            raise ValueError(f"{address_text(ulid)} can be no ULID here")
        return self._marked(prefix.graft(ulid), number)

    def stand_in(self, ulid: Address) -> Address:
        """The ULID with its own prefix's mark."""
        return self._marked(ulid, self._number(ulid))

    def is_locator_only(self, octets: Address) -> bool:
        """Those with a mark, also one that no prefix has."""
        return bool(int.from_bytes(octets) & self._mask) and bool(self._number(octets))

    def patterns(self) -> tuple[Pattern, ...]:
        """One for each prefix and bit of the mark that may be set."""
        return tuple(
            Pattern(
                (int.from_bytes(prefix.network) | bit << self._shift).to_bytes(ADDRESS_OCTETS),
                (_prefix_mask(prefix) | bit << self._shift).to_bytes(ADDRESS_OCTETS),
            )
            for prefix in self.prefixes
            for bit in (1 << place for place in range(self.width))
        )

    def marks(self, prefix: Prefix) -> Address:
        """Those of the mark."""
        return self._mask.to_bytes(ADDRESS_OCTETS)

    def meant(self, octets: Address) -> Address:
        """The ULID that an address stands in for, or the address itself."""
        number = self._number(octets)
        value = int.from_bytes(octets)
        if not number or value & self._mask != number << self._shift:
            return octets
        return (value ^ number << self._shift).to_bytes(ADDRESS_OCTETS)

    def _marked(self, octets: Address, number: int) -> Address:
        return (int.from_bytes(octets) | number << self._shift).to_bytes(ADDRESS_OCTETS)

    def _number(self, octets: Address) -> int:
        """Which prefix an address comes from; 0: none of them."""
        for number, prefix in enumerate(self.prefixes, start=1):
            if prefix.contains(octets):
                return number
        return 0


class PreagreedMap(LocatorMap):
    """One prefix has the hosts' addresses, the others have locators and nothing else."""

    __slots__ = ("_others",)

    def __init__(self, prefixes: Iterable[Prefix], identifier: Prefix) -> None:
        self._others = tuple(prefix for prefix in prefixes if prefix != identifier)

    def locator(self, ulid: Address, prefix: Prefix) -> Address:
        """The locator of a ULID in a prefix."""
        return prefix.graft(ulid)

    def is_locator_only(self, octets: Address) -> bool:
        """All of the other prefixes."""
        return any(prefix.contains(octets) for prefix in self._others)

    def patterns(self) -> tuple[Pattern, ...]:
        """One for each of the other prefixes."""
        return tuple(
            Pattern(prefix.network, _prefix_mask(prefix).to_bytes(ADDRESS_OCTETS))
            for prefix in self._others
        )

    def marks(self, prefix: Prefix) -> Address | None:
        """None for the other prefixes."""
        return None if prefix in self._others else _NO_BITS


PLAIN: Final = PrefixMap()
"""What a site has that says nothing else."""


def _neutral_word(ulid: Address, length: int) -> int | None:
    """Where the word stands that keeps the sum, in octets; None when there is none."""
    places = (6,) if length <= NEUTRAL_BITS else (8, 10, 12, 14)
    return next((at for at in places if ulid[at : at + 2] != b"\xff\xff"), None)


def _prefix_mask(prefix: Prefix) -> int:
    return (1 << _BITS) - (1 << _BITS - prefix.length)

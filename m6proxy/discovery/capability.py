"""What a site publishes in DNS about one of its hosts: the capability record, as a value.

The model is one; encodings are several (``codec`` lists them). Source: functional
decomposition §3.1.2, DESIGN §2.
"""

from __future__ import annotations

from dataclasses import dataclass

from m6proxy.discovery.addressing import PLAIN, LocatorMap, NeutralMap, NsquareMap
from m6proxy.names import Address, Prefix

VERSION = 1


@dataclass(frozen=True, slots=True)
class PrefixLocator:
    """A prefix that has a locator of the host: with its own low bits, unless there are marks."""

    prefix: Prefix
    preference: int
    """0 to 255, lower is better."""


@dataclass(frozen=True, slots=True)
class Capability:
    """The peer's site has a shim, and this is what it says of itself."""

    version: int = VERSION
    accepts: bool = True
    """Whether it answers an I1."""
    site: str | None = None
    """The site's name, for people and for counting; proves nothing."""
    prefixes: tuple[PrefixLocator, ...] = ()
    mark_at: int | None = None
    """N-square addresses: how many bits stand before the mark; None: there are no marks."""
    neutral: bool = False
    """Whether locators keep the sum of their ULID (RFC 6296)."""

    def __post_init__(self) -> None:
        if self.version < 1:
            raise ValueError("a capability's version is 1 or more")
        if self.mark_at is not None:
            NsquareMap((p.prefix for p in self.prefixes), self.mark_at)
        elif self.neutral:
            NeutralMap(p.prefix for p in self.prefixes)

    @property
    def locator_map(self) -> LocatorMap:
        """How locators follow from a ULID."""
        if self.mark_at is None:
            return NeutralMap(p.prefix for p in self.prefixes) if self.neutral else PLAIN
        return NsquareMap((p.prefix for p in self.prefixes), self.mark_at)


@dataclass(frozen=True, slots=True)
class NameData:
    """What DNS holds under one name: the input of every proof by DNS."""

    name: str
    """Lower case, without the final dot."""
    addresses: frozenset[Address] = frozenset()
    """The AAAA set."""
    capability: Capability | None = None
    owns_ulid: bool = False
    """Whether PTR of the ULID, or the configuration, says that the ULID bears this name."""
    expires_s: float = 0.0
    """Until when it may be used, on the clock of ``now``."""

    def locators_of(self, ulid: Address) -> tuple[Address, ...]:
        """Candidate locators of a ULID that this name covers (``covers``).

        They are its AAAA set, then the ULID's address in each published prefix. Where there are
        marks, an address of the AAAA set is another ULID, with locators of its own.
        """
        record = self.capability
        if record is None:
            return tuple(sorted(self.addresses))
        if record.mark_at is None:
            mapped = (record.locator_map.locator(ulid, p.prefix) for p in record.prefixes)
            return tuple(dict.fromkeys([*sorted(self.addresses), *mapped]))
        if not any(p.prefix.contains(ulid) for p in record.prefixes):
            return (ulid,)
        return tuple(record.locator_map.locator(ulid, p.prefix) for p in record.prefixes)

    def covers(self, octets: Address) -> bool:
        """Tell whether DNS says that an address (16 octets) is a ULID under this name."""
        record = self.capability
        if record is None or not any(p.prefix.contains(octets) for p in record.prefixes):
            return octets in self.addresses
        return not record.locator_map.is_locator_only(octets)

    def ties(self, ulid: Address, locator: Address) -> bool:
        """Tell whether DNS says that a locator belongs to a ULID that this name covers.

        A locator-only address belongs to one ULID and no other.
        """
        record = self.capability
        if record is not None and record.mark_at is not None and not self.covers(locator):
            known = (*self.locators_of(ulid), record.locator_map.stand_in(ulid))
            return self.covers(ulid) and locator in known
        return self.covers(ulid) and self.covers(locator)

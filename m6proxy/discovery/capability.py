"""What a site publishes in DNS about one of its hosts: the capability record, as a value.

The model is one; encodings are several (``codec`` lists them). Source: functional
decomposition §3.1.2, DESIGN §2.
"""

from __future__ import annotations

from dataclasses import dataclass

from m6proxy.names import Address, Prefix

VERSION = 1


@dataclass(frozen=True, slots=True)
class PrefixLocator:
    """A prefix whose addresses, with the host's own low bits, are locators of the host."""

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

    def __post_init__(self) -> None:
        if self.version < 1:
            raise ValueError("a capability's version is 1 or more")


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
        """Candidate locators of a ULID: its AAAA set, then each published prefix with its bits."""
        grafted = (p.prefix.graft(ulid) for p in self._prefixes())
        return tuple(dict.fromkeys([*sorted(self.addresses), *grafted]))

    def covers(self, octets: Address) -> bool:
        """Tell whether DNS says that an address (16 octets) belongs to this name."""
        return octets in self.addresses or any(p.prefix.contains(octets) for p in self._prefixes())

    def _prefixes(self) -> tuple[PrefixLocator, ...]:
        return self.capability.prefixes if self.capability else ()

"""Locator sets: the local one, computed from the uplinks, and the locators of a peer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final
from weakref import WeakValueDictionary

from m6proxy.discovery.addressing import PLAIN, LocatorMap
from m6proxy.names import Address, Prefix
from m6proxy.proof.judge import Proof
from m6proxy.shim.entropy import Entropy
from m6proxy.wire.options import (
    BROKEN,
    METHOD_DNS,
    TRANSIENT,
    LocatorDelta,
    LocatorList,
    LocatorPreferences,
    Preference,
)

UPLINKS_MAX: Final = 16
"""So that an I2 with the set, the longest name and the longest validator fits 1280 octets."""
_GENERATION_MASK: Final = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class Uplink:
    """One provider attachment, as far as the protocol cares."""

    name: str
    prefix: Prefix
    preference: int
    """0 to 255, lower is better."""
    mtu: int = 1500
    """Octets of the largest IPv6 packet that the uplink takes."""
    up: bool = True
    weight: int = 0
    """0 to 255: what peers are told of its share among equal preferences, as in DNS SRV."""
    temporary: bool = False
    """Peers are told that it is less stable: among equals it comes last."""


class LocalSet:
    """Ls(local) of one host: its locator in each uplink's prefix. Shared by its contexts."""

    __slots__ = (
        "__weakref__",
        "_since",
        "broken",
        "down",
        "generation",
        "locators",
        "ranks",
        "stand_in",
        "uplinks",
    )

    def __init__(
        self,
        ulid: Address,
        uplinks: Iterable[Uplink],
        generation: int,
        locator_map: LocatorMap = PLAIN,
    ) -> None:
        self.uplinks = tuple(sorted(uplinks, key=lambda u: (u.preference, u.name)))
        self.locators = tuple(locator_map.locator(ulid, u.prefix) for u in self.uplinks)
        likings = [uplink.preference for uplink in self.uplinks]
        self.ranks = tuple(likings.index(liking) for liking in likings)
        """For each locator, how many of them the operator likes better."""
        self.broken = tuple(not uplink.up for uplink in self.uplinks)
        self.down = tuple(
            [
                octets
                for octets, uplink in zip(self.locators, self.uplinks, strict=True)
                if not uplink.up
            ]
        )
        """The locators that do not work."""
        self.generation = generation
        self._since: tuple[int, LocatorDelta] | None = None
        """The last difference that was asked for, and from which generation."""
        self.stand_in = locator_map.stand_in(ulid)
        """Where packets without a tag may come in the place of the ULID, if there is such."""

    def uplink_of(self, locator: Address) -> Uplink | None:
        """The uplink that a locator of this set belongs to."""
        if locator not in self.locators:
            return None
        return self.uplinks[self.locators.index(locator)]

    def options(
        self, places: Sequence[int] | None = None
    ) -> tuple[LocatorList, LocatorPreferences]:
        """The two options that tell a peer this set (RFC 5533 §5.15.2, §5.15.3).

        ``places`` are those of the locators to tell, None means all. A list that leaves
        some out has a generation of its own, since each list has (§5.15.2).
        """
        if places is None:
            places = range(len(self.locators))
        left_out = len(self.locators) - len(places)
        generation = (self.generation - left_out) & _GENERATION_MASK
        return (
            LocatorList(
                generation,
                (METHOD_DNS,) * len(places),
                tuple(self.locators[place] for place in places),
            ),
            LocatorPreferences(
                generation,
                3 if any(uplink.weight for uplink in self.uplinks) else 2,
                tuple(self._preference(place) for place in places),
            ),
        )

    def _preference(self, place: int) -> Preference:
        uplink = self.uplinks[place]
        flags = (BROKEN if self.broken[place] else 0) | (TRANSIENT if uplink.temporary else 0)
        return Preference(flags, min(uplink.preference, 255), uplink.weight)

    def by_prefix(self) -> tuple[tuple[Prefix, Preference], ...]:
        """What is told of the locators in each of the site's prefixes, of whichever host."""
        return tuple(
            (uplink.prefix, self._preference(place)) for place, uplink in enumerate(self.uplinks)
        )

    def since(self, base: LocalSet) -> LocatorDelta:
        """How this set differs from an earlier one; all contexts of the host ask the same."""
        if self._since is not None and self._since[0] == base.generation:
            return self._since[1]
        before, after = base.elements(), self.elements()
        delta = LocatorDelta(
            base.generation,
            self.generation,
            tuple(
                (method, preference, octets)
                for octets, (method, preference) in after.items()
                if before.get(octets) != (method, preference)
            ),
            tuple(octets for octets in before if octets not in after),
        )
        self._since = base.generation, delta
        return delta

    def elements(self) -> dict[Address, tuple[int, Preference]]:
        """What is told of each locator: its method and preference."""
        listed, preferences, *_ = self.options()
        told = zip(listed.methods, preferences.preferences, strict=True)
        return dict(zip(listed.locators, told, strict=True))

    def best_places(self, count: int, current: Address) -> tuple[int, ...]:
        """Which locators to tell when only ``count`` of them fit, in the order of the set.

        The current one stays, for a list without it would move the context; then those
        that work, the best preference first.
        """
        ranked = sorted(
            range(len(self.locators)),
            key=lambda place: (self.locators[place] != current, self.broken[place], place),
        )
        return tuple(sorted(ranked[:count]))


class LocalSets:
    """The uplinks, and the set of each local host that has a context."""

    def __init__(
        self, uplinks: Iterable[Uplink], entropy: Entropy, locator_map: LocatorMap = PLAIN
    ) -> None:
        self._entropy = entropy
        self._map = locator_map
        self.meant = locator_map.meant
        """The ULID that an address of ours stands in for, or the address itself."""
        self._uplinks = {uplink.name: uplink for uplink in uplinks}
        self._down = [uplink for uplink in self._uplinks.values() if not uplink.up]
        self._by_ulid: WeakValueDictionary[Address, LocalSet] = WeakValueDictionary()
        self._generation = entropy.nonce()
        """Of the sets of all hosts, so that one message can be about many (decision 26)."""

    @property
    def uplinks(self) -> tuple[Uplink, ...]:
        """All uplinks in the order of the configuration."""
        return tuple(self._uplinks.values())

    def is_local(self, octets: Address) -> bool:
        """Tell whether an address lies in one of the site's prefixes."""
        return any(uplink.prefix.contains(octets) for uplink in self._uplinks.values())

    def is_locator_only(self, octets: Address) -> bool:
        """Tell whether an address is one of ours that no host has."""
        return self._map.is_locator_only(octets)

    def is_down(self, octets: Address) -> bool:
        """Tell whether an address belongs to an uplink that is down."""
        return any(uplink.prefix.contains(octets) for uplink in self._down)

    def same_host(self, ulid: Address, locator: Address) -> bool:
        """Tell whether a ULID can be one of the site's, and has this locator."""
        return (
            self.is_local(ulid)
            and not self.is_locator_only(ulid)
            and any(self._map.locator(ulid, u.prefix) == locator for u in self._uplinks.values())
        )

    def by_ulid(self, ulid: Address) -> LocalSet:
        """The set of a host; the same object as long as anybody holds it."""
        found = self._by_ulid.get(ulid)
        if found is None:
            found = LocalSet(ulid, self._uplinks.values(), self._generation, self._map)
            self._by_ulid[ulid] = found
        return found

    def change(self, name: str, *, up: bool, mtu: int) -> bool:
        """Note the state of an uplink; returns whether it differs. Raises KeyError if unknown."""
        before = self._uplinks[name]
        after = replace(before, up=up, mtu=mtu)
        if after == before:
            return False
        self._uplinks[name] = after
        if up != before.up:
            self._generation = self._entropy.nonce()
        self._down = [uplink for uplink in self._uplinks.values() if not uplink.up]
        self._by_ulid.clear()
        return True


def _flag(mask: int, doc: str) -> property:
    """One bit of a locator's flags as an attribute: four booleans would be four slots."""

    def get(locator: PeerLocator) -> bool:
        return bool(locator.flags & mask)

    def put(locator: PeerLocator, value: bool) -> None:
        locator.flags = locator.flags | mask if value else locator.flags & ~mask

    return property(get, put, doc=doc)


class PeerLocator:
    """A locator of a peer, with what is known about it. There are several for each context."""

    __slots__ = ("address", "flags", "lot", "priority", "proof", "weight")

    LISTED: Final = 1
    BROKEN: Final = 2
    TESTED: Final = 4
    TRANSIENT: Final = 8
    STANDS_IN: Final = 16

    listed = _flag(LISTED, "Whether the peer's own list has it.")
    broken = _flag(BROKEN, "The peer says that it does not work.")
    tested = _flag(TESTED, "A probe to it was answered.")
    transient = _flag(TRANSIENT, "The peer says that it is less stable: the last among equals.")
    stands_in = _flag(STANDS_IN, "In the place of the ULID, for packets without a tag; never else.")

    def __init__(
        self,
        octets: Address,
        proof: Proof,
        *,
        priority: int = 0,
        broken: bool = False,
        tested: bool = False,
    ) -> None:
        self.address = octets
        self.proof = proof
        self.flags = 0
        self.priority = priority
        """As in DNS SRV: lower is better."""
        self.broken = broken
        self.tested = tested
        self.weight = 0
        """As in DNS SRV: its share of the contexts among equals."""
        self.lot = 0.0
        """What was drawn for it by its weight; the lowest of equals is taken first."""

    @property
    def proved(self) -> bool:
        """Whether it was shown to belong to the ULID."""
        return self.proof is not Proof.NONE

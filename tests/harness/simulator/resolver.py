"""A DNS that knows every host, and for a while is slow, silent or wrong."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Final

from m6proxy.discovery.capability import Capability, NameData, PrefixLocator
from m6proxy.names import Address
from m6proxy.shim.demux import DemuxMode
from tests.harness.simulator.census import Census, Event
from tests.harness.simulator.network import Place
from tests.harness.simulator.schedule import Answers, SiteShape
from tests.harness.simulator.topology import MARK_AT, host_ulid, prefix_of

USUAL_S: Final = 0.02
SLOW_S: Final = (1.0, 12.0)
_ODD: Final = {
    Answers.SLOW: Event.DNS_SLOW,
    Answers.SILENT: Event.DNS_SILENT,
    Answers.FOREIGN: Event.DNS_FOREIGN,
}


class Resolver:
    """What DNS holds, and how it answers now."""

    def __init__(self, sites: Sequence[SiteShape], seed: int, census: Census) -> None:
        self._random = random.Random(seed)
        self._sites = sites
        self._census = census
        self._names = {
            host_ulid(site, shape, host): f"h{host}.s{site}.{_domain(shape)}"
            for site, shape in enumerate(sites)
            for host in range(shape.hosts)
            if not shape.hashed
        }
        self._answers = Answers.RIGHT
        self._told: dict[tuple[Address, Answers], NameData | None] = {}

    def behave(self, answers: Answers) -> None:
        """Answer otherwise from now on."""
        self._answers = answers

    def name_of(self, ulid: Address) -> str | None:
        """The name of a host, as its own gateway is configured to know it."""
        return self._names.get(ulid)

    def ask(self, ulid: Address, place: Place | None) -> tuple[float, NameData | None] | None:
        """Delay and answer about a host; None when no answer ever comes."""
        if self._answers in _ODD:
            self._census[_ODD[self._answers]] += 1
        if self._answers is Answers.SILENT:
            return None
        slow = self._answers is Answers.SLOW
        key = (ulid, Answers.RIGHT if slow else self._answers)
        if key not in self._told:
            self._told[key] = self._data(ulid, place, key[1])
        return self._random.uniform(*SLOW_S) if slow else USUAL_S, self._told[key]

    def _data(self, ulid: Address, place: Place | None, answers: Answers) -> NameData | None:
        name = self._names.get(ulid)
        if name is None or place is None or answers is Answers.NOTHING:
            return None
        site = place.site
        if answers is Answers.FOREIGN:
            site = (site + 1) % len(self._sites)
        capability = None
        if answers is not Answers.BARE and self._sites[place.site].has_shim:
            capability = Capability(
                prefixes=tuple(
                    PrefixLocator(prefix_of(site, uplink), uplink)
                    for uplink in range(self._sites[site].uplinks)
                ),
                mark_at=MARK_AT if self._sites[site].demux is DemuxMode.IDENTIFIER else None,
            )
        if answers is Answers.FOREIGN and capability is None:
            capability = Capability()
        return NameData(name, frozenset({ulid}), capability, owns_ulid=True)


def _domain(shape: SiteShape) -> str:
    return ".".join(["x" * 60] * 3 + ["example"]) if shape.long_names else "example"

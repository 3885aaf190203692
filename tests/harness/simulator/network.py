"""Providers between sites: each loses, delays, doubles and cuts as it likes.

A packet leaves by the provider that its source belongs to, and comes in by the provider of
its destination. Any other source is dropped, as providers do (BCP 38).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Final, NamedTuple

from m6proxy.names import Address
from tests.harness.simulator import wire
from tests.harness.simulator.census import Census, Event
from tests.harness.simulator.schedule import SiteShape, Weather
from tests.harness.simulator.topology import PREFIX_OCTETS, prefix_of, router_of

LATENCY_S: Final = 0.01


class Place(NamedTuple):
    """One provider attachment."""

    site: int
    uplink: int


class Provider:
    """How one attachment treats packets now."""

    __slots__ = ("cut", "delay_s", "doubles", "fair", "jitter_s", "loss", "strict", "told")

    def __init__(self) -> None:
        self.cut: set[str] = set()
        self.strict: set[str] = set()
        """The ways in which nothing passes that a strict provider drops."""
        self.fair = True
        """Whether nothing at all is wrong."""
        self.told = False
        """Whether its router answers what a cut drops by ICMPv6."""
        self.loss = self.doubles = self.delay_s = self.jitter_s = 0.0

    def change(self, weather: Weather) -> None:
        """Other weather from now on."""
        self.loss, self.doubles = weather.loss, weather.doubles
        self.delay_s, self.jitter_s = weather.delay_s, weather.jitter_s
        self._look()

    def set_cut(self, way: str, *, cut: bool, told: bool = False) -> None:
        """Start or end a cut, in or out."""
        (self.cut.add if cut else self.cut.discard)(way)
        self.told = told
        self._look()

    def mend(self) -> None:
        """Nothing is wrong any more; but a strict provider stays strict."""
        self.cut.clear()
        self.loss = self.doubles = self.delay_s = self.jitter_s = 0.0
        self._look()

    def set_strict(self, way: str) -> None:
        """Be strict from now on, in or out."""
        self.strict.add(way)
        self._look()

    def _look(self) -> None:
        wrong = self.cut or self.strict or self.loss or self.doubles
        self.fair = not (wrong or self.delay_s or self.jitter_s)


class Network:
    """All providers."""

    def __init__(self, sites: Sequence[SiteShape], seed: int, census: Census) -> None:
        self._census = census
        self._random = random.Random(seed)
        self._place: dict[bytes, Place] = {}
        self.providers: dict[Place, Provider] = {}
        for site, shape in enumerate(sites):
            for uplink in range(shape.uplinks):
                place = Place(site, uplink)
                self._place[prefix_of(site, uplink).network[:PREFIX_OCTETS]] = place
                self.providers[place] = Provider()

    def place_of(self, octets: Address) -> Place | None:
        """Where an address is routed to."""
        return self._place.get(octets[:PREFIX_OCTETS])

    def carry(self, site: int, packet: bytes) -> tuple[int, tuple[float, ...]] | None:
        """The site that a packet reaches, and after how long each copy does; None: lost."""
        out = self._place.get(packet[8:14])
        into = self._place.get(packet[24:30])
        if out is None or into is None or out.site != site:
            return None
        leaving, entering = self.providers[out], self.providers[into]
        if leaving.fair and entering.fair:
            return into.site, (LATENCY_S,)
        if "out" in leaving.cut or "in" in entering.cut:
            return None
        draw, census = self._random, self._census
        strict = "out" in leaving.strict or "in" in entering.strict
        if strict and (wire.flow_label(packet) or wire.has_tag_option(packet)):
            census[Event.FILTERED] += 1
            return None
        if draw.random() < leaving.loss or draw.random() < entering.loss:
            census[Event.LOST] += 1
            return None
        copies = 1 + (draw.random() < leaving.doubles) + (draw.random() < entering.doubles)
        base_s = LATENCY_S + leaving.delay_s + entering.delay_s
        spread_s = leaving.jitter_s + entering.jitter_s
        if copies > 1:
            census[Event.DOUBLED] += 1
        if base_s > LATENCY_S:
            census[Event.DELAYED] += 1
        if spread_s > 0:
            census[Event.JITTERED] += 1
        return into.site, tuple(base_s + spread_s * draw.random() for _ in range(copies))

    def refusal(self, site: int, packet: bytes) -> Address | None:
        """The router that tells the sender of a packet lost in a cut of it; None: nobody does."""
        out = self._place.get(packet[8:14])
        into = self._place.get(packet[24:30])
        if out is None or into is None or out.site != site:
            return None
        for place, way in ((out, "out"), (into, "in")):
            provider = self.providers[place]
            if way in provider.cut:
                self._census[Event.CUT_OUT if way == "out" else Event.CUT_IN] += 1
                self._census[Event.ONE_WAY] += len(provider.cut) == 1
                heard = provider.told and "in" not in self.providers[out].cut
                return router_of(*place) if heard else None
        return None

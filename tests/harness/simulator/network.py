"""Providers between sites: each loses, delays, doubles and cuts as it likes.

A packet leaves by the provider that its source belongs to, and comes in by the provider of
its destination. Any other source is dropped, as providers do (BCP 38).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Final, NamedTuple

from m6proxy.names import Address
from tests.harness.simulator.schedule import SiteShape, Weather
from tests.harness.simulator.topology import PREFIX_OCTETS, prefix_of

LATENCY_S: Final = 0.01


class Place(NamedTuple):
    """One provider attachment."""

    site: int
    uplink: int


class Provider:
    """How one attachment treats packets now."""

    __slots__ = ("cut", "delay_s", "doubles", "fair", "jitter_s", "loss")

    def __init__(self) -> None:
        self.cut: set[str] = set()
        self.fair = True
        """Whether nothing at all is wrong."""
        self.loss = self.doubles = self.delay_s = self.jitter_s = 0.0

    def change(self, weather: Weather) -> None:
        """Other weather from now on."""
        self.loss, self.doubles = weather.loss, weather.doubles
        self.delay_s, self.jitter_s = weather.delay_s, weather.jitter_s
        self._look()

    def set_cut(self, way: str, *, cut: bool) -> None:
        """Start or end a cut, in or out."""
        (self.cut.add if cut else self.cut.discard)(way)
        self._look()

    def mend(self) -> None:
        """Nothing is wrong any more."""
        self.cut.clear()
        self.loss = self.doubles = self.delay_s = self.jitter_s = 0.0
        self.fair = True

    def _look(self) -> None:
        self.fair = not (self.cut or self.loss or self.doubles or self.delay_s or self.jitter_s)


class Network:
    """All providers."""

    def __init__(self, sites: Sequence[SiteShape], seed: int) -> None:
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
        draw = self._random
        if draw.random() < leaving.loss or draw.random() < entering.loss:
            return None
        copies = 1 + (draw.random() < leaving.doubles) + (draw.random() < entering.doubles)
        base_s = LATENCY_S + leaving.delay_s + entering.delay_s
        spread_s = leaving.jitter_s + entering.jitter_s
        return into.site, tuple(base_s + spread_s * draw.random() for _ in range(copies))

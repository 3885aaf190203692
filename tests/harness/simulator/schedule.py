"""What happens in one story: the sites, who talks with whom, and the misfortunes in order.

A schedule is a value made from a seed alone. It prints as one line for each step, and the
same seed gives the same schedule and, played, the same packets.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from enum import Enum
from typing import Final, TypeAlias

from m6proxy.shim.demux import DemuxMode
from m6proxy.shim.policy import Detection, FailbackMode
from m6proxy.shim.routability import ReturnRoutability

PROTOCOLS: Final = (17, 17, 6, 6, 50, 44, 60, 253)
"""UDP, TCP, ESP, a fragment, destination options, and one that nobody knows."""
MANY_UPLINKS: Final = 58
"""So many locators do not fit an I2 beside a long name (RFC 5533 §5.1)."""
PARK_MAX_S: Final = 40.0
"""The longest that a site is away."""
DETECTIONS: Final = (
    (Detection.CONFIGURATION, Detection.DNS, Detection.I1),
    (Detection.CONFIGURATION, Detection.DNS, Detection.I1),
    (Detection.PROBE, Detection.I1),
    (Detection.DNS, Detection.PROBE),
    (Detection.I1,),
)


class Answers(Enum):
    """What DNS does when it is asked."""

    RIGHT = "right"
    SLOW = "slow"
    SILENT = "silent"
    NOTHING = "says nothing of anybody"
    BARE = "knows names but no shim"
    FOREIGN = "gives each site the prefixes of the next"


@dataclass(frozen=True, slots=True)
class SiteShape:
    """How a site is made."""

    uplinks: int
    hosts: int
    has_shim: bool
    mute: bool
    """Without a shim: it drops what it does not know, and tells nobody."""
    clock_rate: float
    """Its seconds in one true second."""
    clock_offset_s: float
    send_timeout_s: float
    after_packets: int
    """How many packets make a pair ripe for a context."""
    hold_first_packet_s: float
    failback: FailbackMode
    failback_hold_s: float
    detection: tuple[Detection, ...]
    probe_unknown: bool
    """It signals to peers about which DNS says nothing."""
    configured: bool
    """Its operator says that all others have a shim."""
    routability: ReturnRoutability
    forks_udp: bool
    """UDP goes by forks, over the last uplink."""
    hashed: bool
    """Its hosts have hash-based addresses, and no names."""
    long_names: bool
    demux: DemuxMode
    """What it asks for. Flow labels only where nobody loses his state: who does takes labelled
    packets for plain ones, and delivers them with locators for addresses
    (docs/decisions/0014-demultiplexing.md). A site that asks for IDENTIFIER has n-square
    addresses."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """Two hosts that send packets: site and host number of each."""

    first: tuple[int, int]
    second: tuple[int, int]
    interval_s: float
    both_ways: bool
    protocol: int


@dataclass(frozen=True, slots=True)
class Cut:
    """A provider drops everything one way: ``way`` is in or out, seen from the site."""

    site: int
    uplink: int
    way: str
    told: bool = False
    """Its router answers by ICMPv6; otherwise it is silent."""


@dataclass(frozen=True, slots=True)
class Mend:
    """The end of a cut."""

    site: int
    uplink: int
    way: str


@dataclass(frozen=True, slots=True)
class Weather:
    """How one provider treats packets from now on; probabilities 0 to 1."""

    site: int
    uplink: int
    loss: float
    doubles: float
    delay_s: float
    jitter_s: float


@dataclass(frozen=True, slots=True)
class Strict:
    """A provider lets pass no flow label and no destination option any more, to the end."""

    site: int
    uplink: int
    way: str


@dataclass(frozen=True, slots=True)
class UplinkEvent:
    """The gateway hears that an uplink went or came, true or not."""

    site: int
    uplink: int
    up: bool


@dataclass(frozen=True, slots=True)
class Restart:
    """The daemon of a site ends and a new one, which knows nothing, takes over."""

    site: int
    orderly: bool
    """It tells its peers first, and has a second for it."""


@dataclass(frozen=True, slots=True)
class Dns:
    """DNS answers otherwise from now on."""

    answers: Answers


@dataclass(frozen=True, slots=True)
class Talk:
    """A conversation falls silent, or goes on."""

    conversation: int
    on: bool


@dataclass(frozen=True, slots=True)
class Away:
    """A site says that it is away for so long, on its own clock; it is off the net or not."""

    site: int
    for_s: float


@dataclass(frozen=True, slots=True)
class Back:
    """A site says that it is back, before its time or after."""

    site: int


Happening: TypeAlias = (
    Cut | Mend | Weather | Strict | UplinkEvent | Restart | Dns | Talk | Away | Back
)


@dataclass(frozen=True, slots=True)
class Step:
    """Something that happens at a time, in true seconds from the start."""

    at_s: float
    happening: Happening


@dataclass(frozen=True, slots=True)
class Schedule:
    """One story. After ``storm_s`` all is mended except ``scar``."""

    seed: int
    sites: tuple[SiteShape, ...]
    conversations: tuple[Conversation, ...]
    steps: tuple[Step, ...]
    storm_s: float
    scar: tuple[int, int] | None
    """Site and uplink of a provider that stays dead."""

    def __str__(self) -> str:
        lines = [f"seed {self.seed}"]
        lines += [f"  site {number}: {shape}" for number, shape in enumerate(self.sites)]
        lines += [
            f"  talk {n}: {conversation}" for n, conversation in enumerate(self.conversations)
        ]
        lines += [f"  {step.at_s:8.3f} s  {step.happening}" for step in self.steps]
        left = f", except site {self.scar[0]} uplink {self.scar[1]}" if self.scar else ""
        lines.append(f"  {self.storm_s:8.3f} s  all is mended{left}")
        return "\n".join(lines)


def generate(seed: int) -> Schedule:
    """Make the schedule of a seed."""
    return _Author(seed).write()


class _Author:
    """Writes one schedule."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._random = random.Random(seed)
        self._apart = random.Random(f"away {seed}")
        self._picky = random.Random(f"strict {seed}")
        self._calm = self._random.random() < 0.3
        """No restarts and a good DNS: contexts live long enough to move often."""
        self._sites: tuple[SiteShape, ...] = ()
        self._talks: tuple[Conversation, ...] = ()

    def write(self) -> Schedule:
        draw = self._random
        count = draw.choice((2, 2, 2, 2, 3, 3, 4, 6))
        self._sites = tuple(self._site(number) for number in range(count))
        talks = [self._talk()]
        for _ in range(draw.choice((0, 0, 1) if count < 4 else (1, 2, 2))):
            talks.append(self._twin(talks[-1]) if draw.random() < 0.25 else self._talk())
        self._talks = tuple(talks)
        quiet_s = draw.choice((0.0, 4.0, 8.0))
        storm_s = quiet_s + draw.uniform(15.0, 75.0)
        steps = self._stillbirth(storm_s) if draw.random() < 0.2 else []
        for _ in range(draw.randint(3, 16)):
            steps += self._misfortune(draw.uniform(quiet_s, storm_s), storm_s)
        steps += self._parks(quiet_s, storm_s)
        steps += self._filters(storm_s)
        steps.sort(key=lambda step: step.at_s)
        scarred = [n for n in range(count) if self._sites[n].uplinks > 1]
        scar = None
        if scarred and draw.random() < 0.2:
            site = draw.choice(scarred)
            scar = (site, draw.randrange(self._sites[site].uplinks))
        return Schedule(self._seed, self._sites, self._talks, tuple(steps), storm_s, scar)

    def _site(self, number: int) -> SiteShape:
        draw = self._random
        many = draw.random() < 0.01
        return SiteShape(
            uplinks=MANY_UPLINKS if many else draw.choice((1, 2, 2, 2, 2, 3, 3, 4)),
            hosts=draw.choice((1, 2, 4)),
            has_shim=number < 2 or draw.random() < 0.5,
            mute=draw.random() < 0.4,
            clock_rate=draw.uniform(0.99, 1.01),
            clock_offset_s=draw.uniform(10.0, 1e6),
            send_timeout_s=draw.choice((3.0, 5.0, 15.0)),
            after_packets=draw.choice((1, 2, 4)),
            hold_first_packet_s=draw.choice((0.0, 3.0)),
            failback=draw.choice(
                (FailbackMode.HARD, FailbackMode.HARD, FailbackMode.SOFT, FailbackMode.NEVER)
            ),
            failback_hold_s=8.0,
            detection=draw.choice(DETECTIONS),
            probe_unknown=draw.random() < 0.3,
            configured=draw.random() < 0.15,
            routability=draw.choice(tuple(ReturnRoutability)),
            forks_udp=draw.random() < 0.25,
            hashed=(hashed := not many and draw.random() < 0.1),
            long_names=many,
            demux=draw.choice(
                (
                    *((DemuxMode.FLOWLABEL,) * 2 if self._calm else (DemuxMode.EXTHDR,)),
                    *(() if hashed else (DemuxMode.IDENTIFIER,) * 2),
                    DemuxMode.DSTOPT,
                    DemuxMode.EXTHDR,
                )
            ),
        )

    def _talk(self) -> Conversation:
        draw = self._random
        first, second = draw.sample(range(len(self._sites)), 2)
        return Conversation(
            (first, draw.randrange(self._sites[first].hosts)),
            (second, draw.randrange(self._sites[second].hosts)),
            draw.choice((0.4, 0.9, 1.8)),
            draw.random() < 0.7,
            draw.choice(PROTOCOLS),
        )

    def _twin(self, talk: Conversation) -> Conversation:
        """The same two hosts talk about something else as well."""
        return replace(talk, protocol=self._random.choice(PROTOCOLS))

    def _stillbirth(self, end_s: float) -> list[Step]:
        """The provider of a host's address is dead before its first packet."""
        draw = self._random
        site, _ = draw.choice((self._talks[0].first, self._talks[0].second))
        steps = self._cut(0.0, end_s, site, 0)
        if draw.random() < 0.5:
            steps.append(Step(0.0, UplinkEvent(site, 0, False)))
        return steps

    def _misfortune(self, at_s: float, end_s: float) -> list[Step]:
        draw = self._random
        kind = draw.random()
        site = draw.randrange(len(self._sites))
        uplink = draw.randrange(self._sites[site].uplinks)
        if kind < 0.40:
            return self._cut(at_s, end_s, site, uplink)
        if kind < 0.60:
            return [Step(at_s, self._weather(n, m)) for n, m in self._places(site, uplink)]
        if kind < 0.68:
            return [Step(at_s, UplinkEvent(site, uplink, draw.random() < 0.4))]
        if kind < 0.80:
            return self._silence(at_s, end_s)
        if self._calm:
            return []
        if kind < 0.90:
            return [Step(at_s, Restart(site, orderly=draw.random() < 0.3))]
        return [Step(at_s, Dns(draw.choice(tuple(Answers))))]

    def _cut(self, at_s: float, end_s: float, site: int, uplink: int) -> list[Step]:
        """A cut, perhaps mended again, and perhaps heard of, late."""
        draw = self._random
        ways = draw.choice((("in",), ("out",), ("in", "out")))
        told = draw.random() < 0.3
        steps = [Step(at_s, Cut(site, uplink, way, told)) for way in ways]
        mended_s = at_s + draw.expovariate(0.1)
        if mended_s < end_s:
            steps += [Step(mended_s, Mend(site, uplink, way)) for way in ways]
        if draw.random() < 0.3:
            steps.append(
                Step(at_s + draw.choice((0.0, 0.5, 4.0)), UplinkEvent(site, uplink, False))
            )
            if mended_s < end_s and draw.random() < 0.8:
                steps.append(
                    Step(mended_s + draw.choice((0.0, 3.0)), UplinkEvent(site, uplink, True))
                )
        return [step for step in steps if step.at_s < end_s]

    def _parks(self, start_s: float, end_s: float) -> list[Step]:
        """Sites that go away for a while, off the net or within reach."""
        draw = self._apart
        steps: list[Step] = []
        for _ in range(draw.choice((0, 0, 0, 0, 1, 2))):
            site, at_s = draw.choice(self._talks).first[0], draw.uniform(start_s, end_s)
            for_s = draw.choice((5.0, 15.0, PARK_MAX_S))
            back_s = at_s + for_s * draw.uniform(0.3, 1.7)
            steps += [Step(at_s, Away(site, for_s)), Step(back_s, Back(site))]
            if draw.random() < 0.6:
                for uplink in range(self._sites[site].uplinks):
                    for way in ("in", "out"):
                        steps.append(Step(at_s + 1.0, Cut(site, uplink, way)))
                        steps.append(Step(back_s - 0.5, Mend(site, uplink, way)))
        return [step for step in steps if step.at_s < end_s]

    def _filters(self, end_s: float) -> list[Step]:
        """A site whose providers are strict, one way or both, from some time on. All sites ask for
        what they drop."""
        draw = self._picky
        if draw.random() < 0.85:
            return []
        mode = DemuxMode.FLOWLABEL if self._calm and draw.random() < 0.5 else DemuxMode.DSTOPT
        self._sites = tuple(replace(shape, demux=mode) for shape in self._sites)
        site, _ = draw.choice((self._talks[0].first, self._talks[0].second))
        ways = draw.choice((("in",), ("out",), ("in", "out")))
        at_s = draw.choice((0.0, draw.uniform(0.0, end_s)))
        places = [(uplink, way) for uplink in range(self._sites[site].uplinks) for way in ways]
        return [Step(at_s, Strict(site, *place)) for place in places]

    def _places(self, site: int, uplink: int) -> list[tuple[int, int]]:
        if self._random.random() < 0.5:
            return [(site, uplink)]
        return [(n, m) for n, shape in enumerate(self._sites) for m in range(shape.uplinks)]

    def _weather(self, site: int, uplink: int) -> Weather:
        draw = self._random
        return Weather(
            site,
            uplink,
            draw.choice((0.0, 0.05, 0.3, 0.8)),
            draw.choice((0.0, 0.0, 0.2)),
            draw.choice((0.0, 0.05, 0.4)),
            draw.choice((0.0, 0.0, 0.05, 2.0)),
        )

    def _silence(self, at_s: float, end_s: float) -> list[Step]:
        draw = self._random
        number = draw.randrange(len(self._talks))
        again_s = min(end_s, at_s + draw.uniform(1.0, 30.0))
        return [Step(at_s, Talk(number, False)), Step(again_s, Talk(number, True))]

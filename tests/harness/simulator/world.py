"""Plays a schedule in virtual time and tells what was broken, and when.

Three parts: the storm, with the schedule's steps; the mending, after which every
conversation must be heard again within its bound (``bound.py``); and the rest, after which
the engines must hold nothing any more.
"""

from __future__ import annotations

import heapq
import random
from collections import Counter
from collections.abc import Callable
from typing import Final

from m6proxy.discovery.capability import NameData
from m6proxy.names import Address, Prefix, Tag
from m6proxy.shim.context import Context
from m6proxy.shim.timers import ICMP_HOLDDOWN_S
from m6proxy.shim.transitions import State
from m6proxy.wire.ipv6 import NEXT_ICMPV6, NEXT_TCP, build_packet
from tests.harness.packets import icmp_error
from tests.harness.simulator import wire
from tests.harness.simulator.bound import recovery_bound_s
from tests.harness.simulator.census import Census, Event
from tests.harness.simulator.invariants import Broken, Invariant, require
from tests.harness.simulator.network import LATENCY_S, Network, Place
from tests.harness.simulator.resolver import Resolver
from tests.harness.simulator.schedule import (
    Answers,
    Away,
    Back,
    Conversation,
    Cut,
    Dns,
    Happening,
    Mend,
    Restart,
    Schedule,
    Strict,
    Talk,
    UplinkEvent,
    Weather,
)
from tests.harness.simulator.site import Site
from tests.harness.simulator.state import check_idle, check_tags, check_timers
from tests.harness.simulator.topology import hashed_set, host_ulid, prefix_of

LOOK_S: Final = 1.5
"""How often the states are compared when no step does it."""
SETTLED_S: Final = 3.0
"""So long a conversation must be heard without a gap to count as recovered."""
REST_S: Final = 2 * ICMP_HOLDDOWN_S
"""Longer than any hold-down, idle timer and exchange one after the other."""
ORDERLY_S: Final = 1.0
_DRIFT_S: Final = 1.0
_SEGMENT_OCTETS: Final = 8
_PATIENCE_S: Final = 1.0
"""So long TCP waits here for an acknowledgement."""
_SERVER_PORT: Final = (80).to_bytes(2)
_SYN: Final = 0x02
_ACK: Final = 0x10


class _Direction:
    """One way of a conversation. For TCP: what its sender has sent and heard of."""

    __slots__ = (
        "acknowledged",
        "expected",
        "got",
        "heard_s",
        "packet_head",
        "ports",
        "recovered_s",
        "sender",
        "steady_s",
        "unanswered",
    )

    def __init__(self, sender: int, source: Address, destination: Address, ports: bytes) -> None:
        self.sender = sender
        self.packet_head = (source, destination)
        self.ports = ports
        """Source and destination port, 4 octets."""
        self.unanswered: list[tuple[int, float]] = []
        """Sequence numbers that nobody acknowledged, each with when it was sent first."""
        self.got = 0
        """How far the receiver has come: it keeps what comes out of order."""
        self.acknowledged = 0
        self.heard_s = -1.0
        """When the last packet was sent that has arrived."""
        self.steady_s: float | None = None
        """Since when all that was sent has arrived."""
        self.expected = True
        """Whether it must recover."""
        self.recovered_s: float | None = None


class World:
    """One story."""

    def __init__(self, schedule: Schedule, *, trace: Callable[[str], None] | None = None) -> None:
        self.schedule = schedule
        self.now = 0.0
        self._trace = trace
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._sequence = 0
        seed = schedule.seed
        self._random = random.Random(seed)
        self.census: Census = Counter()
        self.network = Network(schedule.sites, seed, self.census)
        self._resolver = Resolver(schedule.sites, seed, self.census)
        self._sets = [
            frozenset(octets for octets, _ in hashed_set(number, shape.uplinks, host))
            for number, shape in enumerate(schedule.sites)
            if shape.hashed
            for host in range(shape.hosts)
        ]
        self._alarms: dict[int, float] = {}
        self.sites = [
            Site(number, shape, self, seed * 1000 + number * 100)
            for number, shape in enumerate(schedule.sites)
        ]
        self._sent: dict[bytes, tuple[_Direction, float]] = {}
        self._labelled: dict[bytes, Tag] = {}
        self._count = 0
        self._silent = [False] * len(schedule.conversations)
        self._ways = [self._directions(talk) for talk in schedule.conversations]
        self._over = False

    # --- the story ---------------------------------------------------------------------

    def play(self) -> None:
        """Play all of it. Raises AssertionError, or whatever the engine raised."""
        for number, conversation in enumerate(self.schedule.conversations):
            self._at(self._random.random() * conversation.interval_s, self._talker(number))
        for step in self.schedule.steps:
            self._run(step.at_s)
            self._say(str(step.happening))
            self._happen(step.happening)
            self._look()
        self._run(self.schedule.storm_s)
        self._mend()
        self._recover()
        self._rest()
        self._count_shapes()

    def _mend(self) -> None:
        self._say("all is mended")
        for place, provider in self.network.providers.items():
            if place != self.schedule.scar:
                provider.mend()
        self._resolver.behave(Answers.RIGHT)
        self._silent = [False] * len(self._silent)
        for site in self.sites:
            site.unpark(self.now)
            for uplink in range(site.shape.uplinks):
                if (site.number, uplink) != self.schedule.scar:
                    site.uplink_event(uplink, self.now, up=True)
        if self.schedule.scar is not None:
            scarred = self.network.providers[Place(*self.schedule.scar)]
            for direction in ("in", "out"):
                scarred.set_cut(direction, cut=True)
            for conversation, ways in zip(self.schedule.conversations, self._ways, strict=True):
                for way in ways:
                    way.expected = self._bears_scar(conversation)

    def _recover(self) -> None:
        """Wait until all is heard again; each conversation has its own bound."""
        start_s = self.now
        waiting = [
            (start_s + recovery_bound_s(self.schedule, conversation), way)
            for conversation, ways in zip(self.schedule.conversations, self._ways, strict=True)
            for way in ways
            if way.expected
        ]
        for _, way in waiting:
            way.steady_s = None
        while waiting:
            self._run(self.now + LOOK_S)
            waiting = [
                (due_s, way)
                for due_s, way in waiting
                if way.steady_s is None or self.now - way.steady_s < SETTLED_S
            ]
            for due_s, way in waiting:
                if way.steady_s is None:
                    if self.now > due_s:
                        waited = f"not heard {self.now - start_s:.0f} s after the mending"
                        raise Broken(Invariant.DELIVERY, f"site {way.sender} is {waited}")
                else:
                    soon = self.now <= due_s + 10 * SETTLED_S
                    require(soon, Invariant.DELIVERY, "heard, but not steadily")

    def _rest(self) -> None:
        """Nobody talks; everything must be forgotten."""
        self._over = True
        for provider in self.network.providers.values():
            provider.mend()
        self._run(self.now + REST_S)
        for site in self.sites:
            if site.engine is not None:
                check_idle(site.engine, site.empty)

    def _count_shapes(self) -> None:
        rates = [site.clock_rate for site in self.schedule.sites]
        self.census[Event.DRIFT] += (max(rates) - min(rates)) * self.now > _DRIFT_S
        self.census[Event.CROWD] += len(rates) >= 4 and len(self.schedule.conversations) >= 3

    def _bears_scar(self, conversation: Conversation) -> bool:
        """Whether a conversation can go on with a dead provider: its context is whole."""
        ends = (conversation.first, conversation.second)
        first, second = (self._ulid(end) for end in ends)
        scar = self.schedule.scar
        if all(scar != (site, 0) for site, _ in ends):
            return True
        near, far = (
            {c.fii: c for c in self.sites[site].contexts() if c.outbound_key == key}
            for (site, _), key in zip(ends, (first + second, second + first), strict=True)
        )
        return (
            0 in near
            and near.keys() == far.keys()
            and all(_agree(context, far[fii]) for fii, context in near.items())
            and all(self._is_whole(context, ends[1][0]) for context in near.values())
            and all(self._is_whole(context, ends[0][0]) for context in far.values())
        )

    def _is_whole(self, context: Context, peer: int) -> bool:
        known = context.peer_locators
        return len(known) == self.schedule.sites[peer].uplinks and all(x.proved for x in known)

    # --- what a site asks of the world (site.World) --------------------------------------

    def send(self, site: int, packet: bytes) -> None:
        """Carry a packet through the providers."""
        if self._trace is not None and wire.is_shim(packet):
            self._say(f"  site {site} sends {_described(packet)}")
        way = self.network.carry(site, packet)
        if way is None:
            router = self.network.refusal(site, packet)
            if router is not None and packet[6] != NEXT_ICMPV6:
                self.census[Event.TOLD] += 1
                refusal = icmp_error(router, packet[8:24], 1, 0, 0, packet)
                self._at(self.now + LATENCY_S, lambda: self._arrive(site, refusal))
            return
        receiver, delays_s = way
        for delay_s in delays_s:
            self._at(self.now + delay_s, lambda: self._arrive(receiver, packet))

    def ask(self, site: int, ulid: Address, answer: Callable[[NameData | None], None]) -> None:
        """Ask DNS; who gets no answer is told that there is none after 5 s, as a resolver does."""
        answered = self._resolver.ask(ulid, self.network.place_of(ulid))
        delay_s, data = answered if answered is not None else (5.0, None)

        def tell() -> None:
            self.sites[site].clock(self.now)
            answer(data)

        self._at(self.now + delay_s, tell)

    def note_labelled(self, packet: bytes, peer_tag: Tag) -> None:
        """Remember which packets go by their flow label alone, and for which context."""
        self._labelled[packet] = peer_tag

    def name_of(self, ulid: Address) -> str | None:
        """The configured name of a host."""
        return self._resolver.name_of(ulid)

    def same_set(self, ulid: Address, locator: Address) -> bool:
        """Whether both are addresses of one host of a hashed site."""
        return any(ulid in one and locator in one for one in self._sets)

    def capable(self) -> tuple[Prefix, ...]:
        """The prefixes of all sites that have a shim."""
        return tuple(
            prefix_of(number, uplink)
            for number, shape in enumerate(self.schedule.sites)
            if shape.has_shim
            for uplink in range(shape.uplinks)
        )

    def wake(self, site: int, true_s: float) -> None:
        """Let a site's alarm ring; an earlier one is enough."""
        true_s = max(true_s, self.now)
        if self._alarms.get(site, float("inf")) <= true_s:
            return
        self._alarms[site] = true_s

        def ring() -> None:
            if self._alarms.get(site) == true_s:
                del self._alarms[site]
                self.sites[site].expire(self.now)

        self._at(true_s, ring)

    # --- events ------------------------------------------------------------------------

    def _at(self, when_s: float, action: Callable[[], None]) -> None:
        self._sequence += 1
        heapq.heappush(self._queue, (when_s, self._sequence, action))

    def _run(self, until_s: float) -> None:
        """Let time pass, and compare the states now and then."""
        queue = self._queue
        while self.now < until_s:
            stop_s = until_s if self._over else min(until_s, self.now + LOOK_S)
            while queue and queue[0][0] <= stop_s:
                self.now, _, action = heapq.heappop(queue)
                action()
            self.now = stop_s
            self._look()

    def _look(self) -> None:
        tables = [
            (site.engine, {context.local_tag: context for context in site.contexts()})
            for site in self.sites
        ]
        check_tags(tables, self._site_of)
        for site in self.sites:
            if site.engine is not None:
                check_timers(site.engine, site.clock(self.now))
        for _, contexts in tables:
            for context in contexts.values():
                if context.hinted_s:
                    self.census[Event.HINTED] += 1
                if context.failback is not None and context.failback.returned:
                    self.census[Event.RETURNED] += 1

    def _site_of(self, octets: Address) -> int | None:
        place = self.network.place_of(octets)
        return place.site if place is not None else None

    def _happen(self, happening: Happening) -> None:
        match happening:
            case Cut(site, uplink, way, told):
                self.network.providers[Place(site, uplink)].set_cut(way, cut=True, told=told)
            case Mend(site, uplink, way):
                self.network.providers[Place(site, uplink)].set_cut(way, cut=False)
            case Weather():
                place = Place(happening.site, happening.uplink)
                self.network.providers[place].change(happening)
            case Strict(site, uplink, way):
                self.network.providers[Place(site, uplink)].set_strict(way)
            case UplinkEvent(site, uplink, up):
                if not up:
                    dead = self.network.providers[Place(site, uplink)].cut
                    self.census[Event.UPLINK_LOST if dead else Event.UPLINK_LIE] += 1
                self.sites[site].uplink_event(uplink, self.now, up=up)
            case Restart(site, orderly):
                self._restart(self.sites[site], orderly=orderly)
            case Dns(answers):
                self._resolver.behave(answers)
            case Away(site, for_s):
                self.sites[site].park(self.now, for_s)
            case Back(site):
                self.sites[site].unpark(self.now)
            case Talk(number, on):
                self._silent[number] = not on

    def _restart(self, site: Site, *, orderly: bool) -> None:
        if site.engine is None:
            return
        if not orderly:
            site.restart()
            return
        engine = site.engine
        self.census[Event.ORDERLY] += any(context.carries for context in site.contexts())
        site.close_all(self.now)

        def stop() -> None:
            if site.engine is engine:
                site.restart()

        self._at(self.now + ORDERLY_S, stop)

    def _talker(self, number: int) -> Callable[[], None]:
        conversation, ways = self.schedule.conversations[number], self._ways[number]

        def talk() -> None:
            if self._over:
                return
            if not self._silent[number]:
                for way, back in zip(ways, reversed(ways), strict=True):
                    self._host_sends(way, conversation.protocol, None if way is back else back)
            self._at(self.now + conversation.interval_s, talk)

        return talk

    def _host_sends(self, way: _Direction, protocol: int, back: _Direction | None) -> None:
        self._count += 1
        if protocol == NEXT_TCP:
            payload = self._segment(way, back)
        else:
            payload = _payload(protocol, self._count)
        packet = build_packet(*way.packet_head, protocol, payload)
        self._sent[packet] = (way, self.now)
        self.sites[way.sender].host_sends(packet, self.now)

    def _segment(self, way: _Direction, back: _Direction | None) -> bytes:
        """What TCP sends next: what nobody acknowledged for a while once more, or new octets."""
        heard = back.acknowledged if back is not None else 0
        way.unanswered = [one for one in way.unanswered if one[0] >= heard]
        if way.unanswered and self.now >= way.unanswered[0][1] + _PATIENCE_S:
            sequence = way.unanswered[0][0]
        else:
            sequence = way.unanswered[-1][0] + _SEGMENT_OCTETS if way.unanswered else heard
            way.unanswered.append((sequence, self.now))
        opened = back is not None and back.heard_s >= 0
        numbers = sequence.to_bytes(4) + (back.got if back is not None else 0).to_bytes(4)
        head = way.ports + numbers + bytes((0x50, _ACK if opened else _SYN)) + bytes(6)
        return head + self._count.to_bytes(_SEGMENT_OCTETS)

    def _arrive(self, number: int, packet: bytes) -> None:
        site = self.sites[number]
        delivered = site.arrives(packet, self.now)
        if delivered is None:
            return
        if site.engine is None and wire.is_shim(packet):
            plain = not wire.is_payload(packet)
            require(plain, Invariant.ADDRESSES, "a payload header for a site without a shim")
            self.census[Event.PLAIN_SITE] += wire.type_of(packet) == wire.I1
            if site.shape.mute:
                return
            refusal = icmp_error(packet[24:40], packet[8:24], 4, 1, 6, packet)
            self.send(number, refusal)
            return
        if delivered[6] == NEXT_ICMPV6:
            self._check_error(number, delivered, translated=delivered is not packet)
            return
        known = self._sent.get(delivered)
        if known is None and self._is_stray(site, delivered):
            return
        if known is None:
            seen = f"site {number} got {delivered.hex()}, which nobody sent"
            raise Broken(Invariant.ADDRESSES, seen)
        here = self._site_of(delivered[24:40]) == number
        require(here, Invariant.ADDRESSES, "delivered at another site")
        self._heard(*known)
        if delivered[6] == NEXT_TCP:
            _take_segment(known[0], delivered)

    def _check_error(self, number: int, error: bytes, *, translated: bool) -> None:
        """An ICMPv6 error for a host: it is about a packet of that host, as the host sent it.

        One about a path or a tag that its context has left since passes as it is: nobody knows
        the packet any more, and to the host it is an error about a stranger's.
        """
        quoted = error[48:]
        if not translated and quoted not in self._sent:
            return
        ours = error[24:40] == quoted[8:24] and self._site_of(quoted[8:24]) == number
        require(ours, Invariant.ADDRESSES, "an ICMPv6 error for another host")
        require(quoted in self._sent, Invariant.ADDRESSES, "an error about what nobody sent")

    def _is_stray(self, site: Site, packet: bytes) -> bool:
        """A labelled packet for a context that the site lost: it cannot know (decision 0014)."""
        tag = self._labelled.get(packet)
        return tag is not None and all(
            context.local_tag != tag or not context.carries for context in site.contexts()
        )

    def _heard(self, way: _Direction, sent_s: float) -> None:
        if sent_s <= way.heard_s:
            self.census[Event.REORDERED] += sent_s < way.heard_s
            return
        gap_s = sent_s - way.heard_s
        way.heard_s = sent_s
        if way.steady_s is None or gap_s > SETTLED_S:
            way.steady_s = self.now

    def _say(self, text: str) -> None:
        if self._trace is not None:
            self._trace(f"{self.now:10.3f} s  {text}")

    def _directions(self, talk: Conversation) -> list[_Direction]:
        first, second = self._ulid(talk.first), self._ulid(talk.second)
        number = self.schedule.conversations.index(talk)
        near, far = (4000 + number).to_bytes(2), _SERVER_PORT
        ways = [_Direction(talk.first[0], first, second, near + far)]
        if talk.both_ways:
            ways.append(_Direction(talk.second[0], second, first, far + near))
        return ways

    def _ulid(self, end: tuple[int, int]) -> Address:
        site, host = end
        return host_ulid(site, self.schedule.sites[site], host)


def _agree(one: Context, other: Context) -> bool:
    """Whether two contexts are established with each other."""
    agreed = one.peer_tag == other.local_tag and other.peer_tag == one.local_tag
    return agreed and one.state is other.state is State.ESTABLISHED


def _take_segment(way: _Direction, packet: bytes) -> None:
    """TCP at the other end: how far the sender came, and what he has of ours."""
    sequence, acknowledged = int.from_bytes(packet[44:48]), int.from_bytes(packet[48:52])
    way.got = max(way.got, sequence + _SEGMENT_OCTETS)
    way.acknowledged = max(way.acknowledged, acknowledged)


def _payload(protocol: int, count: int) -> bytes:
    """Octets that no other packet has, with as much of a header as somebody may look at."""
    mark = count.to_bytes(4)
    match protocol:
        case 44:
            return b"\x11\x00\x00\x00" + mark + b"fragment"
        case 60:
            return b"\x11\x00\x01\x04\x00\x00\x00\x00" + b"\x00\x09\x00\x09" + mark
    return b"\x00\x09\x00\x09" + mark + b"datagram"


def _described(packet: bytes) -> str:
    ends = f"{packet[8:14].hex()[8:]}:{packet[23]:x} -> {packet[24:30].hex()[8:]}:{packet[39]:x}"
    if wire.is_payload(packet):
        return f"payload {wire.tag_of(packet):012x} {ends}"
    state = f" state {wire.probe_state(packet)}" if wire.type_of(packet) == wire.PROBE else ""
    return f"type {wire.type_of(packet)} {wire.named_tag(packet):012x} {ends}{state}"

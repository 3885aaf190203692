"""One site of the simulation: its engine on its own clock, and what is checked at its door."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final, Protocol

from m6proxy.discovery.capability import NameData
from m6proxy.names import Address, Prefix, Tag, UlidPair
from m6proxy.reasons import Reason
from m6proxy.shim.context import Context
from m6proxy.shim.core import ShimSettings
from m6proxy.shim.demux import DemuxMode
from m6proxy.shim.effects import (
    AskCapability,
    AskProof,
    Effect,
    InstallFlow,
    RemoveFlow,
    Report,
    SendPacket,
    Wake,
    What,
)
from m6proxy.shim.engine import Engine
from m6proxy.shim.locators import Uplink
from m6proxy.shim.policy import EstablishPolicy, ForkRule, Selector
from m6proxy.shim.timers import CLOSED_QUIET_S
from m6proxy.shim.transitions import REMEMBERS
from m6proxy.shim.verdict import CONSUMED
from tests.harness.entropy import SeededEntropy
from tests.harness.hba import HbaLocalSets
from tests.harness.simulator import census, wire
from tests.harness.simulator.census import Census, Event
from tests.harness.simulator.ground import Ground
from tests.harness.simulator.invariants import Invariant, require
from tests.harness.simulator.rates import ANSWERS_MAX, Rates
from tests.harness.simulator.schedule import SiteShape
from tests.harness.simulator.state import footprint
from tests.harness.simulator.topology import hashed_set, locator_map, prefix_of

SHORTEST_SEND_TIMEOUT_S: Final = 3.0
_UNKNOWN: Final = (Reason.NO_CONTEXT, Reason.RATE_LIMITED)

AT_ONCE_MAX: Final = 3
"""Calls of the timer at one moment: what one context does may wake another for now."""


class World(Protocol):
    """What a site asks of the world around it."""

    census: Census

    def send(self, site: int, packet: bytes) -> None:
        """Carry a packet away."""

    def ask(self, site: int, ulid: Address, answer: Callable[[NameData | None], None]) -> None:
        """Ask DNS about a host; the answer may come late, or never."""

    def note_labelled(self, packet: bytes, peer_tag: Tag) -> None:
        """This packet goes by its flow label alone, to the peer's context with this tag."""

    def name_of(self, ulid: Address) -> str | None:
        """The configured name of a host."""

    def same_set(self, ulid: Address, locator: Address) -> bool:
        """Whether both are addresses of one host of a hashed site."""

    def capable(self) -> tuple[Prefix, ...]:
        """The prefixes of all sites that have a shim."""

    def wake(self, site: int, true_s: float) -> None:
        """Call ``expire`` at this true time."""


class Site:
    """A gateway and what stands before it. Times given are true; the engine hears its own."""

    def __init__(self, number: int, shape: SiteShape, world: World, seed: int) -> None:
        self.number = number
        self.shape = shape
        self._world = world
        self._seed = seed
        self._now = 0.0
        self._of_host = False
        """Whether a host's packet is looked at."""
        self.settings = _settings(number, shape, world.capable() if shape.configured else ())
        self.engine: Engine | None = None
        self.empty: dict[str, int] = {}
        """What a fresh engine holds."""
        self.flows: dict[UlidPair, InstallFlow] = {}
        if shape.has_shim:
            self.restart()

    def restart(self) -> None:
        """A fresh engine takes over; nothing is left of the old one."""
        self._seed += 1
        self._world.census[Event.STATE_LOST] += any(c.carries for c in self.contexts())
        self._world.census[Event.AWAY_UNTOLD] += any(
            context.parking is not None and context.parking.local for context in self.contexts()
        )
        self.engine = Engine(self.settings, SeededEntropy(self._seed))
        if self.shape.hashed:
            hosts = range(self.shape.hosts)
            made = [hashed_set(self.number, self.shape.uplinks, host) for host in hosts]
            self.engine._core.local_sets = HbaLocalSets(made, self.engine._core)
        self.empty = self.empty or footprint(self.engine)
        self.flows.clear()
        self._closed_s: dict[int, float] = {}
        self._held: set[bytes] = set()
        self.ground = Ground(self.shape.routability, self._world.same_set)
        self.rates = Rates(SHORTEST_SEND_TIMEOUT_S)

    def clock(self, true_s: float) -> float:
        """What the site's own clock shows; it never goes backwards."""
        self._now = max(self._now, self.shape.clock_offset_s + self.shape.clock_rate * true_s)
        return self._now

    def contexts(self) -> Iterator[Context]:
        """The engine's contexts; none where there is no shim."""
        return self.engine.contexts() if self.engine is not None else iter(())

    # --- inputs ------------------------------------------------------------------------

    def host_sends(self, packet: bytes, true_s: float) -> None:
        """A host behind the gateway sends a packet."""
        engine = self.engine
        if engine is None:
            self._world.send(self.number, packet)
            return
        parked = [c for c in self.contexts() if c.parking and c.outbound_key == packet[8:40]]
        verdict = engine.handle_outbound(packet, self.clock(true_s))
        if any(context.fii == 0 for context in parked):
            require(verdict is Reason.PARKED, Invariant.PARKED, "a packet while an end is away")
            self._world.census[Event.PARK_DROPPED] += 1
        if verdict is None:
            self._world.send(self.number, packet)
        elif isinstance(verdict, bytes):
            self._check_rewritten(packet, verdict)
            self._world.send(self.number, verdict)
        elif verdict is CONSUMED:
            self._world.census[Event.HELD_FIRST] += 1
            self._held.add(packet[40:])
        if engine.outbox:
            self._settle(engine, own=False)

    def arrives(self, packet: bytes, true_s: float) -> bytes | None:
        """A packet comes in; returns what the hosts get."""
        engine = self.engine
        if engine is None:
            return packet
        self.rates.note_received()
        shim = wire.is_shim(packet)
        if _is_control(packet):
            self.ground.note_received(packet)
            if wire.type_of(packet) in (wire.CLOSE, wire.CLOSE_ACK):
                self._closed_s[wire.named_tag(packet)] = self.clock(true_s)
        self._of_host = not shim or wire.is_payload(packet)
        verdict = engine.handle_inbound(packet, self.clock(true_s))
        sent = self._settle(engine, own=False) if engine.outbox else []
        self._of_host = False
        few = sum(map(_is_control, sent)) <= ANSWERS_MAX
        require(few, Invariant.RATES, "too many answers to one packet")
        if verdict is None:
            require(not shim, Invariant.ADDRESSES, "a shim packet passed")
            return packet
        if isinstance(verdict, bytes):
            return verdict
        assert verdict is CONSUMED or isinstance(verdict, Reason)
        if shim and isinstance(verdict, Reason):
            self._check_refused(packet, verdict, sent)
        return None

    def expire(self, true_s: float) -> None:
        """The alarm that the engine asked for."""
        engine = self.engine
        deadline_s = engine.next_deadline() if engine is not None else None
        if engine is None or deadline_s is None:
            return
        now = self.clock(true_s)
        if deadline_s - now < 1e-6:
            now = self._now = max(now, deadline_s)
            for _ in range(AT_ONCE_MAX):
                if 0.0 < engine._core.away_until_s <= now:
                    self.rates.note_uplink(now)  # it is back by itself, and says so
                engine.handle_timer(now)
                self._settle(engine, own=True)
                after_s = engine.next_deadline()
                if after_s is None or after_s > now:
                    break
            else:
                require(False, Invariant.TIMERS, "a timer that is due again at once")
        self._set_alarm(engine)

    def uplink_event(self, uplink: int, true_s: float, *, up: bool) -> None:
        """The gateway hears of an uplink."""
        if self.engine is not None:
            now = self.clock(true_s)
            self.rates.note_uplink(now)
            self.engine.handle_uplink(_name(uplink), up=up, mtu=1500, now=now)
            self._settle(self.engine, own=True)

    def park(self, true_s: float, for_s: float) -> None:
        """The site says that it goes away."""
        if self.engine is not None:
            now = self.clock(true_s)
            self.rates.note_uplink(now)
            self.engine.park(for_s, now)
            self._settle(self.engine, own=True)

    def unpark(self, true_s: float) -> None:
        """The site says that it is back."""
        if self.engine is not None:
            now = self.clock(true_s)
            self.rates.note_uplink(now)
            self.engine.unpark(now)
            self._settle(self.engine, own=True)

    def close_all(self, true_s: float) -> None:
        """The gateway is about to stop."""
        if self.engine is not None:
            self.engine.close_all(self.clock(true_s))
            self._settle(self.engine, own=True)

    # --- what follows ------------------------------------------------------------------

    def _settle(self, engine: Engine, *, own: bool) -> list[bytes]:
        """Carry out what the engine left; returns what it sent."""
        sent: list[bytes] = []
        while effects := engine.take_effects():
            for effect in effects:
                self._carry_out(engine, effect, sent, own=own)
        return sent

    def _carry_out(self, engine: Engine, effect: Effect, sent: list[bytes], *, own: bool) -> None:
        match effect:
            case SendPacket(packet):
                sent.append(packet)
                self._check_sent(packet, own=own)
                self._world.send(self.number, packet)
            case AskCapability(pair):
                self._world.ask(
                    self.number, pair.peer, lambda data: self._told(engine, pair, data, proof=False)
                )
            case AskProof(pair, _):
                self._world.ask(
                    self.number, pair.peer, lambda data: self._told(engine, pair, data, proof=True)
                )
            case InstallFlow():
                self.flows[effect.ulids] = effect
            case RemoveFlow(ulids):
                self.flows.pop(ulids, None)
            case Wake():
                self._set_alarm(engine)
            case Report():
                self._note(effect)
            case _:
                pass

    def _told(self, engine: Engine, pair: UlidPair, data: NameData | None, *, proof: bool) -> None:
        """DNS answered; an engine that is gone hears nothing."""
        if self.engine is not engine:
            return
        self.ground.note_told(pair.peer, data)
        handle = engine.handle_proof if proof else engine.handle_capability
        handle(pair, data, self._world.name_of(pair.local), self._now)
        self._settle(engine, own=False)

    def _set_alarm(self, engine: Engine) -> None:
        deadline_s = engine.next_deadline()
        if deadline_s is not None:
            true_s = (deadline_s - self.shape.clock_offset_s) / self.shape.clock_rate
            self._world.wake(self.number, true_s)

    # --- checks ------------------------------------------------------------------------

    def _check_rewritten(self, packet: bytes, rewritten: bytes) -> None:
        """Data leaves on other locators: as the flow says, and on proved and tested ground."""
        users = [
            context
            for context in self.contexts()
            if context.outbound_key == packet[8:40] and context.wire_addresses == rewritten[8:40]
        ]
        require(users, Invariant.ANSWERS, "rewritten for no context")
        if not users[0].fii:
            flow = self.flows.get(UlidPair(packet[8:24], packet[24:40]))
            require(flow is not None, Invariant.ANSWERS, "rewritten without a flow")
            assert flow is not None
            as_told = flow.locators.local + flow.locators.peer == rewritten[8:40]
            require(as_told, Invariant.ANSWERS, "not as the flow says")
        if wire.is_shim(rewritten):
            users = [context for context in users if context.peer_tag == wire.tag_of(rewritten)]
            require(users, Invariant.ANSWERS, "rewritten with the tag of no context")
        self._check_data(users, rewritten)

    def _check_sent(self, packet: bytes, *, own: bool) -> None:
        if _is_control(packet):
            self.ground.note_sent(packet)
            census.note_sent(self._world.census, packet)
            if wire.type_of(packet) in (wire.KEEPALIVE, wire.PROBE):
                tag = wire.named_tag(packet)
                parked = any(c.parking is not None for c in self.contexts() if c.peer_tag == tag)
                require(not parked, Invariant.PARKED, "a test of a parked context")
            if own:
                self.rates.note_own(packet, self._now)
            return
        users = [context for context in self.contexts() if context.wire_addresses == packet[8:40]]
        if users:
            self._world.census[Event.HELD_SENT] += packet[48:] in self._held
            self._check_data(users, packet)

    def _check_data(self, users: list[Context], rewritten: bytes) -> None:
        for context in users:
            key = context.outbound_key
            tags = [context.local_tag]
            if context.fii:
                tags += [c.local_tag for c in self.contexts() if c.outbound_key == key]
            self.ground.check_data(context, rewritten[24:40], tags)
            if wire.flow_label(rewritten):
                self._world.note_labelled(rewritten, context.peer_tag)
        census.note_data(self._world.census, users[0], rewritten)

    def _note(self, report: Report) -> None:
        contexts = [c for c in self.contexts() if c.outbound_key == report.key]
        self._world.census[Event.ADVISED] += self._of_host and report.what is What.OPERATIONAL
        census.note_report(self._world.census, report, contexts)

    def _check_refused(self, packet: bytes, reason: Reason, sent: list[bytes]) -> None:
        """A tag that no context has is answered with R1bis (RFC 5533 §12.2, §12.3)."""
        if wire.is_payload(packet):
            tag = wire.tag_of(packet)
        elif wire.type_of(packet) in wire.TAGGED:
            tag = wire.named_tag(packet)
        else:
            return
        if any(c.local_tag == tag and c.state not in REMEMBERS for c in self.contexts()):
            return
        require(reason in _UNKNOWN, Invariant.TAGS, f"{reason.name} for a tag of no context")
        answered = any(_is_control(p) and wire.type_of(p) == wire.R1BIS for p in sent)
        excused = reason is Reason.RATE_LIMITED or self._closed(tag)
        require(answered or excused, Invariant.TAGS, "a tag of no context without an R1bis")

    def _closed(self, tag: int) -> bool:
        """Late packets of a context that was closed just now invite no recovery."""
        return self._now <= self._closed_s.get(tag, -CLOSED_QUIET_S) + CLOSED_QUIET_S


def _is_control(packet: bytes) -> bool:
    return wire.is_shim(packet) and not wire.is_payload(packet)


def _name(uplink: int) -> str:
    return f"isp{uplink}"


def _settings(number: int, shape: SiteShape, capable: tuple[Prefix, ...]) -> ShimSettings:
    fork = ForkRule((Selector(protocol=17),), _name(shape.uplinks - 1))
    return ShimSettings(
        uplinks=tuple(Uplink(_name(n), prefix_of(number, n), n) for n in range(shape.uplinks)),
        establish=EstablishPolicy(after_packets=shape.after_packets),
        hold_first_packet_s=shape.hold_first_packet_s,
        send_timeout_s=shape.send_timeout_s,
        failback=shape.failback,
        failback_hold_s=shape.failback_hold_s,
        detection=shape.detection,
        capable=capable,
        probe_unknown=shape.probe_unknown,
        return_routability=shape.routability,
        forks=(fork,) if shape.forks_udp and shape.uplinks > 1 else (),
        max_contexts=1000,
        demux=tuple(dict.fromkeys((shape.demux, DemuxMode.EXTHDR))),
        locator_map=locator_map(number, shape),
    )

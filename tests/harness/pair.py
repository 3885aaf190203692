"""Two engines on a fake network with a fake DNS: the default test of the core.

Each site has two providers, isp1 and isp2. A packet is carried from provider to provider
when neither is cut and its source belongs to the sender's provider, as on a real network
with BCP 38.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise

from m6proxy.discovery.addressing import PLAIN, LocatorMap, NsquareMap, PreagreedMap
from m6proxy.discovery.capability import Capability, NameData, PrefixLocator
from m6proxy.names import Address, Prefix, UlidPair, address
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
    What,
)
from m6proxy.shim.engine import Engine
from m6proxy.shim.locators import Uplink
from m6proxy.shim.policy import EstablishPolicy
from m6proxy.shim.verdict import CONSUMED
from m6proxy.wire.ipv6 import NEXT_UDP, build_packet
from tests.harness.clock import Clock
from tests.harness.entropy import SeededEntropy
from tests.harness.kernel import SLOW, FakeKernel

A1 = address("2001:db8:a1:1::10")
A2 = address("2001:db8:a1:1::20")
A1_ISP2 = address("2001:db8:a2:1::10")
B1 = address("2001:db8:b1:1::10")
B2 = address("2001:db8:b1:1::20")
B1_ISP2 = address("2001:db8:b2:1::10")
A_GATEWAY = address("2001:db8:a1:1::1")
B_GATEWAY = address("2001:db8:b1:1::1")
LATENCY_S = 0.01
NAMES = {
    A1: "a1.alpha.example",
    A2: "a2.alpha.example",
    B1: "b1.beta.example",
    B2: "b2.beta.example",
}


def uplinks(letter: str) -> tuple[Uplink, ...]:
    """The two uplinks of a site."""
    return tuple(Uplink(f"isp{n}", Prefix.parse(f"2001:db8:{letter}{n}::/48"), n) for n in (1, 2))


def nsquare(letter: str) -> NsquareMap:
    """N-square addresses of a site: the mark begins where its prefixes end."""
    return NsquareMap((uplink.prefix for uplink in uplinks(letter)), 48)


def preagreed(letter: str) -> PreagreedMap:
    """Hosts of a site have addresses of its first provider only."""
    return PreagreedMap((u.prefix for u in uplinks(letter)), uplinks(letter)[0].prefix)


def name_data(name: str, ulid: Address, letter: str) -> NameData:
    """What DNS says of one host of a site."""
    prefixes = tuple(PrefixLocator(uplink.prefix, uplink.preference) for uplink in uplinks(letter))
    return NameData(name, frozenset({ulid}), Capability(prefixes=prefixes), owns_ulid=True)


@dataclass
class Site:
    """One engine, its hosts' mailbox, and what it reported."""

    letter: str
    engine: Engine
    name: str
    ulid: Address
    settings: ShimSettings
    delivered: list[tuple[float, bytes]] = field(default_factory=list)
    reports: list[tuple[float, Report]] = field(default_factory=list)
    flows: dict[UlidPair, InstallFlow] = field(default_factory=dict)
    sent: list[tuple[float, bytes]] = field(default_factory=list)
    """Control packets and ICMPv6 errors that the engine sent."""
    queued_timer_s: float | None = None
    kernel: FakeKernel | None = None
    """What moves packets before the engine sees them."""

    def what(self, what: What) -> list[float]:
        """When something was reported."""
        return [when for when, report in self.reports if report.what is what]

    @property
    def context(self) -> Context:
        """The only context."""
        (context,) = self.engine.contexts()
        return context


class Pair:
    """Sites alpha and beta, with hosts a1 and b1."""

    def __init__(
        self,
        *,
        seed: int = 1,
        policy: EstablishPolicy | None = None,
        send_timeout_s: float = 3.0,
        probe_unknown: bool = False,
        capable: bool = True,
        dns: bool = True,
        max_contexts: int = 1000,
        requests_per_s: float = 200.0,
        adjust: Callable[[ShimSettings], ShimSettings] = lambda settings: settings,
        demux: tuple[DemuxMode, ...] = (DemuxMode.EXTHDR,),
        kernel: bool = False,
        locator_map: Callable[[str], LocatorMap] = lambda letter: PLAIN,
    ) -> None:
        self.clock = Clock()
        self.capable = capable
        self.dns = dns
        self.cut: set[tuple[str, int, str]] = set()
        """(site letter, provider number, 'in' or 'out') that drop silently."""
        self.lose: Callable[[bytes], bool] = lambda packet: False
        self.data: Callable[[Address], NameData | None] = self._data
        """What DNS says of a ULID, when it answers."""
        self.names = dict(NAMES)
        """What PTR says of a ULID, when DNS answers."""
        self.carry_out: Callable[[Site, Effect], None] = self._carry_out
        """What happens to each effect of an engine."""
        self.latency_s: Callable[[], float] = lambda: LATENCY_S
        self.wire: list[tuple[float, bytes]] = []
        self.sites = {}
        self._seed = seed * 2
        for letter, ulid, gateway in (("a", A1, A_GATEWAY), ("b", B1, B_GATEWAY)):
            settings = ShimSettings(
                uplinks=uplinks(letter),
                establish=policy or EstablishPolicy(),
                send_timeout_s=send_timeout_s,
                probe_unknown=probe_unknown,
                gateway=gateway,
                max_contexts=max_contexts,
                requests_per_s=requests_per_s,
                demux=demux,
                locator_map=locator_map(letter),
            )
            settings = adjust(settings)
            fake = FakeKernel() if kernel else None
            engine = Engine(settings, SeededEntropy(self._seed), fake.read if fake else None)
            self._seed += 1
            self.sites[letter] = Site(letter, engine, NAMES[ulid], ulid, settings, kernel=fake)
        self.alpha, self.beta = self.sites["a"], self.sites["b"]

    def restart(self, site: Site) -> None:
        """The site's daemon dies and a fresh one takes over, which knows nothing."""
        self._seed += 100
        if site.kernel is not None:
            site.kernel.flows.clear()
        read = site.kernel.read if site.kernel is not None else None
        site.engine = Engine(site.settings, SeededEntropy(self._seed), read)
        site.queued_timer_s = None
        site.flows.clear()

    # --- what hosts and people do -----------------------------------------------------

    def host_sends(self, site: Site, packet: bytes) -> None:
        """A host of the site sends a packet through its gateway."""
        moved = site.kernel.outbound(packet, self.clock.now) if site.kernel else SLOW
        if isinstance(moved, bytes):
            self._carry(site, moved)
            self._wake(site)
            return
        verdict = site.engine.handle_outbound(packet, self.clock.now)
        if verdict is None:
            self._carry(site, packet)
        elif isinstance(verdict, bytes):
            self._carry(site, verdict)
        self._settle(site)

    def talk(self, site: Site, octets: int = 1200, *, payload: bytes | None = None) -> bytes:
        """The site's host sends one UDP packet to the other site's; returns it."""
        other = self.other(site)
        body = payload if payload is not None else bytes(octets)
        packet = build_packet(site.ulid, other.ulid, NEXT_UDP, b"\x13\x88\x13\x89" + body)
        self.host_sends(site, packet)
        return packet

    def cut_provider(self, letter: str, number: int) -> None:
        """A provider dies silently, both ways."""
        self.cut |= {(letter, number, "in"), (letter, number, "out")}

    def establish(self) -> None:
        """Talk until both ends have a context."""
        for _ in range(3):
            self.talk(self.alpha)
            self.run(0.2)
        assert self.alpha.context.carries
        assert self.beta.context.carries

    def stream(
        self, seconds: float, *, both: bool = False, interval_s: float = 0.02
    ) -> list[float]:
        """Send a UDP stream from a1 to b1; returns when packets arrived at b1."""
        already = len(self.beta.delivered)
        end_s = self.clock.now + seconds
        while self.clock.now < end_s:
            self.talk(self.alpha, 100)
            if both:
                self.talk(self.beta, 100)
            self.run(interval_s)
        return [when for when, _ in self.beta.delivered[already:]]

    def other(self, site: Site) -> Site:
        """The site at the other end."""
        return self.beta if site is self.alpha else self.alpha

    # --- the world --------------------------------------------------------------------

    def run(self, seconds: float) -> None:
        """Let virtual time pass."""
        end_s = self.clock.now + seconds
        while True:
            for site in self.sites.values():
                self._schedule(site)
            next_s = self.clock.next_s()
            if next_s is None or next_s > end_s:
                break
            self.clock.step()
        self.clock.now = end_s

    def wire_control(self) -> list[tuple[float, bytes]]:
        """All control packets and errors that the gateways sent, in order."""
        return sorted(sent for site in self.sites.values() for sent in site.sent)

    def settle(self, site: Site) -> None:
        """Carry out what a call of the engine left; for tests that call it themselves."""
        self._settle(site)

    def inject(self, site: Site, packet: bytes) -> object:
        """A packet arrives at a site from nowhere; returns the verdict."""
        verdict = site.engine.handle_inbound(packet, self.clock.now)
        self._settle(site)
        return verdict

    def _schedule(self, site: Site) -> None:
        deadline_s = site.engine.next_deadline()
        if deadline_s is None or site.queued_timer_s == deadline_s:
            return
        site.queued_timer_s = deadline_s
        engine = site.engine

        def expire() -> None:
            if site.engine is not engine:
                return
            site.queued_timer_s = None
            engine.handle_timer(self.clock.now)
            self._settle(site)

        self.clock.at(max(deadline_s, self.clock.now), expire)

    def _settle(self, site: Site) -> None:
        while effects := site.engine.take_effects():
            for effect in effects:
                self.carry_out(site, effect)

    def _carry_out(self, site: Site, effect: Effect) -> None:
        now = self.clock.now
        match effect:
            case SendPacket(packet):
                site.sent.append((now, packet))
                if self._provider(packet[24:40]) == (site.letter, 1):
                    site.delivered.append((now, packet))
                else:
                    self._carry(site, packet)
            case AskCapability(pair):
                data = self.data(pair.peer) if self.capable and self.dns else None
                site.engine.handle_capability(pair, data, self._name(pair.local), now)
            case AskProof(pair, name):
                data = self.data(pair.peer) if self.dns else None
                if data is not None and data.name != name:
                    data = None
                site.engine.handle_proof(pair, data, self._name(pair.local), now)
            case Report():
                site.reports.append((now, effect))
            case InstallFlow():
                site.flows[effect.ulids] = effect
            case RemoveFlow(ulids):
                site.flows.pop(ulids, None)
        if site.kernel is not None and isinstance(effect, InstallFlow | RemoveFlow):
            site.kernel.apply(effect)

    def _name(self, ulid: Address) -> str | None:
        return self.names.get(ulid) if self.dns else None

    def _data(self, ulid: Address) -> NameData | None:
        place = self._provider(ulid)
        if place is None or ulid not in NAMES:
            return None
        return name_data(NAMES[ulid], ulid, place[0])

    def _carry(self, site: Site, packet: bytes) -> None:
        self.wire.append((self.clock.now, packet))
        out = self._provider(packet[8:24])
        into = self._provider(packet[24:40])
        if out is None or into is None or out[0] != site.letter:
            return
        if (*out, "out") in self.cut or (*into, "in") in self.cut or self.lose(packet):
            return
        receiver = self.sites[into[0]]
        self.clock.at(self.clock.now + self.latency_s(), lambda: self._arrive(receiver, packet))

    def _wake(self, site: Site) -> None:
        while site.kernel and site.kernel.woken:
            site.engine.handle_activity(site.kernel.woken.pop(), self.clock.now)
        self._settle(site)

    def _arrive(self, site: Site, packet: bytes) -> None:
        moved = site.kernel.inbound(packet, self.clock.now) if site.kernel else SLOW
        if isinstance(moved, bytes):
            site.delivered.append((self.clock.now, moved))
            self._wake(site)
            return
        verdict = site.engine.handle_inbound(packet, self.clock.now)
        if verdict is None:
            site.delivered.append((self.clock.now, packet))
        elif isinstance(verdict, bytes):
            site.delivered.append((self.clock.now, verdict))
        else:
            assert verdict is CONSUMED or isinstance(verdict, Reason)
        self._settle(site)

    def _provider(self, octets: Address) -> tuple[str, int] | None:
        for letter in self.sites:
            for number, uplink in enumerate(uplinks(letter), start=1):
                if uplink.prefix.contains(octets):
                    return letter, number
        return None


def longest_gap_s(times: list[float], start_s: float, end_s: float) -> float:
    """The longest time without an arrival between two times, seconds."""
    marks = [start_s, *(t for t in times if start_s <= t <= end_s), end_s]
    return max(later - earlier for earlier, later in pairwise(marks))

"""What all parts of the core share: settings, tables, timers, counters and pending effects.

One ``Core`` belongs to one engine. The parts (establish, reap, update, ...) are functions
over it; none of them acts, they only leave effects here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from m6proxy.discovery.addressing import PLAIN, LocatorMap
from m6proxy.discovery.remembered import RememberedPeers
from m6proxy.errors import PeerViolation
from m6proxy.names import Address, LocatorPair, Prefix
from m6proxy.proof.judge import Proof
from m6proxy.reasons import Reason
from m6proxy.shim.closed import ClosedTags
from m6proxy.shim.context import Context
from m6proxy.shim.demux import DemuxMode
from m6proxy.shim.effects import Detail, Effect, Report, SendPacket, Wake, What
from m6proxy.shim.entropy import Entropy
from m6proxy.shim.features import MODES
from m6proxy.shim.firstpackets import FirstPackets
from m6proxy.shim.history import UplinkHistory
from m6proxy.shim.inquiries import Inquiries
from m6proxy.shim.locators import LocalSets, Uplink
from m6proxy.shim.pace import Pace
from m6proxy.shim.policy import (
    DETECTION,
    Accounts,
    Detection,
    EstablishPolicy,
    FailbackMode,
    ForkRule,
)
from m6proxy.shim.ratelimit import RateLimit
from m6proxy.shim.responder import Responder
from m6proxy.shim.routability import ReturnRoutability
from m6proxy.shim.slots import FlowSlots, ReadActivity
from m6proxy.shim.table import ContextTable
from m6proxy.shim.timers import MIN_IDLE_S, NEVER, SEND_TIMEOUT_S, TimerHeap
from m6proxy.wire.ipv6 import build_control_packet
from m6proxy.wire.message import (
    Message,
    ProbeRecord,
    ProbeState,
    encode_message,
    encode_probe,
)
from m6proxy.wire.options import PayloadCount

_WAKE = Wake()
FAILBACK_PROBES_PER_S: Final = 500.0
"""Of all contexts together: when a provider is back, they return one after the other."""


@dataclass(frozen=True, slots=True)
class ShimSettings:
    """What the operator decides about the protocol."""

    uplinks: tuple[Uplink, ...]
    establish: EstablishPolicy = field(default_factory=EstablishPolicy)
    probe_unknown: bool = False
    """Whether to signal to peers about which DNS says nothing."""
    detection: tuple[Detection, ...] = DETECTION
    """How to find out whether a peer has a shim, in this order."""
    capable: tuple[Prefix, ...] = ()
    """Where the operator says that peers have one."""
    forks: tuple[ForkRule, ...] = ()
    """Which traffic goes by forks, the first rule that takes a packet first."""
    hold_first_packet_s: float = 0.0
    """How long a packet may wait for a context while its addresses do not work; 0: not at all."""
    return_routability: ReturnRoutability = ReturnRoutability.FIRST_USE
    exempt_proofs: frozenset[Proof] = frozenset()
    """Proofs that stand for the test of a locator as well."""
    send_timeout_s: float = SEND_TIMEOUT_S
    idle_s: float = MIN_IDLE_S
    park_max_s: float = 3600.0
    """How long contexts wait for a peer that said that it goes away; 0: not at all."""
    max_contexts: int = 200_000
    locators_max: int = 64
    """How many locators of a peer are kept, more than one message of ours can tell; the rest of a
    longer list is ignored."""
    failback: FailbackMode = FailbackMode.SOFT
    failback_hold_s: float = 60.0
    """How long a better pair must answer before a context goes back to it."""
    gateway: Address | None = None
    """The gateway's own address, source of its Packet Too Big."""
    demux: tuple[DemuxMode, ...] = (DemuxMode.EXTHDR,)
    """Modes that we may send in; peers are asked for those before ``EXTHDR``, in this order."""
    locator_map: LocatorMap = PLAIN
    """How the locators of a host follow from its ULID."""
    probes_per_s: float = 2000.0
    """Probes of searches, all contexts together; after an uplink event this is its pace."""
    requests_per_s: float = 200.0
    """Control messages that cost us something, for each /48 of sources."""

    def asks_for(self, mode: DemuxMode) -> bool:
        """Whether peers are asked to send in this mode."""
        if self.demux[0] is DemuxMode.EXTHDR:
            return False
        return mode in self.demux[: self.demux.index(DemuxMode.EXTHDR)]


class Core:
    """The shared state of an engine. ``effects`` are carried out by the loop, in order."""

    __slots__ = (
        "_wakes",
        "accounts",
        "asks_untagged",
        "away_until_s",
        "closed",
        "closing",
        "contexts",
        "counts_payload",
        "drops",
        "effects",
        "entropy",
        "errors_limit",
        "failback_limit",
        "first_packets",
        "history",
        "icmp_limit",
        "inquiries",
        "local_sets",
        "max_contexts",
        "pace",
        "peers",
        "requests_limit",
        "responder",
        "restored",
        "rewritten",
        "settings",
        "slots",
        "timers",
    )

    def __init__(
        self, settings: ShimSettings, entropy: Entropy, read_activity: ReadActivity | None = None
    ) -> None:
        self.settings = settings
        self.slots = (
            FlowSlots(read_activity, settings.max_contexts) if read_activity is not None else None
        )
        """Only where a data plane in the kernel moves packets."""
        self.entropy = entropy
        self.local_sets = LocalSets(settings.uplinks, entropy, settings.locator_map)
        self.contexts = ContextTable()
        self.max_contexts = settings.max_contexts
        """No more contexts are made than this; 0 once the gateway stops."""
        self.closing = 0
        """How many contexts are in CLOSING."""
        self.closed = ClosedTags()
        self.away_until_s = NEVER
        """The site said to its peers that it is away, and comes back then; NEVER: it is here."""
        self.accounts = Accounts(settings.establish)
        self.peers = RememberedPeers()
        self.inquiries = Inquiries()
        self.first_packets = FirstPackets()
        self.responder = Responder(entropy)
        self.requests_limit = RateLimit(settings.requests_per_s, settings.requests_per_s)
        self.icmp_limit = RateLimit(1000.0, 1000.0)
        self.errors_limit = RateLimit(10.0, 10.0)
        self.asks_untagged = settings.asks_for(DemuxMode.IDENTIFIER)
        """Whether peers may send to locator-only addresses without a tag."""
        self.counts_payload = settings.demux[0] is not DemuxMode.EXTHDR
        """Whether packets may come in a mode that a path could lose (``arrivals``)."""
        self.failback_limit = RateLimit(FAILBACK_PROBES_PER_S, FAILBACK_PROBES_PER_S)
        self.pace = Pace(settings.probes_per_s)
        self.history = UplinkHistory(fades=settings.failback is not FailbackMode.NEVER)
        self.effects: list[Effect] = []
        """The same list for ever, so that the loop can look at it after every packet."""
        self._wakes = False
        """Whether a Wake is among them."""
        self.timers = TimerHeap(self.wake)
        self.drops: dict[Reason, int] = {}
        self.rewritten = 0
        self.restored = 0

    def wake(self) -> None:
        """The next deadline is earlier than it was: the loop must know."""
        if not self._wakes:
            self._wakes = True
            self.effects.append(_WAKE)

    def take_effects(self) -> list[Effect]:
        """Hand over all effects, in order, and forget them."""
        effects = self.effects.copy()
        self.effects.clear()
        self._wakes = False
        return effects

    def drop(self, reason: Reason) -> Reason:
        """Count one packet that dies here; returns the reason as its verdict."""
        self.drops[reason] = self.drops.get(reason, 0) + 1
        return reason

    def limit_requests(self, source: Address, now: float) -> None:
        """Raise PeerViolation when a prefix of peers asks too often."""
        if not self.requests_limit.allow(source, now):
            raise PeerViolation(Reason.RATE_LIMITED, "too many requests from this prefix")

    def report(self, what: What, key: bytes, detail: Detail = "") -> None:
        """Leave an event for people, of a pair of ULIDs (32 octets)."""
        self.effects.append(Report(what, key, detail))

    def send(self, message: Message, route: LocatorPair) -> None:
        """Send a control message from a local locator to a peer's. ``encode_message`` raises
        ValueError for one that would not fit 1,280 octets (RFC 5533 §5.1)."""
        octets = encode_message(message)
        self.effects.append(SendPacket(build_control_packet(route.local, route.peer, octets)))

    def send_probe(
        self,
        context: Context,
        state: ProbeState,
        sent: tuple[ProbeRecord, ...],
        received: tuple[ProbeRecord, ...],
    ) -> None:
        """Send a Probe over the pair that its first record names."""
        options: tuple[PayloadCount, ...] = ()
        if self.counts_payload and context.peer_features & MODES:
            options = (PayloadCount.of(context.packets_arrived),)
        octets = encode_probe(context.peer_tag, state, sent, received, options)
        src, dst, *_ = sent[0]
        self.effects.append(SendPacket(build_control_packet(src, dst, octets)))

    def rearm(self, context: Context) -> None:
        """Make sure that the context wakes at its next deadline."""
        self.timers.arm(context, context.next_deadline_s(self.settings.idle_s))

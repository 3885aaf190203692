"""A host-pair context: everything that is known about one ULID pair (RFC 5533 §6.1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from m6proxy.discovery.capability import NameData
from m6proxy.names import Address, LocatorPair, Tag, UlidPair
from m6proxy.proof.judge import Proof
from m6proxy.shim import forward
from m6proxy.shim.demux import UNTAGGED, DemuxMode
from m6proxy.shim.exploration import Exploration
from m6proxy.shim.held import HeldSegments
from m6proxy.shim.locators import LocalSet, PeerLocator
from m6proxy.shim.policy import ForkRule
from m6proxy.shim.slots import KernelFlow
from m6proxy.shim.timers import NEVER, RELEASE_EXPLORATION_S
from m6proxy.shim.transitions import CARRIES, CONTEXT, Input, ReapState, State
from m6proxy.wire.message import Close, UpdateRequest

if TYPE_CHECKING:
    from m6proxy.shim.arrivals import Arrived, Promised
    from m6proxy.shim.failback import Failback

_NO_DEADLINE: Final = float("inf")
_IDENTIFIER: Final = DemuxMode.IDENTIFIER
"""To look a member up in an Enum costs as much as a call."""
NO_LOCATORS: Final[frozenset[Address]] = frozenset()
"""Shared: an empty set of one's own would be 216 octets in each context."""


class Handshake:
    """What a context needs only until it is established."""

    __slots__ = (
        "data",
        "initiator_nonce",
        "packet_tag",
        "responder_nonce",
        "retries",
        "rounds",
        "route",
        "routes",
        "shortened",
        "timeout_due_s",
        "told_set",
        "validator",
    )

    def __init__(self, initiator_nonce: int, route: LocatorPair) -> None:
        self.data: NameData | None = None
        """What DNS said of the peer when its capability was asked."""
        self.initiator_nonce = initiator_nonce
        self.responder_nonce = 0
        self.validator = b""
        self.packet_tag: Tag = 0
        """The tag that an R1bis named; goes into the I2bis."""
        self.retries = 0
        self.rounds = 0
        """How often the exchange fell back from I2 to I1."""
        self.timeout_due_s = NEVER
        self.route = route
        """The locator pair that the exchange uses."""
        self.routes: tuple[LocatorPair, ...] = ()
        """The pairs to try one after the other, when the ULIDs seem not to work."""
        self.shortened = False
        """Whether its messages did not tell one whole set: no room, or the set changed."""
        self.told_set: LocalSet | None = None
        """Our set as the last I2 or I2bis told it."""


@dataclass(frozen=True, slots=True)
class HeldAck:
    """An Update Request of the peer that is acknowledged when its locators are proved."""

    request_nonce: int
    route: LocatorPair
    """Which way it came; the acknowledgement goes back there."""
    due_s: float
    """When it is acknowledged without the answer of DNS."""


class PendingUpdate:
    """The one Update Request that is outstanding (RFC 5533 §10.3)."""

    __slots__ = ("named", "request", "retries", "timeout_due_s", "told")

    def __init__(
        self,
        request: UpdateRequest,
        told: LocalSet | None,
        named: tuple[Context, ...] | None = None,
    ) -> None:
        self.request = request
        self.named = named
        """Of a request about several contexts (``scope``): these, at the one that it is sent
        over; none at the others, which wait. None: it is about one."""
        self.told = told
        """The set that the peer knows when it acknowledges; None when some was left out."""
        self.retries = 0
        """How often it was sent."""
        self.timeout_due_s = NEVER


class Parking:
    """Who of a parked context is away; the other end waits, or is away too (``park``)."""

    __slots__ = ("granted_s", "local", "peer_since_s", "peer_until_s", "told_s")

    def __init__(self) -> None:
        self.local = False
        """We are away."""
        self.granted_s: float | None = None
        """How long the peer said that it waits for us; 0: it does not; None: no answer yet."""
        self.peer_until_s = NEVER
        """The peer is away, and the context is removed then; NEVER: it is here."""
        self.peer_since_s = NEVER
        """When the peer last said so."""
        self.told_s = NEVER
        """When a host was last told that the peer is unreachable."""


class PendingClose:
    """Our Close that is not acknowledged yet."""

    __slots__ = ("message", "sent", "timeout_due_s")

    def __init__(self, message: Close, due_s: float) -> None:
        self.message = message
        self.sent = 0
        """How often it was sent."""
        self.timeout_due_s = due_s
        """When it is sent the next time, or given up."""


class Context:
    """One context. Deadlines are on the clock of ``now``; NEVER means that one is not set."""

    __slots__ = (
        "armed_s",
        "arrived",
        "closing",
        "established_s",
        "exploration",
        "failback",
        "fii",
        "flow",
        "forks",
        "handshake",
        "held",
        "held_ack",
        "hinted_s",
        "holddown_due_s",
        "inbound_key",
        "keepalive_due_s",
        "keepalive_next_s",
        "keepalive_timeout_s",
        "label",
        "last_in_pair",
        "last_traffic_s",
        "local_name",
        "local_set",
        "local_tag",
        "mtu",
        "octets_in",
        "octets_out",
        "outbound_key",
        "packets_in",
        "packets_out",
        "packets_unproved",
        "parking",
        "peer_features",
        "peer_generation",
        "peer_label",
        "peer_locators",
        "peer_mode",
        "peer_name",
        "peer_order",
        "peer_parameters",
        "peer_tag",
        "peer_updated",
        "promised",
        "reap_state",
        "rehomed_s",
        "rehomings",
        "reproof_due_s",
        "route",
        "send_due_s",
        "send_timeout_s",
        "sent_key",
        "shim_tail",
        "state",
        "suspects",
        "told_set",
        "told_too_big_s",
        "unlabelled_route",
        "update",
        "wire_addresses",
        "wire_kind",
        "wire_label",
    )

    def __init__(self, key: bytes, fii: int, local_tag: Tag, local_set: LocalSet) -> None:
        self.outbound_key = key
        """Local ULID and peer ULID, 32 octets: the addresses of a packet that the host sends."""
        self.inbound_key = key[16:] + key[:16]
        self.fii = fii
        self.forks: tuple[tuple[ForkRule, Context], ...] = ()
        """Only without a fork identifier: the pair's forks that we asked for."""
        self.state = State.IDLE
        self.local_tag = local_tag
        self.peer_tag: Tag = 0
        self.local_set = local_set
        self.local_name: str | None = None
        self.peer_name: str | None = None
        self.peer_locators: tuple[PeerLocator, ...] = (PeerLocator(key[16:], Proof.ULID),)
        self.peer_features = 0
        """What the peer announced and we understand (``features.Feature``)."""
        self.peer_generation = 0
        self.peer_order: tuple[Address, ...] | None = None
        """The peer's list as it came, when ``peer_locators`` does not show it any more."""
        self.peer_updated = False
        """Whether the peer sent an Update Request since it chose its tag."""
        self.peer_parameters = b""
        """The CGA Parameter Data Structure of an HBA peer, as it came, for later Updates."""
        self.label = 0
        """The flow label by which the peer's packets may find the context; 0: by the tag only."""
        self.peer_label = 0
        """The flow label that the peer wants on our packets, in mode FLOWLABEL."""
        self.peer_mode = DemuxMode.EXTHDR
        """How the peer wants our packets."""
        self.unlabelled_route: bytes | None = None
        """The locator pair that loses packets without payload header, 32 octets."""
        self.arrived: Arrived | None = None
        """What the peer says of packets in another mode over the current pair."""
        self.promised: Promised | None = None
        """What it says of those that it sent."""
        self.sent_key: tuple[bytes, int] | None = None
        """Where the table has the context by what it sends: our route, and a label or tag."""
        self.route = key
        """Lp(local) and Lp(peer), 32 octets."""
        self.handshake: Handshake | None = None
        self.update: PendingUpdate | None = None
        self.told_set: LocalSet | None = None
        """Our set as the peer has it, as far as we know; differences start from it."""
        self.held_ack: HeldAck | None = None
        self.closing: PendingClose | None = None
        self.parking: Parking | None = None
        """Set while the context waits for an end that said that it is away."""

        # reachability (RFC 5534)
        self.reap_state = ReapState.OPERATIONAL
        self.send_timeout_s = 0.0
        self.send_due_s = NEVER
        self.keepalive_timeout_s = 0.0
        self.keepalive_due_s = NEVER
        self.keepalive_next_s = NEVER
        self.exploration: Exploration | None = None
        self.failback: Failback | None = None
        """On the way back to a better pair."""
        self.suspects = NO_LOCATORS
        """Locators of either end that the context had to leave; tried last."""
        self.held: HeldSegments | None = None
        """TCP segments that nothing answered yet."""
        self.hinted_s = NEVER
        """When an indirect indication last started a test."""
        self.reproof_due_s = NEVER
        self.holddown_due_s = NEVER

        # what the packet path needs, ready made
        self.wire_addresses: bytes | None = None
        """The 32 octets that replace the ULIDs, or None while packets go as they are."""
        self.wire_label = 0
        """The flow label that they get, UNTAGGED, or 0 while they get the payload header."""
        self.shim_tail = b""
        """The last 7 octets of the payload header."""
        self.wire_kind = forward.SHIM
        """What the header before it calls it."""
        self.flow: KernelFlow | None = None
        """Only where a data plane in the kernel moves the packets."""
        self.mtu = 0
        self.told_too_big_s = NEVER
        """When the host was last told that its packets do not fit this path."""
        self.last_in_pair = self.inbound_key
        """The source and destination last found to belong to the context, 32 octets."""

        # what people and the idle timer ask for
        self.packets_in = 0
        self.packets_out = 0
        self.packets_unproved = 0
        """Those that were dropped since their source was not proved yet."""
        self.octets_in = 0
        self.octets_out = 0
        self.last_traffic_s = 0.0
        self.established_s: float | None = None
        self.rehomed_s: float | None = None
        self.rehomings = 0
        self.armed_s = NEVER

    @property
    def pair(self) -> UlidPair:
        """The ULIDs."""
        return UlidPair(self.outbound_key[:16], self.outbound_key[16:])

    @property
    def locators(self) -> LocatorPair:
        """The current locator pair, Lp(local) and Lp(peer)."""
        return LocatorPair(self.route[:16], self.route[16:])

    @property
    def mode_wanted(self) -> DemuxMode:
        """How the peer wants the packets of the current pair, as far as the path lets them pass."""
        return DemuxMode.EXTHDR if self.route == self.unlabelled_route else self.peer_mode

    @property
    def mode(self) -> DemuxMode:
        """How the peer's end finds the context when it gets our re-homed packets."""
        wanted = self.mode_wanted
        if wanted is not _IDENTIFIER or self.wire_addresses is None or self.wire_label == UNTAGGED:
            return wanted
        return DemuxMode.EXTHDR  # there is no going without between these addresses

    @property
    def demux(self) -> str:
        """The same as a word."""
        return self.mode.name.lower()

    @property
    def packets_arrived(self) -> int:
        """Payload packets that found the context."""
        return self.packets_in + self.packets_unproved

    @property
    def carries(self) -> bool:
        """Whether packets use the context (RFC 5533 §11)."""
        return self.state in CARRIES

    @property
    def watched(self) -> bool:
        """Whether reachability is tested: the context carries, and nobody is away."""
        return self.state in CARRIES and self.parking is None

    @property
    def forgets_held(self) -> bool:
        """Whether the segments that nothing answered are of no use once they are old."""
        return self.send_due_s == NEVER and self.reap_state is ReapState.OPERATIONAL

    def take_route(self, pair: LocatorPair) -> None:
        """Make a pair the current one; the ULIDs, which most contexts stay on, are not copied."""
        route = pair.local + pair.peer
        self.route = self.outbound_key if route == self.outbound_key else route

    def set_state(self, after: State, cause: Input) -> None:
        """Move to another state; the only writer. Raises ValueError when the table forbids it."""
        allowed = CONTEXT.get((self.state, cause), ())
        if after not in allowed:
            raise ValueError(f"{self.state.value} --{cause.value}--> {after.value} is not legal")
        self.state = after

    def peer_locator(self, octets: Address) -> PeerLocator | None:
        """Find a locator in Ls(peer)."""
        for locator in self.peer_locators:
            if locator.address == octets:
                return locator
        return None

    def next_deadline_s(self, idle_s: float) -> float:
        """The earliest of all deadlines, or NEVER."""
        if self.parking is not None:
            return self._parked_deadline_s(self.parking)
        first = self.last_traffic_s + idle_s if self.state in CARRIES else _NO_DEADLINE
        due = self.send_due_s
        if due and due < first:
            first = due
        due = self.keepalive_due_s
        if due:
            first = min(first, due, self.keepalive_next_s or due)
        exploration = self.exploration
        if exploration is not None:
            due = exploration.due_s or exploration.ended_s + RELEASE_EXPLORATION_S
            if due < first:
                first = due
        if self.update is not None and self.update.timeout_due_s:
            first = min(first, self.update.timeout_due_s)
        if self.held is not None and self.forgets_held:
            first = min(first, self.held.until_s)
        if self.failback is not None:
            first = min(first, self.failback.due_s)
        if self.held_ack is not None:
            first = min(first, self.held_ack.due_s)
        if self.flow is not None:
            first = min(first, self.flow.look_due_s or first, self.flow.again_s or first)
        if self.handshake is not None and self.handshake.timeout_due_s:
            first = min(first, self.handshake.timeout_due_s)
        if self.closing is not None:
            first = min(first, self.closing.timeout_due_s)
        if self.holddown_due_s:
            first = min(first, self.holddown_due_s)
        return first if first != _NO_DEADLINE else NEVER

    def _parked_deadline_s(self, parking: Parking) -> float:
        due = (
            parking.peer_until_s,
            self.update.timeout_due_s if self.update is not None else NEVER,
            self.handshake.timeout_due_s if self.handshake is not None else NEVER,
        )
        return min((deadline for deadline in due if deadline), default=NEVER)

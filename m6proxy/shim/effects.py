"""What the core asks of the world. The loop carries effects out in the order given.

Nothing in the core acts by itself: it returns these values, and I/O that has an answer
comes back later as an input of the engine.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple, TypeAlias

from m6proxy.names import Address, LocatorPair, Tag, UlidPair
from m6proxy.shim.demux import DemuxMode
from m6proxy.wire.message import ProbeState


class SendPacket(NamedTuple):
    """Send a whole IPv6 packet (header included) out of the uplink that its source belongs to.

    This and some others are tuples: a site that re-homes leaves half a million of them.
    """

    packet: bytes


@dataclass(frozen=True, slots=True)
class AskCapability:
    """Find out by DNS whether the peer has a shim; answered by ``handle_capability``."""

    pair: UlidPair


@dataclass(frozen=True, slots=True)
class AskProof:
    """Find out by DNS what belongs to a name; answered by ``handle_proof``.

    ``name`` is the one that the peer claims, in text form without the final dot, or None
    when it claimed none.
    """

    pair: UlidPair
    name: str | None


@dataclass(frozen=True, slots=True)
class LearnNames:
    """A DNS answer passed through the gateway: ``payload`` is the UDP payload, untrusted."""

    payload: bytes


class KernelEntry(NamedTuple):
    """What a data plane in the kernel has to know of a context besides its pairs.

    A tuple, because a failed uplink makes 100,000 of them.
    """

    slot: int
    """Where it counts what the context sends and receives."""
    addresses: bytes
    """What packets get, 32 octets: the locators, or in mode IDENTIFIER a place of the peer's
    that stands for one."""
    mode: DemuxMode
    """How packets go over this pair, while it is not the ULIDs."""
    wanted: DemuxMode
    """How the peer wants them; a path may not bear that."""
    label: int
    """The peer's flow label, or 0."""
    features: int
    """The peer's (``features.Feature``): a successor of ours needs them."""
    mtu: int
    """Of the uplink, octets, growth included."""
    uplink: str | None
    """The uplink that the current local locator belongs to."""
    slow: bool
    """Every packet of the pair is for the engine."""
    watched: bool
    """What the host sends is: nothing answers it, and TCP's segments have to be kept."""
    tags: tuple[tuple[DemuxMode, int], ...]
    """How the peer's packets may find the context."""
    untagged: tuple[bytes, ...]
    """Source and destination, 32 octets each, of packets that no more than these show to be its."""
    local_locators: tuple[Address, ...]
    peer_locators: tuple[Address, ...]
    """Those that are proved, the current one first."""


class InstallFlow(NamedTuple):
    """How a context's packets go from now on: data planes rewrite them, and nothing else may
    pass them, unless the locators are the ULIDs.

    Contexts on their ULIDs are told of only where the data plane is in the kernel.
    """

    ulids: UlidPair
    locators: LocatorPair
    peer_tag: Tag
    kernel: KernelEntry | None = None
    """None where all packets come through the engine, and when it had no slot left."""


@dataclass(frozen=True, slots=True)
class RemoveFlow:
    """The context is gone, or back on its ULIDs: its packets pass unchanged."""

    ulids: UlidPair


@dataclass(frozen=True, slots=True)
class Remember:
    """What a successor of ours has to know of a pair changed (``Engine.memo_of``), or is gone.

    Only where something in the kernel outlives us.
    """

    ulids: UlidPair


@dataclass(frozen=True, slots=True)
class Wake:
    """``next_deadline`` is earlier than it was: the loop must set its alarm anew."""


class What(Enum):
    """The events that people follow; the values are the words of logs and timelines."""

    ASKED = "capability asked"
    CAPABLE = "capability found"
    NOT_CAPABLE = "no capability"
    ESTABLISHED = "context established"
    FAILED = "establishment failed"
    HINT = "path doubted"
    SILENCE = "silence noticed"
    PEER_EXPLORES = "peer explores"
    PROBE = "probe sent"
    REHOMED = "re-homed"
    OPERATIONAL = "path confirmed"
    PROVED = "locators proved"
    UPDATED = "locators updated"
    SHORTENED = "locators left out"
    PARKED = "context parked"
    RESUMED = "context taken up"
    REMOVED = "context removed"
    STATE = "state"


class Searched(NamedTuple):
    """What a search sent: the sender's state and the pair."""

    state: ProbeState
    route: LocatorPair

    def __str__(self) -> str:
        return f"{self.state.name} {self.route}"


Detail: TypeAlias = str | bytes | Searched
"""Words, a locator pair (32 octets), or what a search sent."""


class Report(NamedTuple):
    """Something happened that people want to see; never needed for the protocol."""

    what: What
    key: bytes
    """Local ULID and peer ULID, 32 octets."""
    said: Detail

    @property
    def pair(self) -> UlidPair:
        """The ULIDs."""
        return UlidPair(self.key[:16], self.key[16:])

    @property
    def detail(self) -> str:
        """The words for people; they are made only where they are read."""
        if isinstance(self.said, bytes):
            return str(LocatorPair(self.said[:16], self.said[16:]))
        return str(self.said)


Effect: TypeAlias = (
    SendPacket
    | AskCapability
    | AskProof
    | LearnNames
    | InstallFlow
    | RemoveFlow
    | Remember
    | Wake
    | Report
)

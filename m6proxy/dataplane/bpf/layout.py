"""What Python and the programs share: the entries of the maps, their events and counters.

The C side is ``src/maps.h``; a test compares both with the BTF of the object. Numbers are in
this machine's order, addresses as on the wire. Times are nanoseconds of the monotonic clock.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum, IntFlag, unique
from typing import Final

from m6proxy.names import ADDRESS_OCTETS, Address, Prefix

PREFIXES_MAX: Final = 16
UPLINKS_MAX: Final = 14
"""Uplinks have the numbers 1 to 14."""
LOCATORS_MAX: Final = 4
"""Locators of either end that an entry has room for; a packet with another goes to Python."""
DNS_OCTETS_MAX: Final = 1472
"""The longest DNS answer that is copied; a longer one goes to Python."""

SETTINGS: Final = "m6p_settings_v4"
OUT: Final = "m6p_out_v1"
TAG: Final = "m6p_tag_v1"
PAIR: Final = "m6p_pair_v1"
SENT: Final = "m6p_sent_v1"
ACTIVE: Final = "m6p_active_v1"
MISSES: Final = "m6p_misses_v1"
RECENT: Final = "m6p_recent_v1"
EVENTS: Final = "m6p_events_v1"
COUNT: Final = "m6p_count_v2"

NO_MARKS: Final = Address(bytes(ADDRESS_OCTETS))
MARK_PAST: Final = 15
"""Low nibble of the mark of a packet that Python need not see; 1 to 14 are uplinks."""
_MARK_OURS: Final = 0x80
_UNTAGGED: Final = b"\xff" * 4
_SENT_PADDING: Final = bytes(4)
_UPLINK_SLOTS: Final = UPLINKS_MAX + 2
_PAIR_OCTETS: Final = 2 * ADDRESS_OCTETS
_TAIL_OCTETS: Final = 8
_MODE_SHIFT: Final = 56


@unique
class Mode(IntEnum):
    """How a flow's packets look on the wire."""

    ULIDS = 0
    EXTHDR = 1
    FLOWLABEL = 2
    IDENTIFIER = 3
    DSTOPT = 4


class OutFlag(IntFlag):
    """Of an outbound flow."""

    SLOW = 1
    """Every packet is for Python."""
    WATCHED = 2
    """The same while a daemon lives: the kernel can move them, but keeps nothing for later."""


class InFlag(IntFlag):
    """Of an inbound flow."""

    COMPLETE = 1
    """No locator of the context is missing in the entry."""


class MissFlag(IntFlag):
    """Of a pair without a context."""

    OUTBOUND = 1
    """The host sent."""
    ANSWERED = 2
    """The peer sent."""
    SLOW = 4
    """Every packet is for Python; only user space sets it."""


class PrefixFlag(IntFlag):
    """Of a prefix of the site."""

    SLOW = 1
    """Packets from and to here that have no context are for Python."""
    NOBODYS = 2
    """All its addresses are locator-only."""


class SettingsFlag(IntFlag):
    """Of all traffic."""

    SLOW_MISSES = 1
    """All packets that have no context are for Python."""
    LABELS = 2
    """Some context is found by its flow label."""
    SENT_LABELS = 4
    """Some context sends with a flow label, or without any tag."""
    BARE_UPLINK = 65536
    """Shifted by the number of an uplink: its packets have no link-layer header."""


@unique
class EventKind(IntEnum):
    """What the kernel tells."""

    RIPE = 1
    """A pair deserves a context."""
    AWAKE = 2
    """A context that was silent for ``wake_ns`` has traffic again."""
    DNS = 3
    """A DNS answer went by."""


class Ripe(IntFlag):
    """Why a pair is ripe."""

    THRESHOLD = 1
    """It crossed one of the policy's thresholds."""
    SILENT = 2
    """TCP sent its first segment again, unanswered."""


@unique
class Counter(IntEnum):
    """Packets by what became of them; the index into the array of counters."""

    REWRITTEN = 0
    RESTORED = 1
    SLOW_FLAGGED = 2
    SLOW_CHAIN = 3
    SLOW_FRAGMENT = 4
    SLOW_TOO_BIG = 5
    SLOW_LABEL = 6
    SLOW_CONTROL = 7
    SLOW_TAG = 8
    SLOW_LOCATOR = 9
    SLOW_ERROR = 10
    SLOW_POLICY = 11
    SLOW_OVERDUE = 12
    SLOW_NOBODYS = 13
    DROP_NO_FLOW = 14
    DROP_WRONG_UPLINK = 15
    DROP_NO_ROOM = 16
    DROP_NOBODYS = 17
    REDIRECTED = 18
    SPLIT = 19
    REGROUPED = 20
    EVENTS_LOST = 21
    EXPRESS = 22

    @property
    def is_slow(self) -> bool:
        """Whether the packets counted went to Python."""
        return Counter.SLOW_FLAGGED <= self <= Counter.SLOW_NOBODYS

    @property
    def is_drop(self) -> bool:
        """Whether the packets counted died."""
        return Counter.DROP_NO_FLOW <= self <= Counter.DROP_NOBODYS


def mark_of(number: int, shift: int) -> int:
    """The mark of packets for an uplink (1 to 14), or past the queue (15)."""
    return (_MARK_OURS | number) << shift


def tag_key(mode: Mode, tag: int) -> bytes:
    """The key of an inbound flow by its context tag, flow label or option tag."""
    return (mode << _MODE_SHIFT | tag).to_bytes(8, "little" if _IS_LITTLE else "big")


def sent_key(locators: bytes, label: int | None) -> bytes:
    """The key of what a flow looks like: 32 octets of addresses, and the 20 bits of its label.

    ``None`` in mode identifier: it has no label that would tell.
    """
    return locators + (_UNTAGGED if label is None else label.to_bytes(4)) + _SENT_PADDING


_IS_LITTLE: Final = struct.pack("=H", 1) == b"\x01\x00"


@dataclass(frozen=True, slots=True)
class OutFlow:
    """An outbound packet of a context; the key is its ULIDs, local and peer, 32 octets."""

    locators: bytes
    """Local and peer, 32 octets."""
    mode: Mode
    slot: int
    """In the array of activity."""
    uplink: int
    """Its number; on the ULIDs that of the local ULID's prefix, or 0."""
    mtu: int = 0xFFFF
    """Octets that the path carries, what we insert included."""
    tail: bytes = b"\x00" * (_TAIL_OCTETS - 1)
    """The last 7 octets of the header that modes exthdr and dstopt insert."""
    label: int = 0
    """The peer's flow label, 20 bits."""
    flags: int = 0
    """Of OutFlag."""

    LAYOUT = struct.Struct("=32sx7s4sIBBHI")

    def pack(self) -> bytes:
        """Return the map's value."""
        return pack_out(
            self.locators,
            self.mode,
            self.slot,
            self.uplink,
            self.mtu,
            self.tail,
            self.label,
            self.flags,
        )

    @classmethod
    def unpack(cls, octets: bytes) -> OutFlow:
        """Read the map's value."""
        locators, tail, label, mtu, mode, uplink, flags, slot = cls.LAYOUT.unpack(octets)
        return cls(
            locators,
            Mode(mode),
            slot,
            uplink,
            mtu,
            tail,
            int.from_bytes(label),
            flags,
        )


_pack_out: Final = OutFlow.LAYOUT.pack


def pack_out(
    locators: bytes,
    mode: Mode,
    slot: int,
    uplink: int,
    mtu: int,
    tail: bytes,
    label: int,
    flags: int,
) -> bytes:
    """What ``OutFlow(...).pack()`` returns, for who writes 100,000 of them in a second."""
    return _pack_out(locators, tail, label.to_bytes(4), mtu, mode, uplink, flags, slot)


@dataclass(frozen=True, slots=True)
class InFlow:
    """An inbound packet of a re-homed context; the key is ``tag_key``."""

    ulids: bytes
    """Peer and local, 32 octets: as the packet gets them."""
    slot: int
    peer: tuple[Address, ...]
    """Proved locators, at most LOCATORS_MAX."""
    local: tuple[Address, ...]
    flags: int = 0
    """Of InFlag."""

    LAYOUT = struct.Struct(f"=32sIBBH{LOCATORS_MAX * 16}s{LOCATORS_MAX * 16}s")

    def __post_init__(self) -> None:
        if max(len(self.peer), len(self.local)) > LOCATORS_MAX:
            raise ValueError(f"an entry has room for {LOCATORS_MAX} locators of either end")

    def pack(self) -> bytes:
        """Return the map's value."""
        return pack_in(self.ulids, self.slot, self.peer, self.local, self.flags)

    @classmethod
    def unpack(cls, octets: bytes) -> InFlow:
        """Read the map's value."""
        ulids, slot, n_peer, n_local, flags, peer, local = cls.LAYOUT.unpack(octets)
        return cls(ulids, slot, _addresses(peer, n_peer), _addresses(local, n_local), flags)


_pack_in: Final = InFlow.LAYOUT.pack


def pack_in(
    ulids: bytes,
    slot: int,
    peer: tuple[Address, ...],
    local: tuple[Address, ...],
    flags: int,
) -> bytes:
    """What ``InFlow(...).pack()`` returns; at most LOCATORS_MAX locators of either end."""
    return _pack_in(ulids, slot, len(peer), len(local), flags, b"".join(peer), b"".join(local))


@dataclass(frozen=True, slots=True)
class PairFlow:
    """An inbound packet found by its addresses; the key is source and destination, 32 octets."""

    ulids: bytes
    """Peer and local, 32 octets: with mode identifier the packet gets them."""
    slot: int
    mode: Mode
    """ULIDS or IDENTIFIER."""

    LAYOUT = struct.Struct("=32sIB3x")

    def pack(self) -> bytes:
        """Return the map's value."""
        return self.LAYOUT.pack(self.ulids, self.slot, self.mode)

    @classmethod
    def unpack(cls, octets: bytes) -> PairFlow:
        """Read the map's value."""
        ulids, slot, mode = cls.LAYOUT.unpack(octets)
        return cls(ulids, slot, Mode(mode))


@dataclass(frozen=True, slots=True)
class Activity:
    """The traffic of one slot; a packet is what the site's hosts sent or get, in ULIDs."""

    last_out_ns: int = 0
    last_in_ns: int = 0
    out_since_ns: int = 0
    """The first packet out since the last one in; 0: none."""
    in_since_ns: int = 0
    """The first packet in since the last one out; 0: none."""
    packets_out: int = 0
    octets_out: int = 0
    packets_in: int = 0
    octets_in: int = 0

    LAYOUT = struct.Struct("=8Q")

    def pack(self) -> bytes:
        """Return the map's value."""
        return self.LAYOUT.pack(
            self.last_out_ns,
            self.last_in_ns,
            self.out_since_ns,
            self.in_since_ns,
            self.packets_out,
            self.octets_out,
            self.packets_in,
            self.octets_in,
        )

    @classmethod
    def unpack(cls, octets: bytes) -> Activity:
        """Read the map's value."""
        return cls(*cls.LAYOUT.unpack(octets))


@dataclass(frozen=True, slots=True)
class Miss:
    """A pair without a context; the key is local and peer, 32 octets."""

    first_ns: int = 0
    syn_ns: int = 0
    """The first unanswered TCP SYN; 0: none."""
    quiet_until_ns: int = 0
    """No event before; the kernel sets it when it told, user space when it knows better."""
    octets: int = 0
    packets: int = 0
    flags: int = 0
    """Of MissFlag."""

    LAYOUT = struct.Struct("=5QI4x")

    def pack(self) -> bytes:
        """Return the map's value."""
        return self.LAYOUT.pack(
            self.first_ns,
            self.syn_ns,
            self.quiet_until_ns,
            self.octets,
            self.packets,
            self.flags,
        )

    @classmethod
    def unpack(cls, octets: bytes) -> Miss:
        """Read the map's value."""
        return cls(*cls.LAYOUT.unpack(octets))


@dataclass(frozen=True, slots=True)
class Event:
    """One record of the ring buffer."""

    kind: EventKind
    now_ns: int
    ulids: bytes = bytes(_PAIR_OCTETS)
    """Local and peer, 32 octets; with RIPE."""
    slot: int = 0
    """With AWAKE."""
    why: int = 0
    """Of Ripe; with RIPE."""
    payload: bytes = b""
    """Of the UDP datagram; with DNS. Untrusted."""

    LAYOUT = struct.Struct("=IIQ32sII")

    @classmethod
    def unpack(cls, octets: bytes) -> Event:
        """Read a record."""
        kind, size, now_ns, ulids, slot, why = cls.LAYOUT.unpack_from(octets)
        payload = octets[cls.LAYOUT.size : cls.LAYOUT.size + size]
        return cls(EventKind(kind), now_ns, ulids, slot, why, payload)


@dataclass(frozen=True, slots=True)
class SitePrefix:
    """One of the site's prefixes."""

    prefix: Prefix
    flags: int = 0
    """Of PrefixFlag."""
    marks: Address = NO_MARKS
    """Locator-only addresses have one of these bits."""

    LAYOUT = struct.Struct("=16s16s16sI4x")

    def pack(self) -> bytes:
        """Return its part of the settings."""
        mask = (1 << 128) - (1 << (128 - self.prefix.length))
        return self.LAYOUT.pack(self.prefix.network, mask.to_bytes(16), self.marks, self.flags)

    @classmethod
    def unpack(cls, octets: bytes) -> SitePrefix:
        """Read its part of the settings."""
        network, mask, marks, flags = cls.LAYOUT.unpack(octets)
        return cls(Prefix(network, int.from_bytes(mask).bit_count()), flags, marks)


@dataclass(frozen=True, slots=True)
class Settings:
    """The one entry of the settings map, key 0."""

    prefixes: tuple[SitePrefix, ...]
    """At most PREFIXES_MAX."""
    uplinks: tuple[int, ...]
    """Interface index of each uplink, number 1 first; at most UPLINKS_MAX."""
    flags: int = 0
    """Of SettingsFlag."""
    mark_shift: int = 24
    """Bits, at most 24."""
    split_ifindex: int = 0
    """Where GSO packets in mode exthdr are segmented; 0: they are for Python."""
    regroup_ifindex: int = 0
    """Where restored TCP packets in mode exthdr are aggregated; 0: they are not."""
    generation: int = 0
    """Another one with every change, of settings or flows: 32 bits."""
    after_octets: int = 0
    """Thresholds of the establishment policy; 0 never triggers."""
    after_packets: int = 0
    after_ns: int = 0
    ask_again_ns: int = 30_000_000_000
    """Between two events about one pair."""
    wake_ns: int = 0
    """After how much silence a flow's packet is told; 0: never."""
    overdue_ns: int = 0
    """TCP packets of a flow that nothing answers for so long are for Python; 0: never."""
    attended_until_ns: int = 0
    """Until then a daemon lives, which gives a few seconds again and again."""
    express_until_ns: int = 0
    """Until then packets may go past the gateway's IPv6 stack: nobody else would see them there."""

    LAYOUT = struct.Struct(f"={PREFIXES_MAX * SitePrefix.LAYOUT.size}s{_UPLINK_SLOTS}I6I8Q")

    def __post_init__(self) -> None:
        if len(self.prefixes) > PREFIXES_MAX or len(self.uplinks) > UPLINKS_MAX:
            raise ValueError(f"there is room for {PREFIXES_MAX} prefixes, {UPLINKS_MAX} uplinks")
        if not 0 <= self.mark_shift <= 24:
            raise ValueError("our 8 bits of the mark are at a shift of 0 to 24")

    def pack(self) -> bytes:
        """Return the map's value."""
        missing = _UPLINK_SLOTS - 1 - len(self.uplinks)
        return self.LAYOUT.pack(
            b"".join(each.pack() for each in self.prefixes),
            0,
            *self.uplinks,
            *([0] * missing),
            len(self.prefixes),
            self.flags,
            self.mark_shift,
            self.split_ifindex,
            self.regroup_ifindex,
            self.generation,
            self.after_octets,
            self.after_packets,
            self.after_ns,
            self.ask_again_ns,
            self.wake_ns,
            self.overdue_ns,
            self.attended_until_ns,
            self.express_until_ns,
        )

    @classmethod
    def unpack(cls, octets: bytes) -> Settings:
        """Read the map's value; uplinks that are not there have the interface index 0."""
        prefixes, _, *rest = cls.LAYOUT.unpack(octets)
        uplinks, (_, count, *others) = rest[:UPLINKS_MAX], rest[UPLINKS_MAX:]
        size = SitePrefix.LAYOUT.size
        of_site = (prefixes[at : at + size] for at in range(0, count * size, size))
        return cls(tuple(map(SitePrefix.unpack, of_site)), tuple(uplinks), *others)


def _addresses(octets: bytes, count: int) -> tuple[Address, ...]:
    return tuple(
        Address(octets[at : at + ADDRESS_OCTETS])
        for at in range(0, count * ADDRESS_OCTETS, ADDRESS_OCTETS)
    )

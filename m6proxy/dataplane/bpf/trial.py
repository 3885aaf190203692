"""What the kernel's programs would do with a packet, without their doing it.

A test run of the programs that are attached would change what they share with live traffic: it
would note activity in a context's slot (and so stop or start a timer of REAP), count a miss, settle
a pair for a moment, raise an event that Python acts upon, and count itself. No flag of the kernel's
forbids that. So a second instance of the same programs is loaded, with maps of its own that are
next to empty: the settings, and of the live maps those entries that this packet can ask for. What
that instance changes ends with it. The live maps are only read, key by key, which no packet notices
and no LRU order shows; attached is nothing. Loading takes the verifier a tenth of a second, so it
is done in a thread, while packets go on.

What a copy cannot show: that a pair was settled within the last 16 ms, and that a live program is
not attached, or is another one. Which way past the IPv6 stack a flow's packets take is nothing that
could be copied in time either (``recent.h``): where such ways are allowed the trial lets a first
packet leave by the gateway's own routing, and asks about the one behind it.
"""

from __future__ import annotations

import mmap
import os
import struct
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum
from typing import Final

from m6proxy.dataplane.bpf import layout
from m6proxy.dataplane.bpf.layout import (
    Activity,
    Counter,
    Event,
    EventKind,
    InFlow,
    Mode,
    OutFlow,
    PairFlow,
    Settings,
)
from m6proxy.dataplane.bpf.load import BpfObject, Loaded, load
from m6proxy.dataplane.bpf.maps import Map
from m6proxy.dataplane.bpf.programs import SkBuff, Trial
from m6proxy.dataplane.bpf.ring import RingReader
from m6proxy.names import TAG_MASK
from m6proxy.shim.forward import label_of
from m6proxy.wire.ipv6 import HEADER_OCTETS

_OUTBOUND: Final = ("lan_in", "uplink_out")
_INBOUND: Final = ("uplink_in", "regroup_in", "lan_out")
_FEW: Final = 16
"""Entries are fewer than that; the kernel's LRU needs some more to work with."""
_SIZES: Final = {
    **dict.fromkeys((layout.OUT, layout.TAG, layout.PAIR, layout.SENT, layout.ACTIVE), _FEW),
    layout.MISSES: 1024,
    layout.EVENTS: mmap.PAGESIZE,
}
_DROP, _REDIRECT = 2, 7
_ATTEMPTS: Final = 5
"""A way is good for 16 ms, which a busy machine may take between two runs."""
_OPTION_TAG_MASK: Final = 0xFFFFFFFF
_ETHERTYPE: Final = b"\x86\xdd"
_LINK_OCTETS: Final = 14
_NO_ADDRESS: Final = bytes(6)
_ZERO: Final = bytes(4)


class Fate(Enum):
    """What becomes of a packet in the kernel."""

    PAST = "past"
    """It goes past the queue, changed or not."""
    SENT = "sent"
    """It leaves by an uplink with its locators."""
    EXPRESS = "express"
    """It leaves at once, past the gateway's IPv6 stack."""
    PYTHON = "python"
    """It is left to the engine, and a counter says why."""
    DROPPED = "dropped"
    LEFT = "left"
    """The programs have nothing to do with it: the rules say."""


@dataclass(frozen=True, slots=True)
class KernelOutcome:
    """What the programs did in their trial."""

    fate: Fate
    packet: bytes
    counters: tuple[Counter, ...]
    """What was counted, in the order of the programs."""
    events: tuple[EventKind, ...]
    """What Python would have been told."""
    uplink: int = 0
    """The number that it was marked with."""
    flow: OutFlow | None = None
    """The entry by which it was sent."""
    aggregated: bool = False
    """Whether it went by the veth pair where TCP is put together."""
    express: bytes | None = None
    """What the packet behind it is when it goes past the IPv6 stack; None: it does not."""


@dataclass(frozen=True, slots=True)
class Interface:
    """Where a packet comes in."""

    index: int
    link_address: bytes | None
    """6 octets; None where frames have no header."""


class KernelTrial:
    """A packet and copies of the entries that it can ask for, all of one moment."""

    def __init__(
        self,
        source: BpfObject,
        maps: Mapping[str, Map],
        packet: bytes,
        interface: Interface,
        *,
        outbound: bool,
        lan_index: int = 0,
    ) -> None:
        """``packet`` has at least 40 octets; ``lan_index`` is a LAN interface's, where it leaves.

        Raises OSError when the maps cannot be read.
        """
        self._source = source
        self._packet = packet
        self._interface = interface
        self._outbound = outbound
        self._lan_index = lan_index
        self._maps = maps
        self._copies: list[tuple[str, bytes, bytes]] = []
        self._slots: dict[int, int] = {}
        settings = maps[layout.SETTINGS].lookup(_ZERO)
        assert settings is not None, "an array has all its entries"
        self._settings = Settings.unpack(settings)
        if interface.link_address is None:
            self._settings = replace(self._settings, split_ifindex=0, regroup_ifindex=0)
        self._copies.append((layout.SETTINGS, _ZERO, self._settings.pack()))
        self._flow: OutFlow | None = None
        if outbound:
            self._copy_outbound()
        else:
            self._copy_inbound()

    # --- reading the live maps -----------------------------------------------------------------

    def _copy_outbound(self) -> None:
        pair, label = self._packet[8:40], label_of(self._packet)
        self._copy_sent(pair, label)
        self._copy(layout.MISSES, pair)
        value = self._maps[layout.OUT].lookup(pair)
        if value is not None:
            self._flow = OutFlow.unpack(value)
            self._copy_sent(self._flow.locators, label)
            own = replace(self._flow, slot=self._slot(self._flow.slot))
            self._copies.append((layout.OUT, pair, own.pack()))

    def _copy_inbound(self) -> None:
        pair = self._packet[8:40]
        behind = int.from_bytes(self._packet[HEADER_OCTETS : HEADER_OCTETS + 8].ljust(8, b"\0"))
        for mode, tag in (
            (Mode.FLOWLABEL, label_of(self._packet)),
            (Mode.EXTHDR, behind & TAG_MASK),
            (Mode.DSTOPT, behind & _OPTION_TAG_MASK),
        ):
            key = layout.tag_key(mode, tag)
            value = self._maps[layout.TAG].lookup(key)
            if value is not None:
                found = InFlow.unpack(value)
                own = replace(found, slot=self._slot(found.slot))
                self._copies.append((layout.TAG, key, own.pack()))
        value = self._maps[layout.PAIR].lookup(pair)
        if value is not None:
            plain = PairFlow.unpack(value)
            known = replace(plain, slot=self._slot(plain.slot))
            self._copies.append((layout.PAIR, pair, known.pack()))
        self._copy(layout.MISSES, pair[16:] + pair[:16])

    def _copy_sent(self, addresses: bytes, label: int) -> None:
        for key in (layout.sent_key(addresses, label), layout.sent_key(addresses, None)):
            self._copy(layout.SENT, key)

    def _copy(self, name: str, key: bytes) -> None:
        value = self._maps[name].lookup(key)
        if value is not None:
            self._copies.append((name, key, value))

    def _slot(self, live: int) -> int:
        """The place of a slot's copy."""
        if live not in self._slots:
            number = self._slots[live] = len(self._slots)
            value = self._maps[layout.ACTIVE].lookup(struct.pack("=I", live))
            copied = value if value is not None else Activity().pack()
            self._copies.append((layout.ACTIVE, struct.pack("=I", number), copied))
        return self._slots[live]

    # --- running -------------------------------------------------------------------------------

    def run(self) -> KernelOutcome:
        """Load the programs and ask them; a tenth of a second, in any thread of the daemon's.

        Raises SetupError when the kernel takes no second instance, OSError when it does not try
        such a packet.
        """
        names = _OUTBOUND if self._outbound else _INBOUND
        programs = {name: self._source.programs[name] for name in names}
        loaded = load(replace(self._source, programs=programs), max_entries=_SIZES)
        try:
            for name, key, value in self._copies:
                loaded.maps[name].update(key, value)
            asked = _Asked(loaded, self._settings)
            outcome = self._ask(asked)
            if self._may_go_straight(outcome):
                return replace(outcome, express=self._ask_again(asked, outcome))
            return outcome
        finally:
            loaded.close()

    def _ask(self, asked: _Asked) -> KernelOutcome:
        return self._ask_outbound(asked) if self._outbound else self._ask_inbound(asked)

    def _ask_outbound(self, asked: _Asked) -> KernelOutcome:
        seen = self._first(asked, "lan_in")
        number = asked.number(seen.mark)
        if seen.verdict == _DROP or not 1 <= number <= layout.UPLINKS_MAX:
            return asked.outcome(seen, number)
        index = self._settings.uplinks[number - 1]
        sent = asked.run("uplink_out", seen.packet, SkBuff(mark=seen.mark, interface_index=index))
        if sent.verdict == _DROP or sent.packet[_LINK_OCTETS:] == self._packet:
            return asked.outcome(sent, asked.number(sent.mark))
        packet = sent.packet[_LINK_OCTETS:]
        return replace(
            asked.outcome(sent, number),
            fate=Fate.SENT,
            packet=packet,
            uplink=number,
            flow=self._flow,
        )

    def _ask_inbound(self, asked: _Asked) -> KernelOutcome:
        seen = self._first(asked, "uplink_in")
        number = asked.number(seen.mark)
        if seen.verdict == _DROP or not 1 <= number <= layout.UPLINKS_MAX:
            return asked.outcome(seen, number)
        index = self._settings.split_ifindex
        whole = asked.run("regroup_in", seen.packet, SkBuff(mark=seen.mark, interface_index=index))
        return replace(asked.outcome(whole, asked.number(whole.mark)), aggregated=True)

    # --- past the IPv6 stack ---------------------------------------------------------------------

    def _may_go_straight(self, outcome: KernelOutcome) -> bool:
        return (
            outcome.fate in (Fate.PAST, Fate.SENT)
            and self._interface.link_address is not None
            and time.monotonic_ns() < self._settings.express_until_ns
        )

    def _ask_again(self, asked: _Asked, first: KernelOutcome) -> bytes | None:
        """What becomes of the packet behind the first, whose way the programs saw."""
        cpus = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {min(cpus)})  # what is learned is each CPU's own
        try:
            for _ in range(_ATTEMPTS):
                self._let_leave(asked, first)
                again = self._ask(asked)
                if again.fate is Fate.EXPRESS:
                    return again.packet
        finally:
            os.sched_setaffinity(0, cpus)
        return None

    def _let_leave(self, asked: _Asked, first: KernelOutcome) -> None:
        """Show the first packet where it leaves: at its uplink before it is changed, or restored at
        the LAN."""
        number = first.uplink or layout.MARK_PAST
        packet, program, index = first.packet, "lan_out", self._lan_index
        if self._outbound:
            packet, program = self._packet, "uplink_out"
            index = self._settings.uplinks[(first.uplink or self._uplink_of(packet)) - 1]
        context = SkBuff(
            mark=layout.mark_of(number, self._settings.mark_shift),
            ingress_index=self._interface.index,
            interface_index=index,
        )
        asked.run(program, _NO_ADDRESS * 2 + _ETHERTYPE + packet, context)

    def _uplink_of(self, packet: bytes) -> int:
        """By which uplink a plain packet leaves: that of its source's prefix."""
        places = enumerate(self._settings.prefixes, start=1)
        return next((n for n, one in places if one.prefix.contains(packet[8:24])), 1)

    def _first(self, asked: _Asked, program: str) -> Trial:
        at = self._interface
        frame = (at.link_address or _NO_ADDRESS) + _NO_ADDRESS + _ETHERTYPE + self._packet
        return asked.run(program, frame, SkBuff(interface_index=at.index, ingress_index=at.index))


class _Asked:
    """The second instance, and what it counted and told so far."""

    def __init__(self, loaded: Loaded, settings: Settings) -> None:
        self._loaded = loaded
        self._settings = settings
        self._counted: dict[Counter, None] = {}

    def run(self, program: str, frame: bytes, context: SkBuff) -> Trial:
        seen = self._loaded.programs[program].trial(frame, context)
        count = self._loaded.maps[layout.COUNT]
        for counter in Counter:
            if any(map(any, count.lookup_per_cpu(struct.pack("=I", counter)))):
                self._counted.setdefault(counter)
        return seen

    def number(self, mark: int) -> int:
        """The low nibble of our bits in a mark, 0 when they are not ours."""
        bits = mark >> self._settings.mark_shift & 0xFF
        return bits & 0x0F if bits == layout.mark_of(bits & 0x0F, 0) else 0

    def outcome(self, seen: Trial, number: int) -> KernelOutcome:
        """What a mark, a verdict and the counters say."""
        counters = tuple(self._counted)
        if seen.verdict == _DROP:
            fate = Fate.DROPPED
        elif seen.verdict == _REDIRECT and Counter.EXPRESS in self._counted:
            fate = Fate.EXPRESS
        elif number == layout.MARK_PAST:
            fate = Fate.PAST
        else:
            fate = Fate.PYTHON if any(one.is_slow for one in counters) else Fate.LEFT
        return KernelOutcome(fate, seen.packet[_LINK_OCTETS:], counters, self._events())

    def _events(self) -> tuple[EventKind, ...]:
        reader = RingReader(self._loaded.maps[layout.EVENTS])
        try:
            return tuple(Event.unpack(record).kind for record in reader.read())
        finally:
            reader.close()

"""The data plane of which the kernel does the greater part: the maps, and NFQUEUE for the rest.

Python decides, the programs execute (docs/decisions/0020). Flows become entries at the end of a
turn of the loop, some thousand in each, so that 100,000 of them hold nobody up. Back comes, by a
ring buffer: a pair that deserves a context, a context with traffic after silence, a DNS answer;
and by memory that is read in place: the activity of each slot. Everything unusual comes by the
queues, to the same sinks as ever.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from dataclasses import replace
from itertools import islice
from typing import Final, Protocol

import structlog

from m6proxy.dataplane.bpf import layout
from m6proxy.dataplane.bpf.flowmaps import FlowMaps
from m6proxy.dataplane.bpf.layout import Counter, Event, EventKind, Miss, MissFlag, SettingsFlag
from m6proxy.dataplane.bpf.maps import Map
from m6proxy.dataplane.bpf.ring import RingReader
from m6proxy.dataplane.bpf.site import BpfSite
from m6proxy.dataplane.bpf.trial import KernelTrial
from m6proxy.dataplane.port import DataPlane, Sink
from m6proxy.names import UlidPair
from m6proxy.shim.adopt import LeftContext
from m6proxy.shim.effects import InstallFlow, RemoveFlow
from m6proxy.shim.policy import Traffic
from m6proxy.shim.slots import Activity

_log = structlog.get_logger(__name__)

WATCH_S: Final = 5.0
"""How long packets of a pair come by the queue, where policy looks at each of them."""
_LOST_LOOK_S: Final = 1.0
_NS: Final = 1_000_000_000
_SLOT_OCTETS: Final = layout.Activity.LAYOUT.size


ATTENDED_NS: Final = 750_000_000
"""For how long the programs take the daemon to be alive since they last heard of it; when it is
late they only keep nothing for it."""
_ATTEND_S: Final = 0.25
FLUSHED_AT_ONCE: Final = 16
"""Changes of flows that a packet waits for."""
FLUSHED_IN_A_TURN: Final = 2048
"""Changes of flows after which the loop has a look at everything else: some 10 to 20 ms of work."""


class Notices(Protocol):
    """What the kernel has to say."""

    def flow_awake(self, slot: int) -> None:
        """A context has traffic after silence."""

    def pair_ripe(self, pair: UlidPair, traffic: Traffic) -> None:
        """Traffic of a pair without a context crossed a threshold."""

    def names_heard(self, payload: bytes) -> None:
        """A DNS answer went by; untrusted."""

    def notices_lost(self) -> None:
        """There was no room for some of these: whatever has a slot may have traffic."""


class BpfDataPlane:
    """Maps and programs of one site, with another data plane for the slow path."""

    def __init__(self, slow: DataPlane, site: BpfSite) -> None:
        self._slow = slow
        self._site = site
        self._flows = FlowMaps(site.maps, site.numbers)
        self._settings = site.settings
        self._activity = site.maps[layout.ACTIVE].mapped()
        self._ring = RingReader(site.maps[layout.EVENTS])
        self._pending: dict[UlidPair, InstallFlow | None] = {}
        self._flush_due = False
        self._notices: Notices | None = None
        self._lost_seen = self._counter(Counter.EVENTS_LOST)
        self._timer: asyncio.TimerHandle | None = None
        self._failed = 0
        self._express_until_ns = 0
        self._attended_until_ns = 0
        self._attending: asyncio.TimerHandle | None = None
        self._is_open = False

    # --- as any data plane -------------------------------------------------------------------

    def open(self, *, outbound: Sink, inbound: Sink) -> None:
        """Start delivering, and let the programs see packets. Raises SetupError."""
        self._slow.open(outbound=outbound, inbound=inbound)
        loop = asyncio.get_running_loop()
        self._flush(everything=True)
        self._flows.disown()
        self._write_settings()
        self._site.attach()
        self._attend()
        self._timer = loop.call_later(_LOST_LOOK_S, self._look_for_losses)
        self._is_open = True

    def close(self) -> None:
        """Stop, and take programs and maps out of the kernel; safe to call twice."""
        if self._is_open:
            self._flush(everything=True)
            self._is_open = False
            asyncio.get_running_loop().remove_reader(self._ring.fileno())
            for timer in (self._timer, self._attending):
                if timer is not None:
                    timer.cancel()
            self._ring.close()
            self._activity.close()
        self._slow.close()
        self._site.remove()

    def send(self, packet: bytes) -> None:
        """Send one IPv6 packet of ours by the slow path, behind the changes that came before it.

        Many changes wait for the end of the turn all the same: one batch costs less.
        """
        if self._is_open and 0 < len(self._pending) <= FLUSHED_AT_ONCE:
            self._flush()
        self._slow.send(packet)

    def inherit(self) -> list[LeftContext]:
        """What a predecessor left; until ``open`` the engine may take it over by its flows."""
        return self._flows.inherit()

    def apply_flows(self, changes: Iterable[InstallFlow | RemoveFlow]) -> None:
        """Change the maps at the end of this turn of the loop and the next ones, or at the opening.

        What changed first comes first: what one flow gives up another may have afterwards.
        """
        changes = tuple(changes)
        for change in changes:
            self._pending.pop(change.ulids, None)
            self._pending[change.ulids] = change if isinstance(change, InstallFlow) else None
        self._flush_later()
        self._slow.apply_flows(changes)

    def losses(self) -> dict[str, int]:
        """The slow path's, packets that the programs dropped, and flows without room."""
        counters = self.counters()
        dropped = {f"bpf_{c.name.lower()}": counters[c] for c in Counter if c.is_drop}
        return {
            **self._slow.losses(),
            **dropped,
            "bpf_events_lost": counters[Counter.EVENTS_LOST],
            "bpf_flows_without_room": self._flows.overflowed,
            "bpf_failed_changes": self._failed,
        }

    # --- what only this one has ----------------------------------------------------------------

    @property
    def flows(self) -> int:
        """How many contexts the kernel moves."""
        return len(self._flows)

    def listen(self, notices: Notices) -> None:
        """Say who hears, from now on, what the kernel says; until then it waits in the ring."""
        self._notices = notices
        asyncio.get_running_loop().add_reader(self._ring.fileno(), self._read_events)

    def read_activity(self, slot: int) -> Activity:
        """What the kernel saw of a slot."""
        numbers = layout.Activity.LAYOUT.unpack_from(self._activity, slot * _SLOT_OCTETS)
        return Activity(*(number / _NS for number in numbers[:4]), *numbers[4:])

    def note_uplinks(self, down: frozenset[str]) -> None:
        """Packets from a prefix whose uplink is down, and without a context, are for Python."""
        self._settings = self._site.settings_with(down)
        self._write_settings()

    def note_express(self, until_ns: int) -> None:
        """Let packets go past the gateway's IPv6 stack until this moment of the monotonic clock.

        0: not at all, as at first. Whoever says more says it again in time: when we die, packets
        take the ordinary way soon, where rules that come meanwhile are heeded.
        """
        self._express_until_ns = until_ns
        self._write_settings()

    def reattach(self) -> list[str]:
        """Attach the programs where an interface is new; a line for each."""
        lines = self._site.attach() if self._is_open else []
        if lines:
            self._write_settings()
        return lines

    def trial(self, interface: str, packet: bytes, *, outbound: bool) -> KernelTrial:
        """Prepare to ask the programs about a packet, as things stand now. Raises OSError."""
        if self._flush_due:
            self._flush_in_turn()
        return self._site.trial(interface, packet, outbound=outbound)

    def uplink_name(self, number: int) -> str | None:
        """The uplink that has this number in the kernel."""
        return next((name for name, one in self._site.numbers.items() if one == number), None)

    def counters(self) -> dict[Counter, int]:
        """Packets by what the programs did."""
        return {counter: self._counter(counter) for counter in Counter}

    def _counter(self, counter: Counter) -> int:
        values = self._map(layout.COUNT).lookup_per_cpu(counter.to_bytes(4, "little"))
        return sum(int.from_bytes(value, "little") for value in values)

    def _map(self, name: str) -> Map:
        return self._site.maps[name]

    # --- flows --------------------------------------------------------------------------------

    def _flush_later(self) -> None:
        if self._is_open and self._pending and not self._flush_due:
            self._flush_due = True
            asyncio.get_running_loop().call_soon(self._flush_in_turn)

    def _flush_in_turn(self) -> None:
        self._flush_due = False
        if self._is_open and self._pending:
            self._flush()
            self._flush_later()

    def _flush(self, *, everything: bool = False) -> None:
        pending = self._pending
        if everything or len(pending) <= FLUSHED_IN_A_TURN:
            self._pending = {}
        else:
            first = tuple(islice(pending, FLUSHED_IN_A_TURN))
            pending = {pair: pending.pop(pair) for pair in first}
        try:
            self._flows.apply(pending)
            self._write_settings(flows_changed=bool(pending))
        except OSError as refused:
            self._failed += 1
            _log.error("the kernel refused a change of flows", why=refused.strerror)

    def _write_settings(self, *, flows_changed: bool = False) -> None:
        """The flags that depend on what is installed."""
        flags = self._settings.flags
        if self._flows.is_full:
            flags |= SettingsFlag.SLOW_MISSES
        if self._flows.labels:
            flags |= SettingsFlag.LABELS
        if self._flows.sent_labels:
            flags |= SettingsFlag.SENT_LABELS
        settings = replace(
            self._settings,
            flags=flags,
            attended_until_ns=self._attended_until_ns,
            express_until_ns=self._express_until_ns,
        )
        self._site.write_settings(settings, flows_changed=flows_changed)

    # --- events -------------------------------------------------------------------------------

    def _read_events(self) -> None:
        for record in self._ring.read():
            event = Event.unpack(record)
            if self._notices is None:
                continue
            if event.kind is EventKind.AWAKE:
                self._notices.flow_awake(event.slot)
            elif event.kind is EventKind.DNS:
                self._notices.names_heard(event.payload)
            else:
                self._ripe(event, self._notices)

    def _ripe(self, event: Event, notices: Notices) -> None:
        octets = self._map(layout.MISSES).lookup(event.ulids)
        miss = Miss.unpack(octets) if octets is not None else Miss()
        if self._site.sorts_flows:
            self._watch(event.ulids, miss)
            return
        pair = UlidPair(event.ulids[:16], event.ulids[16:])
        traffic = Traffic(
            miss.packets,
            miss.octets,
            miss.first_ns / _NS,
            bool(miss.flags & MissFlag.OUTBOUND),
            bool(miss.flags & MissFlag.ANSWERED),
            bool(event.why & layout.Ripe.SILENT),
        )
        notices.pair_ripe(pair, traffic)

    def _watch(self, key: bytes, miss: Miss) -> None:
        """Policy has selectors that look at protocols: let the engine see this pair's packets."""
        slow = replace(miss, flags=miss.flags | MissFlag.SLOW)
        self._map(layout.MISSES).update(key, slow.pack())
        asyncio.get_running_loop().call_later(WATCH_S, self._unwatch, key)

    def _unwatch(self, key: bytes) -> None:
        if not self._is_open or self._flows.is_slow(UlidPair(key[:16], key[16:])):
            return
        octets = self._map(layout.MISSES).lookup(key)
        if octets is not None:
            miss = Miss.unpack(octets)
            quiet_ns = time.monotonic_ns() + self._settings.ask_again_ns
            fast = replace(miss, flags=miss.flags & ~MissFlag.SLOW, quiet_until_ns=quiet_ns)
            self._map(layout.MISSES).update(key, fast.pack())

    def _attend(self) -> None:
        """Let the programs know that what is watched and overdue finds us alive."""
        self._attended_until_ns = time.monotonic_ns() + ATTENDED_NS
        self._write_settings()
        self._attending = asyncio.get_running_loop().call_later(_ATTEND_S, self._attend)

    def _look_for_losses(self) -> None:
        lost = self._counter(Counter.EVENTS_LOST)
        if lost != self._lost_seen and self._notices is not None:
            self._lost_seen = lost
            self._notices.notices_lost()
        self._timer = asyncio.get_running_loop().call_later(_LOST_LOOK_S, self._look_for_losses)

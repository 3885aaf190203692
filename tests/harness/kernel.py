"""A data plane in the kernel, made of Python: it executes flows by ``forward`` and counts.

What it does not know, or must not decide, it leaves to the engine, as the programs do.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from m6proxy.errors import MalformedMessage
from m6proxy.shim import forward
from m6proxy.shim.activity import OVERDUE_S, QUIET_S
from m6proxy.shim.demux import DemuxMode
from m6proxy.shim.effects import InstallFlow, KernelEntry, RemoveFlow
from m6proxy.shim.slots import Activity
from m6proxy.wire.dstopt import find_tag_option, option_tag, option_tail
from m6proxy.wire.ipv6 import NEXT_TCP, Walk, find_shim
from m6proxy.wire.payload import is_payload, payload_header

SLOW: Final = object()
"""The packet is for the engine."""


@dataclass
class Slot:
    """What one slot counts."""

    last_out_s: float = 0.0
    last_in_s: float = 0.0
    out_since_s: float = 0.0
    in_since_s: float = 0.0
    numbers: list[int] = field(default_factory=lambda: [0, 0, 0, 0])

    def count(self, octets: int, now: float, *, inbound: bool) -> bool:
        """Count one packet; whether it is the first after silence."""
        woke = now - max(self.last_out_s, self.last_in_s) > QUIET_S
        if inbound:
            self.last_in_s, self.in_since_s = now, self.in_since_s or now
            self.out_since_s = 0.0
        else:
            self.last_out_s, self.out_since_s = now, self.out_since_s or now
            self.in_since_s = 0.0
        self.numbers[2 * inbound] += 1
        self.numbers[2 * inbound + 1] += octets
        return woke


class FakeKernel:
    """The maps and programs of one gateway."""

    def __init__(self) -> None:
        self.flows: dict[bytes, InstallFlow] = {}
        """By local and peer ULID, 32 octets."""
        self.slots: dict[int, Slot] = {}
        self.woken: list[int] = []
        """Slots with a packet after silence, until somebody takes them."""
        self.moved = 0
        """Packets that no engine saw."""

    def read(self, slot: int) -> Activity:
        """The activity of a slot."""
        one = self.slots.setdefault(slot, Slot())
        times = (one.last_out_s, one.last_in_s, one.out_since_s, one.in_since_s)
        return Activity(*times, *one.numbers)

    def apply(self, change: InstallFlow | RemoveFlow) -> None:
        """Change the maps."""
        key = change.ulids.local + change.ulids.peer
        if isinstance(change, InstallFlow):
            self.flows[key] = change
        else:
            self.flows.pop(key, None)

    def outbound(self, packet: bytes, now: float) -> bytes | object:
        """What leaves, or SLOW."""
        flow = self.flows.get(packet[8:40])
        if flow is None or flow.kernel is None or flow.kernel.slow or flow.kernel.watched:
            return SLOW
        entry = flow.kernel
        since_s = self.slots.setdefault(entry.slot, Slot()).out_since_s
        if packet[6] == NEXT_TCP and since_s and now - since_s >= OVERDUE_S:
            return SLOW
        sent = packet
        if entry.addresses != packet[8:40]:
            try:
                sent = _rewritten(packet, flow, entry)
            except MalformedMessage:
                return SLOW
            if len(sent) > entry.mtu:
                return SLOW
        self._count(entry.slot, len(packet), now, inbound=False)
        return sent

    def inbound(self, packet: bytes, now: float) -> bytes | object:
        """What goes on to the host, or SLOW."""
        for key, flow in self.flows.items():
            entry = flow.kernel
            if entry is None or entry.slow:
                continue
            restored = _restored(packet, key[16:] + key[:16], entry)
            if restored is not None:
                self._count(entry.slot, len(packet), now, inbound=True)
                return restored
        return SLOW

    def _count(self, slot: int, octets: int, now: float, *, inbound: bool) -> None:
        self.moved += 1
        if self.slots.setdefault(slot, Slot()).count(octets, now, inbound=inbound):
            self.woken.append(slot)


def _rewritten(packet: bytes, flow: InstallFlow, entry: KernelEntry) -> bytes:
    addresses = entry.addresses
    if entry.mode is DemuxMode.IDENTIFIER:
        return forward.readdress(packet, addresses)
    if entry.mode is DemuxMode.FLOWLABEL:
        return forward.relabel(packet, addresses, entry.label)
    kind = forward.OPTION if entry.mode is DemuxMode.DSTOPT else forward.SHIM
    tagged = entry.mode is DemuxMode.DSTOPT
    tail = option_tail(flow.peer_tag) if tagged else payload_header(0, flow.peer_tag)[1:]
    return forward.rewrite(packet, addresses, tail, kind)


def _restored(packet: bytes, ulids: bytes, entry: KernelEntry) -> bytes | None:
    if packet[8:40] == ulids and packet[6] not in (*forward.CHAINED, 140, 58):
        return packet
    if packet[8:40] in entry.untagged and not forward.has_shim(packet):
        return forward.readdress(packet, ulids)
    if packet[8:24] not in entry.peer_locators or packet[24:40] not in entry.local_locators:
        return None
    tags = dict(entry.tags)
    found = _tagged(packet)
    if found is not None:
        mode, tag, place = found
        return forward.restore(packet, place, ulids) if tags.get(mode) == tag else None
    label = tags.get(DemuxMode.FLOWLABEL)
    if label and forward.label_of(packet) == label and packet[8:40] != ulids and packet[6] != 140:
        return forward.unlabel(packet, ulids)
    return None


def _tagged(packet: bytes) -> tuple[DemuxMode, int, Walk] | None:
    try:
        place = find_tag_option(packet)
        if place is not None:
            return DemuxMode.DSTOPT, option_tag(packet, place.offset), place
        place = find_shim(packet)
    except MalformedMessage:
        return None
    if place is None or not is_payload(packet, place.offset):
        return None
    tag = int.from_bytes(packet[place.offset + 2 : place.offset + 8]) & (1 << 47) - 1
    return DemuxMode.EXTHDR, tag, place

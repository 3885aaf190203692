"""The programs with the maps of one site, asked about single packets by trial runs.

The interface of the trials is loopback, so both uplinks of the site have its index.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import replace
from enum import Enum
from typing import Any, Final, Literal, TypeAlias

from m6proxy.dataplane.bpf import layout
from m6proxy.dataplane.bpf.entries import entries
from m6proxy.dataplane.bpf.layout import (
    Mode,
    PairFlow,
    PrefixFlag,
    Settings,
    SettingsFlag,
    SitePrefix,
)
from m6proxy.dataplane.bpf.load import Loaded, load, read_object
from m6proxy.dataplane.bpf.programs import SkBuff, Trial
from m6proxy.shim.effects import Effect, InstallFlow
from m6proxy.steering.settings import MARK_SHOWN
from m6proxy.wire.ipv6 import HEADER_OCTETS
from tests.harness.pair import Site

ETHERNET: Final = bytes(12) + b"\x86\xdd"
LOOPBACK_INDEX: Final = 1
PASS: Final = -1
DROP: Final = 2
REDIRECT: Final = 7
SHIFT: Final = 24
_ZERO: Final = bytes(4)
_COPIED: Final = (layout.OUT, layout.TAG, layout.PAIR, layout.SENT, layout.MISSES)


class _Left(Enum):
    SLOW = "slow"
    DROPPED = "dropped"


SLOW: Final = _Left.SLOW
"""The packet goes on without our mark: by the rules to Python, or past it, as ever."""
DROPPED: Final = _Left.DROPPED
Outcome: TypeAlias = bytes | Literal[_Left.SLOW, _Left.DROPPED]


@functools.cache
def programs() -> Loaded:
    """The package's object in the kernel, once for the whole run."""
    return load(read_object())


class KernelSite:
    """The programs of a site whose contexts are those of an engine.

    ``bare``: the pairs of addresses (32 octets) by which packets without a tag find the only
    context; then the second prefix has locator-only addresses.
    """

    def __init__(self, site: Site, bare: Iterable[bytes] = ()) -> None:
        self.bare = tuple(bare)
        self.loaded = programs()
        clear(self.loaded)
        first, second = (uplink.prefix for uplink in site.settings.uplinks)
        prefixes = SitePrefix(first), SitePrefix(second, PrefixFlag.NOBODYS if self.bare else 0)
        self.settings = Settings(
            prefixes,
            (LOOPBACK_INDEX, LOOPBACK_INDEX),
            SettingsFlag.LABELS | SettingsFlag.SENT_LABELS,
            SHIFT,
            attended_until_ns=1 << 62,
        )
        self.configure()
        self.uplinks = {uplink.name: n for n, uplink in enumerate(site.settings.uplinks, start=1)}
        assert site.kernel is not None
        for flow in site.kernel.flows.values():
            write_flow(self.loaded, flow, self.uplinks, self.bare)

    def configure(self, **changes: Any) -> None:
        """Write the settings, some of them changed."""
        self.settings = replace(self.settings, **changes)
        self.loaded.maps[layout.SETTINGS].update(_ZERO, self.settings.pack())

    def heed(self, effects: Iterable[Effect]) -> None:
        """Let the maps follow what the engine learned from a packet."""
        for effect in effects:
            if isinstance(effect, InstallFlow):
                write_flow(self.loaded, effect, self.uplinks, self.bare)

    def outbound(self, packet: bytes, *, gso_size: int = 0) -> Outcome:
        """What becomes of a packet from the LAN."""
        if len(packet) < HEADER_OCTETS:
            return SLOW  # no trial takes it; tests/netns sends such packets
        buffer = SkBuff(gso_size=gso_size, gso_segments=2 if gso_size else 0)
        seen = self.trial("lan_in", packet, buffer)
        assert (seen.verdict, seen.packet) == (PASS, ETHERNET + packet)
        if seen.mark == 0 or seen.mark >> SHIFT & 0xF0 == MARK_SHOWN:
            return SLOW
        if seen.mark == layout.mark_of(layout.MARK_PAST, SHIFT):
            return packet
        sent = self.trial("uplink_out", packet, replace(buffer, mark=seen.mark))
        if sent.verdict == DROP:
            return DROPPED
        assert (sent.verdict, sent.mark) == (PASS, 0)
        return sent.packet[len(ETHERNET) :]

    def inbound(self, packet: bytes) -> Outcome:
        """What becomes of a packet from an uplink."""
        if len(packet) < HEADER_OCTETS:
            return SLOW
        seen = self.trial("uplink_in", packet, SkBuff())
        if seen.verdict == DROP:
            return DROPPED
        assert seen.verdict == PASS
        if seen.mark == 0:
            assert seen.packet == ETHERNET + packet
            return SLOW
        assert seen.mark == layout.mark_of(layout.MARK_PAST, SHIFT)
        return seen.packet[len(ETHERNET) :]

    def trial(self, program: str, packet: bytes, buffer: SkBuff) -> Trial:
        """Run one program on one packet."""
        return self.loaded.programs[program].trial(ETHERNET + packet, buffer)

    def count(self, counter: layout.Counter) -> int:
        """How often something happened."""
        values = self.loaded.maps[layout.COUNT].lookup_per_cpu(int(counter).to_bytes(4, "little"))
        return sum(int.from_bytes(value, "little") for value in values)


def write_flow(
    loaded: Loaded, flow: InstallFlow, uplinks: dict[str, int], bare: Iterable[bytes]
) -> None:
    """Write what the kernel has to know of a context into the maps."""
    assert flow.kernel is not None
    for place, value in entries(flow, uplinks).items():
        loaded.maps[place.map].update(place.key, value)
    ulids = flow.ulids.peer + flow.ulids.local
    for addresses in bare:
        untagged = PairFlow(ulids, flow.kernel.slot, Mode.IDENTIFIER)
        loaded.maps[layout.PAIR].update(addresses, untagged.pack())


def clear(loaded: Loaded) -> None:
    """Empty the maps of the site before."""
    for name in _COPIED:
        each = loaded.maps[name]
        each.delete_batch([key for key, _ in each.items()])
    recent = loaded.maps[layout.RECENT]
    empty = bytes(recent.value_room)
    for index in range(recent.spec.max_entries):
        recent.update(index.to_bytes(4, "little"), empty)

"""One site's half in the kernel: which interfaces, which settings, and its installation."""

from __future__ import annotations

import fcntl
import socket
import struct
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, TypeVar

import structlog

from m6proxy.dataplane.bpf import auxiliary, layout
from m6proxy.dataplane.bpf.auxiliary import Auxiliary
from m6proxy.dataplane.bpf.layout import PrefixFlag, Settings, SettingsFlag, SitePrefix
from m6proxy.dataplane.bpf.links import Side
from m6proxy.dataplane.bpf.load import BpfObject, read_object
from m6proxy.dataplane.bpf.maps import Map
from m6proxy.dataplane.bpf.migrations import MIGRATIONS
from m6proxy.dataplane.bpf.takeover import Installation, install
from m6proxy.dataplane.bpf.trial import Interface, KernelTrial
from m6proxy.errors import SetupError
from m6proxy.names import Address, Prefix
from m6proxy.shim.activity import OVERDUE_S, QUIET_S
from m6proxy.shim.policy import EstablishPolicy

_log = structlog.get_logger(__name__)

_T = TypeVar("_T")
_NS: Final = 1_000_000_000
_SIOCGIFHWADDR: Final = 0x8927
_ARPHRD_ETHER: Final = 1
_MODES_MAX: Final = 3
"""A context is found by its tag, and perhaps a label and an option besides."""


@dataclass(frozen=True, slots=True)
class BpfUplink:
    """One provider attachment."""

    name: str
    interface: str
    prefix: Prefix
    marks: Address | None = layout.NO_MARKS
    """The bits of which a locator-only address in the prefix has one; None: all are such."""


@dataclass(frozen=True, slots=True)
class BpfSettings:
    """What the operator decided, as far as the kernel has to know."""

    lan: tuple[str, ...]
    uplinks: tuple[BpfUplink, ...]
    """Number 1 first."""
    establish: EstablishPolicy
    mark_shift: int
    max_contexts: int


class BpfSite:
    """The installation of a site; ``attach`` lets it see packets. Raises SetupError."""

    def __init__(self, wanted: BpfSettings, folder: Path, source: BpfObject | None = None) -> None:
        self._wanted = wanted
        self.source = source or read_object()
        """What the programs are made from."""
        self._installation: Installation = install(
            self.source,
            folder,
            programs=self._needed(),
            max_entries=sizes(wanted.max_contexts),
            migrations=MIGRATIONS,
        )
        self.maps: Mapping[str, Map] = self._installation.maps
        self.numbers = {one.name: number for number, one in enumerate(wanted.uplinks, start=1)}
        self.settings = self._settings()
        self._attached: dict[tuple[str, Side], int] = {}
        self._written: Settings | None = None
        self._generation = 0
        self._auxiliary: Auxiliary | None = None
        self._why_alone = ""
        """Why there is no auxiliary pair."""

    @property
    def heritage(self) -> str:
        """Which maps of a predecessor had to be copied, for people; "" if none."""
        return str(self._installation.heritage)

    @property
    def sorts_flows(self) -> bool:
        """Whether policy looks at the protocol and ports of a pair's packets."""
        policy = self._wanted.establish
        return any(one.protocol is not None for one in (*policy.always, *policy.never))

    @property
    def is_lasting(self) -> bool:
        """Whether maps and programs outlive this process."""
        return self._installation.is_lasting

    def attach(self) -> list[str]:
        """Put the programs where they are not yet; say in a line each which interface is new."""
        return _apart(self._attach)

    def _attach(self) -> list[str]:
        lines = []
        if self._pair() is None:
            lines += self._attach_auxiliary()
        for name, side, program in self._places():
            index = _index(name)
            if index and self._attached.get((name, side)) != index:
                if _variant(program, name) not in self.source.programs:
                    continue  # it would have nothing to do there
                self._installation.attach(_variant(program, name), index, side)
                self._attached[name, side] = index
                lines.append(f"{name} ({side.value})")
        if lines:
            self._installation.settle()
        return lines

    def behind(self) -> list[str]:
        """Say in a line each at which ingress others stand behind our programs. Raises OSError."""
        lines = []
        for (name, side), index in tuple(self._attached.items()):
            if side is Side.INGRESS and _index(name) == index:
                count = self._installation.behind(index, side)
                words = "1 program or filter" if count == 1 else f"{count} programs or filters"
                lines += [f"tc: {words} at the ingress of {name}"] if count else []
        return lines

    def _attach_auxiliary(self) -> list[str]:
        """Without the pair large packets in mode exthdr go through Python, and all else is well."""
        gone = self._auxiliary
        if gone is not None:
            self._installation.detach(gone.split, Side.INGRESS)
            self._installation.detach(gone.regroup, Side.INGRESS)
        try:
            pair = auxiliary.ensure()
            self._installation.attach("regroup_in", pair.split, Side.INGRESS)
            self._installation.attach("split_in", pair.regroup, Side.INGRESS)
        except SetupError as refused:
            if str(refused) != self._why_alone:
                self._why_alone = str(refused)
                _log.warning("large packets in mode exthdr go through Python", why=str(refused))
            return []
        self._auxiliary = pair
        return [" and ".join(auxiliary.NAMES)]

    def _pair(self) -> Auxiliary | None:
        """The auxiliary pair, unless there is none, or somebody took it away."""
        pair = self._auxiliary
        return pair if pair is not None and _index(auxiliary.NAMES[0]) == pair.split else None

    def settings_with(self, down: frozenset[str]) -> Settings:
        """The settings while these uplinks are down: who sends from there needs Python."""
        prefixes = tuple(
            _site_prefix(one, PrefixFlag.SLOW if one.name in down else 0)
            for one in self._wanted.uplinks
        )
        return replace(self.settings, prefixes=prefixes)

    def write_settings(self, settings: Settings, *, flows_changed: bool = False) -> None:
        """Let the programs know, if it is news; and with other flows forget what they learned."""
        flags = settings.flags | self._bare_uplinks()
        settings = replace(settings, uplinks=self._indexes(), flags=flags)
        if (pair := self._pair()) is not None:
            split, regroup = pair.split, pair.regroup
            settings = replace(settings, split_ifindex=split, regroup_ifindex=regroup)
        before = self._written
        if flows_changed or before is None or _lasting(settings) != _lasting(before):
            self._generation = (self._generation + 1) % (1 << 32)
        elif settings == before:
            return
        written = replace(settings, generation=self._generation)
        self.maps[layout.SETTINGS].update(bytes(4), written.pack())
        self._written = settings

    def trial(self, interface: str, packet: bytes, *, outbound: bool) -> KernelTrial:
        """Prepare to ask the programs about a packet that comes in by an interface.

        Raises OSError when the interface is not there, or the maps cannot be read.
        """
        at = Interface(socket.if_nametoindex(interface), _link_address(interface))
        lan_index = next(filter(None, map(_index, self._wanted.lan)), 0)
        return KernelTrial(
            self.source, self.maps, packet, at, outbound=outbound, lan_index=lan_index
        )

    def release(self) -> None:
        """Leave everything to a successor."""
        self._installation.release()

    def remove(self) -> None:
        """Take everything out of the kernel; safe to call twice."""
        _apart(self._installation.remove)
        if self._auxiliary is not None:
            _apart(auxiliary.remove)
            self._auxiliary = None

    def _needed(self) -> set[str]:
        """The programs of the interfaces that are there, and of Ethernet for those that are not."""
        wanted = {_variant(program, name) for name, _, program in self._places()}
        return (wanted | {"split_in", "regroup_in"}) & set(self.source.programs)

    def _places(self) -> list[tuple[str, Side, str]]:
        uplinks = dict.fromkeys(one.interface for one in self._wanted.uplinks)
        return [
            *((name, Side.EGRESS, "uplink_out") for name in uplinks),
            *((name, Side.INGRESS, "uplink_in") for name in uplinks),
            *((name, Side.INGRESS, "lan_in") for name in self._wanted.lan),
            *((name, Side.EGRESS, "lan_out") for name in self._wanted.lan),
        ]

    def _bare_uplinks(self) -> int:
        """The flags of the uplinks without a link-layer header."""
        return sum(
            SettingsFlag.BARE_UPLINK << number
            for number, one in enumerate(self._wanted.uplinks, start=1)
            if _is_bare(one.interface)
        )

    def _indexes(self) -> tuple[int, ...]:
        return tuple(_index(one.interface) for one in self._wanted.uplinks)

    def _settings(self) -> Settings:
        policy = self._wanted.establish
        return Settings(
            tuple(map(_site_prefix, self._wanted.uplinks)),
            self._indexes(),
            SettingsFlag.SLOW_MISSES if policy.always else 0,
            self._wanted.mark_shift,
            after_octets=policy.after_octets or 0,
            after_packets=policy.after_packets or 0,
            after_ns=int((policy.after_s or 0) * _NS),
            wake_ns=int(QUIET_S * _NS),
            overdue_ns=int(OVERDUE_S * _NS),
        )


def _lasting(settings: Settings) -> Settings:
    """Those of which the programs remember something."""
    return replace(settings, attended_until_ns=0, express_until_ns=0)


def _apart(act: Callable[[], _T]) -> _T:
    """Do it in a thread of its own and wait: pyroute2 cannot work beside a running event loop."""
    with ThreadPoolExecutor(max_workers=1) as alone:
        return alone.submit(act).result()


def _site_prefix(uplink: BpfUplink, flags: int = 0) -> SitePrefix:
    if uplink.marks is None:
        return SitePrefix(uplink.prefix, flags | PrefixFlag.NOBODYS)
    return SitePrefix(uplink.prefix, flags, uplink.marks)


def sizes(contexts: int) -> dict[str, int]:
    """Entries of each map, by name, for so many contexts."""
    return {
        layout.OUT: contexts,
        layout.PAIR: contexts,
        layout.SENT: contexts,
        layout.ACTIVE: contexts,
        layout.TAG: contexts * _MODES_MAX,
    }


def _variant(program: str, interface: str) -> str:
    """The program that reads packets as the interface has them."""
    return f"{program}_l3" if _is_bare(interface) else program


def _is_bare(interface: str) -> bool:
    """Whether the interface is there, and its frames have no Ethernet header."""
    try:
        return _link_address(interface) is None
    except OSError:
        return False


def _index(interface: str) -> int:
    """The interface's index, or 0 when it is not there."""
    try:
        return socket.if_nametoindex(interface)
    except OSError:
        return 0


def _link_address(interface: str) -> bytes | None:
    """The interface's address where frames have an Ethernet header; PPP and tunnels have none."""
    request = struct.pack("=16sH14x", interface.encode(), 0)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        answer = fcntl.ioctl(asking, _SIOCGIFHWADDR, request)
    kind, octets = struct.unpack_from("=H6s", answer, 16)
    return octets if kind == _ARPHRD_ETHER else None

"""The state of the uplinks, from the kernel's own announcements (rtnetlink).

An uplink is up when its interface exists, is switched on, has a carrier, and its routes
are in their table. The kernel deletes our routes when a link is switched off; they are put
back when it returns, and the uplink is called up only then.

One socket carries the announcements and the answers to our dumps. When the kernel says
that it lost announcements (ENOBUFS), everything is read again.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog

from m6proxy import netlink
from m6proxy.errors import SetupError
from m6proxy.steering.settings import SteeringSettings, UplinkSettings

_log = structlog.get_logger(__name__)

OnChange = Callable[[str, bool, str, int], None]
"""Called with the uplink's name, whether it is up, why, and its MTU in octets (0: unknown)."""

# linux/rtnetlink.h, linux/if.h
_RTM_NEWLINK, _RTM_DELLINK, _RTM_GETLINK = 16, 17, 18
_GROUPS: Final = (1, 9, 11, 12, 19)
"""RTNLGRP: links, IPv6 addresses, IPv6 routes, IPv6 interface data (its MTU), IPv6 rules."""
_IFLA_IFNAME, _IFLA_MTU = 3, 4
_IFF_UP, _IFF_LOWER_UP = 0x1, 0x10000
CARRIES: Final = _IFF_UP | _IFF_LOWER_UP
"""Flags of a link that takes packets now; its operational state follows up to a second later."""

_IFINFOMSG = struct.Struct("=BxHiII")

_READ_OCTETS = 65_536
_READS_PER_TURN = 64
_START_TIMEOUT_S = 5.0
_REPAIR_PAUSE_S = 0.25
_RETRY_S = 1.0


@dataclass(frozen=True, slots=True)
class UplinkState:
    """What is known of one uplink now."""

    name: str
    up: bool
    why: str
    """One line for people."""
    mtu_octets: int
    """What a packet may have at most; 0 while the interface does not exist."""


@dataclass(frozen=True, slots=True)
class _Link:
    name: str
    flags: int
    mtu_octets: int


class UplinkWatch:
    """Follows the uplinks of a site in the network namespace of the thread that starts it.

    ``repair`` puts rules and routes back and says which uplink stays without its route
    and why (``SourceRouting.repair``); it blocks and is run in a thread. ``on_change`` is
    called in the loop, once per uplink at the start and then at each change.
    """

    def __init__(
        self,
        settings: SteeringSettings,
        on_change: OnChange,
        *,
        repair: Callable[[], dict[str, str]] | None = None,
    ) -> None:
        self._settings = settings
        self._on_change = on_change
        self._repair = repair
        self._links: dict[int, _Link] = {}
        self._seen_in_dump: set[int] | None = None
        self._no_route: dict[str, str] = {}
        self._states: dict[str, UplinkState] = {}
        self._socket: socket.socket | None = None
        self._complete = asyncio.Event()
        self._repair_due = asyncio.Event()
        self._repairer: asyncio.Task[None] | None = None
        self._sequence = 0
        self._resyncs = 0

    async def start(self) -> None:
        """Read the initial state, report it and go on watching.

        Raises SetupError when the kernel does not answer.
        """
        try:
            self._socket = netlink.subscribe(netlink.ROUTE, _GROUPS)
        except OSError as refused:
            raise SetupError(f"cannot watch the uplinks: {refused}") from None
        asyncio.get_running_loop().add_reader(self._socket, self._readable)
        self._ask_dump()
        try:
            await asyncio.wait_for(self._complete.wait(), _START_TIMEOUT_S)
        except TimeoutError:
            self.close()
            raise SetupError("cannot watch the uplinks: the kernel does not answer") from None
        if self._repair is not None:
            self._no_route = await self._run_repair(self._repair)
            self._repairer = asyncio.get_running_loop().create_task(
                self._keep_repaired(self._repair)
            )
        self._settle()

    def close(self) -> None:
        """Stop watching; safe to call twice."""
        if self._repairer is not None:
            self._repairer.cancel()
            self._repairer = None
        if self._socket is not None:
            asyncio.get_running_loop().remove_reader(self._socket)
            self._socket.close()
            self._socket = None

    def states(self) -> tuple[UplinkState, ...]:
        """Return the state of each uplink, in the order of the settings."""
        return tuple(
            self._states.get(u.name) or UplinkState(u.name, False, "not read yet", 0)
            for u in self._settings.uplinks
        )

    def losses(self) -> dict[str, int]:
        """How often announcements were lost and everything was read again."""
        return {"uplink_resyncs": self._resyncs}

    # What the kernel says

    def _ask_dump(self) -> None:
        if self._socket is None:
            return
        self._sequence += 1
        self._seen_in_dump = set()
        body = _IFINFOMSG.pack(0, 0, 0, 0, 0)
        question = netlink.message(_RTM_GETLINK, body, dump=True, sequence=self._sequence)
        try:
            self._socket.send(question)
        except OSError as refused:
            _log.warning("cannot ask the kernel for its links", why=str(refused))

    def _readable(self) -> None:
        changed = False
        for _ in range(_READS_PER_TURN):
            if self._socket is None:
                return
            try:
                datagram = self._socket.recv(_READ_OCTETS)
            except BlockingIOError:
                break
            except OSError as lost:  # ENOBUFS: announcements were lost
                self._resyncs += 1
                _log.warning("uplink announcements were lost, reading again", why=str(lost))
                self._ask_dump()
                self._repair_due.set()
                continue
            changed |= self._handle_datagram(datagram)
        if changed and self._complete.is_set():
            self._repair_due.set()
            self._settle()

    def _handle_datagram(self, datagram: bytes) -> bool:
        changed = False
        for kind, sequence, payload in netlink.messages(datagram):
            if kind in (_RTM_NEWLINK, _RTM_DELLINK):
                changed |= self._handle_link(kind, payload)
            elif kind == netlink.DONE and sequence == self._sequence:
                changed |= self._end_dump()
            elif kind == netlink.ERROR and sequence == self._sequence:
                # Busy with the dump before this one: ask again when that has ended.
                asyncio.get_running_loop().call_later(_RETRY_S, self._ask_dump)
            else:
                self._repair_due.set()  # an address, a route or a rule came or went
        return changed

    def _handle_link(self, kind: int, payload: bytes) -> bool:
        if len(payload) < _IFINFOMSG.size:
            return False
        family, _, index, flags, _ = _IFINFOMSG.unpack_from(payload)
        if family == socket.AF_INET6:
            return True  # its IPv6 MTU may have changed; read when settling
        if family != socket.AF_UNSPEC:
            return False  # a bridge speaking of its ports
        if kind == _RTM_DELLINK:
            return self._links.pop(index, None) is not None
        attributes = dict(netlink.attributes(payload[_IFINFOMSG.size :]))
        name = netlink.text_of(attributes.get(_IFLA_IFNAME, b""))
        mtu = int.from_bytes(attributes.get(_IFLA_MTU, b""), sys.byteorder)
        link = _Link(name, flags, mtu)
        if self._seen_in_dump is not None:
            self._seen_in_dump.add(index)
        known = self._links.get(index)
        self._links[index] = link
        return known != link or any(name == u.interface for u in self._settings.uplinks)

    def _end_dump(self) -> bool:
        if self._seen_in_dump is None:
            return False
        for index in self._links.keys() - self._seen_in_dump:
            del self._links[index]
        self._seen_in_dump = None
        self._complete.set()
        return True

    # What it means

    def _settle(self) -> None:
        for uplink in self._settings.uplinks:
            state = self._judge(uplink)
            known = self._states.get(uplink.name)
            if state == known:
                continue
            self._states[uplink.name] = state
            self._on_change(state.name, state.up, state.why, state.mtu_octets)

    def _judge(self, uplink: UplinkSettings) -> UplinkState:
        interface = uplink.interface
        link = self._link(interface)
        if link is None:
            return self._down(uplink, f"{interface} does not exist", 0)
        mtu = min(link.mtu_octets, _ipv6_mtu(interface) or link.mtu_octets)
        if not link.flags & _IFF_UP:
            return self._down(uplink, f"{interface} is switched off", mtu)
        if not link.flags & _IFF_LOWER_UP:
            return self._down(uplink, f"{interface} has no carrier", mtu)
        if uplink.name in self._no_route:
            return UplinkState(uplink.name, False, self._no_route[uplink.name], mtu)
        return UplinkState(uplink.name, True, f"{interface} is up", mtu)

    def _link(self, interface: str) -> _Link | None:
        return next((link for link in self._links.values() if link.name == interface), None)

    def _down(self, uplink: UplinkSettings, why: str, mtu_octets: int) -> UplinkState:
        if self._repair is not None:
            # Its routes may go with the link: not up again before a repair says so.
            self._no_route.setdefault(
                uplink.name, f"the route through {uplink.interface} is not back yet"
            )
        return UplinkState(uplink.name, False, why, mtu_octets)

    async def _keep_repaired(self, repair: Callable[[], dict[str, str]]) -> None:
        while True:
            wait_s = _RETRY_S if self._retry_helps() else None
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._repair_due.wait(), wait_s)
            self._repair_due.clear()
            links_before = dict(self._links)
            failed = await self._run_repair(repair)
            if links_before == self._links:
                self._no_route = failed
                self._settle()
            else:
                self._repair_due.set()
            await asyncio.sleep(_REPAIR_PAUSE_S)

    def _retry_helps(self) -> bool:
        """Tell whether a route is missing although its link would carry it."""
        return any(
            uplink.name in self._no_route
            and (link := self._link(uplink.interface)) is not None
            and link.flags & CARRIES == CARRIES
            for uplink in self._settings.uplinks
        )

    async def _run_repair(self, repair: Callable[[], dict[str, str]]) -> dict[str, str]:
        try:
            return await asyncio.to_thread(repair)
        except SetupError as refused:
            _log.error("source routing cannot be repaired", why=str(refused))
            return {uplink.name: str(refused) for uplink in self._settings.uplinks}


def _ipv6_mtu(interface: str) -> int | None:
    """Return what IPv6 allows on the interface, which a router advertisement can lower."""
    try:
        return int(Path(f"/proc/sys/net/ipv6/conf/{interface}/mtu").read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None

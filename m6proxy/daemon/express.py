"""Keeps packets on the ordinary way while anybody but us would see them there (decision 27).

The kernel may send packets past the gateway's IPv6 stack by a lease of some seconds, which is given
anew each second, after a look at who else is on the gateway. When nftables tells of a change that
is not of our own chains, the lease ends at once and the look comes after it. A daemon that dies
gives no lease: rules that are made while none lives are heeded as soon as the last one is over.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from typing import Any, Final, Protocol

from m6proxy import netlink
from m6proxy.daemon.config import Config
from m6proxy.daemon.journal import Journal
from m6proxy.dataplane.bpf.plane import BpfDataPlane
from m6proxy.dataplane.bpf.site import BpfSite
from m6proxy.errors import SetupError
from m6proxy.steering import nftables
from m6proxy.steering.bystanders import Bystanders

LEASE_S: Final = 3.0
LOOK_S: Final = 1.0
"""Between two looks, when nobody tells of a change."""
_REST_S: Final = 0.1
"""Between two looks at least: somebody may change rules all day."""
_READ_OCTETS: Final = 65_536
_READS_PER_TURN: Final = 16
"""Of some ten rules each: a millisecond."""
_ROOM_OCTETS: Final = 8 << 20
"""As many as the rules of 4,096 re-homed pairs make in one transaction of our own."""
_NS: Final = 1_000_000_000
_UNKNOWN: Final = "nobody can tell who else is here"

Lease = Callable[[int], None]
"""Lets packets go past the stack until this moment of the monotonic clock, nanoseconds."""


class Neighbourhood(Protocol):
    """All others on this gateway."""

    def look(self) -> list[str]:
        """Name in a line each who would not see packets any more. Blocks; raises OSError."""

    def close(self) -> None:
        """Look no more; safe to call twice."""


class Gateway:
    """The others on this very gateway."""

    def __init__(self, config: Config, site: BpfSite) -> None:
        self._bystanders = Bystanders(interfaces(config))
        self._site = site

    def look(self) -> list[str]:
        """See Neighbourhood."""
        return [*self._bystanders.look(), *self._site.behind()]

    def close(self) -> None:
        """See Neighbourhood."""
        self._bystanders.close()


class ExpressGuard:
    """Gives the lease and takes it back, in the running event loop."""

    def __init__(self, others: Neighbourhood, lease: Lease, journal: Journal) -> None:
        self._others = others
        self._lease = lease
        self._journal = journal
        self._notices = netlink.subscribe(
            netlink.NETFILTER, nftables.NOTICES, room_octets=_ROOM_OCTETS
        )
        self._changed = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None
        self.is_on = False
        """Whether packets go past the stack."""
        self.in_the_way: tuple[str, ...] = ("nobody has looked yet",)
        """Why not, in a line each; empty when they do."""

    async def start(self) -> None:
        """Look for the first time, and go on looking."""
        loop = asyncio.get_running_loop()
        self._heard()  # of our own rules, from before
        loop.add_reader(self._notices, self._heard)
        await self._settle()
        self._keeper = loop.create_task(self._keep())

    async def close(self) -> None:
        """Back to the ordinary way; safe to call twice."""
        keeper, self._keeper = self._keeper, None
        if keeper is not None:
            keeper.cancel()
            await asyncio.wait({keeper})
        if self._notices.fileno() >= 0:
            asyncio.get_running_loop().remove_reader(self._notices)
            self._notices.close()
            self._stop("the daemon stops")
            self._others.close()

    async def _keep(self) -> None:
        while True:
            await asyncio.sleep(_REST_S)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), LOOK_S - _REST_S)
            await self._settle()

    async def _settle(self) -> None:
        """Look, and give the lease unless something changed meanwhile."""
        self._changed.clear()
        looking = asyncio.ensure_future(asyncio.to_thread(self._others.look))
        try:
            await asyncio.wait({looking})
        except asyncio.CancelledError:
            await asyncio.wait({looking})
            raise
        unknown = looking.exception()
        found = tuple(looking.result()) if unknown is None else (f"{_UNKNOWN}: {unknown}",)
        if not self._heard():
            self._changed.set()  # much of it unread: look again
        if found:
            self._stop(*found)
        elif not self._changed.is_set():
            self._go_on()

    def _go_on(self) -> None:
        self._lease(time.monotonic_ns() + int(LEASE_S * _NS))
        self.in_the_way = ()
        if not self.is_on:
            self.is_on = True
            self._journal.note("express on", "nobody else would see the packets")

    def _stop(self, *why: str) -> None:
        if self.is_on or self.in_the_way != why:
            self._lease(0)
            self._journal.note("express off", "; ".join(why))
        self.is_on, self.in_the_way = False, why

    def _heard(self) -> bool:
        """Something changed in nftables, perhaps by somebody else; tell whether that was all."""
        for _ in range(_READS_PER_TURN):
            try:
                datagram = self._notices.recv(_READ_OCTETS)
            except BlockingIOError:
                return True
            except OSError:  # ENOBUFS: some were lost
                self._note_change()
                continue
            if any(map(nftables.is_about_others, netlink.messages(datagram))):
                self._note_change()
        return False

    def _note_change(self) -> None:
        self._changed.set()
        if self.is_on:
            self._stop("nftables: its rules have just changed")


def open_guard(
    config: Config, bpf: BpfDataPlane | None, site: BpfSite | None, journal: Journal
) -> ExpressGuard | None:
    """Guard a gateway whose kernel moves packets, if the operator wants it. Raises SetupError."""
    if bpf is None or site is None or config.express == "off":
        return None
    try:
        return ExpressGuard(Gateway(config, site), bpf.note_express, journal)
    except OSError as refused:
        raise SetupError(f"{_UNKNOWN}: {refused.strerror}; set express: off") from None


def express_view(guard: ExpressGuard | None, *, in_kernel: bool) -> dict[str, Any]:
    """What ``m6proxy status`` shows."""
    if guard is not None:
        return {"on": guard.is_on, "in_the_way": list(guard.in_the_way)}
    why = "the configuration says off" if in_kernel else "the kernel moves no packets here"
    return {"on": False, "in_the_way": [why]}


def interfaces(config: Config) -> tuple[str, ...]:
    """Where packets come in."""
    return (*config.lan, *(uplink.interface for uplink in config.uplinks))

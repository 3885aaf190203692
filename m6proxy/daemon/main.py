"""``m6proxy run``: put the parts together, say ready, wait, and leave nothing behind.

The order matters. First everything that can refuse without having changed anything: the
system's features, the control socket, the queues. Then routes, then rules: packets reach the
queues only when somebody listens. The end is the same backwards.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path

import structlog

from m6proxy.daemon import clock
from m6proxy.daemon.checks import require_system
from m6proxy.daemon.collector import set_up_collector
from m6proxy.daemon.config import Config
from m6proxy.daemon.control import ControlServer, claim_socket
from m6proxy.daemon.entropy import SystemEntropy
from m6proxy.daemon.express import open_guard
from m6proxy.daemon.fastpath import open_fast_path, remove_remains
from m6proxy.daemon.journal import Journal
from m6proxy.daemon.logs import configure_logs
from m6proxy.daemon.loop import Loop
from m6proxy.daemon.memos import Memos
from m6proxy.daemon.notify import Notifier
from m6proxy.daemon.resolver import Resolver
from m6proxy.dataplane.bpf.plane import BpfDataPlane
from m6proxy.dataplane.nfqueue import NfqueueDataPlane
from m6proxy.dataplane.port import DataPlane
from m6proxy.discovery.names_book import NameBook
from m6proxy.errors import SetupError
from m6proxy.names import Address
from m6proxy.shim.core import ShimSettings
from m6proxy.shim.demux import DemuxMode
from m6proxy.shim.engine import Engine
from m6proxy.shim.locators import Uplink
from m6proxy.steering.apply import RuleBundles
from m6proxy.steering.flows import RehomedChain
from m6proxy.steering.routes import SourceRouting
from m6proxy.steering.settings import SteeringSettings
from m6proxy.steering.uplinks import UplinkWatch

_IF_INET6 = Path("/proc/thread-self/net/if_inet6")
_GLOBAL_SCOPE = "00"
_RULES_INTERVAL_S = 10.0


def run(config: Config) -> int:
    """Run the daemon until SIGTERM or SIGINT; returns the exit code. Raises SetupError."""
    configure_logs()
    require_system(config)
    claim_socket(config.control)
    return asyncio.run(_run(config))


async def _run(config: Config) -> int:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    daemon = Daemon(config)
    notifier = Notifier.from_environment()
    try:
        await daemon.start()
        notifier.ready(f"{config.site}: {len(config.uplinks)} uplinks")
        structlog.get_logger("m6proxy").info("ready", site=config.site, control=str(config.control))
        await _wait(stop, notifier)
    finally:
        notifier.stopping()
        await daemon.stop()
    return 0


async def _wait(stop: asyncio.Event, notifier: Notifier) -> None:
    while not stop.is_set():
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), notifier.watchdog_interval_s)
        notifier.alive()


class Daemon:
    """All parts of one gateway's daemon, in the network namespace of the calling thread."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._fast = open_fast_path(config)
        marking = replace(config.steering, mark_shift=config.mark_shift)
        steering = marking if self._fast.site is not None else config.steering
        self._routing = SourceRouting(marking) if config.manage_routes else None
        self._bundles = RuleBundles(steering)
        self._chain = RehomedChain(self._bundles.apply_rehomed)
        self._dataplane: DataPlane = NfqueueDataPlane(
            queue_outbound=config.queue_outbound,
            queue_inbound=config.queue_inbound,
            flows=self._chain,
            mark_bits=steering.mark_bits,
        )
        self._bpf: BpfDataPlane | None = None
        if self._fast.site is not None:
            self._dataplane = self._bpf = BpfDataPlane(self._dataplane, self._fast.site)
        read_activity = self._bpf.read_activity if self._bpf is not None else None
        self._engine = Engine(
            shim_settings(config, in_kernel=self._bpf is not None), SystemEntropy(), read_activity
        )
        book = NameBook(_grouped(config.peers))
        self._resolver = Resolver(
            config.dns.servers,
            port=config.dns.port,
            timeout_s=config.dns.timeout_s,
            clock=clock.monotonic,
            book=book,
            hosts={octets: name for name, octets in config.hosts},
            peers=_grouped(config.peers),
            marks=partial(uplink_marks, marking, self._engine) if self._routing else tuple,
        )
        self._journal = Journal(time.time)
        self._loop = Loop(
            self._engine, self._dataplane, self._resolver, book, self._journal, clock.monotonic
        )
        if self._fast.site is not None and self._fast.site.is_lasting:
            self._loop.memos = Memos(config.memos, self._engine)
        self._control = ControlServer(
            config, self._engine, self._loop, self._dataplane, self._resolver, self._journal
        )
        self._control.fast_path = self._bpf, self._fast.why
        self._express = open_guard(config, self._bpf, self._fast.site, self._journal)
        self._control.express = self._express
        self._watch = UplinkWatch(
            steering,
            self._uplink_changed,
            repair=partial(self._repair, self._routing, asyncio.get_running_loop())
            if self._routing is not None
            else None,
        )
        self._ruled = False
        self._stopping = asyncio.Event()
        self._guard: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start everything. Raises SetupError; then ``stop`` takes back what was done."""
        set_up_collector()
        if self._bpf is not None and (adopted := self._loop.adopt(self._bpf.inherit())):
            self._journal.note("contexts taken over", f"{adopted} from the kernel")
        if self._fast.site is not None and self._fast.site.heritage:
            self._journal.note("maps copied", self._fast.site.heritage)
        self._loop.start()
        if self._bpf is None:
            await asyncio.to_thread(remove_remains, self._config)
        self._control.starting = True
        await self._control.start()
        self._ruled = True
        if self._routing is not None:
            for line in await asyncio.to_thread(self._routing.apply):
                self._journal.note("uplink waits", line)
        await self._watch.start()
        await asyncio.to_thread(self._bundles.apply)
        if self._bpf is not None:  # not before: no rule would bring us what a peer answers
            self._bpf.listen(self._loop)
        self._guard = asyncio.get_running_loop().create_task(self._keep_rules())
        if self._express is not None:
            await self._express.start()
        self._control.starting = False

    async def stop(self) -> None:
        """Close contexts while packets still flow, take out rules and routes, stop listening."""
        try:
            if self._ruled:
                await self._loop.close_contexts()
        finally:
            await self._take_out()

    async def _take_out(self) -> None:
        self._stopping.set()
        if self._express is not None:
            await self._express.close()
        if self._guard is not None:
            await self._guard
        self._watch.close()
        await self._chain.close()
        if self._ruled:
            await asyncio.to_thread(self._bundles.remove)
            if self._routing is not None:
                await asyncio.to_thread(self._routing.remove)
        await self._loop.stop()
        if self._loop.memos is not None:
            self._loop.memos.remove()
        await self._control.stop()

    def _repair(self, routing: SourceRouting, loop: asyncio.AbstractEventLoop) -> dict[str, str]:
        """Put back what went with an interface, in a thread: programs first.

        What is marked for an uplink without its program would leave as it is.
        """
        asyncio.run_coroutine_threadsafe(self._reattach(), loop).result()
        return routing.repair()

    async def _reattach(self) -> None:
        try:
            for line in self._bpf.reattach() if self._bpf is not None else ():
                self._journal.note("programs attached", line)
        except SetupError as refused:
            self._journal.note("programs not attached", str(refused))

    async def _keep_rules(self) -> None:
        """Somebody who reloads his firewall takes our chains away: put them back.

        Never cancelled: a run of ip6tables-restore in its thread must end before the removal.
        """
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), _RULES_INTERVAL_S)
                return
            await self._reattach()
            try:
                wrong = await asyncio.to_thread(self._bundles.verify)
                if wrong:
                    self._journal.note("rules put back", "; ".join(wrong))
                    await asyncio.to_thread(self._bundles.apply)
                    self._chain.forget_written()
            except SetupError as refused:
                self._journal.note("rules not put back", str(refused))

    def _uplink_changed(self, name: str, up: bool, why: str, mtu: int) -> None:
        self._control.uplink_reasons[name] = why
        if self._bpf is not None:
            down = {one.name for one in self._engine.uplinks if not one.up}
            self._bpf.note_uplinks(frozenset(down - {name} if up else down | {name}))
        self._loop.uplink_changed(name, up, why, mtu)


def shim_settings(config: Config, *, in_kernel: bool = False) -> ShimSettings:
    """What the engine has to know of the configuration.

    ``in_kernel``: programs move the packets, and segmentation takes options along; so peers are
    asked for them unless the operator has an opinion (decision 21).
    """
    demux = config.demux
    if in_kernel and demux == (DemuxMode.EXTHDR, DemuxMode.DSTOPT):
        demux = (DemuxMode.DSTOPT, DemuxMode.EXTHDR)
    return ShimSettings(
        uplinks=tuple(
            Uplink(
                uplink.name,
                uplink.prefix,
                uplink.preference,
                weight=uplink.weight,
                temporary=uplink.temporary,
            )
            for uplink in config.uplinks
        ),
        establish=config.establish,
        probe_unknown=config.unknown_peers == "probe",
        detection=config.detection,
        capable=config.capable,
        demux=demux,
        locator_map=config.locator_map,
        forks=config.forks,
        hold_first_packet_s=config.hold_first_packet_s,
        return_routability=config.return_routability,
        send_timeout_s=config.send_timeout_s,
        idle_s=config.idle_s,
        park_max_s=config.park_max_s,
        failback=config.failback,
        failback_hold_s=config.failback_hold_s,
        probes_per_s=config.probes_per_s,
        max_contexts=config.max_contexts,
        locators_max=config.locators_max,
        gateway=own_address(
            (*config.lan, *(uplink.interface for uplink in config.uplinks)),
            _IF_INET6.read_text(),
        ),
    )


def uplink_marks(steering: SteeringSettings, engine: Engine) -> list[int]:
    """Marks that lead to the table of each uplink that is up, the preferred one first."""
    up = {one.name for one in engine.uplinks if one.up}
    usable = [one for one in steering.uplinks if one.name in up]
    return [steering.uplink_mark(one) for one in sorted(usable, key=lambda one: one.preference)]


def own_address(interfaces: Iterable[str], table: str) -> Address | None:
    """A global address of the gateway, of the first interface that has one, else None.

    ``table`` is the text of /proc/net/if_inet6.
    """
    rows = [line.split() for line in table.splitlines()]
    for wanted in interfaces:
        for octets, _, _, scope, _, interface in rows:
            if interface == wanted and scope == _GLOBAL_SCOPE:
                return bytes.fromhex(octets)
    return None


def _grouped(pairs: Iterable[tuple[str, Address]]) -> dict[Address, tuple[str, ...]]:
    """Names by address, in the order of the configuration."""
    grouped: dict[Address, tuple[str, ...]] = {}
    for name, octets in pairs:
        grouped[octets] = (*grouped.get(octets, ()), name)
    return grouped

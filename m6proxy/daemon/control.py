"""The control socket: HTTP over a UNIX socket, JSON and the metrics.

Whoever may open the socket may read, and say that the site goes away: its mode is 0660.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import structlog
from aiohttp import web

from m6proxy import __version__
from m6proxy.daemon import clock, metrics, view
from m6proxy.daemon.config import Config
from m6proxy.daemon.explain import explain, with_kernel, without_kernel
from m6proxy.daemon.express import ExpressGuard, express_view
from m6proxy.daemon.journal import Journal
from m6proxy.daemon.loop import Loop
from m6proxy.dataplane.bpf.plane import BpfDataPlane
from m6proxy.dataplane.port import DataPlane
from m6proxy.errors import SetupError
from m6proxy.shim.engine import Engine

_MODE = 0o660
_LINE_OCTETS = 1 << 18
"""A request for ``explain`` has a whole packet in it, two digits for an octet."""
PARK_MAX_S = 604_800
"""A week."""


class Snapshots(Protocol):
    """What the control socket needs of the resolver."""

    def snapshot(self) -> list[dict[str, Any]]:
        """What is known of each peer address."""


class ControlServer:
    """Answers questions about one daemon."""

    def __init__(
        self,
        config: Config,
        engine: Engine,
        loop: Loop,
        dataplane: DataPlane,
        discovery: Snapshots,
        journal: Journal,
    ) -> None:
        self._config = config
        self._engine = engine
        self._loop = loop
        self._dataplane = dataplane
        self._discovery = discovery
        self._journal = journal
        self._started_unix_s = time.time()
        self._runner: web.AppRunner | None = None
        self.uplink_reasons: dict[str, str] = {}
        self.starting = False
        """Whether rules or routes are still missing: whoever asks is told to wait."""
        self.fast_path: tuple[BpfDataPlane | None, str] = (None, "")
        """The data plane in the kernel, if there is one, and why or why not."""
        self.express: ExpressGuard | None = None
        """Who says whether packets go past the IPv6 stack, if they may at all."""

    async def start(self) -> None:
        """Listen. Raises SetupError when another daemon has the socket or it cannot be made."""
        path = self._config.control
        claim_socket(path)
        app = web.Application(middlewares=[_errors_as_json, self._not_yet])
        routes: dict[str, Callable[[web.Request], Any]] = {
            "/v1/status": lambda _: self._status(),
            "/v1/contexts": lambda _: self._contexts(),
            "/v1/peers": lambda _: view.peers_view(self._discovery.snapshot(), self._engine),
            "/v1/uplinks": lambda _: self._uplinks(),
            "/v1/drops": lambda request: [
                row
                for row in view.drops_view(self._engine)
                if row["count"] or request.query.get("all")
            ],
            "/v1/events": self._events,
            "/v1/flows": lambda _: self._flows(),
        }
        for url, answer in routes.items():
            app.router.add_get(url, _json_handler(answer))
        app.router.add_get("/v1/explain", self._explain)
        app.router.add_post("/v1/park", self._park)
        app.router.add_post("/v1/unpark", self._unpark)
        app.router.add_get("/metrics", self._metrics)
        self._runner = web.AppRunner(app, access_log=None, max_line_size=_LINE_OCTETS)
        await self._runner.setup()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            await web.UnixSite(self._runner, str(path)).start()
            path.chmod(_MODE)
        except OSError as error:
            await self._runner.cleanup()
            raise SetupError(
                f"control socket {path}: {error.strerror}; choose another path under `control:`"
            ) from None

    async def stop(self) -> None:
        """Stop listening and remove the socket."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None
            self._config.control.unlink(missing_ok=True)

    @web.middleware
    async def _not_yet(
        self, request: web.Request, handler: Callable[[web.Request], Any]
    ) -> web.StreamResponse:
        if self.starting:
            raise web.HTTPServiceUnavailable(text="it is still starting; ask again in a moment")
        response: web.StreamResponse = await handler(request)
        return response

    def _status(self) -> dict[str, Any]:
        engine = self._engine
        states = Counter(context.state.value for context in engine.contexts())
        uplinks = engine.uplinks
        bpf, why = self.fast_path
        counters = bpf.counters() if bpf is not None else {}
        return {
            "version": __version__,
            "site": self._config.site,
            "pid": os.getpid(),
            "started_at": round(self._started_unix_s, 3),
            "dataplane": "bpf" if bpf is not None else "nfqueue",
            "dataplane_why": why,
            "express": express_view(self.express, in_kernel=bpf is not None),
            "contexts": dict(states),
            "peers": len(self._discovery.snapshot()),
            "uplinks_up": sum(uplink.up for uplink in uplinks),
            "uplinks": len(uplinks),
            "packets": {
                "outbound": self._loop.packets_outbound,
                "inbound": self._loop.packets_inbound,
                "rewritten": engine.rewritten,
                "restored": engine.restored,
                **{f"kernel_{counter.name.lower()}": count for counter, count in counters.items()},
            },
            "kernel_flows": bpf.flows if bpf is not None else 0,
            "losses": self._dataplane.losses(),
            "drops": sum(engine.drops.values()),
            "away": view.away_view(engine, clock.unix_time),
        }

    def _contexts(self) -> list[dict[str, Any]]:
        self._engine.handle_all_activity(clock.monotonic())
        return [view.context_view(context, clock.unix_time) for context in self._engine.contexts()]

    def _flows(self) -> list[dict[str, Any]]:
        bpf, why = self.fast_path
        if bpf is None:
            raise web.HTTPConflict(text=f"the kernel moves no packets here: {why}")
        seen = (
            view.flow_view(context, bpf.read_activity, clock.unix_time)
            for context in self._engine.contexts()
        )
        return [flow for flow in seen if flow is not None]

    def _uplinks(self) -> list[dict[str, Any]]:
        return view.uplinks_view(self._engine, self._config, self.uplink_reasons)

    def _events(self, request: web.Request) -> list[dict[str, Any]]:
        after = request.query.get("after", "0")
        if not after.isdecimal():
            raise web.HTTPBadRequest(text="after is the number of an event")
        return [asdict(entry) for entry in self._journal.after(int(after))]

    async def _explain(self, request: web.Request) -> web.Response:
        interface = request.query.get("in", "")
        try:
            packet = bytes.fromhex(request.query.get("packet", ""))
            told = explain(self._engine, self._config, interface, packet, clock.monotonic())
        except ValueError as wrong:
            raise web.HTTPBadRequest(text=str(wrong)) from None
        return web.json_response(await self._by_kernel_too(told, interface, packet))

    async def _by_kernel_too(
        self, told: dict[str, Any], interface: str, packet: bytes
    ) -> dict[str, Any]:
        """Ask the programs as well, beside the event loop: the verifier takes its time."""
        bpf, why = self.fast_path
        if bpf is None:
            return without_kernel(told, why)
        try:
            trial = bpf.trial(interface, packet, outbound=told["direction"] == "outbound")
            outcome = await asyncio.to_thread(trial.run)
        except (OSError, SetupError) as refused:
            what = refused.strerror if isinstance(refused, OSError) else str(refused)
            return without_kernel(told, f"it does not try these {len(packet)} octets: {what}")
        return with_kernel(told, outcome, bpf.uplink_name(outcome.uplink))

    async def _park(self, request: web.Request) -> web.Response:
        """``for_s``: seconds; answers when the peers did, or after ``PARK_WITHIN_S``."""
        try:
            wanted = await request.json()
        except ValueError:
            raise web.HTTPBadRequest(text="not JSON") from None
        for_s = wanted.get("for_s") if isinstance(wanted, dict) else None
        if not isinstance(for_s, int | float) or not 1 <= for_s <= PARK_MAX_S:
            raise web.HTTPBadRequest(text=f"for_s is a number of seconds from 1 to {PARK_MAX_S}")
        await self._loop.park(float(for_s))
        return web.json_response(view.away_view(self._engine, clock.unix_time))

    async def _unpark(self, request: web.Request) -> web.Response:
        was_away = self._engine.away is not None
        self._loop.unpark()
        return web.json_response({"was_away": was_away})

    async def _metrics(self, request: web.Request) -> web.Response:
        body = metrics.render(self._status(), self._uplinks(), view.drops_view(self._engine))
        return web.Response(body=body, headers={"Content-Type": metrics.CONTENT_TYPE})


def claim_socket(path: Path) -> None:
    """Make sure that nobody listens on ``path``, and remove what a dead daemon left there.

    Raises SetupError when a daemon runs already, or something else is in the way.
    """
    if not path.exists():
        return
    if not path.is_socket():
        raise SetupError(f"{path} is in the way and no socket; remove it or change `control:`")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as trial:
        trial.settimeout(1.0)
        try:
            trial.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            path.unlink(missing_ok=True)
            return
        except OSError as error:
            raise SetupError(f"control socket {path}: {error}; is another daemon stuck?") from None
    raise SetupError(
        f"m6proxy runs already with the control socket {path}; stop it first, or ask it with "
        f"m6proxy status --control {path}"
    )


def _json_handler(
    answer: Callable[[web.Request], Any],
) -> Callable[[web.Request], Any]:
    async def handler(request: web.Request) -> web.Response:
        return web.json_response(answer(request))

    return handler


@web.middleware
async def _errors_as_json(
    request: web.Request, handler: Callable[[web.Request], Any]
) -> web.StreamResponse:
    try:
        response: web.StreamResponse = await handler(request)
    except web.HTTPException as refused:
        return web.json_response({"error": refused.text or refused.reason}, status=refused.status)
    except asyncio.CancelledError:
        raise
    except Exception as fault:  # our own mistake: whoever asks must not take us for another program
        structlog.get_logger("m6proxy").error("a question failed", url=request.path, exc_info=fault)
        return web.json_response({"error": f"internal fault: {fault!r}"}, status=500)
    return response

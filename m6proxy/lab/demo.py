"""The demonstration: the same story told twice, with m6proxy on the gateways and without.

The order of a run: build the lab, start the name server and the servers, start m6proxy on
both gateways (or give them plain source routing), start the sessions, let the providers
fall silent when the script says so, wait until every session is complete or lost, judge,
and take everything down. Each run has a lab of its own, so that neither inherits anything.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import shutil
import sys
import tempfile
from asyncio.subprocess import Process
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from m6proxy.errors import SetupError
from m6proxy.lab import build, faults, traffic
from m6proxy.lab.build import Lab
from m6proxy.lab.nameserver import start_nameserver
from m6proxy.lab.servers import (
    FILE_NAME,
    LINES_PORT,
    Assets,
    make_assets,
    require_programs,
    ssh_command,
    start_lines,
    start_ssh,
    start_web,
)
from m6proxy.lab.sessions import (
    HttpFetch,
    LineDialogue,
    Programs,
    Session,
    Stopwatch,
    UdpStream,
)
from m6proxy.lab.story import SETTLE_S, RunResult, Script, SessionResult, StoryEvent, succeeded
from m6proxy.lab.timeline import SessionView, Timeline
from m6proxy.lab.topology import ALPHA, BETA, Site, fqdn
from m6proxy.lab.watch import GatewayWatch
from m6proxy.lab.zones import CapabilityLine

TICK_S = 0.1
DAEMON_DEADLINE_S = 15.0
NOTICED_GAP_S = 1.0
"""A silence longer than this is told on the timeline."""
POLL_S = 0.2
TOLD_AFTER_S = 0.5
"""An event is told this late, so that what two gateways report stands in its true order."""


@dataclass(frozen=True, slots=True)
class DemoResult:
    """Both tellings."""

    with_it: RunResult
    control: RunResult

    @property
    def ok(self) -> bool:
        """Whether all sessions survived with right sums and the control's all broke."""
        return succeeded(self.with_it.sessions, self.control.sessions)

    def to_json(self) -> dict[str, object]:
        """Return the demo's JSON document (issue contract: sessions, control, events)."""
        return {
            "ok": self.ok,
            "sessions": [_session_json(s) for s in self.with_it.sessions],
            "control": [_session_json(s) for s in self.control.sessions],
            "events": [_event_json(e) for e in self.with_it.events],
            "control_events": [_event_json(e) for e in self.control.events],
        }


def _session_json(result: SessionResult) -> dict[str, object]:
    keys = ("name", "protocol", "survived", "octets", "sha256_ok", "longest_gap_s", "why")
    return {key: getattr(result, key) for key in keys}


def _event_json(event: StoryEvent) -> dict[str, object]:
    return {"t_s": round(event.t_s, 3), "what": event.what, "detail": event.detail}


async def tell(
    script: Script,
    timeline: Timeline,
    capability_line: CapabilityLine,
    *,
    logs: Path | None = None,
) -> DemoResult:
    """Tell the whole story and return what happened.

    ``logs``: keep the programs' logs in this folder. Raises SetupError when the machine lacks
    something; whatever happens, nothing that was started or built remains.
    """
    require_programs()
    folder = Path(tempfile.mkdtemp(prefix="m6proxy-demo-"))
    try:
        assets = await asyncio.to_thread(make_assets, folder, script.size_octets)
        results = []
        for with_m6proxy in (True, False):
            label = "with" if with_m6proxy else "control"
            lab = Lab(f"m6demo-{os.getpid()}-{label}")
            run = _Run(lab, script, timeline, assets, capability_line, with_m6proxy)
            try:
                results.append(await run.tell())
            finally:
                timeline.close()
                if logs is not None:
                    _keep_logs(logs / label, folder)
        return DemoResult(*results)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _keep_logs(target: Path, folder: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for log in folder.glob("*.log"):
        shutil.move(log, target / log.name)


class _Run:
    """One telling, in the order in which things happen."""

    def __init__(
        self,
        lab: Lab,
        script: Script,
        timeline: Timeline,
        assets: Assets,
        capability_line: CapabilityLine,
        with_m6proxy: bool,
    ) -> None:
        self._lab = lab
        self._script = script
        self._timeline = timeline
        self._assets = assets
        self._capability_line = capability_line
        self._with_m6proxy = with_m6proxy
        self._watch = Stopwatch()
        self._sessions: list[Session] = []
        self._told_arrivals: dict[str, int] = {}
        self._told_over: set[str] = set()
        self._told_silent: set[str] = set()
        self._events: list[StoryEvent] = []
        self._untold: list[StoryEvent] = []

    async def tell(self) -> RunResult:
        """Run the story from an empty machine to an empty machine."""
        title = "with m6proxy on both gateways" if self._with_m6proxy else "control: no m6proxy"
        self._timeline.chapter(title)
        build.up(self._lab, source_routing=not self._with_m6proxy)
        try:
            async with self._servers(), self._gateways():
                return await self._story()
        finally:
            await asyncio.shield(asyncio.to_thread(build.down, self._lab))

    @contextlib.asynccontextmanager
    async def _servers(self) -> AsyncIterator[None]:
        web, login = BETA.hosts
        programs = Programs(self._lab)
        try:
            await asyncio.to_thread(start_nameserver, self._lab, self._capability_line)
            await start_web(programs, self._assets, web, self._script.rate_octets_s)
            if self._assets.ssh:
                await start_ssh(programs, self._assets, login, fqdn(BETA, login))
            else:
                await start_lines(programs, self._assets, login)
            yield
        finally:
            await programs.stop()

    @contextlib.asynccontextmanager
    async def _gateways(self) -> AsyncIterator[None]:
        """m6proxy on both gateways, watched; nothing in the control run."""
        if not self._with_m6proxy:
            yield
            return
        programs = Programs(self._lab)
        watchers: list[asyncio.Task[None]] = []
        try:
            watches = await asyncio.gather(
                *(self._start_gateway(programs, site) for site in (ALPHA, BETA))
            )
            watchers += [asyncio.create_task(self._follow(watch)) for watch in watches]
            yield
        finally:
            for task in watchers:
                task.cancel()
            await asyncio.gather(*watchers, return_exceptions=True)
            await programs.stop()

    async def _start_gateway(self, programs: Programs, site: Site) -> GatewayWatch:
        assert site.gateway is not None
        log = self._assets.folder / f"{site.name}.log"
        config = build.config_path(self._lab, site)
        daemon = await programs.start(
            site.gateway, sys.executable, "-m", "m6proxy", "run", "-c", str(config), log=log
        )
        watch = GatewayWatch(site.name, build.control_path(self._lab, site))
        deadline_s = self._watch.now_s() + DAEMON_DEADLINE_S
        while not await watch.answers():
            if daemon.returncode is not None or self._watch.now_s() > deadline_s:
                raise SetupError(f"m6proxy on {site.gateway} is not ready: {_tail(log, daemon)}")
            await asyncio.sleep(TICK_S)
        return watch

    async def _follow(self, watch: GatewayWatch) -> None:
        while True:
            for event in await watch.new_events(self._watch):
                self._note(event)
            await asyncio.sleep(POLL_S)

    def _make_sessions(self) -> list[Session]:
        (typist, caller), (web, login) = ALPHA.hosts, BETA.hosts
        folder = self._assets.folder
        lab, watch = self._lab, self._watch
        web_name, login_name = fqdn(BETA, web), fqdn(BETA, login)
        command = (
            ssh_command(folder, login_name)
            if self._assets.ssh
            else [sys.executable, "-m", traffic.__name__, "lines", login_name, LINES_PORT]
        )
        return [
            HttpFetch(
                "file", Programs(lab), watch, folder / "curl.log",
                node=typist.node, url=f"http://{web_name}/{FILE_NAME}",
                sha256=self._assets.sha256,
            ),
            LineDialogue(
                "dialogue", Programs(lab), watch, folder / "dialogue.log",
                node=typist.node, command=command,
                protocol="tcp/ssh" if self._assets.ssh else "tcp/lines",
            ),
            UdpStream(
                "stream", Programs(lab), watch, folder / "stream.log",
                sender=caller.node, receiver=web.node,
                receiver_address=web.address, receiver_name=web_name,
            ),
        ]  # fmt: skip

    async def _story(self) -> RunResult:
        self._watch.start()
        self._sessions = self._make_sessions()
        try:
            await asyncio.gather(*(s.begin() for s in self._sessions))
            await self._until_over()
            await asyncio.gather(
                *(s.conclude(self._script.give_up_s) for s in self._sessions if not s.is_over)
            )
            self._tell_sessions()
            self._tell_events(math.inf)
            return self._result()
        finally:
            for session in self._sessions:
                await session.abandon("stopped")

    async def _until_over(self) -> None:
        """Tick until the story is told: the faults are made, the sessions judged."""
        cuts = list(self._script.cuts())
        last_cut_s = cuts[-1][0]
        while True:
            now_s = self._watch.now_s()
            while cuts and cuts[0][0] <= now_s:
                _, target = cuts.pop(0)
                await asyncio.to_thread(faults.cut, self._lab, target)
                self._note(
                    StoryEvent(self._watch.now_s(), "provider silent", f"{target} drops all")
                )
            for session in self._sessions:
                silent_s = session.silent_s()
                if not session.is_over and silent_s >= self._script.give_up_s:
                    await session.abandon(f"no progress for {silent_s:.0f} s")
            self._tell_sessions()
            open_ones = [s for s in self._sessions if not s.is_over]
            if not open_ones or now_s > self._script.deadline_s:
                return
            fetch = self._sessions[0]
            settled = now_s >= last_cut_s + SETTLE_S
            if fetch.is_over and settled and all(s.silent_s() < 1.0 for s in open_ones):
                return
            await asyncio.sleep(TICK_S)

    def _tell_sessions(self) -> None:
        """Turn arrivals and silences into events, and show the sessions."""
        for session in self._sessions:
            times_s = session.progress.times_s
            told = self._told_arrivals.get(session.name, 0)
            for index in range(max(told, 1), len(times_s)):
                gap_s = times_s[index] - times_s[index - 1]
                if gap_s > NOTICED_GAP_S:
                    self._told_silent.discard(session.name)
                    self._note(
                        StoryEvent(
                            times_s[index],
                            "session resumed",
                            f"{session.name}: outage of {gap_s:.2f} s",
                        )
                    )
            self._told_arrivals[session.name] = len(times_s)
            self._tell_state(session)
        now_s = self._watch.now_s()
        self._tell_events(now_s - TOLD_AFTER_S)
        self._timeline.show(now_s, [self._view(s) for s in self._sessions])

    def _tell_state(self, session: Session) -> None:
        name = session.name
        if session.is_over and name not in self._told_over:
            self._told_over.add(name)
            what = "session lost" if session.fault else "session complete"
            detail = session.fault or f"{session.progress.total_octets} octets"
            self._note(StoryEvent(session.ended_s or 0.0, what, f"{name}: {detail}"))
        elif (
            not session.is_over
            and name not in self._told_silent
            and session.progress.times_s
            and session.silent_s() > NOTICED_GAP_S
        ):
            self._told_silent.add(name)
            last_s = session.progress.last_s(0.0)
            self._note(
                StoryEvent(self._watch.now_s(), "session silent", f"{name}: since {last_s:.2f} s")
            )

    def _view(self, session: Session) -> SessionView:
        progress = session.progress
        now_s = self._watch.now_s()
        recent = 0
        for at_s, octets in zip(reversed(progress.times_s), reversed(progress.octets), strict=True):
            if at_s < now_s - 1.0:
                break
            recent += octets
        result = session.result(self._script.give_up_s)
        return SessionView(
            name=session.name,
            protocol=session.protocol,
            octets=progress.total_octets,
            rate_octets_s=recent,
            silent_s=session.silent_s(),
            longest_gap_s=result.longest_gap_s,
            is_over=session.is_over,
            fault=session.fault,
        )

    def _note(self, event: StoryEvent) -> None:
        self._untold.append(event)

    def _tell_events(self, until_s: float) -> None:
        """Tell what happened up to then, in the order in which it happened."""
        self._untold.sort(key=lambda e: e.t_s)
        while self._untold and self._untold[0].t_s <= until_s:
            event = self._untold.pop(0)
            self._events.append(event)
            self._timeline.note(event)

    def _result(self) -> RunResult:
        return RunResult(
            sessions=[s.result(self._script.give_up_s) for s in self._sessions],
            progress={s.name: s.progress for s in self._sessions},
            events=sorted(self._events, key=lambda e: e.t_s),
            length_s=self._watch.now_s(),
        )


def _tail(log: Path, daemon: Process) -> str:
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    state = "still running" if daemon.returncode is None else f"exit {daemon.returncode}"
    return f"{state}, {lines[-1] if lines else 'it said nothing'}"

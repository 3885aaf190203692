"""The watcher reads a daemon's control socket, and a silent one is no error."""

from __future__ import annotations

import asyncio
from pathlib import Path

from aiohttp import web

from m6proxy.lab.sessions import Stopwatch
from m6proxy.lab.story import StoryEvent
from m6proxy.lab.watch import GatewayWatch

A1, B1 = "2001:db8:a1:1::10", "2001:db8:b1:1::10"


def _entry(seq: int, what: str, detail: str, local: str | None = A1) -> dict[str, object]:
    return {
        "seq": seq,
        "time": 1000.0 + seq,
        "what": what,
        "detail": detail,
        "local_ulid": local,
        "peer_ulid": local and B1,
    }


JOURNAL = [
    _entry(1, "name learned", "b1.beta.example is " + B1, None),
    _entry(2, "state", "IDLE -> I1-SENT"),
    _entry(3, "re-homed", "somewhere"),
]


async def _events(request: web.Request) -> web.Response:
    after = int(request.query["after"])
    return web.json_response([e for e in JOURNAL if int(str(e["seq"])) > after])


async def _contexts(request: web.Request) -> web.Response:
    return web.json_response([])


async def _read(socket: Path) -> None:
    watch = Stopwatch()
    watch.zero_wall_s = 1000.0
    reader = GatewayWatch("alpha", socket)
    assert not await reader.answers()
    assert await reader.new_events(watch) == []
    app = web.Application()
    app.router.add_get("/v1/events", _events)
    app.router.add_get("/v1/contexts", _contexts)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.UnixSite(runner, str(socket)).start()
        assert await reader.answers()
        assert await reader.new_events(watch) == [
            StoryEvent(1.0, "name learned", f"alpha: b1.beta.example is {B1}"),
            StoryEvent(3.0, "re-homed", f"alpha: {A1} <-> {B1} somewhere"),
        ]
        assert await reader.new_events(watch) == []
    finally:
        await runner.cleanup()


def test_events_are_read_once_and_steps_of_the_protocol_left_out(tmp_path: Path) -> None:
    asyncio.run(_read(tmp_path / "alpha.sock"))

"""The control socket: a real UNIX socket, asked as the commands ask it."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from m6proxy.cli.control import ask, tell
from m6proxy.daemon.config import Config, parse_config
from m6proxy.daemon.control import ControlServer, claim_socket
from m6proxy.errors import SetupError
from m6proxy.reasons import Reason
from m6proxy.wire.ipv6 import NEXT_UDP, build_packet
from tests.daemon.parts import FakeDiscovery, Parts, parts, until
from tests.daemon.test_config import CONTRACT
from tests.harness.pair import A1, B1, name_data

DEMANDED_KEYS = {
    *("local_ulid", "peer_ulid", "state", "reap_state", "local_tag", "peer_tag"),
    *("local_locator", "peer_locator", "local_locators", "peer_locators"),
    *("packets_in", "packets_out", "established_at", "rehomed_at", "rehomings"),
}


def _config(path: Path) -> Config:
    return parse_config(CONTRACT.replace("/run/m6proxy/alpha.sock", str(path)), "f.yaml")


def _server(path: Path, site: Parts) -> ControlServer:
    return ControlServer(
        _config(path), site.engine, site.loop, site.plane, site.discovery, site.journal
    )


def _with_server(path: Path, story: Callable[[Parts], Awaitable[None]]) -> None:
    async def run() -> None:
        data = {B1: name_data("b1.beta.example", B1, "b")}
        site = parts(discovery=FakeDiscovery(data=data, names={A1: "a1.alpha.example"}))
        site.loop.start()
        server = _server(path, site)
        await server.start()
        try:
            await story(site)
        finally:
            await server.stop()
            await site.loop.stop()
        assert not path.exists()

    asyncio.run(run())


async def _ask(path: Path, url: str) -> Any:
    return await asyncio.to_thread(ask, path, url)


def test_every_question_has_an_answer_of_its_shape(tmp_path: Path) -> None:
    path = tmp_path / "alpha.sock"

    async def story(site: Parts) -> None:
        for _ in range(2):
            site.plane.inject_outbound(build_packet(A1, B1, NEXT_UDP, bytes(20)))
        await until(lambda: bool(list(site.engine.contexts())), "a context begins")
        site.plane.inject_inbound(build_packet(B1, A1, 140, b"\x3b\0\x42\0"))
        (context,) = await _ask(path, "/v1/contexts")
        assert context.keys() >= DEMANDED_KEYS
        assert (context["state"], context["reap_state"]) == ("I1-SENT", None)
        assert (context["local_ulid"], context["peer_ulid"]) == (
            "2001:db8:a1:1::10",
            "2001:db8:b1:1::10",
        )
        assert len(context["local_tag"]) == 12 and context["peer_tag"] is None
        assert context["established_at"] is None and context["rehomed_at"] is None
        assert [row["uplink"] for row in context["local_locators"]] == ["isp1", "isp2"]
        status = await _ask(path, "/v1/status")
        assert status["site"] == "alpha.example" and status["contexts"] == {"I1-SENT": 1}
        assert status["packets"] == {"outbound": 2, "inbound": 1, "rewritten": 0, "restored": 0}
        assert (status["uplinks"], status["uplinks_up"], status["drops"]) == (2, 2, 1)
        uplinks = await _ask(path, "/v1/uplinks")
        assert [(row["name"], row["interface"], row["up"]) for row in uplinks] == [
            ("isp1", "wan1", True),
            ("isp2", "wan2", True),
        ]
        assert uplinks[0].keys() == {
            *("name", "interface", "prefix", "gateway", "preference"),
            *("up", "why", "mtu", "contexts"),
        }
        (drop,) = await _ask(path, "/v1/drops")
        assert drop["count"] == 1 and drop["reason"] == "TRUNCATED" and drop["text"]
        assert len(await _ask(path, "/v1/drops?all=1")) == len(Reason)
        assert await _ask(path, "/v1/peers") == []
        events = await _ask(path, "/v1/events")
        assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
        assert events[0]["what"] == "capability asked"
        later = await _ask(path, f"/v1/events?after={events[-2]['seq']}")
        assert later == events[-1:]

    _with_server(path, story)


def test_a_jumbo_frame_can_be_explained(tmp_path: Path) -> None:
    """Its request was too long a line, and the answer to that not ours."""
    path = tmp_path / "alpha.sock"

    async def story(site: Parts) -> None:
        packet = build_packet(A1, B1, NEXT_UDP, bytes(8960)).hex()
        told = await _ask(path, f"/v1/explain?in=lan0&packet={packet}")
        assert told["before"]["octets"] == 9000 and told["engine"]["verdict"] == "unchanged"

    _with_server(path, story)


def test_what_is_wrong_is_said_in_json(tmp_path: Path) -> None:
    path = tmp_path / "alpha.sock"

    async def story(site: Parts) -> None:
        with pytest.raises(SetupError, match="Not Found"):
            await _ask(path, "/v1/nothing")
        with pytest.raises(SetupError, match="number of an event"):
            await _ask(path, "/v1/events?after=-1")
        assert await _ask(path, "/v1/contexts") == []

    _with_server(path, story)


def test_a_daemon_that_starts_says_so(tmp_path: Path) -> None:
    """Its rules were not there yet, and a peer's I1 went to the host, which refused it."""

    async def run() -> None:
        site, path = parts(discovery=FakeDiscovery()), tmp_path / "alpha.sock"
        server = _server(path, site)
        server.starting = True
        await server.start()
        try:
            with pytest.raises(SetupError, match="still starting"):
                await _ask(path, "/v1/status")
            server.starting = False
            assert (await _ask(path, "/v1/status"))["site"] == "alpha.example"
        finally:
            await server.stop()

    asyncio.run(run())


def test_a_fault_of_ours_is_said_in_json_too(tmp_path: Path) -> None:
    path = tmp_path / "alpha.sock"

    async def story(site: Parts) -> None:
        def broken() -> list[dict[str, Any]]:
            raise RuntimeError("the resolver is broken")

        site.discovery.snapshot = broken  # type: ignore[method-assign]
        with pytest.raises(SetupError, match="refused /v1/peers: internal fault"):
            await _ask(path, "/v1/peers")
        assert await _ask(path, "/v1/contexts") == []

    _with_server(path, story)


def test_posting_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "alpha.sock"

    def post() -> bytes:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.settimeout(5)
            sock.connect(str(path))
            sock.sendall(b"POST /v1/contexts HTTP/1.0\r\nContent-Length: 0\r\n\r\n")
            return sock.recv(4096)

    async def story(site: Parts) -> None:
        answer = await asyncio.to_thread(post)
        assert b" 405 " in answer.splitlines()[0] and b'{"error"' in answer

    _with_server(path, story)


def test_a_site_goes_away_and_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "alpha.sock"

    async def story(site: Parts) -> None:
        for wrong in ({}, {"for_s": "10"}, {"for_s": 0}, {"for_s": 1e9}, [1]):
            with pytest.raises(SetupError, match="for_s is a number of seconds from 1 to 604800"):
                await asyncio.to_thread(tell, path, "/v1/park", wrong)
        answer = await asyncio.to_thread(tell, path, "/v1/park", {"for_s": 60})
        assert answer["until"] - time.time() == pytest.approx(60, abs=5)
        assert (answer["granted"], answer["unanswered"], answer["not_parked"]) == (0, 0, 0)
        assert answer["shortest_s"] is None
        assert (await _ask(path, "/v1/status"))["away"] == answer
        assert site.engine.away is not None
        assert await asyncio.to_thread(tell, path, "/v1/unpark", {}) == {"was_away": True}
        assert await asyncio.to_thread(tell, path, "/v1/unpark", {}) == {"was_away": False}
        assert (await _ask(path, "/v1/status"))["away"] is None
        said = [entry.what for entry in site.journal.after(0)]
        assert said == ["site away", "site back"]

    _with_server(path, story)


def test_the_metrics_are_prometheus_text(tmp_path: Path) -> None:
    path = tmp_path / "alpha.sock"

    def scrape() -> str:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.settimeout(5)
            sock.connect(str(path))
            sock.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
            text = b""
            while block := sock.recv(65_536):
                text += block
        return text.decode().partition("\r\n\r\n")[2]

    async def story(site: Parts) -> None:
        families = list(text_string_to_metric_families(await asyncio.to_thread(scrape)))
        assert {"m6proxy_packets", "m6proxy_drops", "m6proxy_uplink_up"} <= {
            family.name for family in families
        }

    _with_server(path, story)


def test_only_owner_and_group_may_ask(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "alpha.sock"

    async def story(site: Parts) -> None:
        assert path.stat().st_mode & 0o777 == 0o660

    _with_server(path, story)


def test_a_socket_in_use_is_refused_and_stays(tmp_path: Path) -> None:
    path = tmp_path / "alpha.sock"

    async def story(site: Parts) -> None:
        with pytest.raises(SetupError, match="runs already") as refused:
            await asyncio.to_thread(claim_socket, path)
        assert "\n" not in str(refused.value)
        assert (await _ask(path, "/v1/status"))["site"] == "alpha.example"

    _with_server(path, story)


def test_a_socket_of_a_dead_daemon_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "alpha.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as dead:
        dead.bind(str(path))
    claim_socket(path)
    assert not path.exists()
    claim_socket(path)


def test_something_else_in_the_way_is_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "alpha.sock"
    path.write_text("precious")
    with pytest.raises(SetupError, match="in the way"):
        claim_socket(path)
    assert path.read_text() == "precious"


def test_a_place_where_no_socket_can_be_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    site = parts()

    async def story() -> None:
        with pytest.raises(SetupError, match="another path under `control:`"):
            await _server(tmp_path / "file" / "alpha.sock", site).start()

    asyncio.run(story())

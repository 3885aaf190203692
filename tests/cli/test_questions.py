"""The commands that ask a running daemon: tables for people, the very JSON for programs."""

from __future__ import annotations

import json
import socket
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from m6proxy.cli.control import ask, find_socket
from m6proxy.cli.flows import with_rates
from m6proxy.cli.main import m6proxy
from m6proxy.cli.screen import age, duration
from m6proxy.cli.status import express_line
from m6proxy.errors import SetupError
from tests.cli.server import daemon

TEN_DAYS_AGO = time.time() - 864_060  # stays "10 d" for the hour that no test run takes

STATUS = {
    "version": "0.1.0",
    "site": "alpha.example",
    "pid": 4711,
    "started_at": TEN_DAYS_AGO,
    "dataplane": "nfqueue",
    "dataplane_why": "fast_path is off",
    "express": {"on": False, "in_the_way": ["the kernel moves no packets here"]},
    "contexts": {"established": 2, "i1-sent": 0},
    "peers": 1,
    "uplinks_up": 1,
    "uplinks": 2,
    "packets": {"outbound": 12, "inbound": 11, "rewritten": 3, "restored": 4},
    "losses": {"queue_full": 0, "send_failed": 5},
    "drops": 7,
}
CONTEXT: dict[str, Any] = {
    "local_ulid": "2001:db8:a1::11",
    "peer_ulid": "2001:db8:b1::11",
    "state": "established",
    "reap_state": "operational",
    "local_tag": "0000deadbeef",
    "peer_tag": "123456789abc",
    "local_locator": "2001:db8:a1::11",
    "peer_locator": "2001:db8:b1::11",
    "local_locators": [],
    "peer_locators": [],
    "packets_in": 1234567,
    "packets_out": 12,
    "established_at": TEN_DAYS_AGO,
    "rehomed_at": None,
    "rehomings": 0,
}
REHOMED = CONTEXT | {
    "peer_ulid": "2001:db8:b1::12",
    "local_locator": "2001:db8:a2::11",
    "rehomed_at": TEN_DAYS_AGO,
    "rehomings": 2,
}
PEER = {
    "address": "2001:db8:b1::11",
    "name": "b1.beta.example",
    "capability": "yes",
    "site": "[bold]beta.example",
    "prefixes": ["2001:db8:b1::/48", "2001:db8:b2::/48"],
    "expires_in_s": 290,
    "contexts": 1,
}
UPLINK = {
    "name": "isp1",
    "interface": "wan1",
    "prefix": "2001:db8:a1::/48",
    "gateway": "2001:db8:f1::1",
    "preference": 1,
    "up": False,
    "why": "no carrier",
    "mtu": 1500,
    "contexts": 3,
}
DROPS = [
    {"number": 3, "reason": "BAD_CHECKSUM", "text": "the shim checksum is wrong", "count": 9},
    {"number": 4, "reason": "BAD_ADDRESS", "text": "source is multicast", "count": 0},
]
EVENT = {
    "seq": 41,
    "time": TEN_DAYS_AGO,
    "what": "re-homed",
    "detail": "2001:db8:a2::11 -> 2001:db8:b1::11",
    "local_ulid": "2001:db8:a1::11",
    "peer_ulid": "2001:db8:b1::11",
}


PARKED = CONTEXT | {"parked": "peer"}


def run(*words: str) -> Result:
    return CliRunner().invoke(m6proxy, words, catch_exceptions=True)


def answered(tmp_path: Path, path: str, value: object, *words: str) -> Result:
    """Run a command against a daemon that answers ``value`` to ``path``."""
    sock = tmp_path / "d.sock"
    with daemon(sock, {path: (200, json.dumps(value))}) as asked:
        result = run(*words, "--control", str(sock))
    assert asked == [path], result.output
    assert result.exit_code == 0, result.output
    return result


@pytest.mark.parametrize(
    ("command", "value"),
    [
        ("status", STATUS),
        ("contexts", [CONTEXT, REHOMED]),
        ("peers", [PEER]),
        ("uplinks", [UPLINK]),
        ("drops", DROPS[:1]),
        ("contexts", []),
    ],
)
def test_json_is_exactly_what_the_daemon_said(command: str, value: object, tmp_path: Path) -> None:
    result = answered(tmp_path, f"/v1/{command}", value, command, "--json")
    assert json.loads(result.output) == value


def test_status(tmp_path: Path) -> None:
    lines = answered(tmp_path, "/v1/status", STATUS, "status").output.splitlines()
    assert "site        alpha.example" in lines
    assert "started     10 d ago" in lines
    assert "uplinks     1 of 2 up" in lines
    assert "contexts    2 established" in lines
    assert "packets     12 outbound, 11 inbound, 3 rewritten, 4 restored" in lines
    assert "lost        5 send_failed" in lines
    assert "dropped     7" in lines


def test_status_says_what_occurred_in_the_kernel(tmp_path: Path) -> None:
    """It named two dozen counters, most of them nought, in one line."""
    packets = {"outbound": 12, "kernel_rewritten": 90, "kernel_slow_tag": 1, "kernel_split": 0}
    answer = STATUS | {"dataplane": "bpf", "packets": packets}
    lines = answered(tmp_path, "/v1/status", answer, "status").output.splitlines()
    assert "packets     12 outbound" in lines
    assert "in kernel   90 rewritten, 1 slow tag" in lines


def test_contexts(tmp_path: Path) -> None:
    output = answered(tmp_path, "/v1/contexts", [CONTEXT, REHOMED], "contexts").output
    head, first, second = output.splitlines()
    assert head.split() == ["host", "peer", "state", "path", "locators", "in", "out", "re-homed"]
    assert "the ULIDs" in first
    assert "1,234,567" in first
    assert first.rstrip().endswith("-")
    assert "2001:db8:a2::11 2001:db8:b1::11" in second
    assert "2 times, 10 d ago" in second


def test_peers_show_names_and_never_obey_them(tmp_path: Path) -> None:
    """A peer chose this site name: it is text, not markup of our terminal library."""
    output = answered(tmp_path, "/v1/peers", [PEER], "peers").output
    assert "[bold]beta.example" in output
    assert "2001:db8:b2::/48" in output
    assert "4 min 50 s" in output


def test_uplinks_say_why_one_is_down(tmp_path: Path) -> None:
    assert "down: no carrier" in answered(tmp_path, "/v1/uplinks", [UPLINK], "uplinks").output


def test_drops_hide_what_never_happened(tmp_path: Path) -> None:
    """The daemon leaves those out that never happened; ``--all`` did not ask for them."""
    happened = [drop for drop in DROPS if drop["count"]]
    short = answered(tmp_path, "/v1/drops", happened, "drops").output
    assert "BAD_CHECKSUM" in short
    assert "BAD_ADDRESS" not in short
    path = "/v1/drops?all=1"
    assert "BAD_ADDRESS" in answered(tmp_path, path, DROPS, "drops", "--all").output


def test_events(tmp_path: Path) -> None:
    output = answered(tmp_path, "/v1/events?after=40", [EVENT], "events", "--after", "40").output
    assert "re-homed" in output
    assert "10 d ago" in output


@pytest.mark.parametrize("command", ["contexts", "peers", "uplinks", "drops", "events"])
def test_empty_is_said_in_words(command: str, tmp_path: Path) -> None:
    path = "/v1/events?after=0" if command == "events" else f"/v1/{command}"
    output = answered(tmp_path, path, [], command).output
    assert output.count("\n") == 1
    assert output.startswith(("No", "Nothing"))


def test_a_daemon_that_does_not_run_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=r"no daemon answers on .*gone\.sock; start it"):
        ask(tmp_path / "gone.sock", "/v1/status")
    dead = tmp_path / "dead.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(dead))
    with pytest.raises(SetupError, match="no daemon answers"):
        ask(dead, "/v1/status")


def test_what_is_not_our_daemon_is_one_line(tmp_path: Path) -> None:
    sock = tmp_path / "d.sock"
    with (
        daemon(sock, {"/v1/status": (200, "<html>")}),
        pytest.raises(SetupError, match="is not JSON"),
    ):
        ask(sock, "/v1/status")
    with daemon(sock, {}), pytest.raises(SetupError, match="refused /v1/x: no such thing"):
        ask(sock, "/v1/x?packet=60")
    with pytest.raises(SetupError, match=r"cannot be asked: .*too long"):
        ask(Path("/" + "x" * 200), "/v1/status")


def test_the_only_socket_is_found(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="no daemon runs here"):
        find_socket(None, tmp_path)
    (tmp_path / "alpha.sock").touch()
    assert find_socket(None, tmp_path) == tmp_path / "alpha.sock"
    (tmp_path / "beta.sock").touch()
    with pytest.raises(SetupError, match=r"alpha\.sock, .*beta\.sock\); name one with --control"):
        find_socket(None, tmp_path)
    assert find_socket(tmp_path / "x", tmp_path) == tmp_path / "x"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0 s"),
        (59, "59 s"),
        (60, "1 min"),
        (200, "3 min 20 s"),
        (7500, "2 h 5 min"),
        (90_000, "1 d 1 h"),
        (None, "-"),
    ],
)
def test_durations(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


def test_ages() -> None:
    assert age(None) == "-"
    assert age(100.0, now=104.0) == "4 s ago"
    assert age(100.0, now=99.0) == "0 s ago"


EXPLAINED: dict[str, Any] = {
    "direction": "outbound",
    "before": {
        "source": "2001:db8:a1::11",
        "destination": "2001:db8:b1::11",
        "next_header": 6,
        "flow_label": 0,
        "octets": 60,
        "packet": "60",
    },
    "engine": {
        "verdict": "rewritten",
        "why": "as its context says",
        "after": {
            "source": "2001:db8:a2::11",
            "destination": "2001:db8:b2::11",
            "next_header": 6,
            "flow_label": 0xBEEF,
            "octets": 60,
            "packet": "60",
        },
        "context": {
            "pair": "2001:db8:a1::11 -> 2001:db8:b1::11",
            "locators": "2001:db8:a2::11 -> 2001:db8:b2::11",
            "state": "ESTABLISHED",
            "demux": "flowlabel",
            "tag": "0000deadbeef",
        },
        "effects": ["event: silence noticed"],
    },
    "kernel": {"verdict": "none", "why": "fast_path is off"},
    "agree": None,
}


def test_explain_makes_the_packet_that_was_described(tmp_path: Path) -> None:
    sock = tmp_path / "d.sock"
    hosts = ("--from", "2001:db8:a1::11", "--to", "2001:db8:b1::11")
    first = (
        "6000000000140640" "20010db8" "00a1" + "0" * 16 + "0011" "20010db8" "00b1" + "0" * 16
        + "0011" "9c40" "01bb" "0000000000000000" "5002" "ffff" "b501" "0000"
    )  # fmt: skip
    path = f"/v1/explain?in=lan0&packet={first}"
    with daemon(sock, {path: (200, json.dumps(EXPLAINED))}) as asked:
        result = run("explain", "--in", "lan0", *hosts, "--control", str(sock))
    assert asked == [path], asked
    lines = result.output.splitlines()
    assert lines[0] == "outbound  2001:db8:a1::11 to 2001:db8:b1::11, next header 6, 60 octets"
    assert lines[1] == "engine    rewritten: as its context says"
    assert lines[2].endswith("next header 6, 60 octets, flow label 0beef")
    assert lines[3] == "also      event: silence noticed"
    assert lines[-1] == "kernel    none: fast_path is off"


def test_explain_says_when_the_kernel_would_not_do_the_same(tmp_path: Path) -> None:
    kernel = {"verdict": "unchanged", "why": "past the queue", "effects": []}
    for agree, line in (
        (False, "agree     no: the kernel and the engine would not do the same"),
        (True, "agree     yes"),
    ):
        sock = tmp_path / "d.sock"
        answer = EXPLAINED | {"kernel": kernel, "agree": agree}
        path = "/v1/explain?in=lan0&packet=60"
        with daemon(sock, {path: (200, json.dumps(answer))}):
            result = run("explain", "--in", "lan0", "--packet", "60", "--control", str(sock))
        assert result.output.splitlines()[-2:] == ["kernel    unchanged: past the queue", line]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("--from", "2001:db8::1"), "give --packet HEX, or --from and --to"),
        (("--packet", "60", "--from", "::1", "--to", "::2"), "give --packet HEX"),
        (("--from", "here", "--to", "::2"), "'here' is not an IPv6 address"),
        (("--packet", "0x60"), "--packet takes pairs of hexadecimal digits"),
    ],
)
def test_explain_says_what_it_needs(words: tuple[str, ...], line: str) -> None:
    result = run("explain", "--in", "lan0", *words)
    assert isinstance(result.exception, SetupError) and line in str(result.exception)


def test_parked_contexts_and_an_away_site_are_shown(tmp_path: Path) -> None:
    output = answered(tmp_path, "/v1/contexts", [CONTEXT, PARKED], "contexts").output
    assert output.count("parked (peer away)") == 1
    away = {"until": time.time() + 600, "granted": 3}
    output = answered(tmp_path, "/v1/status", STATUS | {"away": away}, "status").output
    assert "contexts wait at their peers" in output


FLOW: dict[str, Any] = {
    "slot": 3,
    "local_ulid": "2001:db8:a1::11",
    "peer_ulid": "2001:db8:b1::11",
    "local_locator": "2001:db8:a2::11",
    "peer_locator": "2001:db8:b2::11",
    "mode": "dstopt",
    "uplink": "isp2",
    "mtu": 1500,
    "path": "kernel",
    "packets_out": 1000,
    "octets_out": 1_000_000,
    "packets_in": 10,
    "octets_in": 600,
    "last_out_at": TEN_DAYS_AGO,
    "last_in_at": None,
}


def test_flows_show_their_way_and_rates(tmp_path: Path) -> None:
    sock = tmp_path / "d.sock"
    with daemon(sock, {"/v1/flows": (200, json.dumps([FLOW]))}) as asked:
        result = run("flows", "--interval", "0.1", "--control", str(sock))
    assert asked == ["/v1/flows"] * 2 and result.exit_code == 0, result.output
    head, row = result.output.splitlines()
    assert head.split()[:3] == ["host", "peer", "by"]
    assert "2001:db8:a2::11 2001:db8:b2::11, dstopt" in row and "10 d ago" in row
    later = FLOW | {"packets_out": 1500, "octets_out": 1_500_000}
    (rated,) = with_rates([FLOW], [later], 0.5)
    assert (rated["packets_out_per_s"], rated["octets_out_per_s"]) == (1000, 1_000_000)
    (other,) = with_rates([FLOW | {"peer_ulid": "::9"}], [later], 0.5)
    assert other["packets_out_per_s"] == 0, "a slot that another context had before"


def test_status_says_who_is_in_the_way_ofexpress_line() -> None:
    assert "nobody else would see" in express_line({"on": True, "in_the_way": []})
    lines = ["IPsec: 1 policy", "lan0: it belongs to br0"]
    assert express_line({"on": False, "in_the_way": lines}) == (
        "off: IPsec: 1 policy; lan0: it belongs to br0; packets go the ordinary way"
    )


def test_flows_without_programs_in_the_kernel_say_why(tmp_path: Path) -> None:
    sock = tmp_path / "d.sock"
    refused = json.dumps({"error": "the kernel moves no packets here: fast_path is off"})
    with daemon(sock, {"/v1/flows": (409, refused)}):
        result = run("flows", "--control", str(sock))
    assert isinstance(result.exception, SetupError)
    assert "fast_path is off" in str(result.exception)

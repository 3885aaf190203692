"""``m6proxy park`` and ``unpark``: what is asked of the daemon, and what people read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from m6proxy.cli.main import m6proxy
from tests.cli.server import daemon

AWAY = {
    "until": 1.0,
    "granted": 3,
    "refused": 1,
    "unanswered": 2,
    "not_parked": 4,
    "shortest_s": 600.0,
}


def run(tmp_path: Path, answers: dict[str, object], *words: str) -> tuple[Result, list[object]]:
    sock = tmp_path / "d.sock"
    told: list[object] = []
    canned = {path: (200, json.dumps(value)) for path, value in answers.items()}
    with daemon(sock, canned, told):
        result = CliRunner().invoke(m6proxy, [*words, "--control", str(sock)])
    return result, told


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("90s", 90), ("10m", 600), ("2h", 7200), ("3d", 259_200)]
)
def test_a_time_in_any_unit(text: str, seconds: int, tmp_path: Path) -> None:
    result, told = run(tmp_path, {"/v1/park": AWAY}, "park", "--for", text)
    assert told == [{"for_s": seconds}]
    assert result.output == (
        "3 contexts wait at their peers (at least 10 min), 1 are refused, 2 unanswered, "
        "4 not parked: their peers do not know how.\n"
    )


@pytest.mark.parametrize("text", ["", "0", "soon", "-3m", "1.5h", "10 m"])
def test_what_is_no_time(text: str, tmp_path: Path) -> None:
    result, told = run(tmp_path, {}, "park", "--for", text)
    assert result.exit_code == 2 and "is no duration; write for example 90s" in result.output
    assert told == []


def test_json_is_what_the_daemon_said(tmp_path: Path) -> None:
    result, _ = run(tmp_path, {"/v1/park": AWAY}, "park", "--for", "10m", "--json")
    assert json.loads(result.output) == AWAY
    result, _ = run(tmp_path, {"/v1/unpark": {"was_away": True}}, "unpark", "--json")
    assert json.loads(result.output) == {"was_away": True}


@pytest.mark.parametrize(
    ("was_away", "words"), [(True, "The site is back.\n"), (False, "The site was not away.\n")]
)
def test_back_again(was_away: bool, words: str, tmp_path: Path) -> None:
    result, told = run(tmp_path, {"/v1/unpark": {"was_away": was_away}}, "unpark")
    assert (result.output, told) == (words, [{}])

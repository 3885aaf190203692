"""Every command that README shows is run; the demo at a size that fits a test."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from m6proxy.lab import build
from m6proxy.lab.topology import ALPHA, BETA
from tests.harness.gateway import A1, B1, running
from tests.harness.netns import lab as lab
from tests.harness.netns import run_in, unique_lab

pytestmark = pytest.mark.netns

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
SMALL_DEMO = (
    *("--size-mib", "24", "--rate-mib-s", "2", "--first-cut-s", "3"),
    *("--second-cut-s", "8", "--give-up-s", "7"),
)


def shown_commands() -> list[str]:
    """All ``m6proxy ...`` and ``make ...`` commands, those in a sentence included."""
    blocks = re.findall(r"```\n(.*?)```", README, re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    spans = re.findall(r"`((?:m6proxy|make) [^`]+)`", README, re.DOTALL)
    commands = [*lines, *(" ".join(span.split()) for span in spans)]
    return [
        re.split(r"  +", command)[0]
        for command in commands
        if re.match(r"(m6proxy|make) [a-z]", command)
    ]


def m6proxy(*words: str, environment: dict[str, str] | None = None) -> str:
    """Run a command of README and return what it printed; fail when it fails."""
    done = subprocess.run(
        [sys.executable, "-m", "m6proxy", *words],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, **(environment or {})},
        cwd=ROOT,
    )
    assert done.returncode == 0, f"m6proxy {shlex.join(words)}: {done.stdout}{done.stderr}"
    return done.stdout


def test_lab_commands_run_in_the_order_shown() -> None:
    words = [shlex.split(c)[1:] for c in shown_commands() if c.startswith("m6proxy lab")]
    assert [w[1] for w in words] == ["up", "exec", "cut", "restore", "down"]
    name = unique_lab().name
    try:
        for word in words:
            m6proxy(*word[:2], "--name", name, *word[2:])
    finally:
        m6proxy("lab", "down", "--name", name)


def test_gateway_commands_run_against_a_daemon(lab: build.Lab) -> None:
    commands = [shlex.split(c)[1:] for c in shown_commands() if c.startswith("m6proxy ")]
    commands = [words for words in commands if words[0] not in ("lab", "demo", "run")]
    assert {words[0] for words in commands} == {
        *("check", "dns", "explain", "park", "plan", "status", "unpark"),
    }
    with running(lab, ALPHA, BETA) as (alpha, _):
        run_in(lab, "a1", "ping", "-c", "3", "-s", "1000", "-i", "0.2", B1)
        assert ALPHA.gateway is not None
        for words in commands:
            meant = {"/etc/m6proxy.yaml": str(alpha.config), "A": A1, "B": B1}
            given = [meant.get(word, word) for word in words]
            if words[0] in ("status", "explain", "park", "unpark"):
                given += ["--control", str(alpha.control)]
            argv = [sys.executable, "-m", "m6proxy", *given]
            printed = run_in(lab, ALPHA.gateway, *argv, deadline_s=30)
            assert printed.strip(), words
        for word in re.findall(r"`(contexts|peers|uplinks|drops|events)`", README):
            printed = m6proxy(word, "--json", "--control", str(alpha.control))
            assert isinstance(json.loads(printed), list)
        contexts = json.loads(m6proxy("contexts", "--json", "--control", str(alpha.control)))
        assert [(c["local_ulid"], c["peer_ulid"]) for c in contexts] == [(A1, B1)]


def test_demo_tells_the_story_and_writes_what_it_promises(tmp_path: Path) -> None:
    target, drawing = tmp_path / "demo.json", tmp_path / "demo.svg"
    m6proxy_demo = [sys.executable, "-m", "m6proxy", "demo", *SMALL_DEMO]
    done = subprocess.run(
        [*m6proxy_demo, "--json", str(target), "--plot", str(drawing)],
        capture_output=True,
        text=True,
        timeout=150,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(target.read_text())
    for session in told["sessions"]:
        assert session["survived"], session
        assert session["sha256_ok"], session
        assert session["octets"] > 0
        assert 1.0 < session["longest_gap_s"] < 15.0, session
    assert {s["protocol"] for s in told["sessions"]} >= {"tcp/http", "udp"}
    assert not any(session["survived"] for session in told["control"])
    whats = [event["what"] for event in told["events"]]
    for what in ("name learned", "capability found", "context established", "re-homed"):
        assert what in whats
    assert ElementTree.parse(drawing).getroot().tag.endswith("svg")  # noqa: S314  our own drawing


def test_make_targets_that_readme_names_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = {shlex.split(c)[1] for c in shown_commands() if c.startswith("make ")}
    assert targets == {"demo", "test"}
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)

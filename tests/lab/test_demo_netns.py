"""The demo's command: what it refuses, and that it takes everything down when it is stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from m6proxy.lab import build
from m6proxy.lab.build import Lab
from m6proxy.lab.cli import demo
from tests.harness.netns import eventually


def test_a_story_that_shows_nothing_is_refused_with_exit_2() -> None:
    result = CliRunner().invoke(demo, ["--size-mib", "16"])
    assert result.exit_code == 2
    assert result.output.count("\n") == 1


@pytest.mark.netns
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_demo_leaves_nothing(number: signal.Signals, tmp_path: Path) -> None:
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    command = [sys.executable, "-m", "m6proxy", "demo", "--second-cut-s", "15"]
    child = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        env=environment,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # a shell that runs the tests in the background has them ignore SIGINT
    lab = Lab(f"m6demo-{child.pid}-with")
    try:
        eventually(
            lambda: "b2" in build.processes(lab).values() or child.poll() is not None,
            deadline_s=15.0,
            what="sshd runs on b2",
        )
        assert child.poll() is None, "the demo ended by itself"
        child.send_signal(number)
        assert child.wait(timeout=60) == 1
        assert lab.namespaces() == []
        assert not lab.state_dir.exists()
        assert list(tmp_path.iterdir()) == []
    finally:
        child.kill()
        child.wait()
        build.down(lab)

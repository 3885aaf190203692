"""Every benchmark runs with its smallest setting, says something sound, and leaves nothing."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
NETNS = Path("/run/netns")
DEADLINE_S = 180.0


def _start(name: str, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, f"benchmarks/{name}.py", "--quick", *words],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _left_by(pid: int) -> list[str]:
    return [path.name for path in NETNS.glob(f"m6b-{pid}-*")]


def _run(name: str, file: Path) -> dict[str, Any]:
    with _start(name, "--json", str(file)) as child:
        try:
            output, words = child.communicate(timeout=DEADLINE_S)
        except subprocess.TimeoutExpired:
            child.terminate()
            raise
    assert child.returncode == 0, words
    assert not _left_by(child.pid)
    found: dict[str, Any] = json.loads(file.read_text())
    assert found["title"] in output
    assert found["series"] and found["goals"] and found["limits"]
    for series in found["series"]:
        assert series["runs"] == len(series["values"]) >= 1
        assert series["minimum"] <= series["median"] <= series["maximum"]
        assert series["median"] > 0, series
    return found


def _medians(found: dict[str, Any]) -> dict[str, float]:
    return {series["name"]: series["median"] for series in found["series"]}


def test_control_plane(tmp_path: Path) -> None:
    medians = _medians(_run("control_plane", tmp_path / "found.json"))
    assert medians["idle context, Python's objects"] < medians["idle context, resident memory"]


def test_scale(tmp_path: Path) -> None:
    medians = _medians(_run("scale", tmp_path / "found.json"))
    # at 2,000 probes a second, and some contexts move by the search that their peer began
    assert 0.85 * 1500 / 2000 <= medians["failed uplink, last one moved"] <= 2 * 1500 / 2000


@pytest.mark.netns
def test_bpf_maps(tmp_path: Path) -> None:
    medians = _medians(_run("bpf_maps", tmp_path / "found.json"))
    out, tag, pair = 32 + 56, 8 + 168, 32 + 40  # keys and values
    assert medians["kernel memory of a flow, dstopt"] > 64 + out + 2 * tag + pair
    assert medians["Python's memory of a flow"] > 100


@pytest.mark.netns
def test_restart(tmp_path: Path) -> None:
    """Nothing is lost, and so a series of zeros is right here."""
    file = tmp_path / "found.json"
    with _start("restart", "--json", str(file)) as child:
        _, words = child.communicate(timeout=DEADLINE_S)
    assert child.returncode == 0, words
    assert not _left_by(child.pid)
    found = json.loads(file.read_text())
    assert all(goal["reached"] for goal in found["goals"]) and len(found["goals"]) == 2
    medians = _medians(found)
    for kind in ("sender's gateway", "receiver's gateway"):
        assert medians[f"{kind}: sent"] == medians[f"{kind}: received"] > 1000


@pytest.mark.netns
def test_nfqueue(tmp_path: Path) -> None:
    """The ratios are those of the rates beside them; how high they are is no test's business."""
    medians = _medians(_run("nfqueue", tmp_path / "found.json"))
    for direction, real in (("outbound", "rewrite"), ("inbound", "restore")):
        expected = medians[f"{direction} {real}"] / medians[f"{direction} bare"]
        assert medians[f"{real} / bare"] == pytest.approx(expected)


@pytest.mark.netns
def test_rehoming(tmp_path: Path) -> None:
    found = _run("rehoming", tmp_path / "found.json")
    assert _medians(found)["alpha's provider: longest gap"] > 0.5


@pytest.mark.netns
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("name", ["nfqueue", "rehoming"])
def test_an_interrupted_benchmark_leaves_nothing(name: str, number: signal.Signals) -> None:
    with _start(name) as child:
        end_s = time.monotonic() + DEADLINE_S
        while not _left_by(child.pid):
            assert time.monotonic() < end_s, "it never made a namespace"
            assert child.poll() is None, "it ended by itself"
            time.sleep(0.01)
        child.send_signal(number)
        child.communicate(timeout=DEADLINE_S)
    assert child.returncode != 0
    assert not _left_by(child.pid)


@pytest.mark.netns
def test_dataplane(tmp_path: Path) -> None:
    """Every variant of the quick run forwards; the ratios are those of the medians of one round."""
    file = tmp_path / "found.json"
    with _start("dataplane", "--json", str(file)) as child:
        output, words = child.communicate(timeout=DEADLINE_S)
    assert child.returncode == 0, words
    assert not _left_by(child.pid)
    rows = json.loads(file.read_text())
    assert {row["dataplane"] for row in rows} == {"plain", "nptv6", "bpf"}
    assert {row["express"] for row in rows if row["dataplane"] == "bpf"} == {True, False}
    medians = {(r["dataplane"], r["mode"], r["metric"]): r["median"] for r in rows}
    for row in rows:
        assert row["median"] > 0 and row["runs"] == len(row["values"]) == 1
        for base in ("plain", "nptv6"):
            if row["dataplane"] == "bpf":
                expected = row["median"] / medians[base, "", row["metric"]]
                assert row[f"ratio_to_{base}"] == pytest.approx(expected)
    assert "goal" in output

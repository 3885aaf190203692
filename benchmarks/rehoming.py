"""How long a stream is silent when a provider dies without a word.

    python benchmarks/rehoming.py [--json FILE] [--quick] [--runs N]

The whole lab with the daemon on both gateways and ``send_timeout_s: 3``; a1 sends b1 a UDP
stream of 50 packets per second. Once both ends have the context, providers drop everything
that they forward. What is measured is the longest time without an arrival at b1. Each run
of each case has a lab of its own, and the cases take turns.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from benchmarks.harness.rounds import (
    Goal,
    Outcome,
    Series,
    machine,
    options,
    progress,
    run_script,
    tell,
)
from m6proxy.cli.control import ask
from m6proxy.discovery.codec import svcb_zone_line
from m6proxy.errors import SetupError
from m6proxy.lab import build, faults, traffic
from m6proxy.lab.build import Lab
from m6proxy.lab.nameserver import start_nameserver
from m6proxy.lab.sessions import python_environment
from m6proxy.lab.story import longest_gap_s
from m6proxy.lab.topology import ALPHA, BETA, Site, fqdn

CASES = {
    "alpha's provider": ("alpha.isp1",),
    "beta's provider": ("beta.isp1",),
    "one of each at once": ("alpha.isp1", "beta.isp1"),
}
GOAL_S = 5.0
PORT = 5004
READY_DEADLINE_S = 30.0
RESUME_DEADLINE_S = 20.0
STEADY_S = 1.0
"""How long the stream runs before the cut and after it has come back."""
STOP_DEADLINE_S = 5.0
POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class Outage:
    """One death of a provider."""

    gap_s: float
    """The longest time without an arrival."""
    noticed_s: float
    """From the cut until a gateway noticed the silence."""
    moved_s: float
    """From the cut until the sending gateway used another pair."""
    daemon_busy: float
    """Share of a core that the busier daemon used."""


def measure(number: int, targets: tuple[str, ...], wait_s: float) -> Outage:
    """Build a lab, cut after the context stands, and look at the arrivals."""
    lab = Lab(f"m6b-{os.getpid()}-{number}")
    try:
        build.up(lab)
        start_nameserver(lab, svcb_zone_line)
        with contextlib.ExitStack() as children:
            daemons = [children.enter_context(_daemon(lab, site)) for site in (ALPHA, BETA)]
            return _watch_cut(lab, children, daemons, targets, wait_s)
    finally:
        build.down(lab)


def _watch_cut(
    lab: Lab,
    children: contextlib.ExitStack,
    daemons: list[subprocess.Popen[bytes]],
    targets: tuple[str, ...],
    wait_s: float,
) -> Outage:
    arrivals = lab.state_dir / "arrivals"
    (caller, *_), (callee, *_) = ALPHA.hosts, BETA.hosts
    module = [sys.executable, "-m", traffic.__name__]
    words = [*module, "receive", callee.address, str(PORT)]
    children.enter_context(_running(lab, callee.node, words, arrivals))
    _until("the receiver listens", lambda: "# ready" in arrivals.read_text())
    words = [*module, "send", fqdn(BETA, callee), str(PORT)]
    children.enter_context(_running(lab, caller.node, words, lab.state_dir / "sender"))
    _until("both ends have a context", lambda: _established(lab))
    time.sleep(STEADY_S + wait_s)
    began_s, began_wall_s, began_cpu_s = time.monotonic(), time.time(), _cpu_s(daemons)
    for target in targets:
        faults.cut(lab, target)
    _until("the stream is back", lambda: _is_back(arrivals, began_s), RESUME_DEADLINE_S)
    ended_s = time.monotonic()
    busy = max(
        (after - before) / (ended_s - began_s)
        for before, after in zip(began_cpu_s, _cpu_s(daemons), strict=True)
    )
    return Outage(
        longest_gap_s(_times_s(arrivals), began_s - STEADY_S, ended_s),
        _first_s(lab, (ALPHA, BETA), "silence noticed", began_wall_s),
        _first_s(lab, (ALPHA,), "re-homed", began_wall_s),
        busy,
    )


@contextlib.contextmanager
def _running(
    lab: Lab, node: str, words: list[str], output: Path
) -> Iterator[subprocess.Popen[bytes]]:
    file: IO[bytes]
    with output.open("wb") as file:
        child = subprocess.Popen(
            lab.inside(node, words),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            start_new_session=True,
            env=python_environment(),
        )
    try:
        yield child
    finally:
        child.terminate()
        try:
            child.wait(STOP_DEADLINE_S)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


@contextlib.contextmanager
def _daemon(lab: Lab, site: Site) -> Iterator[subprocess.Popen[bytes]]:
    assert site.gateway is not None
    log = lab.state_dir / f"{site.name}.log"
    words = [sys.executable, "-m", "m6proxy", "run", "-c", str(build.config_path(lab, site))]
    with _running(lab, site.gateway, words, log) as child:

        def is_ready() -> bool:
            if child.poll() is not None:
                raise SetupError(f"the daemon of {site.name} ended: {log.read_text()[-300:]}")
            return _contexts(lab, site) is not None

        _until(f"the daemon of {site.name} is ready", is_ready)
        yield child


def _until(what: str, is_so: Any, deadline_s: float = READY_DEADLINE_S) -> None:
    end_s = time.monotonic() + deadline_s
    while not is_so():
        if time.monotonic() > end_s:
            raise SetupError(f"not within {deadline_s:g} s: {what}")
        time.sleep(POLL_S)


def _contexts(lab: Lab, site: Site) -> list[dict[str, Any]] | None:
    try:
        found: list[dict[str, Any]] = ask(build.control_path(lab, site), "/v1/contexts")
    except SetupError:
        return None
    return found


def _established(lab: Lab) -> bool:
    return all(
        any(context["state"].upper() == "ESTABLISHED" for context in _contexts(lab, site) or ())
        for site in (ALPHA, BETA)
    )


def _first_s(lab: Lab, sites: tuple[Site, ...], what: str, since_s: float) -> float:
    """When the first of these gateways reported something; NaN when none did."""
    times = [
        float(event["time"]) - since_s
        for site in sites
        for event in ask(build.control_path(lab, site), "/v1/events?after=0")
        if event["what"] == what and float(event["time"]) >= since_s
    ]
    return min(times, default=float("nan"))


def _times_s(arrivals: Path) -> list[float]:
    whole = arrivals.read_text().rpartition("\n")[0]
    return [float(line.split()[1]) for line in whole.splitlines() if not line.startswith("#")]


def _is_back(arrivals: Path, cut_s: float) -> bool:
    """Whether the stream was silent, came back, and has been there for a while."""
    times_s = [at_s for at_s in _times_s(arrivals) if at_s > cut_s]
    silences = (b for a, b in zip([cut_s, *times_s], times_s, strict=False) if b - a > 0.5)
    back_s = max(silences, default=None)
    return back_s is not None and times_s[-1] - back_s > STEADY_S


def _cpu_s(children: list[subprocess.Popen[bytes]]) -> list[float]:
    ticks = os.sysconf("SC_CLK_TCK")
    stats = [Path(f"/proc/{child.pid}/stat").read_text() for child in children]
    fields = [stat.rpartition(")")[2].split() for stat in stats]
    return [(int(row[11]) + int(row[12])) / ticks for row in fields]


def main() -> int:
    """Measure and tell."""
    parser = options("The longest gap of a UDP stream when providers die silently.")
    parser.add_argument("--runs", type=int, default=5)
    arguments = parser.parse_args()
    cases = dict(CASES)
    if arguments.quick:
        arguments.runs, cases = 1, {"alpha's provider": CASES["alpha's provider"]}
    if os.geteuid() != 0:
        raise SetupError("network namespaces need root")
    return tell(_measure_all(arguments, cases), arguments)


def _measure_all(arguments: argparse.Namespace, cases: dict[str, tuple[str, ...]]) -> Outcome:
    before, phase = machine(), random.Random(2)
    outages: dict[str, list[Outage]] = {name: [] for name in cases}
    for run in range(arguments.runs):
        for index, (name, targets) in enumerate(cases.items()):
            outage = measure(run * len(cases) + index, targets, phase.random())
            outages[name].append(outage)
            progress(["run", run + 1, f"{name}: silent for {outage.gap_s:.2f} s"])
    outcome = Outcome("Re-homing after silent loss, send_timeout_s: 3, UDP stream of 50 packets/s")
    for name, runs in outages.items():
        gaps = Series(f"{name}: longest gap", "s", tuple(o.gap_s for o in runs))
        worst = Series(f"{name}: longest gap of all runs", "s", (max(gaps.values),))
        outcome.series += [
            gaps,
            Series("  from cut to silence noticed", "s", tuple(o.noticed_s for o in runs)),
            Series("  from cut to the sender's move", "s", tuple(o.moved_s for o in runs)),
        ]
        outcome.goals.append(Goal(worst, GOAL_S, at_least=False))
    busy = max(o.daemon_busy for runs in outages.values() for o in runs)
    outcome.limits = [
        "the Send Timeout and the waits between probes; "
        f"the busier daemon used {busy:.0%} of a core at most",
        f"before: {before}; after: {machine()}",
    ]
    outcome.settings = {"runs": arguments.runs, "send_timeout_s": 3}
    return outcome


if __name__ == "__main__":
    run_script(main)

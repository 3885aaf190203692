"""What contexts cost: exchanges per second, memory of an idle one, CPU time of a re-homing.

    python benchmarks/control_plane.py [--json FILE] [--quick] [--runs N]

All in memory and in virtual time, without sockets; DNS answers at once.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

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
from benchmarks.harness.world import World, engine, host

ROOT = Path(__file__).resolve().parent.parent
GOAL_PER_S = 2000
GOAL_OCTETS = 2048
LOCAL_HOSTS = 1000
REHOMING_S = 60.0


def handshakes_per_s(count: int, seed: int) -> float:
    """Complete exchanges per second of wall time, both engines together, in one process."""
    world = World(engine("a", seed), engine("b", seed + 1))
    pairs = [(host("a", n % LOCAL_HOSTS + 1), host("b", n + 1)) for n in range(count)]
    start_s = time.perf_counter()
    for local, peer in pairs:
        world.connect("a", local, peer)
    seconds = time.perf_counter() - start_s
    for letter, side in world.engines.items():
        established = sum(context.carries for context in side.contexts())
        assert established == count, f"{letter}: {established} of {count} contexts"
    return count / seconds


def octets_per_context(how: str, contexts: int, hosts: int) -> float:
    """Memory per idle context in a process of its own; ``how`` is live or resident."""
    words = [sys.executable, "-m", "benchmarks.harness.memory", how, str(contexts), str(hosts)]
    done = subprocess.run(words, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    found = json.loads(done.stdout)
    return float(found["octets"]) / float(found["contexts"])


@dataclass(frozen=True, slots=True)
class Rehoming:
    """All contexts of a site moved because an uplink went down."""

    cpu_us: float
    """CPU time per context, both ends and the fake network together."""
    call_s: float
    """How long the engine was in ``handle_uplink``; the daemon hears nothing meanwhile."""
    last_s: float
    """When the last context had moved, virtual seconds after the event."""


def rehome(contexts: int, seed: int) -> Rehoming:
    """Take alpha's first uplink down under all its contexts at once, without any traffic."""
    world = World(engine("a", seed), engine("b", seed + 1))
    for n in range(contexts):
        world.connect("a", host("a", n % LOCAL_HOSTS + 1), host("b", n + 1))
    dead = host("a", 1)[:6]
    world.cut.add(dead)
    began_s = world.now
    start_s = time.process_time()
    world.engines["a"].handle_uplink("isp1", up=False, mtu=1500, now=world.now)
    call_s = time.process_time() - start_s
    world.run(REHOMING_S)
    seconds = time.process_time() - start_s
    rehomed = [c for c in world.engines["a"].contexts() if c.route[:6] != dead]
    assert len(rehomed) == contexts, f"{len(rehomed)} of {contexts} contexts re-homed"
    last_s = max(context.rehomed_s or 0.0 for context in rehomed)
    return Rehoming(seconds / contexts * 1e6, call_s, last_s - began_s)


def main() -> int:
    """Measure and tell."""
    parser = options("The cost of contexts: exchanges, memory, re-homing.")
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--contexts", type=int, default=100_000, help="for the memory")
    arguments = parser.parse_args()
    count, moved = 10_000, 10_000
    if arguments.quick:
        arguments.runs, arguments.contexts, count, moved = 1, 1000, 300, 200
    return tell(_measure_all(arguments, count, moved), arguments)


def _measure_all(arguments: argparse.Namespace, count: int, moved: int) -> Outcome:
    before = machine()
    rates, moves = [], []
    for run in range(arguments.runs):
        rates.append(handshakes_per_s(count, seed=100 + 2 * run))
        moves.append(rehome(moved, seed=200 + 2 * run))
        words = f"{rates[-1]:,.0f} exchanges/s, {moves[-1].cpu_us:.0f} us per re-homed context"
        progress(["run", run + 1, words])
    memory = {}
    for how in ("live", "resident"):
        memory[how] = octets_per_context(how, arguments.contexts, LOCAL_HOSTS)
        progress([how, f"{memory[how]:.0f} octets per idle context"])
    exchanges = Series("exchanges, both ends in one process", "per second", tuple(rates))
    live = Series("idle context, Python's objects", "octets", (memory["live"],))
    resident = Series("idle context, resident memory", "octets", (memory["resident"],))
    outcome = Outcome(
        f"Control plane; {arguments.contexts:,} idle contexts; {moved:,} contexts re-homed",
        series=[
            exchanges,
            live,
            resident,
            Series("re-homing, CPU of both ends", "us/context", tuple(m.cpu_us for m in moves)),
            Series("re-homing, first call alone", "s", tuple(m.call_s for m in moves)),
            Series("re-homing, until the last one", "virtual s", tuple(m.last_s for m in moves)),
        ],
        goals=[
            Goal(exchanges, GOAL_PER_S, at_least=True),
            Goal(live, GOAL_OCTETS, at_least=False),
            Goal(resident, GOAL_OCTETS, at_least=False),
        ],
    )
    outcome.limits = [
        "exchanges and re-homing: one core, in Python; nothing waits",
        "re-homing, first call alone: the daemon hears nothing until it returns",
        "re-homing, until the last one: virtual time; an Update Request tells each peer at once",
        f"before: {before}; after: {machine()}",
    ]
    outcome.settings = {"exchanges": count, "rehomed": moved, "local_hosts": LOCAL_HOSTS}
    return outcome


if __name__ == "__main__":
    run_script(main)

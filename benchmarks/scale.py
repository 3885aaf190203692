"""What many contexts do to one engine: a failed uplink under all of them, and growth.

    python benchmarks/scale.py [--json FILE] [--quick] [--runs N] [--rounds N]

All in memory and in virtual time. Only the CPU time inside the calls of one engine counts; its
peer and the network have none. That time passes in the virtual world: timers wait for it.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from dataclasses import dataclass
from functools import partial

from benchmarks.harness.load import LoadedWorld
from benchmarks.harness.rounds import (
    Goal,
    Outcome,
    Series,
    calibration_ms,
    machine,
    options,
    progress,
    ratio,
    run_script,
    tell,
)
from benchmarks.harness.world import host
from m6proxy.daemon.collector import set_up_collector
from m6proxy.shim.context import Context
from m6proxy.shim.core import ShimSettings
from m6proxy.shim.transitions import ReapState
from m6proxy.wire.ipv6 import NEXT_SHIM, build_packet
from m6proxy.wire.message import Probe, ProbeRecord, ProbeState, encode_message

GOAL_CPU_S = 5.0
GOAL_LATE_MS = 100.0
GOAL_GROWTH = 1.3
LOCAL_HOSTS = 1000
FEW = 1000
TOUCHED = 1000
"""Contexts that each round of the growth touches: all of the few, or so many of the many."""
SETTLE_S = 70.0
"""After a re-homing, until keepalives and searches are forgotten."""


def world_of(contexts: int) -> LoadedWorld:
    """A world with so many idle contexts between alpha's hosts and beta's."""
    world = LoadedWorld()
    for number in range(contexts):
        world.connect("a", host("a", number % LOCAL_HOSTS + 1), host("b", number + 1))
    world.run(SETTLE_S)
    return world


@dataclass(frozen=True, slots=True)
class Failure:
    """An uplink failed under all contexts."""

    cpu_s: float
    """Of alpha's engine, from the event until all is quiet again."""
    longest_ms: float
    """The longest single call: packets wait so long."""
    late_ms: float
    """The most that a timer of a context was late."""
    last_s: float
    """When the last context had moved, virtual seconds after the event."""
    loop_ms: float
    """The fixed loop, after it."""


def fail(world: LoadedWorld, name: str) -> Failure:
    """Let the uplink that all contexts use fail, the other one being back."""
    other = "isp1" if name == "isp2" else "isp2"
    contexts = list(world.measured.engine.contexts())
    wait_s = len(contexts) / ShimSettings(uplinks=()).probes_per_s + SETTLE_S
    world.cut.clear()
    world.uplink(other, up=True)
    world.run(wait_s)
    dead = host("a", 1)[:5] + bytes((0xA0 + int(name[-1]),))
    world.cut.add(dead)
    world.measured.cpu_ns = 0
    world.measured.calls_ns.clear()
    world.late_s.clear()
    began_s = world.now
    world.uplink(name, up=False)
    world.run(wait_s)
    for context in contexts:
        assert context.route[:6] != dead, "a context stayed on the dead uplink"
        assert context.reap_state is ReapState.OPERATIONAL, "a context still searches"
    return Failure(
        world.measured.cpu_ns / 1e9,
        max(world.measured.calls_ns) / 1e6,
        max(world.late_s) * 1e3,
        max(context.rehomed_s or 0.0 for context in contexts) - began_s,
        calibration_ms(),
    )


def control_us(world: LoadedWorld, touched: list[Context]) -> float:
    """CPU time of one control message: the peer of each context explores, and ends it."""
    measured, now = world.measured, world.now
    for state in (ProbeState.EXPLORING, ProbeState.OPERATIONAL):
        packets = [_probe(context, state) for context in touched]
        measured.calls_ns.clear()
        for packet in packets:
            measured.call(partial(measured.engine.handle_inbound, packet, now))
            measured.engine.take_effects()
        if state is ProbeState.EXPLORING:
            exploring_ns = sum(measured.calls_ns)
    assert all(context.reap_state is ReapState.OPERATIONAL for context in touched)
    return (exploring_ns + sum(measured.calls_ns)) / 2e3 / len(touched)


def _probe(context: Context, state: ProbeState) -> bytes:
    local, peer = context.locators
    sent = (ProbeRecord(peer, local, 1),)
    message = Probe(context.local_tag, state, sent, ())
    return build_packet(peer, local, NEXT_SHIM, encode_message(message))


def timer_us(world: LoadedWorld) -> float:
    """CPU time of one timer: keepalives and what else ``control_us`` left behind."""
    measured, engine, end_s = world.measured, world.measured.engine, world.now + SETTLE_S
    measured.calls_ns.clear()
    measured.timers.woken = 0
    while (due_s := measured.call(engine.next_deadline)) is not None and due_s <= end_s:
        world.now = max(world.now, due_s)
        measured.call(lambda: engine.handle_timer(world.now))
        engine.take_effects()
    world.now = end_s
    return sum(measured.calls_ns) / 1e3 / measured.timers.woken


def main() -> int:
    """Measure and tell."""
    parser = options("An uplink that fails under many contexts, and what growth costs.")
    parser.add_argument("--runs", type=int, default=3, help="of the failure")
    parser.add_argument("--rounds", type=int, default=7, help="of the growth")
    parser.add_argument("--contexts", type=int, default=100_000)
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.runs, arguments.rounds, arguments.contexts = 1, 1, 1500
    return tell(_measure_all(arguments), arguments)


def _measure_all(arguments: argparse.Namespace) -> Outcome:
    before = machine()
    few, many = world_of(FEW), world_of(arguments.contexts)
    set_up_collector()
    pick, chosen = random.Random(1), list(many.measured.engine.contexts())
    names = ("few", "many")
    control: dict[str, list[float]] = {name: [] for name in names}
    timers: dict[str, list[float]] = {name: [] for name in names}
    for number in range(arguments.rounds):
        for name, world in zip(names, (few, many), strict=True):
            touched = pick.sample(
                chosen if world is many else list(few.measured.engine.contexts()), TOUCHED
            )
            control[name].append(control_us(world, touched))
            timers[name].append(timer_us(world))
        words = " ".join(f"{name} {control[name][-1]:.1f} {timers[name][-1]:.1f}" for name in names)
        progress(["round", number + 1, "us per message and timer:", words])
    failures = []
    for number in range(arguments.runs):
        start_s = time.monotonic()
        failures.append(fail(many, f"isp{number % 2 + 1}"))
        progress(["run", number + 1, failures[-1], f"{time.monotonic() - start_s:.0f} s"])
    return _told(arguments, control, timers, failures, before)


def _told(
    arguments: argparse.Namespace,
    control: dict[str, list[float]],
    timers: dict[str, list[float]],
    failures: list[Failure],
    before: str,
) -> Outcome:
    many = f"{arguments.contexts:,}"
    series = {}
    for word, found in (("control message", control), ("timer", timers)):
        low = Series(f"{word}, {FEW:,} contexts", "us", tuple(found["few"]))
        high = Series(f"{word}, {many} contexts", "us", tuple(found["many"]))
        series[word] = (low, high, ratio(f"{word}, growth", high, low))
    cpu = Series("failed uplink, engine's CPU", "s", tuple(f.cpu_s for f in failures))
    late = Series("failed uplink, latest timer", "ms", tuple(f.late_ms for f in failures))
    longest = Series("failed uplink, longest call", "ms", tuple(f.longest_ms for f in failures))
    last = Series("failed uplink, last one moved", "virtual s", tuple(f.last_s for f in failures))
    loop = Series("calibration: a fixed loop", "ms", tuple(f.loop_ms for f in failures))
    rate = ShimSettings(uplinks=()).probes_per_s
    outcome = Outcome(
        f"Scale; an uplink fails under {many} contexts; {rate:,.0f} probes a second",
        series=[*series["control message"], *series["timer"], cpu, late, longest, last, loop],
        goals=[
            Goal(cpu, GOAL_CPU_S, at_least=False),
            Goal(late, GOAL_LATE_MS, at_least=False),
            Goal(series["control message"][2], GOAL_GROWTH, at_least=False),
            Goal(series["timer"][2], GOAL_GROWTH, at_least=False),
        ],
    )
    per_context = statistics.median(f.cpu_s for f in failures) / arguments.contexts * 1e6
    outcome.limits = [
        f"failed uplink: {per_context:.0f} us of CPU for each context, in Python on one core",
        "latest timer: the engine's CPU time passes in virtual time; put-off probes count from "
        "their slot",
        "growth: caches; contexts are touched in random order",
        f"before: {before}; after: {machine()}",
    ]
    outcome.settings = {
        "contexts": arguments.contexts,
        "probes_per_s": rate,
        "touched": TOUCHED,
        "local_hosts": LOCAL_HOSTS,
    }
    return outcome


if __name__ == "__main__":
    run_script(main)

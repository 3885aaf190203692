"""Packets per second through one NFQUEUE reader, against a callback that only accepts.

    python benchmarks/nfqueue.py [--json FILE] [--quick] [--rounds N] [--window-s S]

Each round runs every reader once, one after the other, on the same queue behind the same
rule, against the same flood of packets with 64 octets of UDP payload:

    bare      netfilterqueue with ``lambda packet: packet.accept()`` in the asyncio loop
    plane     the daemon's NfqueueDataPlane with a sink that says None
    rewrite   the daemon's loop and engine; host packets get locators and a payload header
    restore   the same; packets with a payload header get their ULIDs back

``bare`` and ``plane`` meet host packets as ``rewrite`` does, and shim packets as ``restore``
does. The flood comes from a core of its own; reader and kernel share the other one.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.harness.namespaces import (
    GATEWAY_MAC,
    GENERATOR_MAC,
    Gateway,
    queue_row,
    transmitted,
)
from benchmarks.harness.rehomed import (
    Sinks,
    alpha_loop,
    inbound_packet,
    outbound_packet,
    rehomed_pair,
)
from benchmarks.harness.rounds import (
    Goal,
    Outcome,
    Series,
    machine,
    options,
    progress,
    ratio,
    run_script,
    tell,
)
from m6proxy.errors import SetupError

QUEUE = 900
GOAL_RATIO = 0.6
READY_DEADLINE_S = 20.0
_IPV6 = bytes.fromhex("86dd")


@dataclass(frozen=True, slots=True)
class Window:
    """What one reader did in the steady part of one run."""

    packets_per_s: float
    offered_per_s: float
    reader_busy: float
    """Share of the time in which the reader's process was on its core."""
    queue_full: int
    socket_full: int
    """Packets dropped in the window because the queue, or its socket, was full."""

    @property
    def packets_per_cpu_s(self) -> float:
        """Packets per second of CPU time that the reader got, whoever else wanted its core."""
        return self.packets_per_s / max(self.reader_busy, 0.01)


@dataclass(frozen=True, slots=True)
class Direction:
    """The packets of one direction and the table whose rule catches them."""

    name: str
    frame: bytes
    table: str
    real: str


def measure(
    gateway: Gateway, which: str, direction: Direction, cores: tuple[int, int], window_s: float
) -> Window:
    """Run one reader against the flood and look at it for ``window_s`` seconds."""
    gateway.divert(QUEUE, direction.table)
    python, reader_core, flood_core = sys.executable, str(cores[0]), str(cores[1])
    reader_words = [python, "-m", "benchmarks.harness.reader", which, str(QUEUE), reader_core]
    flood_words = [python, "-m", "benchmarks.harness.generator", "lan0"]
    with gateway.in_gateway(reader_words) as reader:
        assert reader.stdout is not None
        if reader.stdout.readline() != "ready\n":
            raise SetupError(f"the reader {which} did not start")
        with gateway.in_generator([*flood_words, direction.frame.hex(), flood_core]) as flood:
            _until_flowing(reader.pid)
            time.sleep(min(0.5, window_s))
            start = _look(reader.pid, flood.pid)
            time.sleep(window_s)
            end = _look(reader.pid, flood.pid)
    seconds, *counts = (after - before for after, before in zip(end, start, strict=True))
    packets, offered, busy_s, full, socket_full = counts
    if not packets:
        raise SetupError(f"nothing passed the reader {which}")
    return Window(
        packets / seconds, offered / seconds, busy_s / seconds, int(full), int(socket_full)
    )


def _look(reader_pid: int, flood_pid: int) -> tuple[float, ...]:
    _, full, socket_full = queue_row(reader_pid, QUEUE)
    return (
        time.monotonic(),
        transmitted(reader_pid, "wan0"),
        transmitted(flood_pid, "lan0"),
        _cpu_s(reader_pid),
        full,
        socket_full,
    )


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _until_flowing(pid: int) -> None:
    before, end_s = transmitted(pid, "wan0"), time.monotonic() + READY_DEADLINE_S
    while transmitted(pid, "wan0") - before < 1000:
        if time.monotonic() > end_s:
            raise SetupError("the flood does not come through the gateway")
        time.sleep(0.01)


def sink_cost_us(which: str, calls: int) -> float:
    """What the daemon's sink takes for one packet, in microseconds: clock, engine, counters."""
    pair = rehomed_pair()
    packet = outbound_packet() if which == "rewrite" else inbound_packet(pair)
    sinks = Sinks()
    alpha_loop(pair, sinks).start()
    sink = sinks.outbound if which == "rewrite" else sinks.inbound
    assert isinstance(sink(packet), bytes)
    start_s = time.perf_counter()
    for _ in itertools.repeat(None, calls):
        sink(packet)
    return (time.perf_counter() - start_s) / calls * 1e6


def both_ways_cost_us(calls: int) -> float:
    """The same for traffic that goes out and comes in by turns: timers start and stop each time."""
    pair = rehomed_pair()
    out_packet, in_packet = outbound_packet(), inbound_packet(pair)
    sinks = Sinks()
    alpha_loop(pair, sinks).start()
    outbound, inbound = sinks.outbound, sinks.inbound
    start_s = time.perf_counter()
    for _ in itertools.repeat(None, calls // 2):
        outbound(out_packet)
        inbound(in_packet)
    return (time.perf_counter() - start_s) / calls * 1e6


def main() -> int:
    """Measure and tell."""
    parser = options("Packets per second through NFQUEUE, as ratios to a callback that accepts.")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--window-s", type=float, default=1.5)
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.rounds, arguments.window_s = 1, 0.3
    return tell(_measure_all(arguments), arguments)


def _measure_all(arguments: argparse.Namespace) -> Outcome:
    cores = sorted(os.sched_getaffinity(0))
    reader_core, flood_core = cores[0], cores[-1]
    pair = rehomed_pair()
    ethernet = bytes.fromhex((GATEWAY_MAC + GENERATOR_MAC).replace(":", "")) + _IPV6
    directions = (
        Direction("outbound", ethernet + outbound_packet(), "mangle", "rewrite"),
        Direction("inbound", ethernet + inbound_packet(pair), "raw", "restore"),
    )
    before = machine()
    windows: dict[tuple[str, str], list[Window]] = {}
    costs: dict[str, list[float]] = {"rewrite": [], "restore": [], "by turns": []}
    calls = 20_000 if arguments.quick else 200_000
    with Gateway() as gateway:
        for number in range(arguments.rounds):
            for direction in directions:
                for which in ("bare", "plane", direction.real):
                    window = measure(
                        gateway, which, direction, (reader_core, flood_core), arguments.window_s
                    )
                    windows.setdefault((direction.name, which), []).append(window)
                    rate = f"{window.packets_per_s:,.0f}/s"
                    progress(["round", number + 1, direction.name, which, rate])
            costs["rewrite"].append(sink_cost_us("rewrite", calls))
            costs["restore"].append(sink_cost_us("restore", calls))
            costs["by turns"].append(both_ways_cost_us(calls))
    outcome = Outcome("NFQUEUE, packets per second of one process, 64 octets of UDP payload")
    for direction in directions:
        rates = {
            which: Series(
                f"{direction.name} {which}",
                "packets/s",
                tuple(w.packets_per_s for w in windows[direction.name, which]),
            )
            for which in ("bare", "plane", direction.real)
        }
        outcome.series += rates.values()
        real = rates[direction.real]
        to_bare = ratio(f"{direction.real} / bare", real, rates["bare"])
        own, bare = (
            Series(which, "", tuple(w.packets_per_cpu_s for w in windows[direction.name, which]))
            for which in (direction.real, "bare")
        )
        outcome.series += [
            ratio(f"{direction.real} / plane", real, rates["plane"]),
            to_bare,
            ratio(f"{direction.real} / bare, per CPU time", own, bare),
        ]
        outcome.goals.append(Goal(to_bare, GOAL_RATIO, at_least=True))
    for name, values in costs.items():
        outcome.series.append(Series(f"sink alone, {name}", "us/packet", tuple(values)))
    outcome.limits = [*_limits(windows), f"before: {before}; after: {machine()}"]
    outcome.settings = {"rounds": arguments.rounds, "window_s": arguments.window_s}
    return outcome


def _limits(windows: dict[tuple[str, str], list[Window]]) -> list[str]:
    """One line for each reader: was it its core, and what became of the rest of the flood."""
    lines = []
    for (direction, which), runs in windows.items():
        busy = statistics.median(run.reader_busy for run in runs)
        offered = statistics.median(run.offered_per_s for run in runs)
        full, socket_full = sum(r.queue_full for r in runs), sum(r.socket_full for r in runs)
        lines.append(
            f"{direction} {which}: its core {busy:.0%} busy with it, {offered:,.0f}/s offered, "
            f"dropped {full:,} by the full queue and {socket_full:,} by its socket"
        )
    return lines


if __name__ == "__main__":
    run_script(main)

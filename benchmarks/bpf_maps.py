"""What the flows of many contexts cost in the kernel's maps: installing, re-homing, keeping them.

    python benchmarks/bpf_maps.py [--json FILE] [--quick] [--runs N] [--flows N] [--many N]

Root; no network. The data plane's own way from the engine's effects to entries: in slices, as
the daemon's loop does it. Each round makes new maps, installs all flows, moves all of them to
the second uplink, reads all back, copies them as an upgrade does, and removes them.
"""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import islice
from pathlib import Path

from benchmarks.harness.contexts import NUMBERS, building_s, context_flows, moved_flow
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
from m6proxy.daemon.collector import set_up_collector
from m6proxy.dataplane.bpf import layout
from m6proxy.dataplane.bpf.features import try_programs
from m6proxy.dataplane.bpf.flowmaps import FlowMaps
from m6proxy.dataplane.bpf.load import BpfObject, create_map, read_object
from m6proxy.dataplane.bpf.maps import Map
from m6proxy.dataplane.bpf.plane import FLUSHED_IN_A_TURN
from m6proxy.dataplane.bpf.site import sizes
from m6proxy.shim.demux import DemuxMode
from m6proxy.shim.effects import InstallFlow

GOAL_FLOWS = 100_000
GOAL_REHOMING_S = 1.0
MANY = 1_000_000
SINGLE = 20_000
COUNTED_IN_PYTHON = 10_000
BUILT = 3000
FLOW_MAPS = (layout.OUT, layout.TAG, layout.PAIR, layout.SENT)
MODES = (DemuxMode.DSTOPT, DemuxMode.FLOWLABEL)
"""The usual one, and the one with the most entries."""


def new_maps(source: BpfObject, flows: int) -> dict[str, Map]:
    """Return the maps of a site with so many contexts."""
    entries = sizes(flows)
    return {
        name: create_map(replace(source.maps[name], max_entries=entries.get(name, flows)))
        for name in (*FLOW_MAPS, layout.MISSES, layout.ACTIVE)
    }


def seconds(act: Callable[[], object]) -> float:
    """Return how long it took."""
    start_s = time.perf_counter()
    act()
    return time.perf_counter() - start_s


def apply(kernel: FlowMaps, flows: Iterable[InstallFlow], *, remove: bool = False) -> list[float]:
    """Bring effects into the maps in the loop's slices; seconds of each, making them left out."""
    found = []
    following = iter(flows)
    while part := list(islice(following, FLUSHED_IN_A_TURN)):
        found.append(
            seconds(lambda: kernel.apply({one.ulids: None if remove else one for one in part}))
        )
    return found


def kernel_octets(one: Map) -> int:
    """Return the memory that the kernel accounts for a map."""
    for line in Path(f"/proc/self/fdinfo/{one.descriptor}").read_text().splitlines():
        if line.startswith("memlock:"):
            return int(line.split()[1])
    return 0


def round_of(source: BpfObject, flows: int, mode: DemuxMode) -> dict[str, float]:
    """One round; returns seconds by what was done, and octets per flow."""
    maps = new_maps(source, flows)
    kernel = FlowMaps(maps, NUMBERS)
    found: dict[str, float] = {}
    empty = {name: kernel_octets(maps[name]) for name in FLOW_MAPS}
    found["built"] = building_s(min(flows, BUILT), mode)
    installed = list(context_flows(flows, mode))
    found["install"] = sum(apply(kernel, installed))
    moved = list(map(moved_flow, installed))
    cpu_ns = time.thread_time_ns()
    slices = apply(kernel, moved)
    found["cpu"] = (time.thread_time_ns() - cpu_ns) / 1e9
    found["rehome"], found["slice"] = sum(slices), max(slices)
    assert len(kernel) == flows and not kernel.is_full
    for name in FLOW_MAPS:
        found[name] = (kernel_octets(maps[name]) - empty[name]) / flows
    found[layout.ACTIVE] = kernel_octets(maps[layout.ACTIVE]) / flows
    copy = create_map(maps[layout.OUT].spec)
    entries = list(maps[layout.OUT].items())
    found["read"] = seconds(lambda: list(maps[layout.OUT].items()))
    keys, values = [key for key, _ in entries], [value for _, value in entries]
    found["copy"] = found["read"] + seconds(lambda: copy.update_batch(keys, values))
    found["single"] = seconds(lambda: _write_singly(copy, entries[:SINGLE])) / min(flows, SINGLE)
    found["remove"] = sum(apply(kernel, moved, remove=True))
    for one in (*maps.values(), copy):
        one.close()
    return found


def _write_singly(one: Map, entries: list[tuple[bytes, bytes]]) -> None:
    for key, value in entries:
        one.update(key, value)


def python_octets(source: BpfObject) -> float:
    """What Python keeps of a flow: the effect, shared with the engine, and where it is found."""
    maps = new_maps(source, COUNTED_IN_PYTHON)
    kernel = FlowMaps(maps, NUMBERS)
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    apply(kernel, map(moved_flow, context_flows(COUNTED_IN_PYTHON, MODES[0])))
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    for one in maps.values():
        one.close()
    return grown / COUNTED_IN_PYTHON


def install_many(source: BpfObject, flows: int) -> float:
    """Seconds in which so many flows are installed."""
    maps = new_maps(source, flows)
    kernel = FlowMaps(maps, NUMBERS)
    spent_s = sum(apply(kernel, map(moved_flow, context_flows(flows, MODES[0]))))
    assert len(kernel) == flows and not kernel.is_full
    for one in maps.values():
        one.close()
    return spent_s


def main() -> int:
    """Run the rounds and tell."""
    parser = options(__doc__.split("\n", 1)[0] if __doc__ else "")
    parser.add_argument("--runs", type=int, default=5, help="rounds")
    parser.add_argument("--flows", type=int, default=GOAL_FLOWS, help="flows in the maps")
    parser.add_argument("--many", type=int, default=MANY, help="flows that are installed once")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.flows, arguments.many, arguments.runs = 1000, 5000, 1
    set_up_collector()
    source = read_object()
    rounds: dict[DemuxMode, list[dict[str, float]]] = {mode: [] for mode in MODES}
    loads = []
    for number in range(arguments.runs):
        for mode in MODES:
            rounds[mode].append(round_of(source, arguments.flows, mode))
            told = {name: round(value, 4) for name, value in rounds[mode][-1].items()}
            progress(("round", number + 1, mode.name, told))
        loads.append(seconds(lambda: try_programs(source)))
    many_s = install_many(source, arguments.many)
    outcome = _outcome(arguments.flows, arguments.many, rounds, loads, many_s)
    outcome.series.append(Series("Python's memory of a flow", "octets", (python_octets(source),)))
    return tell(outcome, arguments)


def _outcome(
    flows: int,
    many: int,
    rounds: dict[DemuxMode, list[dict[str, float]]],
    loads: list[float],
    many_s: float,
) -> Outcome:
    scale = GOAL_FLOWS / flows
    usual, most = (rounds[mode] for mode in MODES)

    def of(found: list[dict[str, float]], name: str, label: str, unit: str, by: float) -> Series:
        return Series(label, unit, tuple(one[name] * by for one in found))

    def rate(name: str, label: str) -> Series:
        return Series(label, "flows/s", tuple(flows / one[name] for one in usual))

    series, goals = [], []
    for mode, found in rounds.items():
        label = f"{GOAL_FLOWS:,} flows re-homed, {mode.name.lower()}"
        rehoming = of(found, "rehome", label, "s", scale)
        both = Series(
            f"{label}, with the engine's effects",
            "s",
            tuple((one["rehome"] + one["built"] * flows) * scale for one in found),
        )
        goals += [Goal(one, GOAL_REHOMING_S, at_least=False) for one in (rehoming, both)]
        series += [
            rehoming,
            of(found, "cpu", "  CPU of that", "s", scale),
            of(found, "built", "  the engine's effects, CPU", "s", GOAL_FLOWS),
            both,
            of(found, "slice", f"  the longest {FLUSHED_IN_A_TURN:,}", "ms", 1e3),
        ]
    series += [
        Series(f"{many:,} flows installed", "s", (many_s,)),
        rate("install", "installed"),
        rate("remove", "removed"),
        rate("read", "read back, map of outbound entries"),
        rate("copy", "copied to a newer layout, the same"),
        Series("changed singly", "entries/s", tuple(1 / one["single"] for one in usual)),
        Series("all programs verified and loaded", "s", tuple(loads)),
    ]
    for mode, found in rounds.items():
        held = (layout.ACTIVE, *(n for n in FLOW_MAPS if any(one[n] for one in found)))
        total = tuple(sum(one[name] for name in held) for one in found)
        label = f"kernel memory of a flow, {mode.name.lower()}"
        series.append(Series(label, "octets", total))
        series += [of(found, name, f"  {name}", "octets", 1) for name in held]
    outcome = Outcome(f"Flows in the kernel's maps, {flows:,} contexts", series, goals)
    outcome.limits = [f"one thread of Python; {machine()}"]
    outcome.settings = {"flows": flows, "rounds": len(most), "many": many}
    return outcome


if __name__ == "__main__":
    run_script(main)

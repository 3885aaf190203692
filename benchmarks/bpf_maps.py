"""What the kernel's maps cost from Python: installing, re-homing, reading and keeping flows.

    python benchmarks/bpf_maps.py [--json FILE] [--quick] [--runs N] [--flows N]

Root; no network. A flow is one entry in the map of outbound packets and one in that of tags.
Each round makes new maps, fills them, changes every entry as a re-homing of all flows does,
reads all back, copies them as an upgrade does, and removes them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
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
from m6proxy.dataplane.bpf.features import try_programs
from m6proxy.dataplane.bpf.load import BpfObject, create_map, read_object
from m6proxy.dataplane.bpf.maps import Map

GOAL_FLOWS = 100_000
GOAL_REHOMING_S = 1.0
SINGLE = 20_000
FLOW_MAPS = ("m6p_out_v1", "m6p_tag_v1")


def flow_maps(source: BpfObject, flows: int) -> list[Map]:
    """Return new maps for so many flows."""
    return [create_map(replace(source.maps[name], max_entries=flows)) for name in FLOW_MAPS]


def keys_of(one: Map, flows: int) -> list[bytes]:
    """Return as many different keys as there are flows."""
    return [number.to_bytes(one.spec.key_size, "big") for number in range(flows)]


def seconds(act: Callable[[], object]) -> float:
    """Return how long it took."""
    start_s = time.perf_counter()
    act()
    return time.perf_counter() - start_s


def kernel_octets(one: Map) -> int:
    """Return the memory that the kernel accounts for a map."""
    for line in Path(f"/proc/self/fdinfo/{one.descriptor}").read_text().splitlines():
        if line.startswith("memlock:"):
            return int(line.split()[1])
    return 0


def round_of(source: BpfObject, flows: int) -> dict[str, float]:
    """One round; returns seconds by what was done, and octets per flow."""
    maps = flow_maps(source, flows)
    found: dict[str, float] = {}
    keys = [keys_of(one, flows) for one in maps]
    old = [[b"\x01" * one.spec.value_size] * flows for one in maps]
    new = [[b"\x02" * one.spec.value_size] * flows for one in maps]

    def write(values: list[list[bytes]]) -> None:
        for one, places, entries in zip(maps, keys, values, strict=True):
            assert one.update_batch(places, entries) == []

    empty = sum(map(kernel_octets, maps))
    found["install"] = seconds(lambda: write(old))
    found["octets"] = (sum(map(kernel_octets, maps)) - empty) / flows
    found["rehome"] = seconds(lambda: write(new))
    found["read"] = seconds(lambda: [list(one.items()) for one in maps])
    first, places = maps[0], keys[0][:SINGLE]
    value = old[0][0]

    def write_singly() -> None:
        for key in places:
            first.update(key, value)

    found["single"] = seconds(write_singly) / len(places)
    copies = flow_maps(source, flows)

    def copy() -> None:
        for one, other in zip(maps, copies, strict=True):
            entries = list(one.items())
            other.update_batch([key for key, _ in entries], [value for _, value in entries])

    found["copy"] = seconds(copy)
    found["remove"] = seconds(
        lambda: [one.delete_batch(places) for one, places in zip(maps, keys, strict=True)]
    )
    for one in (*maps, *copies):
        one.close()
    return found


def main() -> int:
    """Run the rounds and tell."""
    parser = options(__doc__.split("\n", 1)[0] if __doc__ else "")
    parser.add_argument("--runs", type=int, default=5, help="rounds")
    parser.add_argument("--flows", type=int, default=GOAL_FLOWS, help="flows in the maps")
    arguments = parser.parse_args()
    flows = 1000 if arguments.quick else arguments.flows
    source = read_object()
    rounds = []
    loads = []
    for number in range(1 if arguments.quick else arguments.runs):
        rounds.append(round_of(source, flows))
        loads.append(seconds(lambda: try_programs(source)))
        progress(("round", number + 1, {k: round(v, 4) for k, v in rounds[-1].items()}))

    def rate(name: str, label: str) -> Series:
        return Series(label, "flows/s", tuple(flows / found[name] for found in rounds))

    def plain(name: str, label: str, unit: str, factor: float = 1) -> Series:
        return Series(label, unit, tuple(found[name] * factor for found in rounds))

    rehoming = plain("rehome", f"{GOAL_FLOWS:,} flows re-homed", "s", GOAL_FLOWS / flows)
    outcome = Outcome(
        f"Kernel maps from Python, {flows:,} flows of two entries",
        [
            rate("install", "installed in batches"),
            rate("rehome", "re-homed in batches"),
            rate("read", "read back"),
            rate("copy", "copied to a newer layout"),
            rate("remove", "removed in batches"),
            Series("changed singly", "entries/s", tuple(1 / found["single"] for found in rounds)),
            plain("octets", "kernel memory of a flow", "octets"),
            Series("all programs verified and loaded", "s", tuple(loads)),
            rehoming,
        ],
        [Goal(rehoming, GOAL_REHOMING_S, at_least=False)],
        [f"one thread of Python; {machine()}"],
        {"flows": flows, "rounds": len(rounds)},
    )
    return tell(outcome, arguments)


if __name__ == "__main__":
    run_script(main)

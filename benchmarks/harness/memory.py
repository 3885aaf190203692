"""What one idle context occupies: ``python -m benchmarks.harness.memory HOW CONTEXTS HOSTS``.

Run in a process of its own, as JSON on its output. One engine gets all the contexts, spread
over its hosts, half of them as initiator and half as responder; its peers are engines that
are thrown away. Then a minute passes, so that nothing of the exchanges is left.

HOW is ``live`` (tracemalloc: the octets that Python's objects occupy) or ``resident`` (what
the process has grown by in the kernel's books).
"""

from __future__ import annotations

import gc
import json
import os
import sys
import tracemalloc
from pathlib import Path

from benchmarks.harness.world import World, engine, host, own_name

PEERS_OF_ONE_ENGINE = 1000
SETTLE_S = 60.0


def grow(contexts: int, hosts: int) -> World:
    """Return a world whose alpha has so many idle contexts, and whose beta has none."""
    alpha = engine("a", 1)
    world = World(alpha, engine("b", 2))
    for number in range(contexts):
        if number % PEERS_OF_ONE_ENGINE == 0:
            world.engines["b"] = engine("b", number + 2)
        local, peer = host("a", number % hosts + 1), host("b", number + 1)
        if number % 2:
            world.connect("a", local, peer)
        else:
            world.connect("b", peer, local)
    world.engines["b"] = engine("b", 0)
    world.run(SETTLE_S)
    own_name.cache_clear()  # the resolver's, not the engine's
    return world


def _resident_octets() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def main(how: str, contexts: int, hosts: int) -> None:
    """Measure and print."""
    grow(10, 10)
    gc.collect()
    if how == "live":
        tracemalloc.start()
        before = tracemalloc.get_traced_memory()[0]
    else:
        before = _resident_octets()
    world = grow(contexts, hosts)
    gc.collect()
    after = tracemalloc.get_traced_memory()[0] if how == "live" else _resident_octets()
    established = sum(context.carries for context in world.engines["a"].contexts())
    assert established == contexts, f"{established} of {contexts} contexts"
    print(json.dumps({"octets": after - before, "contexts": contexts}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))

"""What is looked at between the steps: tags, timers, memory.

Tags. Both ends agree, or know that they do not: CT(peer) of a context that carries is either
the tag of a living context at the peer, for the same ULIDs and fork, or no context there has
it. In the second case the next packet is answered with R1bis, which the site watches for
whenever a packet with an unknown tag arrives. A tag that names another pair's context is
the one thing that must never be.

Memory is counted without knowing how the engine keeps its tables: every container that can
be reached from it is measured. Only those that forget their oldest entry instead of waiting
for its end are named here; a new one that grows is found.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import Enum
from typing import Final
from weakref import WeakValueDictionary

from m6proxy.names import Address, Tag
from m6proxy.shim.context import Context
from m6proxy.shim.engine import Engine
from m6proxy.shim.transitions import State
from tests.harness.simulator.invariants import Broken, Invariant, require

_KEPT: Final = frozenset(
    f"._core.{name}"
    for name in (
        "accounts._by_pair",
        "closed._until_s",
        "drops",
        "errors_limit._buckets",
        "failback_limit._buckets",
        "history.scores",
        "icmp_limit._buckets",
        "local_sets._down",
        "peers._capable",
        "peers._refused",
        "requests_limit._buckets",
        "responder._keys",
    )
)
_KEPT_MAX: Final = 256
"""What a story of a few hosts can leave in each of them."""
_PLAIN: Final = (bytes, str, int, float, type(None), Enum, type)


def check_tags(
    sites: Sequence[tuple[Engine | None, Mapping[Tag, Context]]],
    owner: Callable[[Address], int | None],
) -> None:
    """Compare CT(peer) of every context with what the peer has."""
    for _, contexts in sites:
        for context in contexts.values():
            if not context.carries:
                continue
            place = owner(context.outbound_key[16:])
            require(place is not None, Invariant.TAGS, "a context with nobody")
            assert place is not None
            engine, there = sites[place]
            require(engine is not None, Invariant.TAGS, "a context with a site without a shim")
            other = there.get(context.peer_tag)
            if other is not None:
                same = other.outbound_key == context.inbound_key
                require(same, Invariant.TAGS, "the tag is another pair's")
                require(other.fii == context.fii, Invariant.TAGS, "the tag is another fork's")


def check_timers(engine: Engine, now: float) -> None:
    """No deadline has passed unnoticed, and whatever waits has one."""
    deadline_s = engine.next_deadline()
    to_come = deadline_s is None or deadline_s > now - 1e-6
    require(to_come, Invariant.TIMERS, "a deadline without a wake")
    for context in engine.contexts():
        require(context.state is not State.IDLE, Invariant.TIMERS, "a context in IDLE")
        if context.parking is not None:
            check_parked(engine, context, now)
        require(deadline_s is not None, Invariant.TIMERS, "a context without a timer")


def check_parked(engine: Engine, context: Context, now: float) -> None:
    """Somebody is away, and not for longer than was granted; nothing is tested meanwhile."""
    parking = context.parking
    assert parking is not None
    due_s = parking.peer_until_s
    require(parking.local or due_s, Invariant.PARKED, "a context parked by nobody")
    at_home = parking.local and engine.away is None
    require(not at_home, Invariant.PARKED, "a context parked by a site that is here")
    require(not due_s or due_s > now - 1e-6, Invariant.PARKED, "a park that never ends")
    timers = (context.send_due_s, context.keepalive_due_s, context.exploration)
    require(not any(timers), Invariant.PARKED, "a test while an end is away")


def check_idle(engine: Engine, before: Mapping[str, int]) -> None:
    """Nobody has talked for long: nothing is left but what is kept on purpose, and bounded."""
    require(not list(engine.contexts()), Invariant.MEMORY, "a context outlives its traffic")
    require(engine.next_deadline() is None, Invariant.MEMORY, "a timer of nobody")
    for path, count in footprint(engine).items():
        grown = count - before.get(path, 0)
        kept = _KEPT_MAX if path.rstrip("[]") in _KEPT else 0
        if grown > kept:
            raise Broken(Invariant.MEMORY, f"{path} has grown by {grown}")


def footprint(engine: Engine) -> dict[str, int]:
    """How much each container holds that can be reached from an engine, by its path."""
    found: dict[str, int] = {}
    seen: set[int] = set()
    todo: list[tuple[str, object]] = [("", engine)]
    while todo:
        path, value = todo.pop()
        if isinstance(value, _PLAIN) or id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, (Mapping, WeakValueDictionary)):
            found[path] = found.get(path, 0) + len(value)
            todo += [(f"{path}[]", held) for held in value.values()]
        elif isinstance(value, (list, tuple, set, frozenset, deque)):
            found[path] = found.get(path, 0) + len(value)
            todo += [(f"{path}[]", held) for held in value]
        else:
            todo += [(f"{path}.{name}", getattr(value, name)) for name in _attributes(value)]
    return found


def _attributes(value: object) -> Iterable[str]:
    if not type(value).__module__.startswith("m6proxy."):
        return ()
    slots = [name for kind in type(value).__mro__ for name in getattr(kind, "__slots__", ())]
    names = {*slots, *getattr(value, "__dict__", ())} - {"__weakref__"}
    return sorted(name for name in names if hasattr(value, name))

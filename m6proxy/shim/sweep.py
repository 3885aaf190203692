"""What an uplink event makes every context do, spread over time.

Who calls: the engine begins a sweep for each event and goes on with it from its timers. A
sweep looks at the contexts first, some hundreds at a call, so that packets pass between two
calls: each gets its new locator set and its place in one of three rows. The rows are worked
off at ``policy.probes_per_s``: contexts on a dead uplink that have traffic, those without,
then those that have nothing to fear and only tell their peers.

A later event begins anew with those that still wait at the head, so that a provider that
flaps starves nobody.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from m6proxy.shim import lifecycle, reap, update
from m6proxy.shim.transitions import ReapState

if TYPE_CHECKING:
    from m6proxy.shim.context import Context
    from m6proxy.shim.core import Core

AT_ONCE: Final = 256
"""Contexts looked at in one call, about a millisecond."""
TICK_S: Final = 0.002
"""Those that are due within one tick are worked off in one call."""
IN_USE_S: Final = 15.0
"""A context without traffic for this long yields to those that have some."""


class Sweep:
    """The contexts that an uplink event still has to reach."""

    __slots__ = ("_began_s", "_in_use", "_quiet", "_staying", "_tells", "_unseen")

    def __init__(self) -> None:
        self._unseen: deque[Context] = deque()
        self._in_use: deque[Context] = deque()
        self._quiet: deque[Context] = deque()
        self._staying: deque[Context] = deque()
        self._tells = False
        self._began_s = 0.0

    def __len__(self) -> int:
        """How many wait."""
        return sum(map(len, (self._unseen, self._in_use, self._quiet, self._staying)))

    def begin(self, contexts: Iterable[Context], now: float, *, tells: bool) -> None:
        """Visit all contexts; ``tells``: there is news for the peers, not a new MTU alone."""
        waiting = (*self._in_use, *self._quiet, *self._staying, *self._unseen)
        self._tells = tells or (self._tells and bool(waiting))
        self._unseen = deque(dict.fromkeys((*waiting, *contexts)) if waiting else contexts)
        for row in (self._in_use, self._quiet, self._staying):
            row.clear()
        self._began_s = now

    def next_deadline_s(self, free_s: float) -> float | None:
        """When to go on, given the next free slot; None: there is nothing to do."""
        if self._unseen:
            return self._began_s
        if self._in_use or self._quiet or self._staying:
            return max(free_s, self._began_s) + TICK_S
        return None

    def look(self, core: Core) -> None:
        """Give some contexts their new locator set, and their place in a row."""
        for _ in range(min(AT_ONCE, len(self._unseen))):
            self._look(core, self._unseen.popleft())

    def expire(self, core: Core, now: float) -> None:
        """Look at some more contexts, and act for as many as the rate allows."""
        self.look(core)
        while core.pace.is_free(now):
            row = self._in_use or self._quiet or self._staying
            if not row:
                return
            if _act(core, row.popleft(), now):
                core.pace.take(now)

    def _look(self, core: Core, context: Context) -> None:
        context.local_set = core.local_sets.by_ulid(context.outbound_key[:16])
        if not context.carries:
            return
        lifecycle.refresh_path(core, context)
        if not self._tells or context.parking is not None:
            return
        if not _explores(context):
            self._staying.append(context)
        elif context.last_traffic_s > self._began_s - IN_USE_S:
            self._in_use.append(context)
        else:
            self._quiet.append(context)


def _explores(context: Context) -> bool:
    """Whether the uplink in use is down, or a search is going on that has to begin anew."""
    uplink = context.local_set.uplink_of(context.route[:16])
    lost = uplink is not None and not uplink.up
    return lost or context.reap_state is not ReapState.OPERATIONAL


def _act(core: Core, context: Context, now: float) -> bool:
    """Explore if need be, and tell the peer; returns whether anything went out."""
    if not context.watched:
        return False
    if _explores(context):
        reap.explore(core, context, now)
    update.announce(core, context, now, now)
    return True

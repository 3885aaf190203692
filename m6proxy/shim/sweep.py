"""What an uplink event makes every context do, spread over time.

Who calls: the engine begins a sweep for each event and goes on with it from its timers. A
sweep looks at the contexts first, some hundreds at a call, so that packets pass between two
calls: each gets its new locator set and its place in one of three rows. The rows are worked
off at ``policy.probes_per_s``: contexts on a dead uplink that have traffic, those without,
then those that have nothing to fear and only tell their peers. Before all of them go the
messages that tell a peer of many contexts (``scope``): they are few.

A later event begins anew with those that still wait at the head, so that a provider that
flaps starves nobody.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import TYPE_CHECKING, Final

from m6proxy.shim import lifecycle, reap, scope, update
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

    __slots__ = (
        "_began_s",
        "_groups",
        "_in_use",
        "_quiet",
        "_staying",
        "_tells",
        "_together",
        "_unseen",
    )

    def __init__(self) -> None:
        self._unseen: deque[Context] = deque()
        self._in_use: deque[Context] = deque()
        self._quiet: deque[Context] = deque()
        self._staying: deque[Context] = deque()
        self._groups: dict[scope.Key, list[Context]] = {}
        """Contexts that were looked at and can be told together."""
        self._together: deque[tuple[scope.Key, list[Context]]] = deque()
        """Groups of which no more come."""
        self._tells = False
        self._began_s = 0.0

    def __len__(self) -> int:
        """How many wait."""
        return len(dict.fromkeys((*self._waiting(), *self._unseen)))

    def begin(self, contexts: Iterable[Context], now: float, *, tells: bool) -> None:
        """Visit all contexts; ``tells``: there is news for the peers, not a new MTU alone."""
        waiting = (*self._waiting(), *self._unseen)
        self._tells = tells or (self._tells and bool(waiting))
        self._unseen = deque(dict.fromkeys((*waiting, *contexts)) if waiting else contexts)
        for row in (self._in_use, self._quiet, self._staying, self._together):
            row.clear()
        self._groups.clear()
        self._began_s = now

    def next_deadline_s(self, free_s: float) -> float | None:
        """When to go on, given the next free slot; None: there is nothing to do."""
        if self._unseen:
            return self._began_s
        if self._together or self._in_use or self._quiet or self._staying:
            return max(free_s, self._began_s) + TICK_S
        return None

    def look(self, core: Core) -> None:
        """Give some contexts their new locator set, and their place in a row."""
        most = scope.most(core)
        for _ in range(min(AT_ONCE, len(self._unseen))):
            self._look(core, self._unseen.popleft(), most)
        if not self._unseen and self._groups:
            for key, group in self._groups.items():
                if len(group) > 1:
                    self._together.append((key, group))
                else:
                    self._staying += group
            self._groups.clear()

    def expire(self, core: Core, now: float) -> None:
        """Look at some more contexts, and act for as many as the rate allows."""
        self.look(core)
        while core.pace.is_free(now):
            if self._together:
                sent = scope.tell(core, *self._together.popleft(), now)
            elif self._in_use or self._quiet:
                sent = self._search(core, (self._in_use or self._quiet).popleft(), now)
            elif self._staying:
                sent = _announce(core, self._staying.popleft(), now)
            else:
                return
            if sent:
                core.pace.take(now)

    def _waiting(self) -> Iterator[Context]:
        groups = chain((group for _, group in self._together), self._groups.values())
        return chain(self._in_use, self._quiet, self._staying, chain.from_iterable(groups))

    def _search(self, core: Core, context: Context, now: float) -> bool:
        """Explore if need be, and tell the peer; returns whether anything went out."""
        if not context.watched:
            return False
        explores = _explores(context)
        if explores:
            reap.explore(core, context, self._began_s, now)
        if not self._groups or scope.key_of(context) not in self._groups:
            return _announce(core, context, now) or explores
        return explores

    def _look(self, core: Core, context: Context, most: int) -> None:
        context.local_set = core.local_sets.by_ulid(context.outbound_key[:16])
        if not context.carries:
            return
        if context.wire_addresses is not None or core.slots is not None:
            lifecycle.refresh_path(core, context)
        if not self._tells or context.parking is not None:
            return
        explores = _explores(context)
        key = scope.key_of(context)
        if key is not None:
            self._group(context, key, most)
        if not explores:
            if key is None:
                self._staying.append(context)
        elif context.last_traffic_s > self._began_s - IN_USE_S:
            self._in_use.append(context)
        else:
            self._quiet.append(context)

    def _group(self, context: Context, key: scope.Key, most: int) -> None:
        group = self._groups.get(key)
        if group is None:
            group = self._groups[key] = []
        group.append(context)
        if len(group) >= most:
            self._together.append((key, self._groups.pop(key)))


def _explores(context: Context) -> bool:
    """Whether the uplink in use is down, or a search is going on that has to begin anew."""
    if context.reap_state is not ReapState.OPERATIONAL:
        return True
    return context.route[:16] in context.local_set.down


def _announce(core: Core, context: Context, now: float) -> bool:
    """Tell the peer, unless it was told together with others; returns whether that was needed."""
    if not context.watched or scope.is_told(context):
        return False
    update.announce(core, context, now, now)
    return True

"""Every timer of the protocol: its constants, and the one heap that wakes contexts.

A context holds its deadlines as attributes, each derived from the event that started it;
the heap holds at most one live entry for each context, at the earliest of them. Stopping or
postponing a timer only changes the attribute: the context wakes, finds that nothing is due
and goes back to sleep. So the packet path almost never touches the heap.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from m6proxy.shim.context import Context

# RFC 5533 §14, seconds
I1_TIMEOUT_S: Final = 4.0
I1_RETRIES_MAX: Final = 4
I2_TIMEOUT_S: Final = 4.0
I2_RETRIES_MAX: Final = 2
I2BIS_TIMEOUT_S: Final = 4.0
I2BIS_RETRIES_MAX: Final = 2
NO_R1_HOLDDOWN_S: Final = 60.0
ICMP_HOLDDOWN_S: Final = 600.0
VALIDATOR_MIN_LIFETIME_S: Final = 30.0
UPDATE_TIMEOUT_S: Final = 4.0
MAX_UPDATE_TIMEOUT_S: Final = 120.0

# RFC 5534 §7, seconds
SEND_TIMEOUT_S: Final = 15.0
INITIAL_PROBE_TIMEOUT_S: Final = 0.5
INITIAL_PROBES: Final = 4
MAX_PROBE_TIMEOUT_S: Final = 60.0

# Ours
PENDING_PROOF_S: Final = 6.0
"""How long an I2 waits for its proof by DNS; the initiator sends it again after 2 s to 6 s."""
REPROOF_S: Final = 30.0
"""How long to wait before asking DNS again about locators that could not be proved."""
RELEASE_EXPLORATION_S: Final = 60.0
"""How long the probes of an exploration stay known after it ended. Not shorter: 100,000 searches
take 50 s, and what dies while new ones are made keeps Python from collecting in small pieces."""
CLOSE_TIMEOUT_S: Final = 0.5
CLOSE_SENT_MAX: Final = 3
"""A Close goes out three times in two seconds: a gateway that stops does not wait longer."""
CLOSED_QUIET_S: Final = 5.0
"""How long packets of a closed context, late on their way, invite no recovery."""
PARK_QUIET_S: Final = 5.0
"""How long packets of a peer that went away may be late on their way, and mean nothing."""
PARK_GRACE_S: Final = 5.0
"""How much longer than it promised an end waits: the peer's word takes its time."""
PARK_SENT_MAX: Final = 4
"""How often an end says that it goes away; later it is away."""
SOON_S: Final = 0.001
"""What a timer or one message starts in many contexts is due after it."""
ALONE_S: Final = 20.0
"""How long a context waits for the acknowledgement of a message about many, sent three times by
then; up to half as long again, then it is told by itself."""
MIN_IDLE_S: Final = 300.0
"""RFC 5533 §9: a context is not torn down before it was quiet for 5 minutes."""

_PER_S: Final = 4
_STALE_MIN: Final = 64
_QUARTERS_AT_ONCE: Final = 8

NEVER: Final = 0.0
"""The value of a deadline that is not set; ``now`` is always greater."""


def backoff_s(first_s: float, retries: int, limit_s: float = float("inf")) -> float:
    """Binary exponential backoff: the nominal wait after ``retries`` retransmissions, seconds."""
    return min(first_s * (1 << min(retries, 30)), limit_s)


class TimerHeap:
    """Deadlines of contexts, earliest first. ``on_earlier`` hears when the first one moves up.

    Each quarter of a second has a heap of its own, so that dead entries can be thrown away a
    piece at a time, and packets never wait until that is done for 100,000 contexts.
    """

    def __init__(self, on_earlier: Callable[[], None]) -> None:
        self._on_earlier = on_earlier
        self._heaps: dict[int, list[tuple[float, int, Context]]] = {}
        """By quarter of a second; those longest not looked through come first."""
        self._quarters: list[int] = []
        """A heap of their keys."""
        self._live = 0
        self._entries = 0

    def __len__(self) -> int:
        """How many entries are live."""
        return self._live

    def arm(self, context: Context, deadline_s: float) -> None:
        """Wake the context at ``deadline_s`` at the latest; an earlier entry stays."""
        if deadline_s == NEVER:
            return
        if context.armed_s != NEVER:
            if context.armed_s <= deadline_s:
                return
            self.cancel(context)
        context.armed_s = deadline_s
        self._live += 1
        self._entries += 1
        quarter = int(deadline_s * _PER_S)
        heap = self._heaps.get(quarter)
        if heap is None:
            heap = self._heaps[quarter] = []
            heapq.heappush(self._quarters, quarter)
        heapq.heappush(heap, (deadline_s, context.local_tag, context))
        if self._quarters[0] == quarter and heap[0][2] is context:
            self._on_earlier()

    def cancel(self, context: Context) -> None:
        """Forget the context; its entry dies when it comes up, or once most entries are dead."""
        if context.armed_s == NEVER:
            return
        context.armed_s = NEVER
        self._live -= 1
        if self._entries > 2 * self._live + _STALE_MIN:
            self._throw_away()

    def next_deadline(self) -> float | None:
        """Return when the next context must wake, or None."""
        heaps, quarters = self._heaps, self._quarters
        while quarters:
            heap = heaps[quarters[0]]
            while heap:
                deadline_s, _, context = heap[0]
                if context.armed_s == deadline_s:
                    return deadline_s
                heapq.heappop(heap)
                self._entries -= 1
            del heaps[heapq.heappop(quarters)]
        return None

    def take_due(self, now: float, most: int) -> list[Context]:
        """Take the contexts whose deadline has come, earliest first; they must be armed anew."""
        due: list[Context] = []
        while len(due) < most:
            deadline_s = self.next_deadline()
            if deadline_s is None or deadline_s > now:
                break
            heap = self._heaps[self._quarters[0]]
            while heap and heap[0][0] <= now and len(due) < most:
                deadline_s, _, context = heapq.heappop(heap)
                self._entries -= 1
                if context.armed_s == deadline_s:
                    context.armed_s = NEVER
                    self._live -= 1
                    due.append(context)
        return due

    def _throw_away(self) -> None:
        """Throw the dead entries of one quarter away, of those that have some the next.

        An entry that is there twice stays twice: the second is dead when the first came up.
        """
        for _ in range(_QUARTERS_AT_ONCE):
            quarter = next(iter(self._heaps))
            heap = self._heaps.pop(quarter)
            kept = [entry for entry in heap if entry[2].armed_s == entry[0]]
            if len(kept) == len(heap):
                self._heaps[quarter] = heap
                continue
            heapq.heapify(kept)
            self._heaps[quarter] = kept
            self._entries -= len(heap) - len(kept)
            return

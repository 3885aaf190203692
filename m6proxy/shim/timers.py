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
"""How long the probes of an exploration stay known after it ended."""
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
MIN_IDLE_S: Final = 300.0
"""RFC 5533 §9: a context is not torn down before it was quiet for 5 minutes."""

_STALE_MIN: Final = 64

NEVER: Final = 0.0
"""The value of a deadline that is not set; ``now`` is always greater."""


def backoff_s(first_s: float, retries: int, limit_s: float = float("inf")) -> float:
    """Binary exponential backoff: the nominal wait after ``retries`` retransmissions, seconds."""
    return min(first_s * (1 << min(retries, 30)), limit_s)


class TimerHeap:
    """Deadlines of contexts, earliest first. ``on_earlier`` hears when the first one moves up."""

    def __init__(self, on_earlier: Callable[[], None]) -> None:
        self._on_earlier = on_earlier
        self._heap: list[tuple[float, int, Context]] = []
        self._live = 0
        self._compact_at = _STALE_MIN

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
        heapq.heappush(self._heap, (deadline_s, context.local_tag, context))
        if self._heap[0][2] is context:
            self._on_earlier()

    def cancel(self, context: Context) -> None:
        """Forget the context; its entry dies when it comes up, or with half of the heap."""
        if context.armed_s == NEVER:
            return
        context.armed_s = NEVER
        self._live -= 1
        if len(self._heap) > self._compact_at:
            self._compact()

    def next_deadline(self) -> float | None:
        """Return when the next context must wake, or None."""
        heap = self._heap
        while heap and heap[0][2].armed_s != heap[0][0]:
            heapq.heappop(heap)
        return heap[0][0] if heap else None

    def pop_due(self, now: float) -> Context | None:
        """Take the next context whose deadline has come; it must be armed anew."""
        deadline_s = self.next_deadline()
        if deadline_s is None or deadline_s > now:
            return None
        context = heapq.heappop(self._heap)[2]
        context.armed_s = NEVER
        self._live -= 1
        return context

    def _compact(self) -> None:
        """Throw dead entries away, once the heap is twice as long as after the last time.

        An entry that is there twice stays twice: the second is dead when the first came up.
        """
        self._heap = [entry for entry in self._heap if entry[2].armed_s == entry[0]]
        heapq.heapify(self._heap)
        self._compact_at = 2 * len(self._heap) + _STALE_MIN

"""Where a data plane in the kernel counts what a context sends and receives: numbered slots.

The engine gives each context that the kernel executes a slot and reads the slot's activity
when a timer is due; nothing of this exists while all packets come through the engine.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from m6proxy.shim.timers import NEVER

if TYPE_CHECKING:
    from m6proxy.shim.context import Context
    from m6proxy.shim.effects import InstallFlow


class Activity(NamedTuple):
    """What the kernel saw of one slot; times are on the clock of ``now``, 0 means never."""

    last_out_s: float = 0.0
    last_in_s: float = 0.0
    out_since_s: float = 0.0
    """The first packet out since the last one in, 0 when there is none."""
    in_since_s: float = 0.0
    """The first packet in since the last one out, 0 when there is none."""
    packets_out: int = 0
    octets_out: int = 0
    packets_in: int = 0
    octets_in: int = 0


ReadActivity: TypeAlias = Callable[[int], Activity]
"""Reads a slot, at any time and without cost worth a thought."""


class KernelFlow:
    """What only a context has whose packets the kernel moves."""

    __slots__ = ("again", "again_s", "doubted", "installed", "look_due_s", "seen", "slot")

    def __init__(self, slot: int, seen: Activity) -> None:
        self.slot = slot
        self.seen = seen
        """What is accounted for; a slot keeps the numbers of the context that had it before."""
        self.look_due_s = NEVER
        """When to look at the activity even if no timer is due."""
        self.doubted = False
        """Whether an answer is overdue, so that the engine wants to see what the host sends."""
        self.again: tuple[bytes, ...] = ()
        """Segments to send a second time over the new path."""
        self.again_s = NEVER
        """When."""
        self.installed: InstallFlow | None = None
        """What the data plane was told last."""


class FlowSlots:
    """The slots, 0 to ``limit`` - 1, and who has them."""

    def __init__(self, read: ReadActivity, limit: int) -> None:
        self.read = read
        self.by_slot: dict[int, Context] = {}
        self._limit = limit
        self._next = 0
        self._free: list[int] = []

    def take(self, context: Context) -> KernelFlow | None:
        """Give a context a slot; None when there is none left."""
        if self._free:
            slot = self._free.pop()
        elif self._next < self._limit:
            slot = self._next
            self._next += 1
        else:
            return None
        self.by_slot[slot] = context
        return KernelFlow(slot, self.read(slot))

    def take_over(self, context: Context, slot: int) -> KernelFlow:
        """Give a context the slot that it had with our predecessor. Raises ValueError if taken."""
        if slot in self.by_slot or slot >= self._limit:
            raise ValueError(f"slot {slot} is not to be had")
        if slot < self._next:
            self._free.remove(slot)
        else:
            self._free += range(self._next, slot)
            self._next = slot + 1
        self.by_slot[slot] = context
        return KernelFlow(slot, self.read(slot))

    def can_take_over(self, slot: int) -> bool:
        """Tell whether nobody has this slot."""
        return slot not in self.by_slot and slot < self._limit

    def give_back(self, flow: KernelFlow) -> None:
        """The context needs its slot no more."""
        del self.by_slot[flow.slot]
        self._free.append(flow.slot)

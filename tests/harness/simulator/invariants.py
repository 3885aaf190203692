"""What must hold, each under a name, and the error that says which of them did not."""

from __future__ import annotations

from enum import Enum


class Invariant(Enum):
    """The promises of the protocol core that the watchers keep an eye on."""

    TAGS = "both ends agree on tags or know that they do not"
    DELIVERY = "after the mending every conversation is heard within its bound"
    ADDRESSES = "no packet is delivered changed, or with wrong addresses"
    GROUND = "no locator gets data before its proof and its test"
    RATES = "no context sends more often than the RFC allows"
    MEMORY = "when all is idle memory is as at the start"
    PARKED = "a context that waits for an end is silent, and its packets stay"
    TIMERS = "whatever waits has a deadline, and none passes unnoticed"
    ANSWERS = "what the packet path hands out is what the context says"


class Broken(AssertionError):
    """An invariant that did not hold, and what was seen."""

    def __init__(self, invariant: Invariant, seen: str) -> None:
        super().__init__(f"{invariant.name}: {seen}")
        self.invariant = invariant


def require(holds: object, invariant: Invariant, seen: str) -> None:
    """Raise Broken unless it holds. ``seen`` is a ready text: nothing is formatted in vain."""
    if not holds:
        raise Broken(invariant, seen)

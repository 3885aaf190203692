"""Capability Requests that wait for their reply: one for each peer, and who wants to know."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from m6proxy.discovery.capability import NameData
from m6proxy.names import Address, LocatorPair

INQUIRIES_MAX: Final = 256
WAITING_MAX: Final = 64
"""How many pairs wait for the answer of one peer; the others ask again by themselves."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """What was known of a pair when its peer was asked."""

    data: NameData | None
    local_name: str | None


class Inquiry:
    """One question to one peer."""

    __slots__ = ("due_s", "nonce", "retries", "route", "waiting")

    def __init__(self, nonce: int, route: LocatorPair) -> None:
        self.nonce = nonce
        self.route = route
        self.retries = 0
        self.due_s = 0.0
        """When to ask again, or to give up."""
        self.waiting: dict[bytes, Waiting] = {}
        """By ULID pair (32 octets)."""


class Inquiries:
    """All questions under way, bounded. There are few: their deadlines are simply looked at."""

    __slots__ = ("_by_peer",)

    def __init__(self) -> None:
        self._by_peer: dict[Address, Inquiry] = {}

    def __len__(self) -> int:
        return len(self._by_peer)

    @property
    def full(self) -> bool:
        """Whether no further peer may be asked now."""
        return len(self._by_peer) >= INQUIRIES_MAX

    def by_peer(self, peer: Address) -> Inquiry | None:
        """The question to a peer, if one is under way."""
        return self._by_peer.get(peer)

    def put(self, inquiry: Inquiry) -> None:
        """Note a question that is sent."""
        self._by_peer[inquiry.route.peer] = inquiry

    def remove(self, inquiry: Inquiry) -> None:
        """It is answered, or given up."""
        self._by_peer.pop(inquiry.route.peer, None)

    def next_deadline_s(self) -> float | None:
        """The earliest deadline, or None."""
        if not self._by_peer:
            return None
        return min(inquiry.due_s for inquiry in self._by_peer.values())

    def due(self, now: float) -> list[Inquiry]:
        """Those whose deadline has come."""
        return [inquiry for inquiry in self._by_peer.values() if now >= inquiry.due_s]

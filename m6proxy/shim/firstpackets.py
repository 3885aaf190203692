"""Packets that wait for a context because the addresses of their pair do not work
(functional decomposition §2.2, docs/decisions/0015-start-up.md).

One for each pair, the first; those that follow pass as ever. All wait equally long, so that
they are due in the order in which they came.
"""

from __future__ import annotations

from typing import Final

PACKETS_MAX: Final = 256


class FirstPackets:
    """Held packets by ULID pair (32 octets), bounded: more are not held."""

    __slots__ = ("by_pair",)

    def __init__(self) -> None:
        self.by_pair: dict[bytes, tuple[bytes, float]] = {}

    def __len__(self) -> int:
        return len(self.by_pair)

    def put(self, key: bytes, packet: bytes, due_s: float) -> bool:
        """Hold a packet until ``due_s``; False when it must go on at once."""
        if key in self.by_pair or len(self.by_pair) >= PACKETS_MAX:
            return False
        self.by_pair[key] = (packet, due_s)
        return True

    def take(self, key: bytes) -> bytes | None:
        """Hand over the packet of a pair, if one is held."""
        held = self.by_pair.pop(key, None)
        return held[0] if held is not None else None

    def pairs(self) -> tuple[bytes, ...]:
        """The pairs for which a packet is held."""
        return tuple(self.by_pair)

    def take_due(self, now: float) -> list[bytes]:
        """Hand over what has waited long enough."""
        due = [key for key, (_, due_s) in self.by_pair.items() if now >= due_s]
        return [self.by_pair.pop(key)[0] for key in due]

    def next_deadline_s(self) -> float | None:
        """When the oldest one is due, or None."""
        if not self.by_pair:
            return None
        return next((due_s for _, due_s in self.by_pair.values()))

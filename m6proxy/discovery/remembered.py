"""What peers showed of themselves, remembered beyond any context.

A good answer is remembered for the peer's address: it signalled, so that it need not be asked
again when somebody else talks to it. A refusal is remembered for an address, when nobody there
speaks the protocol (RFC 5533 §7.8: for that ULID), or for an address and an identifier, when a
record says that the identifier's host speaks it and the host does not (functional decomposition
§3.1.4). Both are bounded and forget what is oldest.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from m6proxy.names import Address

CAPABLE_S: Final = 3600.0
"""How long a peer that signalled is taken to speak the protocol, seconds."""
ENTRIES_MAX: Final = 65_536
_NOTHING: Final[tuple[float, tuple[Address, ...]]] = (0.0, ())


class RememberedPeers:
    """Results of capability detection by any means, good and bad."""

    __slots__ = ("_capable", "_limit", "_refused")

    def __init__(self, limit: int = ENTRIES_MAX) -> None:
        self._limit = limit
        self._capable: OrderedDict[Address, tuple[float, tuple[Address, ...]]] = OrderedDict()
        self._refused: OrderedDict[bytes, float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._capable) + len(self._refused)

    def note_capable(
        self, ulid: Address, now: float, locators: tuple[Address, ...] | None = None
    ) -> None:
        """The peer at this address signalled; what refusals said of it is over.

        While a context lives it knows this itself: it is noted here when the context ends.

        ``locators`` were proved to be its own; None when nothing new is known of them.
        """
        if locators is None:
            locators = self.locators_of(ulid, now)
        self.forgive(ulid)
        self._capable[ulid] = (now + CAPABLE_S, locators)
        self._capable.move_to_end(ulid)
        if len(self._capable) > self._limit:
            self._capable.popitem(last=False)

    def forgive(self, ulid: Address) -> None:
        """The peer has a context now: what refusals said of it is over."""
        self._refused.pop(ulid, None)
        self._refused.pop(ulid + ulid, None)

    def is_capable(self, ulid: Address, now: float) -> bool:
        """Tell whether the peer signalled within the last hour and refused nothing since."""
        return now < self._capable.get(ulid, _NOTHING)[0]

    def locators_of(self, ulid: Address, now: float) -> tuple[Address, ...]:
        """The peer's other locators that were proved within the last hour."""
        until_s, locators = self._capable.get(ulid, _NOTHING)
        return locators if now < until_s else ()

    def refuse(self, locator: Address, until_s: float, ulid: Address = b"") -> None:
        """Nobody at this address speaks the protocol; with ``ulid``: not for this identifier."""
        self._capable.pop(ulid or locator, None)
        self._refused[locator + ulid] = until_s
        self._refused.move_to_end(locator + ulid)
        if len(self._refused) > self._limit:
            self._refused.popitem(last=False)

    def refused_until_s(self, locator: Address, ulid: Address, now: float) -> float:
        """Until when nobody need be asked there about this identifier; 0 when he may be."""
        until_s = max(self._refused.get(locator, 0.0), self._refused.get(locator + ulid, 0.0))
        return until_s if now < until_s else 0.0

"""The last events, for ``m6proxy events`` and for the log."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import structlog

from m6proxy.names import UlidPair, address_text

KEPT: Final = 4096
_QUIET: Final = frozenset({"probe sent", "name learned", "capability asked", "no capability"})
"""Too many to be logged at the usual level."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One event."""

    seq: int
    """Counts from 1."""
    time: float
    """Unix time, seconds."""
    what: str
    detail: str
    local_ulid: str | None
    peer_ulid: str | None


class Journal:
    """Keeps the last events in memory and passes each to the log."""

    def __init__(self, unix_now: Callable[[], float]) -> None:
        self._unix_now = unix_now
        self._entries: deque[Entry] = deque(maxlen=KEPT)
        self._seq = 0
        self._log = structlog.get_logger("m6proxy")

    def note(self, what: str, detail: str = "", pair: UlidPair | None = None) -> None:
        """Something happened."""
        self._seq += 1
        local, peer = (address_text(pair.local), address_text(pair.peer)) if pair else (None, None)
        self._entries.append(Entry(self._seq, self._unix_now(), what, detail, local, peer))
        words = {"detail": detail, "local": local, "peer": peer}
        log = self._log.debug if what in _QUIET else self._log.info
        log(what, **{key: value for key, value in words.items() if value})

    def after(self, seq: int) -> list[Entry]:
        """All kept events with a greater number."""
        return [entry for entry in self._entries if entry.seq > seq]

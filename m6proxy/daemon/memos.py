"""What pairs are remembered by when the daemon is killed: a file that only grows, beside the
control socket.

Each line is one pair's memo (``shim.memo``), or says that the pair is gone; the last line of a pair
counts. Lines are written some at a time, soon after something changed, while packets wait for
nothing. When many of them are out of date the file is written anew beside itself and then takes its
place. What is lost of it, or cannot be read, costs a successor names and forks, never packets.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import IO, Any, Final, Protocol

import structlog

from m6proxy.names import UlidPair
from m6proxy.proof.judge import Proof
from m6proxy.shim.context import Context
from m6proxy.shim.demux import DemuxMode
from m6proxy.shim.memo import KnownLocator, Memo, PairMemo

_log = structlog.get_logger(__name__)

SOON_S: Final = 0.02
"""How long changes are gathered, and between two portions."""
PORTION: Final = 64
"""Pairs written at once, about a millisecond."""
SPARE_LINES: Final = 4096
"""So many lines may be out of date, beside as many as there are contexts."""
_MODE: Final = 0o600


class Remembered(Protocol):
    """What is needed of the engine."""

    def memo_of(self, pair: UlidPair) -> PairMemo | None:
        """What is to be remembered of a pair."""

    def contexts(self) -> Iterator[Context]:
        """All contexts."""


class Memos:
    """The file of one site. Writing faults are told once and are no reason to stop."""

    def __init__(self, path: Path, engine: Remembered) -> None:
        self._path = path
        self._fresh = path.with_name(f"{path.name}.next")
        self._engine = engine
        self._pending: dict[UlidPair, None] = {}
        self._file: IO[str] | None = None
        self._lines = 0
        self._lines_max = SPARE_LINES
        self._timer: asyncio.TimerHandle | None = None
        self._is_anew = False
        self._is_broken = False

    def read(self) -> dict[bytes, PairMemo]:
        """What a predecessor left, by local and peer ULID (32 octets)."""
        found: dict[bytes, PairMemo] = {}
        try:
            text = self._path.read_text(encoding="ascii")
        except (OSError, UnicodeDecodeError):
            return found
        for line in text.splitlines():
            with contextlib.suppress(ValueError, TypeError, LookupError):
                key, memo = _parsed(json.loads(line))
                if memo is not None:
                    found[key] = memo
                else:
                    found.pop(key, None)
        return found

    def note(self, pair: UlidPair) -> None:
        """A pair is to be remembered anew."""
        self._pending[pair] = None
        if self._timer is None and not self._is_broken:
            self._timer = asyncio.get_running_loop().call_later(SOON_S, self._write)

    def remove(self) -> None:
        """Nobody is to know anything: the contexts ended with us."""
        if self._timer is not None:
            self._timer.cancel()
        self._is_broken = True
        self._close()
        for path in (self._path, self._fresh):
            path.unlink(missing_ok=True)

    def _write(self) -> None:
        self._timer = None
        try:
            if self._file is None or self._lines > self._lines_max:
                self._begin_anew()
            assert self._file is not None
            for pair in [*self._pending][:PORTION]:
                del self._pending[pair]
                self._file.write(_line(pair, self._engine.memo_of(pair)))
                self._lines += 1
            self._file.flush()
            if not self._pending and self._is_anew:
                self._fresh.replace(self._path)
                self._is_anew = False
        except OSError as refused:
            self._is_broken = True
            self._close()
            _log.error("contexts are not remembered", file=refused.filename, why=refused.strerror)
            return
        if self._pending:
            self._timer = asyncio.get_running_loop().call_later(SOON_S, self._write)

    def _begin_anew(self) -> None:
        """All pairs go to a new file, which takes the old one's place when they are in it."""
        self._close()
        descriptor = os.open(self._fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, _MODE)
        self._file = os.fdopen(descriptor, "w", encoding="ascii")
        contexts = list(self._engine.contexts())
        self._pending |= dict.fromkeys(context.pair for context in contexts)
        self._lines, self._lines_max = 0, 2 * len(contexts) + SPARE_LINES
        self._is_anew = True

    def _close(self) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()
            self._file = None


def _line(pair: UlidPair, memo: PairMemo | None) -> str:
    told: list[Any] = [(pair.local + pair.peer).hex()]
    if memo is not None:
        told += [[_values(memo.main), *map(_values, memo.forks)]]
    return json.dumps(told, separators=(",", ":")) + "\n"


def _values(memo: Memo) -> list[Any]:
    """The fields in their order: octets as hexadecimal text, enumerations by their values."""
    return [_plain(getattr(memo, field.name)) for field in fields(Memo)]


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, tuple):
        return [_plain(one) for one in value]
    if isinstance(value, KnownLocator):
        return [
            value.address.hex(), value.proof.value, value.flags, value.priority, value.weight
        ]  # fmt: skip
    return value


def _parsed(told: list[Any]) -> tuple[bytes, PairMemo | None]:
    key = bytes.fromhex(told[0])
    if len(key) != 32:
        raise ValueError("a pair has 32 octets")
    if len(told) == 1:
        return key, None
    main, *forks = map(_memo, told[1])
    return key, PairMemo(key, main, tuple(forks))


def _memo(values: list[Any]) -> Memo:
    named = dict(zip((field.name for field in fields(Memo)), values, strict=True))
    order = named["peer_order"]
    route = bytes.fromhex(named["route"])
    if len(route) != 32:
        raise ValueError("a route has 32 octets")
    named |= {
        "route": route,
        "peer_mode": DemuxMode(named["peer_mode"]),
        "peer_order": tuple(map(bytes.fromhex, order)) if order is not None else None,
        "peer_parameters": bytes.fromhex(named["peer_parameters"]),
        "locators": tuple(map(_locator, named["locators"])),
    }
    return Memo(**named)


def _locator(values: list[Any]) -> KnownLocator:
    octets, proof, flags, priority, weight = values
    return KnownLocator(bytes.fromhex(octets), Proof(proof), flags, priority, weight)

"""Keep the kernel's list of re-homed pairs equal to the engine's, without holding the loop.

A re-homed pair must never pass without its rewriter: its packets would leave with
addresses that the path no longer serves. M6PROXY-REHOMED holds one rule without bypass per
pair; here it is rewritten whole, in a thread, one run at a time. Changes that come during
a run are taken together by the next one.

Between InstallFlow and the end of the run the queue's general rule still covers the pair:
with a living daemon nothing differs, and a daemon that dies within these milliseconds
leaves that one pair on its ULIDs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from itertools import islice

import structlog

from m6proxy.errors import SetupError
from m6proxy.names import UlidPair
from m6proxy.shim.effects import InstallFlow, RemoveFlow

_log = structlog.get_logger(__name__)

LIMIT_PAIRS = 4096
"""More would make a run longer than half a second; no packet meets more than some tens of rules."""
RETRY_S = 1.0


class RehomedChain:
    """Executes InstallFlow and RemoveFlow on M6PROXY-REHOMED.

    ``write`` replaces the chain's rules; it blocks and may raise SetupError
    (``RuleBundles.apply_rehomed``). Pairs above ``limit`` stay unguarded until others
    leave: they are counted and logged, and work as long as the daemon lives.
    """

    def __init__(
        self,
        write: Callable[[tuple[UlidPair, ...]], None],
        *,
        limit: int = LIMIT_PAIRS,
        retry_s: float = RETRY_S,
    ) -> None:
        self._write = write
        self._limit = limit
        self._retry_s = retry_s
        self._wanted: dict[UlidPair, None] = {}
        self._written: tuple[UlidPair, ...] = ()
        self._worker: asyncio.Task[None] | None = None
        self._overflowed = False
        self._unguarded = 0
        self._failed_runs = 0
        self._closed = False

    @property
    def written(self) -> tuple[UlidPair, ...]:
        """The pairs whose rules the kernel has, in the order of the chain."""
        return self._written

    def apply_flows(self, changes: Iterable[InstallFlow | RemoveFlow]) -> None:
        """Note the changes and see to it that the kernel follows. Never blocks.

        Pairs on their ULIDs have no rule. Needs a running event loop.
        """
        differs = False
        for change in changes:
            if isinstance(change, RemoveFlow) or tuple(change.locators) == tuple(change.ulids):
                differs |= change.ulids in self._wanted
                self._wanted.pop(change.ulids, None)
            elif change.ulids not in self._wanted:
                self._wanted[change.ulids] = None
                differs |= len(self._wanted) <= self._limit
                self._note_overflow()
        if len(self._wanted) <= self._limit:
            self._overflowed = False
        if differs:
            self._follow_later()

    def forget_written(self) -> None:
        """Somebody emptied the chain in the kernel: write it again, when there is anything."""
        self._written = ()
        self._follow_later()

    def _follow_later(self) -> None:
        if not self._closed and self._worker is None and self._due() != self._written:
            self._worker = asyncio.get_running_loop().create_task(self._follow())

    async def settle(self) -> None:
        """Return when the kernel has what was asked for so far, or a run failed."""
        failed_before = self._failed_runs
        while self._worker is not None and self._failed_runs == failed_before:
            await asyncio.wait({self._worker}, timeout=0.01)

    async def close(self) -> None:
        """Wait for the run under way, and start no other. The rules stay as they are.

        A later run would bring the chain back after the bundles were removed.
        """
        self._closed = True
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.cancel()
            await asyncio.wait({worker})

    def losses(self) -> dict[str, int]:
        """Pairs that found no room in the chain, and runs that failed, since the start."""
        return {"rehomed_unguarded": self._unguarded, "rehomed_failed_runs": self._failed_runs}

    def _due(self) -> tuple[UlidPair, ...]:
        return tuple(islice(self._wanted, self._limit))

    def _note_overflow(self) -> None:
        if len(self._wanted) <= self._limit:
            return
        self._unguarded += 1
        if not self._overflowed:
            self._overflowed = True
            _log.warning("re-homed pairs beyond the limit stay unguarded", limit=self._limit)

    async def _follow(self) -> None:
        while (due := self._due()) != self._written:
            run = asyncio.ensure_future(asyncio.to_thread(self._write, due))
            try:
                await asyncio.shield(run)
            except asyncio.CancelledError:
                await asyncio.wait({run})
                raise
            except SetupError as refused:
                self._failed_runs += 1
                _log.error("re-homed pairs are not guarded", why=str(refused), pairs=len(due))
                await asyncio.sleep(self._retry_s)
            else:
                self._written = due
        self._worker = None

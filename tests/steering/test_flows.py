"""RehomedChain: one run at a time, changes gathered, a limit, failures tried again."""

from __future__ import annotations

import asyncio
import threading

from m6proxy.errors import SetupError
from m6proxy.names import LocatorPair, UlidPair
from m6proxy.shim.effects import InstallFlow, RemoveFlow
from m6proxy.steering.flows import RehomedChain


def _pair(number: int) -> UlidPair:
    return UlidPair(number.to_bytes(16), bytes(16))


def _install(number: int) -> InstallFlow:
    return InstallFlow(_pair(number), LocatorPair(b"\x01" * 16, bytes(16)), 1)


class _Kernel:
    """Stands for ip6tables-restore; ``gate`` holds a run back."""

    def __init__(self) -> None:
        self.runs: list[tuple[UlidPair, ...]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.refusals = 0
        self._busy = threading.Lock()

    def write(self, pairs: tuple[UlidPair, ...]) -> None:
        assert self._busy.acquire(blocking=False), "two runs at a time"
        try:
            assert self.gate.wait(5)
            self.runs.append(pairs)
            if self.refusals:
                self.refusals -= 1
                raise SetupError("busy")
        finally:
            self._busy.release()


def test_changes_during_a_run_are_one_more_run() -> None:
    async def story() -> None:
        kernel.gate.clear()
        chain.apply_flows([_install(1)])
        await asyncio.sleep(0.01)  # the run has begun and waits
        for number in range(2, 50):
            chain.apply_flows([_install(number)])
        chain.apply_flows([RemoveFlow(_pair(1))])
        kernel.gate.set()
        await chain.settle()

    kernel = _Kernel()
    chain = RehomedChain(kernel.write)
    asyncio.run(story())
    assert kernel.runs == [(_pair(1),), tuple(_pair(n) for n in range(2, 50))]
    assert chain.written == kernel.runs[-1]


def test_what_changes_nothing_runs_nothing() -> None:
    async def story() -> None:
        chain.apply_flows([_install(1)])
        await chain.settle()
        chain.apply_flows([_install(1), RemoveFlow(_pair(7))])  # re-homed once more; unknown
        await chain.settle()

    kernel = _Kernel()
    chain = RehomedChain(kernel.write)
    asyncio.run(story())
    assert len(kernel.runs) == 1


def test_above_the_limit_pairs_wait_for_room_and_are_counted() -> None:
    async def story() -> None:
        chain.apply_flows([_install(n) for n in (1, 2, 3)])
        await chain.settle()
        assert chain.written == (_pair(1), _pair(2))
        chain.apply_flows([RemoveFlow(_pair(1))])
        await chain.settle()

    kernel = _Kernel()
    chain = RehomedChain(kernel.write, limit=2)
    asyncio.run(story())
    assert chain.written == (_pair(2), _pair(3))
    assert chain.losses()["rehomed_unguarded"] == 1


def test_a_refused_run_is_counted_and_tried_again() -> None:
    async def story() -> None:
        chain.apply_flows([_install(1)])
        await chain.settle()
        assert chain.written == ()
        await chain.settle()

    kernel = _Kernel()
    kernel.refusals = 1
    chain = RehomedChain(kernel.write, retry_s=0.01)
    asyncio.run(story())
    assert chain.written == (_pair(1),)
    assert chain.losses()["rehomed_failed_runs"] == 1


def test_close_waits_for_the_run_under_way() -> None:
    async def story() -> None:
        kernel.gate.clear()
        chain.apply_flows([_install(1)])
        await asyncio.sleep(0.01)
        asyncio.get_running_loop().call_later(0.05, kernel.gate.set)
        await chain.close()
        assert kernel.runs == [(_pair(1),)]
        await chain.close()
        chain.apply_flows([_install(2)])  # a late effect of the engine
        await chain.settle()
        assert len(kernel.runs) == 1

    kernel = _Kernel()
    chain = RehomedChain(kernel.write)
    asyncio.run(story())


def test_a_pair_on_its_ulids_has_no_rule() -> None:
    """A data plane in the kernel tells of every context; back on its ULIDs one may pass."""

    async def story() -> None:
        chain.apply_flows([_install(1), _install(2), plain])
        await chain.settle()

    kernel = _Kernel()
    chain = RehomedChain(kernel.write)
    plain = InstallFlow(_pair(1), LocatorPair(*_pair(1)), 1)
    asyncio.run(story())
    assert chain.written == (_pair(2),)

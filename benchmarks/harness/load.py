"""One engine under many contexts: its CPU time, and what time that would have been.

``Measured`` adds up the CPU time of this thread inside an engine's calls; the peer's engine
is not in it. ``LoadedWorld`` lets that time pass: packets and timers that are due while the
measured engine is at work wait until it has done.
"""

from __future__ import annotations

import heapq
import statistics
import time
from collections.abc import Callable
from typing import TypeVar

from benchmarks.harness.world import LATENCY_S, NO_LIMIT_PER_S, World
from m6proxy.daemon.entropy import SystemEntropy
from m6proxy.daemon.loop import REST_S
from m6proxy.shim.context import Context
from m6proxy.shim.core import ShimSettings
from m6proxy.shim.effects import Effect, SendPacket, Wake
from m6proxy.shim.engine import Engine
from m6proxy.shim.timers import TimerHeap
from tests.harness.pair import uplinks

IDLE_S = 1e9
"""No context ends for want of traffic while it is measured."""
Result = TypeVar("Result")


class _WatchedTimers(TimerHeap):
    """Counts what is woken."""

    def __init__(self, on_earlier: Callable[[], None]) -> None:
        super().__init__(on_earlier)
        self.woken = 0

    def take_due(self, now: float, most: int) -> list[Context]:
        """Take the contexts that are due."""
        due = super().take_due(now, most)
        self.woken += len(due)
        return due


class Measured:
    """An engine with the daemon's entropy, its calls timed."""

    def __init__(self, letter: str) -> None:
        self.engine = loaded_engine(letter)
        self.timers = _WatchedTimers(self.engine._core.wake)
        self.engine._core.timers = self.timers
        self.cpu_ns = 0
        self.calls_ns: list[int] = []
        """Of each call, since somebody cleared it."""
        self._empty_ns = _of_nothing_ns()

    def call(self, work: Callable[[], Result]) -> Result:
        """Do a part of the engine's work, timed."""
        start_ns = time.thread_time_ns()
        result = work()
        spent_ns = max(0, time.thread_time_ns() - start_ns - self._empty_ns)
        self.cpu_ns += spent_ns
        self.calls_ns.append(spent_ns)
        return result


def _of_nothing_ns() -> int:
    """What is measured where nothing is done: reading the clock is a call of the kernel's."""
    found = []
    for _ in range(2000):
        start_ns = time.thread_time_ns()
        found.append(time.thread_time_ns() - start_ns)
    return int(statistics.median(found))


def loaded_engine(letter: str) -> Engine:
    """A site's engine that takes as many requests as come, and keeps idle contexts."""
    settings = ShimSettings(uplinks=uplinks(letter), idle_s=IDLE_S, requests_per_s=NO_LIMIT_PER_S)
    return Engine(settings, SystemEntropy())


class LoadedWorld(World):
    """A world in which alpha's CPU time passes, and which notes how late alpha's timers are."""

    def __init__(self) -> None:
        self.measured = Measured("a")
        super().__init__(self.measured.engine, loaded_engine("b"))
        self.late_s: list[float] = []
        """From the first deadline of a context to the end of the call that did its work."""
        self._arrivals: dict[str, list[tuple[float, int, bytes]]] = {"a": [], "b": []}
        self._alarm_s: float | None = None
        self._free_s = 0.0
        self._round_s = 0.0

    def uplink(self, name: str, *, up: bool) -> None:
        """Alpha's kernel reports an uplink, at work or not."""
        engine = self.measured.engine
        self._work(lambda: engine.handle_uplink(name, up=up, mtu=1500, now=self.now))

    def run(self, seconds: float) -> None:
        """Let virtual time pass, with packets and timers in their order."""
        end_s = self.now + seconds
        self._alarm_s = self.measured.engine.next_deadline()
        while (due := self._next()) is not None and due[0] <= end_s:
            self.now, step = max(self.now, due[0]), due[1]
            step()
        self.now = end_s

    def _next(self) -> tuple[float, Callable[[], None]] | None:
        steps: list[tuple[float, int, Callable[[], None]]] = []
        if self._arrivals["a"]:
            steps.append((max(self._free_s, self._arrivals["a"][0][0]), 0, self._alpha_hears))
        if self._alarm_s is not None:
            due_s = self._alarm_s
            if due_s > self._round_s:
                due_s = max(due_s, self._round_s + REST_S)
            steps.append((max(due_s, self._free_s), 1, self._alpha_wakes))
        if self._arrivals["b"]:
            steps.append((self._arrivals["b"][0][0], 2, self._beta_hears))
        beta_s = self.engines["b"].next_deadline()
        if beta_s is not None:
            steps.append((beta_s, 3, self._beta_wakes))
        if not steps:
            return None
        due_s, _, step = min(steps, key=lambda one: one[:2])
        return due_s, step

    def _alpha_hears(self) -> None:
        packet = heapq.heappop(self._arrivals["a"])[2]
        self._work(lambda: self.measured.engine.handle_inbound(packet, self.now))

    def _alpha_wakes(self) -> None:
        due_s = self.measured.timers.next_deadline()
        self._round_s = self.now
        self._work(lambda: self.measured.engine.handle_timer(self.now), is_round=True)
        if due_s is not None and due_s <= self.now:
            self.late_s.append(self._free_s - due_s)

    def _beta_hears(self) -> None:
        packet = heapq.heappop(self._arrivals["b"])[2]
        self.engines["b"].handle_inbound(packet, self.now)
        self._send_all("b")

    def _beta_wakes(self) -> None:
        self.engines["b"].handle_timer(self.now)
        self._send_all("b")

    def _work(self, work: Callable[[], object], *, is_round: bool = False) -> None:
        """What the daemon's loop has the engine do around each call, in alpha's time: it takes
        the effects when there are any, and sets its alarm on a Wake and after a round of timers.
        """
        measured, engine = self.measured, self.measured.engine
        outbox = engine.outbox

        def all_of_it() -> list[Effect]:
            work()
            effects: list[Effect] = []
            if outbox:
                effects = engine.take_effects()
            return effects

        before_ns = measured.cpu_ns
        effects = measured.call(all_of_it)
        if is_round or any(isinstance(effect, Wake) for effect in effects):
            self._alarm_s = measured.call(engine.next_deadline)
        self._free_s = self.now + (measured.cpu_ns - before_ns) / 1e9
        for effect in effects:
            if isinstance(effect, SendPacket):
                self._carry(effect.packet)

    def _carry(self, packet: bytes) -> None:
        into = self.reaches(packet)
        if into is not None:
            self.packets += 1
            arrives_s = max(self.now, self._free_s if into == "b" else 0.0) + LATENCY_S
            heapq.heappush(self._arrivals[into], (arrives_s, self.packets, packet))

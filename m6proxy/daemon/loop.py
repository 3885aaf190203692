"""The loop: it brings packets, time and answers to the engine, and carries effects out.

It decides nothing. The data plane calls ``_outbound`` and ``_inbound`` for every packet;
after each of them, and after each input that has no packet, waiting effects are carried out
in order. The alarm is set to the engine's next deadline, and anew on each Wake.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, Protocol

from m6proxy.daemon.journal import Journal
from m6proxy.daemon.memos import Memos
from m6proxy.dataplane.port import DataPlane
from m6proxy.discovery.capability import NameData
from m6proxy.discovery.names_book import NameBook
from m6proxy.names import Address, UlidPair, address_text
from m6proxy.shim.adopt import LeftContext
from m6proxy.shim.effects import (
    AskCapability,
    AskProof,
    Effect,
    InstallFlow,
    LearnNames,
    Remember,
    RemoveFlow,
    Report,
    SendPacket,
    Wake,
)
from m6proxy.shim.engine import Engine
from m6proxy.shim.policy import Traffic
from m6proxy.shim.verdict import Verdict

CLOSE_WITHIN_S = 2.0
"""How long a gateway that stops waits for its peers' word that contexts are closed."""
PARK_WITHIN_S = 7.0
"""How long a site that goes away waits for its peers' word: one question may be lost."""
_LOOK_S = 0.02
REST_S = 0.005
"""Between two rounds of timers: of 2,000 contexts a second, ten are seen to in one call, where
each call by itself costs as much as the work of one of them. Timers are as late as this at most;
what was due in the last round already, and was too much for one call, does not wait."""
LOOKUPS_MAX = 1024
"""DNS questions of the engine under way at once; further ones are answered 'unknown'."""


class Discovery(Protocol):
    """What the loop needs of the resolver."""

    async def peer(self, octets: Address) -> NameData | None:
        """What DNS says of the host at an address."""

    async def named(self, name: str, ulid: Address) -> NameData | None:
        """What DNS says of a name that the owner of a ULID claims."""

    async def local_name(self, ulid: Address) -> str | None:
        """The DNS name of a local host."""


class Loop:
    """Connects one engine with one data plane and one resolver, in the running event loop."""

    def __init__(
        self,
        engine: Engine,
        dataplane: DataPlane,
        discovery: Discovery,
        book: NameBook,
        journal: Journal,
        clock: Callable[[], float],
    ) -> None:
        self._engine = engine
        self._dataplane = dataplane
        self._discovery = discovery
        self._book = book
        self._journal = journal
        self._clock = clock
        self.memos: Memos | None = None
        """Where pairs are remembered for a successor, if there can be one."""
        self._alarm: asyncio.TimerHandle | None = None
        self._round_s = -REST_S
        """When the last round of timers was."""
        self._lookups: set[asyncio.Task[None]] = set()
        self.packets_outbound = 0
        self.packets_inbound = 0

    def start(self) -> None:
        """Open the data plane; packets flow from now on. Raises SetupError."""
        self._dataplane.open(outbound=self._sink_outbound(), inbound=self._sink_inbound())

    def adopt(self, left: Iterable[LeftContext]) -> int:
        """Take contexts over that the kernel still has; before ``start``. Returns how many."""
        memos = self.memos.read() if self.memos is not None else {}
        adopted = self._engine.adopt(left, self._clock(), memos)
        self._carry_out()
        return adopted

    async def stop(self) -> None:
        """Let no packet in any more and give up what is under way."""
        self._dataplane.close()
        if self._alarm is not None:
            self._alarm.cancel()
        for task in tuple(self._lookups):
            task.cancel()
        await asyncio.gather(*self._lookups, return_exceptions=True)

    async def close_contexts(self) -> None:
        """Tell the peers that packets are restored here no more, and wait for their answers."""
        deadline_s = self._clock() + CLOSE_WITHIN_S
        self._engine.close_all(self._clock())
        self._carry_out()
        while self._engine.closing and self._clock() < deadline_s:
            await asyncio.sleep(_LOOK_S)

    async def park(self, for_s: float) -> None:
        """Tell the peers that the site goes away for so long, and wait for what they say."""
        self._journal.note("site away", f"for {for_s:g} s")
        self._engine.park(for_s, self._clock())
        self._carry_out()
        deadline_s = self._clock() + PARK_WITHIN_S
        while (away := self._engine.away) is not None and away.asked:
            if self._clock() >= deadline_s:
                break
            await asyncio.sleep(_LOOK_S)

    def unpark(self) -> None:
        """The site is back."""
        if self._engine.away is not None:
            self._journal.note("site back", "")
        self._engine.unpark(self._clock())
        self._carry_out()

    def uplink_changed(self, name: str, up: bool, why: str, mtu: int) -> None:
        """The kernel says that an uplink came, went or changed its MTU (octets)."""
        before = {uplink.name: uplink.up for uplink in self._engine.uplinks}[name]
        if before != up:
            self._journal.note("uplink up" if up else "uplink down", f"{name}: {why}")
        self._engine.handle_uplink(name, up=up, mtu=mtu, now=self._clock())
        self._carry_out()

    # --- what a data plane in the kernel has to say ---------------------------------------

    def flow_awake(self, slot: int) -> None:
        """A context that was silent has traffic."""
        self._engine.handle_activity(slot, self._clock())
        self._carry_out()

    def pair_ripe(self, pair: UlidPair, traffic: Traffic) -> None:
        """Traffic of a pair without a context crossed a threshold of policy."""
        self._engine.handle_ripe(pair, traffic, self._clock())
        self._carry_out()

    def names_heard(self, payload: bytes) -> None:
        """A DNS answer went by."""
        self._learn(payload)

    def notices_lost(self) -> None:
        """Look at everything that may have changed."""
        self._engine.handle_all_activity(self._clock())
        self._carry_out()

    # --- packets -----------------------------------------------------------------------

    def _sink_outbound(self) -> Callable[[bytes], Verdict]:
        handle, clock, outbox = self._engine.handle_outbound, self._clock, self._engine.outbox

        def outbound(packet: bytes) -> Verdict:
            self.packets_outbound += 1
            verdict = handle(packet, clock())
            if outbox:
                self._carry_out()
            return verdict

        return outbound

    def _sink_inbound(self) -> Callable[[bytes], Verdict]:
        handle, clock, outbox = self._engine.handle_inbound, self._clock, self._engine.outbox

        def inbound(packet: bytes) -> Verdict:
            self.packets_inbound += 1
            verdict = handle(packet, clock())
            if outbox:
                self._carry_out()
            return verdict

        return inbound

    # --- time ----------------------------------------------------------------------------

    def _set_alarm(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        deadline_s = self._engine.next_deadline()
        if deadline_s is not None:
            if deadline_s > self._round_s:
                deadline_s = max(deadline_s, self._round_s + REST_S)
            delay_s = max(0.0, deadline_s - self._clock())
            self._alarm = asyncio.get_running_loop().call_later(delay_s, self._on_alarm)

    def _on_alarm(self) -> None:
        self._alarm = None
        self._round_s = self._clock()
        try:
            self._engine.handle_timer(self._round_s)
            self._carry_out()
        finally:  # a fault of ours in one context must not stop the timers of all others
            self._set_alarm()

    # --- effects -------------------------------------------------------------------------

    def _carry_out(self) -> None:
        while self._engine.outbox:
            for effect in self._engine.take_effects():
                self._carry_out_one(effect)

    def _carry_out_one(self, effect: Effect) -> None:
        match effect:
            case SendPacket(packet):
                self._dataplane.send(packet)
            case Wake():
                self._set_alarm()
            case Report():
                self._journal.note(effect.what.value, effect.detail, effect.pair)
            case LearnNames(payload):
                self._learn(payload)
            case InstallFlow() | RemoveFlow():
                self._dataplane.apply_flows((effect,))
            case Remember(pair):
                if self.memos is not None:
                    self.memos.note(pair)
            case AskCapability(pair):
                self._look_up(self._ask_capability(pair))
            case AskProof(pair, name):
                self._look_up(self._ask_proof(pair, name))

    def _learn(self, payload: bytes) -> None:
        for name, octets in self._book.learn(payload, self._clock()):
            self._journal.note("name learned", f"{name} is {address_text(octets)}")

    def _look_up(self, question: Coroutine[Any, Any, None]) -> None:
        if len(self._lookups) >= LOOKUPS_MAX:
            question.close()
            self._journal.note("lookup refused", f"{LOOKUPS_MAX} are under way")
            return
        task = asyncio.get_running_loop().create_task(question)
        self._lookups.add(task)
        task.add_done_callback(self._lookups.discard)

    async def _ask_capability(self, pair: UlidPair) -> None:
        data, local_name = await asyncio.gather(
            self._discovery.peer(pair.peer), self._discovery.local_name(pair.local)
        )
        self._engine.handle_capability(pair, data, local_name, self._clock())
        self._carry_out()

    async def _ask_proof(self, pair: UlidPair, name: str | None) -> None:
        data, local_name = await asyncio.gather(
            self._named(name, pair.peer), self._discovery.local_name(pair.local)
        )
        self._engine.handle_proof(pair, data, local_name, self._clock())
        self._carry_out()

    async def _named(self, name: str | None, ulid: Address) -> NameData | None:
        return await self._discovery.named(name, ulid) if name is not None else None

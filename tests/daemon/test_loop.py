"""The loop between engine, data plane and resolver, in a real event loop without a kernel."""

from __future__ import annotations

import asyncio
import time
from itertools import pairwise

import pytest

from m6proxy.daemon import loop as loop_module
from m6proxy.dataplane.memory import MemoryDataPlane
from m6proxy.names import UlidPair
from m6proxy.shim.effects import Wake
from m6proxy.shim.verdict import CONSUMED
from m6proxy.wire.ipv6 import NEXT_SHIM, NEXT_UDP, build_packet
from m6proxy.wire.message import I1, parse_message
from tests.daemon.parts import FakeDiscovery, Parts, parts, until
from tests.harness.pair import A1, A1_ISP2, B1, name_data

NAMES = {A1: "a1.alpha.example", B1: "b1.beta.example"}
DATA = {A1: name_data(NAMES[A1], A1, "a"), B1: name_data(NAMES[B1], B1, "b")}


def _udp(src: bytes, dst: bytes, body: bytes = bytes(100)) -> bytes:
    return build_packet(src, dst, NEXT_UDP, b"\x13\x88\x13\x89\0\0\0\0" + body)


def _discovery() -> FakeDiscovery:
    return FakeDiscovery(data=dict(DATA), names=dict(NAMES))


class _Wire:
    """Carries between two sites what their data planes send and let pass."""

    def __init__(self, alpha: Parts, beta: Parts) -> None:
        self.alpha, self.beta = alpha, beta
        self.dead: set[bytes] = set()
        """Prefixes (6 octets) whose provider is dead."""
        self.delivered: list[bytes] = []

    def host_sends(self, site: Parts, packet: bytes) -> None:
        for out in site.plane.inject_outbound(packet):
            self._carry(out)

    def pump(self) -> bool:
        for site in (self.alpha, self.beta):
            sent, site.plane.sent[:] = list(site.plane.sent), []
            for packet in sent:
                self._carry(packet)
        return True

    def _carry(self, packet: bytes) -> None:
        if packet[8:14] in self.dead or packet[24:30] in self.dead:
            return
        site = self.beta if packet[28] == 0xB1 or packet[29] >> 4 == 0xB else self.alpha
        self.delivered += site.plane.inject_inbound(packet)


def test_two_loops_establish_and_re_home_by_their_own_timers() -> None:
    """Everything at once: DNS as tasks, effects in order, and an alarm that really goes off."""

    async def story() -> None:
        alpha = parts(discovery=_discovery(), send_timeout_s=0.2)
        beta = parts(letter="b", seed=2, discovery=_discovery(), send_timeout_s=0.2)
        wire = _Wire(alpha, beta)
        alpha.loop.start()
        beta.loop.start()

        def talk() -> bool:
            wire.host_sends(alpha, _udp(A1, B1))
            return wire.pump()

        def carries() -> bool:
            contexts = [*alpha.engine.contexts(), *beta.engine.contexts()]
            return len(contexts) == 2 and all(context.carries for context in contexts)

        await until(lambda: talk() and carries(), "established")
        assert alpha.discovery.asked == [B1]
        wire.dead.add(A1[:6])
        await until(
            lambda: (
                talk()
                and any(p[8:24] == A1 for p in wire.delivered[-1:])
                and bool(alpha.engine.rewritten)
            ),
            "re-homed",
            within_s=10,
        )
        (context,) = alpha.engine.contexts()
        assert context.locators.local == A1_ISP2
        assert wire.delivered[-1] == _udp(A1, B1)
        await until(lambda: UlidPair(A1, B1) in alpha.plane.flows, "guarded")
        await alpha.loop.stop()
        await beta.loop.stop()
        words = [entry.what for entry in alpha.journal.after(0)]
        order = ["capability asked", "capability found", "context established", "re-homed"]
        places = [words.index(word) for word in order]
        assert all(earlier < later for earlier, later in pairwise(places))
        assert (alpha.loop.packets_outbound, alpha.loop.packets_inbound > 0) != (0, False)

    asyncio.run(story())


def test_traffic_never_waits_for_dns() -> None:
    async def story() -> None:
        gate = asyncio.Event()
        discovery = FakeDiscovery(data=dict(DATA), names=dict(NAMES), gate=gate)
        site = parts(discovery=discovery)
        site.loop.start()
        packet = _udp(A1, B1)
        for _ in range(10):
            assert site.plane.inject_outbound(packet) == [packet]
        await until(lambda: discovery.asked == [B1], "DNS is asked once")
        assert site.plane.sent == []
        gate.set()
        await until(lambda: bool(site.plane.sent), "the answer leads to an I1")
        (i1,) = site.plane.sent
        assert i1[6] == NEXT_SHIM and isinstance(parse_message(i1[40:]), I1)
        await site.loop.stop()

    asyncio.run(story())


def test_a_retransmission_comes_by_the_alarm() -> None:
    """Nobody answers the I1: the loop wakes itself, without any packet."""

    async def story() -> None:
        running, began = asyncio.get_running_loop(), 1000.0
        origin = running.time()
        site = parts(discovery=_discovery(), clock=lambda: began + (running.time() - origin) * 20)
        site.loop.start()
        for _ in range(2):
            site.plane.inject_outbound(_udp(A1, B1))
        await until(lambda: len(site.plane.sent) == 1, "an I1")
        # The alarm is set in the engine's seconds, of which twenty pass in one here.
        await until(lambda: len(site.plane.sent) >= 2, "the second I1", within_s=15)
        first, second = (parse_message(packet[40:]) for packet in site.plane.sent[:2])
        assert first == second
        await site.loop.stop()

    asyncio.run(story())


def test_a_fault_in_one_timer_does_not_stop_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """The alarm is set again although the engine raised; before, no timer ever came again."""

    async def story() -> None:
        site = parts(discovery=_discovery())
        calls: list[float] = []

        def expire(now: float) -> None:
            calls.append(now)
            if len(calls) == 1:
                raise RuntimeError("a fault in one context")

        monkeypatch.setattr(site.engine, "handle_timer", expire)
        monkeypatch.setattr(
            site.engine,
            "next_deadline",
            lambda: time.monotonic() + 0.01 if len(calls) < 3 else None,
        )
        faults: list[object] = []
        asyncio.get_running_loop().set_exception_handler(
            lambda _, what: faults.append(what.get("exception"))
        )
        site.loop.start()
        site.engine._core.effects.append(Wake())
        site.plane.inject_outbound(_udp(A1, B1))
        await until(lambda: len(calls) == 3, "the alarm goes off again")
        assert len(faults) == 1, "and the fault is not hidden"
        await site.loop.stop()

    asyncio.run(story())


def test_rounds_of_timers_rest_but_not_when_one_was_too_large(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each of 2,000 contexts a second had a call of its own; they come ten at a time."""

    async def story() -> None:
        site = parts(discovery=_discovery())
        rounds: list[float] = []
        monkeypatch.setattr(site.engine, "handle_timer", rounds.append)
        # due at once, then 0.1 ms after that round, then still left over from the second

        def next_deadline() -> float | None:
            match len(rounds):
                case 0:
                    return time.monotonic()
                case 1:
                    return rounds[0] + 1e-4
            return rounds[1] if len(rounds) == 2 else None

        monkeypatch.setattr(site.engine, "next_deadline", next_deadline)
        site.loop.start()
        site.engine._core.effects.append(Wake())
        site.plane.inject_outbound(_udp(A1, B1))
        await until(lambda: len(rounds) == 3, "three rounds")
        assert rounds[1] - rounds[0] >= loop_module.REST_S * 0.9
        assert site.loop._alarm is None
        await site.loop.stop()

    asyncio.run(story())


def test_stopping_gives_up_questions_and_packets() -> None:
    async def story() -> None:
        discovery = FakeDiscovery(gate=asyncio.Event())
        site = parts(discovery=discovery)
        site.loop.start()
        for _ in range(3):
            site.plane.inject_outbound(_udp(A1, B1))
        await until(lambda: bool(discovery.asked), "DNS is asked")
        await asyncio.wait_for(site.loop.stop(), 5)
        assert not site.plane.opened
        assert len(asyncio.all_tasks()) == 1, "nothing is left running"

    asyncio.run(story())


def test_more_questions_than_allowed_are_refused_and_noted() -> None:
    async def story() -> None:
        discovery = FakeDiscovery(gate=asyncio.Event())
        site = parts(discovery=discovery)
        site.loop.start()
        for number in range(loop_module.LOOKUPS_MAX + 1):
            peer = B1[:-2] + number.to_bytes(2)
            for _ in range(2):
                site.plane.inject_outbound(_udp(A1, peer))
        refused = [e for e in site.journal.after(0) if e.what == "lookup refused"]
        assert len(refused) == 1
        await site.loop.stop()

    asyncio.run(story())


def test_a_dns_answer_that_passes_teaches_a_name() -> None:
    import dns.message
    import dns.rrset

    async def story() -> None:
        site = parts()
        site.loop.start()
        query = dns.message.make_query("b1.beta.example", "AAAA")
        answer = dns.message.make_response(query)
        answer.answer.append(
            dns.rrset.from_text("b1.beta.example.", 300, "IN", "AAAA", "2001:db8:b1:1::10")
        )
        body = answer.to_wire()
        packet = build_packet(B1, A1, NEXT_UDP, b"\0\x35\x13\x89\0\0\0\0" + body)
        assert site.plane.inject_inbound(packet) == [packet]
        (entry,) = site.journal.after(0)
        assert (entry.what, entry.detail) == (
            "name learned",
            "b1.beta.example is 2001:db8:b1:1::10",
        )
        garbage = build_packet(B1, A1, NEXT_UDP, b"\0\x35\x13\x89\0\0\0\0" + b"\xff" * 40)
        assert site.plane.inject_inbound(garbage) == [garbage]
        await site.loop.stop()

    asyncio.run(story())


def test_control_messages_go_no_further() -> None:
    async def story() -> None:
        site = parts()
        site.loop.start()
        plane: MemoryDataPlane = site.plane
        from m6proxy.wire.message import encode_message

        i1 = build_packet(B1, A1, NEXT_SHIM, encode_message(I1(5, 6)))
        assert plane.inject_inbound(i1) == [] and plane.consumed == 1
        (r1,) = plane.sent
        assert r1[8:24] == A1 and r1[24:40] == B1
        assert site.engine.handle_inbound(i1, 1e9) is CONSUMED
        await site.loop.stop()

    asyncio.run(story())


def test_an_uplink_that_changes_is_noted_once() -> None:
    async def story() -> None:
        site = parts()
        site.loop.start()
        site.loop.uplink_changed("isp1", True, "wan1 is up", 1500)
        site.loop.uplink_changed("isp1", False, "wan1 has no carrier", 1500)
        site.loop.uplink_changed("isp1", False, "wan1 is switched off", 1500)
        site.loop.uplink_changed("isp1", True, "wan1 is up", 1400)
        noted = [(entry.what, entry.detail) for entry in site.journal.after(0)]
        assert noted == [
            ("uplink down", "isp1: wan1 has no carrier"),
            ("uplink up", "isp1: wan1 is up"),
        ]
        assert next(uplink.mtu for uplink in site.engine.uplinks) == 1400
        await site.loop.stop()

    asyncio.run(story())


@pytest.mark.parametrize("answered", [True, False])
def test_a_loop_that_closes_its_contexts_waits_for_answers_but_not_for_ever(
    answered: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop_module, "CLOSE_WITHIN_S", 0.3)

    async def story() -> None:
        alpha = parts(discovery=_discovery())
        beta = parts(letter="b", seed=2, discovery=_discovery())
        wire = _Wire(alpha, beta)
        alpha.loop.start()
        beta.loop.start()

        def carries() -> bool:
            wire.host_sends(alpha, _udp(A1, B1))
            wire.pump()
            contexts = [*alpha.engine.contexts(), *beta.engine.contexts()]
            return len(contexts) == 2 and all(context.carries for context in contexts)

        await until(carries, "established")
        if not answered:
            wire.dead |= {A1[:6], A1_ISP2[:6]}
        start_s = time.monotonic()
        closing = asyncio.get_running_loop().create_task(alpha.loop.close_contexts())
        await until(lambda: wire.pump() and closing.done(), "closed")
        await closing
        assert (time.monotonic() - start_s < 0.25) is answered
        assert bool(list(beta.engine.contexts())) is not answered
        await alpha.loop.stop()
        await beta.loop.stop()

    asyncio.run(story())

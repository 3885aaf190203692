"""The resolver against a nameserver on loopback, good and bad."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import TypeVar

import dns.message
import pytest

from m6proxy.daemon.resolver import Resolver
from m6proxy.discovery.codec import svcb_zone_line
from m6proxy.discovery.names_book import NameBook
from m6proxy.discovery.plan import ptr_question
from m6proxy.names import Address, address
from m6proxy.proof.judge import Evidence, Proof, prove_locators, prove_ulid
from tests.discovery.values import ALPHA
from tests.harness.nameserver import HOST, Mood, Nameserver

T = TypeVar("T")

A1 = address("2001:db8:a1:1::10")
A1_OTHER = address("2001:db8:a2:1::10")
A2 = address("2001:db8:a1:1::20")
STRANGER = address("2001:db8:bad::1")
TIMEOUT_S = 0.5
DEADLINE_S = 20.0

HEAD = """
@ 3600 IN SOA ns hostmaster 1 3600 900 604800 60
@ 3600 IN NS ns
ns 3600 IN AAAA 2001:db8:ff::53
"""
FORWARD = f"""{HEAD}
a1 3600 IN AAAA 2001:db8:a1:1::10
{svcb_zone_line("a1.alpha.example", ALPHA, 3600)}
a2 3600 IN AAAA 2001:db8:a1:1::20
_m6proxy.a2 3600 IN SVCB 0 _m6proxy.a1
www 3600 IN CNAME a1
_m6proxy.www 3600 IN SVCB 0 _m6proxy.a1
thief 3600 IN AAAA 2001:db8:bad::1
_m6proxy.thief 3600 IN SVCB 1 . key65310="v=1+p=2001:db8:bad::/48"
plain 3600 IN AAAA 2001:db8:bad::2
faulty 3600 IN AAAA 2001:db8:bad::3
_m6proxy.faulty 3600 IN SVCB 1 . key65310="v=1+p=::/0"
loop 3600 IN AAAA 2001:db8:bad::4
_m6proxy.loop 3600 IN SVCB 0 _m6proxy.loop
"""
POINTERS = {
    A1: "a1.alpha.example.",
    A2: "a2.alpha.example.",
    STRANGER: "a1.alpha.example.",
    address("2001:db8:bad::2"): "plain.alpha.example.",
    address("2001:db8:bad::3"): "faulty.alpha.example.",
    address("2001:db8:bad::4"): "loop.alpha.example.",
}
REVERSE = HEAD + "\n".join(
    f"{ptr_question(octets).name}. 3600 IN PTR {name}" for octets, name in POINTERS.items()
)
ZONES = {"alpha.example": FORWARD, "8.b.d.0.1.0.0.2.ip6.arpa": REVERSE}


class Clock:
    """A clock that stands still until it is told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Bench:
    """One nameserver and one resolver that asks it."""

    def __init__(self, server: Nameserver, resolver: Resolver, clock: Clock, book: NameBook):
        self.server = server
        self.resolver = resolver
        self.clock = clock
        self.book = book

    def hear(self, name: str) -> None:
        """Let the answer to a host's AAAA question pass the gateway."""
        query = dns.message.make_query(name, "AAAA")
        assert self.book.learn(self.server.respond(query).to_wire(), self.clock.now)


def on_bench(
    use: Callable[[Bench], Awaitable[T]],
    *,
    mood: Mood = Mood.GOOD,
    delay_s: float = 0.0,
    servers: tuple[str, ...] = (HOST,),
    zones: Mapping[str, str] = ZONES,
    hosts: Mapping[Address, str] | None = None,
    peers: Mapping[Address, tuple[str, ...]] | None = None,
) -> T:
    """Run a test with a fresh nameserver and resolver."""

    async def run() -> T:
        async with Nameserver(zones, mood=mood, delay_s=delay_s) as server:
            clock, book = Clock(), NameBook()
            resolver = Resolver(
                servers,
                port=server.port,
                timeout_s=TIMEOUT_S,
                clock=clock,
                book=book,
                hosts=hosts or {},
                peers=peers or {},
            )
            try:
                return await use(Bench(server, resolver, clock, book))
            finally:
                await resolver.close()

    return asyncio.run(asyncio.wait_for(run(), DEADLINE_S))


def test_peer_is_found_by_ptr() -> None:
    async def use(bench: Bench) -> None:
        data = await bench.resolver.peer(A1)
        assert data is not None
        assert (data.name, data.capability, data.owns_ulid) == ("a1.alpha.example", ALPHA, True)
        assert data.addresses == {A1}
        assert data.expires_s == bench.clock.now + 3600
        assert prove_locators(A1, (A1, A1_OTHER, STRANGER), data) == (
            Proof.ULID,
            Proof.DNS,
            Proof.NONE,
        )

    on_bench(use)


def test_peer_is_found_by_a_name_that_passed_the_gateway() -> None:
    async def use(bench: Bench) -> None:
        bench.hear("www.alpha.example")
        data = await bench.resolver.peer(A1)
        # the name that PTR confirms goes before the one that the host asked for
        assert data is not None
        assert (data.name, data.owns_ulid) == ("a1.alpha.example", True)

    on_bench(use)
    no_reverse = {"alpha.example": FORWARD}

    async def use_without_ptr(bench: Bench) -> None:
        bench.hear("www.alpha.example")
        data = await bench.resolver.peer(A1)
        assert data is not None
        assert (data.name, data.owns_ulid) == ("www.alpha.example", False)
        assert data.capability == ALPHA

    on_bench(use_without_ptr, zones=no_reverse)


def test_a_name_that_does_not_cover_the_address_is_nothing() -> None:
    """PTR of a thief's address names a1: a1's own data does not say so."""

    async def use(bench: Bench) -> None:
        assert await bench.resolver.peer(STRANGER) is None

    on_bench(use)


@pytest.mark.parametrize(
    ("text", "malformed"), [("2001:db8:bad::2", 0), ("2001:db8:bad::3", 1), ("2001:db8:bad::4", 0)]
)
def test_no_record_a_faulty_one_and_an_endless_alias_are_no_capability(
    text: str, malformed: int
) -> None:
    async def use(bench: Bench) -> None:
        assert await bench.resolver.peer(address(text)) is None
        assert bench.resolver.counters.malformed == malformed
        assert bench.resolver.counters.failed == 0
        (row,) = bench.resolver.snapshot()
        assert (row["address"], row["capability"]) == (text, "no")

    on_bench(use)


def test_alias_leads_to_the_record_of_the_site() -> None:
    async def use(bench: Bench) -> None:
        data = await bench.resolver.peer(A2)
        assert data is not None
        assert (data.name, data.capability) == ("a2.alpha.example", ALPHA)

    on_bench(use)


def test_configuration_overrides_dns() -> None:
    extra = address("2001:db8:c0::1")

    async def use(bench: Bench) -> None:
        bench.hear("thief.alpha.example")
        data = await bench.resolver.peer(STRANGER)
        assert data is not None
        assert (data.name, data.owns_ulid) == ("a1.alpha.example", True)
        assert data.addresses == {A1, STRANGER, extra}
        assert bench.server.asked_of("PTR") == []
        named = await bench.resolver.named("a1.alpha.example", STRANGER)
        assert named == data

    names = ("a1.alpha.example",)
    on_bench(use, peers={STRANGER: names, extra: names})


def test_claimed_name() -> None:
    async def use(bench: Bench) -> None:
        own = await bench.resolver.named("a1.alpha.example", A1)
        assert own is not None and own.owns_ulid
        assert prove_ulid(A1, A1_OTHER, Evidence(own))
        # a thief at its own address claims the name of another, and the other way round
        other = await bench.resolver.named("a1.alpha.example", A2)
        assert other is not None and not other.owns_ulid
        assert not prove_ulid(A2, STRANGER, Evidence(other))
        thief = await bench.resolver.named("thief.alpha.example", A1)
        assert thief is not None
        assert not prove_ulid(A1, STRANGER, Evidence(thief))
        assert prove_locators(A1, (STRANGER,), thief) == (Proof.NONE,)
        for nothing in ("none.alpha.example", "not a name", "", "x" * 300, "elsewhere.example"):
            assert await bench.resolver.named(nothing, A1) is None

    on_bench(use)


def test_local_name() -> None:
    async def use(bench: Bench) -> None:
        assert await bench.resolver.local_name(A1) == "a1.alpha.example"
        assert await bench.resolver.local_name(A2) == "configured.alpha.example"
        assert await bench.resolver.local_name(STRANGER) is None  # denied by the name's own data
        assert await bench.resolver.local_name(A1_OTHER) is None
        before = bench.resolver.counters.asked
        assert await bench.resolver.local_name(A1) == "a1.alpha.example"
        assert bench.resolver.counters.asked == before

    on_bench(use, hosts={A2: "configured.alpha.example"})


def test_local_name_is_taken_unchecked_when_it_cannot_be_checked() -> None:
    async def use(bench: Bench) -> None:
        assert await bench.resolver.local_name(A1) == "a1.alpha.example"

    on_bench(use, zones={"8.b.d.0.1.0.0.2.ip6.arpa": REVERSE})


def test_answers_are_kept_and_expire() -> None:
    async def use(bench: Bench) -> None:
        await bench.resolver.peer(A1)
        asked = len(bench.server.asked)
        bench.clock.now += 3599
        assert await bench.resolver.peer(A1) is not None
        assert len(bench.server.asked) == asked
        bench.clock.now += 1
        assert await bench.resolver.peer(A1) is not None
        assert len(bench.server.asked) == 2 * asked

    on_bench(use)


def test_denials_are_kept_as_long_as_the_soa_says() -> None:
    async def use(bench: Bench) -> None:
        nobody = address("2001:db8:a1::99")
        assert await bench.resolver.peer(nobody) is None
        bench.clock.now += 59
        assert await bench.resolver.peer(nobody) is None
        assert len(bench.server.asked) == 1
        bench.clock.now += 1
        assert await bench.resolver.peer(nobody) is None
        assert len(bench.server.asked) == 2
        assert bench.resolver.counted() == {
            "asked": 2,
            "answered": 0,
            "negative": 2,
            "failed": 0,
            "malformed": 0,
        }

    on_bench(use)


def test_a_name_learned_later_is_asked_at_once() -> None:
    """A denial for PTR must not hide the name that a passing answer brings."""

    async def use(bench: Bench) -> None:
        assert await bench.resolver.peer(A1) is None
        bench.hear("a1.alpha.example")
        assert await bench.resolver.peer(A1) is not None

    on_bench(use, zones={"alpha.example": FORWARD})


def test_same_questions_are_one_lookup() -> None:
    async def use(bench: Bench) -> None:
        found = await asyncio.gather(*(bench.resolver.peer(A1) for _ in range(20)))
        assert all(data is not None for data in found)
        assert sorted(kind for _, kind, _ in bench.server.asked) == ["AAAA", "PTR", "SVCB"]

    on_bench(use, delay_s=0.05)


def test_questions_about_one_name_run_side_by_side() -> None:
    async def use(bench: Bench) -> None:
        assert await bench.resolver.named("a1.alpha.example", A1) is not None
        assert bench.server.at_once_max == 3  # PTR, AAAA and SVCB

    on_bench(use, delay_s=0.15)


def test_truncated_answers_come_by_tcp() -> None:
    async def use(bench: Bench) -> None:
        assert await bench.resolver.peer(A1) is not None
        assert {transport for _, _, transport in bench.server.asked} == {"udp", "tcp"}

    on_bench(use, mood=Mood.TRUNCATE)


def test_an_endless_answer_is_refused() -> None:
    """Anybody can have a name with thousands of addresses looked up."""
    many = "\n".join(f"a1 60 IN AAAA 2001:db8:a1:1::{number:x}" for number in range(600))

    async def use(bench: Bench) -> None:
        assert await bench.resolver.named("a1.alpha.example", A1) is None
        assert bench.resolver.counters.failed == 1

    on_bench(use, mood=Mood.TRUNCATE, zones=ZONES | {"alpha.example": f"{HEAD}\n{many}"})


def test_answers_to_other_questions_are_passed_over() -> None:
    async def use(bench: Bench) -> None:
        assert await bench.resolver.peer(A1) is not None

    on_bench(use, mood=Mood.STRANGER)


@pytest.mark.parametrize("mood", [Mood.DEAD, Mood.GARBAGE, Mood.REFUSE, Mood.SERVFAIL])
def test_a_bad_resolver_is_nothing_known_for_a_while(mood: Mood) -> None:
    async def use(bench: Bench) -> None:
        begun = time.monotonic()
        data, claimed, local = await asyncio.gather(
            bench.resolver.peer(A1),
            bench.resolver.named("a1.alpha.example", A1),
            bench.resolver.local_name(A1),
        )
        assert (data, claimed, local) == (None, None, None)
        assert time.monotonic() - begun < 2 * TIMEOUT_S + 3.0
        (row,) = bench.resolver.snapshot()
        assert (row["capability"], row["expires_in_s"]) == ("unknown", 30.0)
        asked = len(bench.server.asked)
        bench.server.mood = Mood.GOOD
        assert await bench.resolver.peer(A1) is None
        assert len(bench.server.asked) == asked
        bench.clock.now += 31
        assert await bench.resolver.peer(A1) is not None

    on_bench(use, mood=mood)


def test_another_server_answers_for_a_dead_one() -> None:
    async def use(bench: Bench) -> None:
        begun = time.monotonic()
        assert await bench.resolver.peer(A1) is not None
        between = time.monotonic()
        assert await bench.resolver.peer(A2) is not None
        # from now on the good one is asked first
        assert time.monotonic() - between < between - begun

    on_bench(use, servers=("127.0.0.1", HOST))  # nobody listens on the first one's port


def test_snapshot_is_for_people() -> None:
    async def use(bench: Bench) -> None:
        await bench.resolver.peer(A1)
        bench.clock.now += 600
        assert bench.resolver.snapshot() == [
            {
                "address": "2001:db8:a1:1::10",
                "name": "a1.alpha.example",
                "capability": "yes",
                "site": "alpha.example",
                "prefixes": ["2001:db8:a1::/48", "2001:db8:a2::/48"],
                "expires_in_s": 3000.0,
            }
        ]

    on_bench(use)


def test_too_many_questions_at_a_time_are_failures() -> None:
    async def use(bench: Bench) -> None:
        many = [A1[:14] + number.to_bytes(2) for number in range(300)]
        begun = time.monotonic()
        assert set(await asyncio.gather(*map(bench.resolver.peer, many))) == {None}
        assert time.monotonic() - begun < 2 * TIMEOUT_S + 3.0
        assert bench.resolver.counters.asked <= 256

    on_bench(use, mood=Mood.DEAD)


@pytest.mark.parametrize("servers", [(), ("ns.example",)])
def test_our_own_misuse_propagates(servers: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match=r"server|address"):
        Resolver(servers, clock=Clock(), book=NameBook(), hosts={}, peers={})

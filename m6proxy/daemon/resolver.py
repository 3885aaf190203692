"""The asynchronous edge of discovery: it asks what ``discovery/plan`` wants to know.

A question goes to the configured servers one after the other, by UDP and, when the answer is
cut, by TCP; never to the servers of resolv.conf. When none answers by the gateway's ordinary
route, they are asked over each uplink, and what worked is tried first the next time. The same
question asked twice at a time is one lookup. Whatever happens out there, no call takes longer
than twice the time-out, and none raises: a dead resolver is "nothing known", remembered for
30 s. No packet waits for any of this.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import socket
import sys
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import dns.asyncbackend
import dns.asyncquery
import dns.inet
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype

from m6proxy.discovery.answer import denial_ttl_s, follow, read_records
from m6proxy.discovery.cache import FAILURE_S, NegativeCache, PositiveCache
from m6proxy.discovery.capability import NameData
from m6proxy.discovery.hostname import parse_name
from m6proxy.discovery.names_book import NameBook
from m6proxy.discovery.plan import (
    NO_ADDRESSES,
    Answer,
    LocalPlan,
    NamedPlan,
    Outcome,
    PeerPlan,
    Plan,
    Question,
)
from m6proxy.names import Address, address_text

log = logging.getLogger(__name__)

IN_FLIGHT_MAX = 256
"""Questions that are out at a time; one more is a failure at once."""
QUESTION_SHARE = 0.95
"""Of the time of a call, for one question: so that it fails within the call that asked it."""
TRIES_MAX = 6
"""Servers and ways that one question goes by; the next question begins with the others."""
REMEMBERED_MAX = 4096
"""Peers that ``snapshot`` can speak of."""
TCP_OCTETS_MAX = 8192
"""A longer answer is refused: parsing takes the square of the number of records."""
UDP_OCTETS = 1232
"""The EDNS buffer size that passes every path unfragmented."""


@dataclass(slots=True)
class Counters:
    """What became of the questions, since the start."""

    asked: int = 0
    """Sent to a server; a question that another waits for already is not counted again."""
    answered: int = 0
    """Records came."""
    negative: int = 0
    """A server said that there are none."""
    failed: int = 0
    """No server gave a usable answer in time."""
    malformed: int = 0
    """Capability records with a fault."""


class Resolver:
    """Looks up peers, claimed names and our own hosts' names. One event loop, no threads."""

    def __init__(
        self,
        servers: tuple[str, ...],
        *,
        clock: Callable[[], float],
        book: NameBook,
        hosts: Mapping[Address, str],
        peers: Mapping[Address, tuple[str, ...]],
        port: int = 53,
        timeout_s: float = 2.0,
        marks: Callable[[], Sequence[int]] = tuple,
    ) -> None:
        """``servers``: text addresses; ``clock``: monotonic seconds.

        ``marks``: those by which the kernel routes a socket over one uplink, the best first.
        ``hosts`` names local hosts, ``peers`` gives the configured names of peers' addresses.
        Raises ValueError for no server, one that is not an address, or a bad name.
        """
        if not servers or timeout_s <= 0:
            raise ValueError("at least one server and a time-out above 0 are needed")
        for server in servers:
            ipaddress.ip_address(server)
        self.counters = Counters()
        self._servers = servers
        self._first = 0
        """Which server and way answered last."""
        self._marks = marks
        self._port = port
        self._call_s = 2 * timeout_s
        self._question_s = QUESTION_SHARE * self._call_s
        self._clock = clock
        self._book = book
        self._hosts = dict(hosts)
        self._static: dict[str, frozenset[Address]] = {}
        self._static_names = {a: tuple(map(parse_name, names)) for a, names in peers.items()}
        for address, names in self._static_names.items():
            for name in names:
                self._static[name] = self._static.get(name, NO_ADDRESSES) | {address}
        self._positive: PositiveCache[Question, Answer] = PositiveCache()
        self._negative: NegativeCache[Question, Answer] = NegativeCache()
        self._out: dict[Question, asyncio.Task[Answer]] = {}
        self._seen: OrderedDict[Address, Outcome] = OrderedDict()

    async def peer(self, address: Address) -> NameData | None:
        """Find the peer behind an address: the name that covers it and has a capability.

        None: no capability, nothing known, or nobody answered. Takes at most twice the
        time-out.
        """
        static = {name: self._static[name] for name in self._static_names.get(address, ())}
        learned = self._book.names_of(address, self._clock())
        outcome = await self._carry_out(PeerPlan(address, static, learned))
        self._seen[address] = outcome
        self._seen.move_to_end(address)
        while len(self._seen) > REMEMBERED_MAX:
            self._seen.popitem(last=False)
        return outcome.data

    async def named(self, name: str, ulid: Address) -> NameData | None:
        """Find what a claimed name holds, and whether the ULID bears it.

        None: not a name, nothing under it, or nobody answered. Takes at most twice the
        time-out.
        """
        try:
            asked = parse_name(name)
        except ValueError:
            return None
        given = self._static.get(asked, NO_ADDRESSES)
        return (await self._carry_out(NamedPlan(asked, ulid, given))).data

    async def local_name(self, ulid: Address) -> str | None:
        """Find the name of a local host: the configured one, else PTR's.

        A name of PTR is taken when its own data covers the ULID, or could not be had. Takes
        at most twice the time-out.
        """
        configured = self._hosts.get(ulid)
        if configured is not None:
            return configured
        data = (await self._carry_out(LocalPlan(ulid))).data
        return data.name if data is not None else None

    def snapshot(self) -> list[dict[str, object]]:
        """List what is known of each peer that was asked about, for people and for JSON."""
        now = self._clock()
        return [_described(a, outcome, now) for a, outcome in self._seen.items()]

    def counted(self) -> dict[str, int]:
        """Return the counters by name."""
        return asdict(self.counters)

    async def close(self) -> None:
        """Give up all questions that are out."""
        tasks = list(self._out.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _carry_out(self, plan: Plan) -> Outcome:
        """Ask what a plan wants until it is done, or the time is over."""
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + self._call_s
        waiting: dict[asyncio.Task[Answer], Question] = {}
        while not plan.done:
            fresh = plan.questions()
            for question in fresh:
                self._start(plan, question, waiting)
            if fresh:  # the caches may have answered, and more may be wanted
                continue
            left_s = deadline_s - loop.time()
            ready, _ = await asyncio.wait(
                waiting, timeout=max(0.0, left_s), return_when=asyncio.FIRST_COMPLETED
            )
            if not ready:
                plan.give_up(self._clock())
            for task in ready:
                plan.answer(waiting.pop(task), self._result(task))
        return plan.outcome()

    def _start(
        self, plan: Plan, question: Question, waiting: dict[asyncio.Task[Answer], Question]
    ) -> None:
        """Answer a question from the caches, or see to it that somebody is asking it."""
        now = self._clock()
        held = self._positive.get(question, now)
        if held is None:
            held = self._negative.get(question, now)
        if held is not None:
            plan.answer(question, replace(held[0], until_s=held[1]))
            return
        task = self._out.get(question)
        if task is None:
            if len(self._out) >= IN_FLIGHT_MAX:
                self.counters.failed += 1
                plan.answer(question, Answer(now + FAILURE_S, failed=True))
                return
            task = asyncio.create_task(self._look_up(question))
            self._out[question] = task
            task.add_done_callback(lambda _: self._out.pop(question, None))
        waiting[task] = question

    def _result(self, task: asyncio.Task[Answer]) -> Answer:
        if task.cancelled():
            return Answer(self._clock() + FAILURE_S, failed=True)
        return task.result()

    async def _look_up(self, question: Question) -> Answer:
        """Ask the servers in turn and remember the answer. Raises nothing but cancellation."""
        self.counters.asked += 1
        try:
            async with asyncio.timeout(self._question_s):
                message = await self._ask_servers(question)
        except TimeoutError:
            message = None
        now = self._clock()
        if message is None:
            self.counters.failed += 1
            missing = Answer(now + FAILURE_S, failed=True)
            self._negative.put_failure(question, missing, now)
            return missing
        return self._kept(question, message, now)

    async def _ask_servers(self, question: Question) -> dns.message.Message | None:
        """Ask each server by each way, as far as the time allows; None when none would say."""
        ways = [(server, mark) for mark in (0, *self._marks()) for server in self._servers]
        tries = max(2, min(len(ways), TRIES_MAX))
        try_s = self._question_s / tries
        for _ in range(tries):
            at = self._first
            server, mark = ways[at % len(ways)]
            try:
                return await self._ask(question, server, mark, try_s)
            except Exception as error:  # hostile octets: whatever it is, this server is of no use
                log.debug("%s: no answer about %s: %r", server, question, error)
            if self._first == at:
                self._first = (at + 1) % len(ways)
        return None

    async def _ask(
        self, question: Question, server: str, mark: int, try_s: float
    ) -> dns.message.Message:
        """Ask one server, by TCP when UDP cuts the answer. Raises for any unusable answer."""
        query = dns.message.make_query(
            question.name,
            dns.rdatatype.RdataType.make(question.ask),
            use_edns=0,
            payload=UDP_OCTETS,
        )
        async with asyncio.timeout(try_s):
            try:
                message = await _ask_udp(query, server, self._port, mark)
            except dns.message.Truncated:
                message = await _ask_tcp(query, server, self._port, mark)
        if message.rcode() not in (dns.rcode.NOERROR, dns.rcode.NXDOMAIN):
            raise ValueError(dns.rcode.to_text(message.rcode()))
        return message

    def _kept(self, question: Question, message: dns.message.Message, now: float) -> Answer:
        """Turn a message into an answer and put it into the right cache."""
        chain = follow(message, dns.name.from_text(question.name), question.ask)
        if chain.records is None or message.rcode() == dns.rcode.NXDOMAIN:
            self.counters.negative += 1
            nothing = Answer(now)
            until_s = self._negative.put(question, nothing, denial_ttl_s(message), now)
            return replace(nothing, until_s=until_s)
        answer = read_records(question.ask, chain.records)
        self.counters.answered += 1
        self.counters.malformed += answer.reading.malformed
        until_s = self._positive.put(question, answer, chain.ttl_s, now)
        return replace(answer, until_s=until_s)


async def _ask_udp(
    query: dns.message.Message, server: str, port: int, mark: int
) -> dns.message.Message:
    """Ask by UDP. Raises Truncated, and whatever the network says."""
    async with _datagrams(server, mark) as sock:
        return await dns.asyncquery.udp(
            query,
            server,
            port=port,
            ignore_unexpected=True,
            ignore_errors=True,
            raise_on_truncation=True,
            sock=sock,
        )


@asynccontextmanager
async def _datagrams(server: str, mark: int) -> AsyncIterator[Any]:
    """A socket for datagrams to a server, routed by its mark."""
    backend = dns.asyncbackend.get_backend("asyncio")
    family = dns.inet.af_for_address(server)
    made = await backend.make_socket(  # type: ignore[no-untyped-call]
        family, socket.SOCK_DGRAM
    )
    async with made as sock:
        if mark:
            _set_mark(sock.transport.get_extra_info("socket"), mark)
        yield sock


def _set_mark(sock: socket.socket, mark: int) -> None:
    """Have packets of a socket routed by a mark, 32 bits, which are too many for a C int."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark.to_bytes(4, sys.byteorder))


async def _ask_tcp(
    query: dns.message.Message, server: str, port: int, mark: int
) -> dns.message.Message:
    """Ask by TCP. Raises ValueError for an answer that would take long to parse."""
    sock = socket.socket(dns.inet.af_for_address(server), socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        if mark:
            _set_mark(sock, mark)
        await asyncio.get_running_loop().sock_connect(sock, (server, port))
        reader, writer = await asyncio.open_connection(sock=sock)
    except BaseException:
        sock.close()
        raise
    try:
        octets = query.to_wire()
        writer.write(len(octets).to_bytes(2) + octets)
        length = int.from_bytes(await reader.readexactly(2))
        if length > TCP_OCTETS_MAX:
            raise ValueError(f"an answer of {length} octets")
        message = dns.message.from_wire(await reader.readexactly(length))
    finally:
        writer.close()
    if not query.is_response(message):
        raise ValueError("an answer to another question")
    return message


def _described(address: Address, outcome: Outcome, now: float) -> dict[str, object]:
    data = outcome.data
    capability = data.capability if data is not None else None
    found = "yes" if capability is not None else "unknown" if outcome.failed else "no"
    return {
        "address": address_text(address),
        "name": data.name if data is not None else None,
        "capability": found,
        "site": capability.site if capability is not None else None,
        "prefixes": [str(p.prefix) for p in capability.prefixes] if capability else [],
        "expires_in_s": round(max(0.0, outcome.until_s - now), 1),
    }

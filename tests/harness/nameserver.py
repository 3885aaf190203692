"""A nameserver inside the tests: dnspython behind UDP and TCP on ``[::1]``, as bad as wanted.

    async with Nameserver({"alpha.example": ZONE}) as server:
        ... ("::1", server.port) ...

It runs in the loop of the test, answers from zones in presentation format, follows CNAMEs
within them, and does whatever ``mood`` says.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from enum import Enum
from types import TracebackType

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import dns.rrset
import dns.zone

HOST = "::1"
CHAIN_MAX = 8
BIND_TRIES = 20


class Mood(Enum):
    """How it answers."""

    GOOD = "good"
    DEAD = "says nothing"
    REFUSE = "REFUSED"
    SERVFAIL = "SERVFAIL"
    TRUNCATE = "TC over UDP, all over TCP"
    GARBAGE = "octets that are no message"
    STRANGER = "answers to another question first, then the good one"


class Nameserver:
    """Authoritative for the zones given, REFUSED for everything else."""

    def __init__(
        self,
        zones: Mapping[str, str],
        *,
        mood: Mood = Mood.GOOD,
        delay_s: float = 0.0,
        port: int = 0,
    ) -> None:
        self.mood = mood
        self.delay_s = delay_s
        self.port = port
        self.asked: list[tuple[str, str, str]] = []
        """Name, type and transport of each query, in order."""
        self.at_once_max = 0
        """The most UDP queries that were there at a time."""
        self._zones: dict[dns.name.Name, dns.zone.Zone] = {}
        for origin, text in zones.items():
            self.set_zone(origin, text)
        self._udp: asyncio.DatagramTransport | None = None
        self._tcp: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def set_zone(self, origin: str, text: str) -> None:
        """Put a zone in, in place of an older one."""
        zone = dns.zone.from_text(text, origin=dns.name.from_text(origin), relativize=False)
        assert zone.origin is not None
        self._zones[zone.origin] = zone

    async def __aenter__(self) -> Nameserver:
        loop = asyncio.get_running_loop()
        for _ in range(BIND_TRIES):  # the port must be free for UDP and TCP both
            self._tcp = await asyncio.start_server(self._stream, HOST, self.port)
            port = self._tcp.sockets[0].getsockname()[1]
            try:
                self._udp, _ = await loop.create_datagram_endpoint(
                    lambda: _Datagrams(self), (HOST, port)
                )
            except OSError:
                self._tcp.close()
                continue
            self.port = port
            return self
        raise OSError("no port is free for UDP and TCP")

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._udp is not None:
            self._udp.close()
        if self._tcp is not None:
            self._tcp.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def asked_of(self, rdtype: str) -> list[str]:
        """Return the names that were asked for with a type, in order."""
        return [name for name, kind, _ in self.asked if kind == rdtype]

    def datagram(self, octets: bytes, sender: tuple[str, int]) -> None:
        """Answer one UDP query, later."""
        task = asyncio.get_running_loop().create_task(self._answer_udp(octets, sender))
        self._tasks.add(task)
        self.at_once_max = max(self.at_once_max, len(self._tasks))
        task.add_done_callback(self._tasks.discard)

    async def _answer_udp(self, octets: bytes, sender: tuple[str, int]) -> None:
        query = self._note(octets, "udp")
        if query is None or self._udp is None:
            return
        await asyncio.sleep(self.delay_s)
        if self.mood is Mood.DEAD or self._udp.is_closing():
            return
        if self.mood is Mood.GARBAGE:
            self._udp.sendto(octets[:2] + b"\xff" * 40, sender)
            return
        if self.mood is Mood.STRANGER:
            other = dns.message.make_query("stranger.example", "AAAA", id=query.id)
            self._udp.sendto(dns.message.make_response(other).to_wire(), sender)
        response = self.respond(query)
        if self.mood is Mood.TRUNCATE:
            response.answer.clear()
            response.flags |= dns.flags.TC
        self._udp.sendto(response.to_wire(), sender)

    async def _stream(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            length = int.from_bytes(await reader.readexactly(2))
            query = self._note(await reader.readexactly(length), "tcp")
            if query is not None and self.mood is not Mood.DEAD:
                await asyncio.sleep(self.delay_s)
                octets = self.respond(query).to_wire()
                writer.write(len(octets).to_bytes(2) + octets)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    def _note(self, octets: bytes, transport: str) -> dns.message.Message | None:
        try:
            query = dns.message.from_wire(octets)
        except dns.exception.DNSException:
            return None
        question = query.question[0]
        name = question.name.to_text(omit_final_dot=True)
        self.asked.append((name, dns.rdatatype.to_text(question.rdtype), transport))
        return query

    def respond(self, query: dns.message.Message) -> dns.message.Message:
        """Return the answer to a query, as the zones and the mood have it."""
        response = dns.message.make_response(query)
        question = query.question[0]
        zone = self._zone_of(question.name)
        if self.mood is Mood.SERVFAIL:
            response.set_rcode(dns.rcode.SERVFAIL)
        elif zone is None or self.mood is Mood.REFUSE:
            response.set_rcode(dns.rcode.REFUSED)
        else:
            response.flags |= dns.flags.AA
            self._fill(response, question.name, question.rdtype)
        return response

    def _fill(
        self,
        response: dns.message.Message,
        name: dns.name.Name,
        rdtype: dns.rdatatype.RdataType,
    ) -> None:
        for _ in range(CHAIN_MAX):
            zone = self._zone_of(name)
            if zone is None:
                return
            found = zone.get_rrset(name, rdtype)
            if found is not None:
                response.answer.append(found)
                return
            alias = zone.get_rrset(name, dns.rdatatype.CNAME)
            if alias is None:
                self._deny(response, zone, name)
                return
            response.answer.append(alias)
            name = alias[0].target

    def _deny(
        self, response: dns.message.Message, zone: dns.zone.Zone, name: dns.name.Name
    ) -> None:
        assert zone.origin is not None
        if not any(node.is_subdomain(name) for node in zone.nodes):
            response.set_rcode(dns.rcode.NXDOMAIN)
        soa = zone.get_rrset(zone.origin, dns.rdatatype.SOA)
        if soa is not None:
            response.authority.append(soa)

    def _zone_of(self, name: dns.name.Name) -> dns.zone.Zone | None:
        inside = [origin for origin in self._zones if name.is_subdomain(origin)]
        return self._zones[max(inside, key=len)] if inside else None


class _Datagrams(asyncio.DatagramProtocol):
    def __init__(self, server: Nameserver) -> None:
        self._server = server

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self._server.datagram(data, addr)

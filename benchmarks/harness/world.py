"""Two sites in memory and in virtual time, with as many hosts as wanted and a DNS that knows all.

Leaner than the tests' pair: packets are carried and not written down, so that what is
measured is the engines. Each site has providers isp1 and isp2.
"""

from __future__ import annotations

import heapq
from functools import lru_cache

from m6proxy.discovery.capability import NameData
from m6proxy.names import Address, UlidPair, address
from m6proxy.shim.core import ShimSettings
from m6proxy.shim.effects import AskCapability, AskProof, SendPacket
from m6proxy.shim.engine import Engine
from tests.harness.entropy import SeededEntropy
from tests.harness.pair import name_data, uplinks

LATENCY_S = 0.01
NO_LIMIT_PER_S = 1e12
"""The gateway's own bound on requests is what a benchmark of them has to lift."""
_SITES = {address(f"2001:db8:{letter}{n}::")[:6]: letter for letter in "ab" for n in (1, 2)}

_CAPABILITIES = {letter: name_data("", bytes(16), letter).capability for letter in "ab"}


def host(letter: str, number: int) -> Address:
    """The address of a host of a site."""
    return address(f"2001:db8:{letter}1:1::")[:8] + number.to_bytes(8)


def host_data(ulid: Address) -> NameData:
    """What DNS says of a host."""
    capability = _CAPABILITIES[_SITES[ulid[:6]]]
    return NameData(host_name(ulid), frozenset({ulid}), capability, owns_ulid=True)


def host_name(ulid: Address) -> str:
    """The DNS name of a host."""
    site = {"a": "alpha", "b": "beta"}[_SITES[ulid[:6]]]
    return f"host{int.from_bytes(ulid[8:])}.{site}.example"


def engine(letter: str, seed: int, *, send_timeout_s: float = 3.0) -> Engine:
    """A site's engine that takes as many requests as come."""
    settings = ShimSettings(
        uplinks=uplinks(letter), send_timeout_s=send_timeout_s, requests_per_s=NO_LIMIT_PER_S
    )
    return Engine(settings, SeededEntropy(seed))


@lru_cache(maxsize=4096)
def own_name(ulid: Address) -> str:
    """The name of a local host; the daemon's resolver too keeps one for all its contexts."""
    return host_name(ulid)


class World:
    """Alpha and beta on a network with one latency; providers in ``cut`` drop silently."""

    def __init__(self, alpha: Engine, beta: Engine, now: float = 1000.0) -> None:
        self.engines = {"a": alpha, "b": beta}
        self.now = now
        self.cut: set[bytes] = set()
        """First 6 octets of the addresses of dead providers."""
        self.packets = 0
        """Carried so far."""
        self._queue: list[tuple[float, int, str, bytes]] = []

    def connect(self, initiator: str, local: Address, peer: Address) -> None:
        """One whole exchange, at once: I1, R1, I2, proof, R2."""
        pair = UlidPair(local, peer)
        data, name = host_data(peer), own_name(local)
        self.engines[initiator].handle_capability(pair, data, name, self.now)
        sender = initiator
        while packets := self._take(sender):
            sender = "b" if sender == "a" else "a"
            for packet in packets:
                self.engines[sender].handle_inbound(packet, self.now)

    def run(self, seconds: float) -> None:
        """Let virtual time pass, with packets and timers in their order."""
        end_s = self.now + seconds
        for letter in self.engines:
            self._send_all(letter)
        while True:
            due_s, letter = min(
                (deadline_s, letter)
                for letter, engine in self.engines.items()
                if (deadline_s := engine.next_deadline() or end_s + 1.0)
            )
            if self._queue and self._queue[0][0] <= due_s:
                due_s, _, letter, packet = self._queue[0]
                if due_s > end_s:
                    break
                heapq.heappop(self._queue)
                self.now = due_s
                self.engines[letter].handle_inbound(packet, due_s)
            else:
                if due_s > end_s:
                    break
                self.now = max(self.now, due_s)
                self.engines[letter].handle_timer(self.now)
            self._send_all(letter)
        self.now = end_s

    def _send_all(self, letter: str) -> None:
        for packet in self._take(letter):
            self._carry(packet)

    def reaches(self, packet: bytes) -> str | None:
        """Which site a packet arrives at, or None."""
        into = _SITES.get(packet[24:30])
        return None if self.cut & {packet[8:14], packet[24:30]} else into

    def _carry(self, packet: bytes) -> None:
        self.packets += 1
        into = self.reaches(packet)
        if into is not None:
            heapq.heappush(self._queue, (self.now + LATENCY_S, self.packets, into, packet))

    def _take(self, letter: str) -> list[bytes]:
        """Carry out all effects of an engine; return the packets among them."""
        engine, packets = self.engines[letter], []
        while effects := engine.take_effects():
            for effect in effects:
                if isinstance(effect, SendPacket):
                    packets.append(effect.packet)
                elif isinstance(effect, AskProof):
                    pair = effect.pair
                    data, name = host_data(pair.peer), own_name(pair.local)
                    engine.handle_proof(pair, data, name, self.now)
                elif isinstance(effect, AskCapability):
                    pair = effect.pair
                    data, name = host_data(pair.peer), own_name(pair.local)
                    engine.handle_capability(pair, data, name, self.now)
        return packets

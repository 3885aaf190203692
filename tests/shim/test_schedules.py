"""Two engines under random schedules: loss, delay, reordering, doubles, cuts, restarts.

Every seed is one story of a minute or two in virtual time. While the network misbehaves
packets may be lost, but none may arrive with other addresses or octets than its host gave
it, and nothing raises; after healing, packets arrive again within a bound, both ways.
M6PROXY_SCHEDULES sets how many seeds are tried.
"""

from __future__ import annotations

import os
import random

import pytest

from m6proxy.names import Address
from m6proxy.shim.policy import EstablishPolicy
from m6proxy.shim.transitions import State
from m6proxy.wire.ipv6 import NEXT_SHIM
from tests.harness.packets import udp
from tests.harness.pair import LATENCY_S, Pair, Site

SEEDS = int(os.environ.get("M6PROXY_SCHEDULES", "200"))
BATCH = 10
STEP_S = 0.1
STORM_STEPS = 250
HEAL_STEPS = 700
"""70 s: an exploration that backed off waits up to 60 s for its next probe."""


class Story:
    """One seed: two hosts talk while the schedule plays."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.calm = seed % 2 == 1
        """Without restarts and with DNS, so that contexts live long enough to move often."""
        self.pair = Pair(seed=seed, policy=EstablishPolicy(after_packets=3))
        self.pair.lose = self._lose
        self.pair.latency_s = self._latency_s
        self.loss = self.double = 0.0
        self.spread_s = 0.0
        self.sent: dict[str, set[bytes]] = {"a": set(), "b": set()}
        self.heard: dict[str, int] = {"a": 0, "b": 0}
        self.count = 0

    def storm(self) -> None:
        """Things go wrong."""
        for _ in range(STORM_STEPS):
            self._misfortune()
            self._talk()
            self._step()

    def heal(self) -> None:
        """Everything works again; both hosts must hear each other before too long."""
        self.pair.cut.clear()
        self.loss = self.double = self.spread_s = 0.0
        for site in self.pair.sites.values():
            for uplink in site.engine.uplinks:
                site.engine.handle_uplink(uplink.name, up=True, mtu=1500, now=self.pair.clock.now)
            self.pair.settle(site)
        deaf = {"a", "b"}
        for _ in range(HEAL_STEPS):
            before = dict(self.heard)
            self._talk(always=True)
            self._step()
            deaf -= {letter for letter in deaf if self.heard[letter] > before[letter]}
            if not deaf:
                break
        assert not deaf, f"{deaf} still hears nothing after {HEAL_STEPS * STEP_S:.0f} s"
        for _ in range(50):
            before = dict(self.heard)
            self._talk(always=True)
            self._step()
        assert self.heard["a"] > before["a"]
        assert self.heard["b"] > before["b"]

    def _talk(self, *, always: bool = False) -> None:
        pair = self.pair
        for site, other in ((pair.alpha, pair.beta), (pair.beta, pair.alpha)):
            if always or self.random.random() < 0.7:
                self.count += 1
                packet = udp(site.ulid, other.ulid, b"%d" % self.count)
                self.sent[site.letter].add(packet)
                pair.host_sends(site, packet)

    def _step(self) -> None:
        self.pair.run(STEP_S)
        for site in self.pair.sites.values():
            self._check_delivered(site)
            self._check_engine(site)

    def _check_delivered(self, site: Site) -> None:
        other = self.pair.other(site)
        for _, packet in site.delivered:
            if packet[6] == NEXT_SHIM:
                continue
            assert packet in self.sent[other.letter], f"{site.letter} got {packet.hex()}"
            self.heard[site.letter] += 1
        site.delivered.clear()

    def _check_engine(self, site: Site) -> None:
        now = self.pair.clock.now
        deadline_s = site.engine.next_deadline()
        assert deadline_s is None or deadline_s > now - 1e-9
        for context in site.engine.contexts():
            assert context.state is not State.IDLE
            assert (context.outbound_key in site.engine._by_outbound) == context.carries
            if context.wire_addresses is not None:
                assert context.carries
                assert context.pair in site.flows
                used = context.peer_locator(context.route[16:])
                assert used is not None
                assert used.proved

    def _misfortune(self) -> None:
        draw = self.random.random
        if draw() < 0.04:
            side, number = self.random.choice("ab"), self.random.choice((1, 2))
            ways = self.random.choice((("in",), ("out",), ("in", "out")))
            for way in ways:
                self.pair.cut ^= {(side, number, way)}
        if draw() < 0.03:
            self.loss = self.random.choice((0.0, 0.05, 0.3, 0.9))
            self.double = self.random.choice((0.0, 0.1))
            self.spread_s = self.random.choice((0.0, 0.05, 1.0))
        if draw() < 0.015 and not self.calm:
            self.pair.restart(self.random.choice(tuple(self.pair.sites.values())))
        if draw() < 0.02:
            site = self.random.choice(tuple(self.pair.sites.values()))
            name, up = self.random.choice(("isp1", "isp2")), self.random.random() < 0.5
            site.engine.handle_uplink(name, up=up, mtu=1500, now=self.pair.clock.now)
            self.pair.settle(site)
        if draw() < 0.02 and not self.calm:
            self.pair.dns = not self.pair.dns or self.random.random() < 0.7

    def _lose(self, packet: bytes) -> bool:
        if self.random.random() < self.double:
            site = self._owner(packet[24:40])
            if site is not None:
                late_s = self.pair.clock.now + self._latency_s()
                self.pair.clock.at(late_s, lambda: self._double(site, packet))
        return self.random.random() < self.loss

    def _double(self, site: Site, packet: bytes) -> None:
        verdict = self.pair.inject(site, packet)
        if verdict is None:
            site.delivered.append((self.pair.clock.now, packet))
        elif isinstance(verdict, bytes):
            site.delivered.append((self.pair.clock.now, verdict))

    def _owner(self, octets: Address) -> Site | None:
        for site in self.pair.sites.values():
            if any(uplink.prefix.contains(octets) for uplink in site.engine.uplinks):
                return site
        return None

    def _latency_s(self) -> float:
        return LATENCY_S + self.random.uniform(0.0, self.spread_s)


@pytest.mark.parametrize("first", range(0, SEEDS, BATCH))
def test_no_schedule_breaks_anything(first: int) -> None:
    for seed in range(first, min(first + BATCH, SEEDS)):
        story = Story(seed)
        try:
            story.storm()
            story.pair.dns = True
            story.heal()
        except Exception as error:
            error.add_note(f"seed {seed}; at {story.pair.clock.now - 1000:.1f} s")
            raise

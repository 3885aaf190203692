"""What TCP knows of a path: its silence starts a test, its progress ends one (decision 18)."""

from __future__ import annotations

from collections import deque

import pytest

from m6proxy.shim.effects import What
from m6proxy.shim.held import CONNECTIONS_MAX, REPEATS_S, HeldSegments
from m6proxy.shim.reap import TEST_PAUSE_S
from m6proxy.shim.timers import NEVER
from m6proxy.shim.transitions import ReapState
from m6proxy.wire.message import Probe
from tests.harness.packets import find_messages, icmp_error, is_control, tcp, udp
from tests.harness.pair import A1, A1_ISP2, B1, LATENCY_S, Pair, Site
from tests.shim.moved import established

ROUTER = bytes.fromhex("20010db800ff00000000000000000001")
SYN, RST, PUSH = 0x02, 0x04, 0x08
BODY = bytes(100)


class Upload:
    """A host a1 that sends to b1 by TCP, as much as is acknowledged, and doubles its timer."""

    def __init__(self, pair: Pair, *, alive: bool = True, talker: Site | None = None) -> None:
        self._pair = pair
        self._alive = alive
        self._talker = talker
        """Whose host sends a datagram at each step."""
        self._unacknowledged, self._sent = 1, 1
        self._wanted = 1
        self._timeout_s, self._due_s = 0.2, 0.0
        self._window: deque[int] = deque()
        self._seen = [len(pair.alpha.delivered), len(pair.beta.delivered)]
        self.progress_s = pair.clock.now
        self.silences_s: list[float] = []

    def run(self, seconds: float) -> None:
        """Upload for so long."""
        end_s = self._pair.clock.now + seconds
        while self._pair.clock.now < end_s:
            self._answer()
            self._hear()
            self._speak()
            if self._talker is not None:
                self._pair.talk(self._talker, 10)
            self._pair.run(0.01)

    def _speak(self) -> None:
        now = self._pair.clock.now
        if self._sent < self._unacknowledged + 4 * len(BODY):
            self._send(self._sent)
            self._sent += len(BODY)
        elif now >= self._due_s:
            self._timeout_s *= 2
            self._sent = self._unacknowledged + 4 * len(BODY)
            self._send(self._unacknowledged)
            self._due_s = now + self._timeout_s

    def _send(self, sequence: int) -> None:
        self._pair.host_sends(self._pair.alpha, tcp(A1, B1, BODY, sequence=sequence))

    def _answer(self) -> None:
        """b1 says what it wants next."""
        fresh = self._pair.beta.delivered[self._seen[1] :]
        self._seen[1] += len(fresh)
        for _, packet in fresh if self._alive else ():
            if packet[6] != 6:
                continue
            if int.from_bytes(packet[44:48]) == self._wanted:
                self._wanted += len(BODY)
            answer = tcp(B1, A1, acknowledged=self._wanted, server=True)
            self._pair.host_sends(self._pair.beta, answer)

    def _hear(self) -> None:
        fresh = self._pair.alpha.delivered[self._seen[0] :]
        self._seen[0] += len(fresh)
        now = self._pair.clock.now
        for _, packet in fresh:
            if packet[6] == 6 and int.from_bytes(packet[48:52]) > self._unacknowledged:
                self._unacknowledged = int.from_bytes(packet[48:52])
                self._sent = max(self._sent, self._unacknowledged)
                self._timeout_s = 0.2
                self._due_s = now + self._timeout_s
                self.silences_s.append(now - self.progress_s)
                self.progress_s = now


def doubted(pair: Pair) -> list[str]:
    return [report.detail for _, report in pair.alpha.reports if report.what is What.HINT]


@pytest.mark.parametrize("send_timeout_s", [3.0, 15.0])
def test_what_is_lost_one_way_is_noticed_by_tcp(send_timeout_s: float) -> None:
    """b1 can be heard: only its own gateway missed anything, and after its Send Timeout."""
    for seed in range(1, 9):
        pair = Pair(seed=seed, send_timeout_s=send_timeout_s)
        pair.establish()
        upload = Upload(pair, talker=pair.beta)
        upload.run(1.0 + seed / 20)
        pair.cut.add(("a", 1, "out"))
        upload.run(2 * send_timeout_s)
        assert doubted(pair) == ["TCP gets no answer"]
        assert pair.alpha.context.route[:16] == A1_ISP2
        assert max(upload.silences_s) < 2.0


def test_a_host_that_does_not_answer_is_no_dead_path() -> None:
    """Its gateway sends Keepalives: a test in ten seconds, and nothing moves."""
    pair = established()
    upload = Upload(pair, alive=False)
    upload.run(60.0)
    assert 1 <= len(doubted(pair)) <= 60 / TEST_PAUSE_S
    for site in pair.sites.values():
        assert not site.what(What.REHOMED)
        assert site.context.reap_state is ReapState.OPERATIONAL


def test_a_steady_upload_is_never_doubted_and_a_lost_segment_neither() -> None:
    pair = established()
    losses = iter(range(10_000))
    pair.lose = lambda packet: packet[6] == 6 and next(losses) % 20 == 0
    Upload(pair).run(20.0)
    assert not doubted(pair)
    assert not find_messages(pair.alpha.sent, Probe)


def test_a_connection_that_nobody_accepts_is_not_doubted() -> None:
    pair = established()
    for _ in range(10):
        pair.host_sends(pair.alpha, tcp(A1, B1, flags=SYN, sequence=7))
        pair.talk(pair.beta, 10)
        pair.run(1.0)
    assert not doubted(pair)


def forged(pair: Pair) -> None:
    """Somebody says that a packet of a1 found no route, and nobody hears our signalling."""
    pair.lose = is_control
    pair.inject(pair.alpha, icmp_error(ROUTER, A1, 1, 0, 0, udp(A1, B1, b"forged")))
    pair.run(0.05)
    assert pair.alpha.context.reap_state is ReapState.EXPLORING


def exchange(pair: Pair, sequence: int) -> None:
    """a1 sends a segment, and b1 acknowledges it."""
    pair.host_sends(pair.alpha, tcp(A1, B1, BODY, sequence=sequence))
    pair.run(2 * LATENCY_S)
    acknowledged = tcp(B1, A1, acknowledged=sequence + len(BODY), server=True)
    pair.host_sends(pair.beta, acknowledged)
    pair.run(2 * LATENCY_S)


def test_progress_ends_a_search_where_it_began() -> None:
    pair = established()
    exchange(pair, 1)
    forged(pair)
    exchange(pair, 101)
    context = pair.alpha.context
    assert context.reap_state is ReapState.OPERATIONAL
    probes = len(find_messages(pair.alpha.sent, Probe))
    for sequence in range(201, 3001, 100):
        exchange(pair, sequence)
    assert len(find_messages(pair.alpha.sent, Probe)) == probes
    assert not pair.alpha.what(What.REHOMED)


def test_packets_that_acknowledge_nothing_end_no_search() -> None:
    pair = established()
    forged(pair)
    for _ in range(20):
        pair.talk(pair.alpha, 10)
        pair.talk(pair.beta, 10)
        pair.run(0.05)
    assert pair.alpha.context.reap_state is ReapState.INBOUND_OK


def test_what_was_sent_before_the_search_proves_nothing_about_now() -> None:
    pair = established()
    pair.talk(pair.beta, 10)
    pair.run(0.05)
    pair.host_sends(pair.alpha, tcp(A1, B1, BODY, sequence=1))
    forged(pair)
    pair.host_sends(pair.alpha, tcp(A1, B1, BODY, sequence=1))
    late = tcp(B1, A1, acknowledged=101, server=True)
    pair.host_sends(pair.beta, late)
    pair.run(0.05)
    assert pair.alpha.context.reap_state is ReapState.INBOUND_OK


def test_a_segment_waits_until_it_is_acknowledged() -> None:
    held = HeldSegments()
    one, two = (tcp(A1, B1, BODY, sequence=sequence) for sequence in (2**32 - 50, 50))
    assert not held.put(one, 1.0)
    assert not held.put(two, 1.1)
    other = tcp(B1, A1, BODY, port=81, acknowledged=5000, server=True)
    assert held.acknowledge(other) == NEVER
    assert held.acknowledge(udp(B1, A1)) == NEVER
    assert held.acknowledge(tcp(B1, A1, acknowledged=2**32 - 50, server=True)) == NEVER
    held.hear()
    assert held.acknowledge(tcp(B1, A1, flags=PUSH, acknowledged=50, server=True)) == NEVER
    assert held.acknowledge(tcp(B1, A1, acknowledged=50, server=True)) == 1.0
    assert held.take() == ()


def test_the_earliest_part_that_the_host_repeats_is_kept() -> None:
    held = HeldSegments()
    early, late = (tcp(A1, B1, BODY, sequence=sequence) for sequence in (100, 300))
    assert not held.put(late, 1.0)
    assert not held.put(early, 1.2)
    assert held.put(early, 1.0 + REPEATS_S)
    assert held.acknowledge(tcp(B1, A1, acknowledged=300, server=True)) == NEVER, "part of it"
    assert not held.put(late, 3.0)
    assert held.take() == (late,)


def test_bare_acknowledgements_are_answered_by_anything_and_never_repeated() -> None:
    held = HeldSegments()
    bare = tcp(A1, B1, acknowledged=7)
    for now in (1.0, 9.0):
        assert not held.put(bare, now)
    assert held.packets == (bare,)
    full = tcp(A1, B1, BODY, acknowledged=7)
    held.put(full, 9.0)
    held.put(bare, 9.1)
    assert held.take() == (full,), "one segment for each connection"
    held.put(bare, 1.0)
    held.hear()
    held.put(bare, 1.0)
    held.acknowledge(udp(B1, A1))
    assert held.take() == ()


def test_a_connection_that_was_reset_or_is_one_too_many_is_not_kept() -> None:
    held = HeldSegments()
    held.put(tcp(A1, B1, BODY, flags=RST), 1.0)
    assert held.take() == ()
    for port in range(CONNECTIONS_MAX + 5):
        held.put(tcp(A1, B1, BODY, port=port), 1.0)
    held.acknowledge(tcp(B1, A1, port=3, flags=RST, server=True))
    assert len(held.take()) == CONNECTIONS_MAX - 1


def test_nothing_is_kept_of_a_context_that_became_idle() -> None:
    """b1 is gone; the Keepalives of its gateway end, and so does what is held for it."""
    pair = established()
    for _ in range(4):
        pair.host_sends(pair.alpha, tcp(A1, B1, BODY, sequence=1))
        pair.run(0.9)
    assert pair.alpha.context.held is not None
    pair.talk(pair.beta, 10)
    pair.run(pair.alpha.context.send_timeout_s + 0.1)
    assert pair.alpha.context.held is None

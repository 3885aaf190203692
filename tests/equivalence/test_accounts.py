"""What the programs count and tell of contexts and other pairs; and what they leave alone."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace

import pytest

from m6proxy.dataplane.bpf import layout
from m6proxy.dataplane.bpf.layout import (
    Activity,
    Counter,
    Event,
    EventKind,
    Miss,
    MissFlag,
    Mode,
    OutFlag,
    OutFlow,
    PrefixFlag,
    Ripe,
    SettingsFlag,
    SitePrefix,
)
from m6proxy.dataplane.bpf.programs import SkBuff
from m6proxy.dataplane.bpf.ring import RingReader
from m6proxy.dataplane.nfqueue import COPY_OCTETS
from m6proxy.names import Prefix, address
from m6proxy.steering.settings import MARK_SHOWN
from m6proxy.wire.ipv6 import NEXT_DESTINATION, NEXT_FRAGMENT, NEXT_SHIM, build_packet
from tests.equivalence.kernel import (
    DROP,
    DROPPED,
    LOOPBACK_INDEX,
    PASS,
    REDIRECT,
    SHIFT,
    SLOW,
    KernelSite,
)
from tests.equivalence.test_vectors import rehomed
from tests.harness.packets import tcp, udp
from tests.harness.pair import A1, A1_ISP2, A2, B1, B1_ISP2, B2, Pair

pytestmark = pytest.mark.netns

SECOND = 1_000_000_000
TICK_NS = 20_000_000
"""The programs' clock is that of the last tick."""
SYN = 0x02
Site = tuple[Pair, KernelSite, RingReader]


@pytest.fixture
def site() -> Iterator[Site]:
    """A site with one re-homed context, and the reader of its ring, empty."""
    pair, kernel = rehomed("exthdr")
    reader = RingReader(kernel.loaded.maps[layout.EVENTS])
    while reader.read():
        pass
    yield pair, kernel, reader
    kernel.configure(flags=SettingsFlag(0), after_octets=0, wake_ns=0)
    reader.close()


def events(reader: RingReader) -> list[Event]:
    """What was told since the last call."""
    return [Event.unpack(record) for record in reader.read()]


def activity(pair: Pair, kernel: KernelSite) -> Activity:
    """That of the only context."""
    assert pair.alpha.context.flow is not None
    key = pair.alpha.context.flow.slot.to_bytes(4, "little")
    return Activity.unpack(kernel.loaded.maps[layout.ACTIVE].lookup(key) or b"")


def from_peer(pair: Pair, body: bytes) -> bytes:
    """A re-homed packet of the peer's host."""
    verdict = pair.beta.engine.handle_outbound(udp(B1, A1, body), pair.clock.now)
    assert isinstance(verdict, bytes)
    return verdict


def settle() -> None:
    """Let what a program settled for a moment run out."""
    time.sleep(0.03)


def test_activity_says_since_when_one_end_waits_for_the_other(site: Site) -> None:
    pair, kernel, _ = site
    before, start_ns = activity(pair, kernel), time.monotonic_ns()
    for _ in range(2):
        kernel.outbound(udp(A1, B1, bytes(52)))
    sent = activity(pair, kernel)
    assert sent.packets_out == before.packets_out + 2
    assert sent.octets_out == before.octets_out + 200
    assert start_ns - TICK_NS <= sent.out_since_ns <= sent.last_out_ns <= time.monotonic_ns()
    assert sent.in_since_ns == 0
    kernel.inbound(from_peer(pair, bytes(52)))
    answered = activity(pair, kernel)
    assert (answered.out_since_ns, answered.last_out_ns) == (0, sent.last_out_ns)
    assert answered.in_since_ns == answered.last_in_ns >= sent.last_out_ns
    assert answered.packets_in == before.packets_in + 1
    assert answered.octets_in == before.octets_in + 108, "as it came, payload header included"


def test_a_flow_that_wakes_up_is_told_once(site: Site) -> None:
    pair, kernel, reader = site
    assert pair.alpha.context.flow is not None
    kernel.outbound(udp(A1, B1))
    kernel.configure(wake_ns=SECOND // 2)
    kernel.outbound(udp(A1, B1))
    assert events(reader) == []
    time.sleep(0.55)
    for _ in range(3):
        kernel.outbound(udp(A1, B1))
    (event,) = events(reader)
    assert (event.kind, event.slot) == (EventKind.AWAKE, pair.alpha.context.flow.slot)


def test_a_pair_is_ripe_when_the_host_sent_and_a_threshold_is_crossed(site: Site) -> None:
    _, kernel, reader = site
    kernel.configure(after_octets=250)
    packet, answer = udp(A1, B2, bytes(52)), udp(B2, A1, bytes(52))
    assert kernel.inbound(answer) == answer
    assert kernel.loaded.maps[layout.MISSES].lookup(A1 + B2) is None, "strangers fill no map"
    settle()
    for number in range(4):
        assert kernel.outbound(packet) == packet
        told = events(reader)
        assert [event.kind for event in told] == [EventKind.RIPE] * (number == 2)
        if told:
            assert (told[0].ulids, told[0].why) == (A1 + B2, Ripe.THRESHOLD)
    miss = Miss.unpack(kernel.loaded.maps[layout.MISSES].lookup(A1 + B2) or b"")
    assert miss.flags == MissFlag.OUTBOUND
    assert miss.packets == 4
    assert miss.quiet_until_ns > time.monotonic_ns() + 20 * SECOND
    assert kernel.inbound(answer) == answer
    miss = Miss.unpack(kernel.loaded.maps[layout.MISSES].lookup(A1 + B2) or b"")
    assert miss.flags == MissFlag.OUTBOUND | MissFlag.ANSWERED


def test_an_unanswered_syn_that_comes_again_makes_a_pair_ripe(site: Site) -> None:
    _, kernel, reader = site
    misses = kernel.loaded.maps[layout.MISSES]
    syn = tcp(A1, B2, flags=SYN)
    kernel.outbound(syn)
    assert events(reader) == []
    first = Miss.unpack(misses.lookup(A1 + B2) or b"")
    assert first.syn_ns
    long_ago = Miss(first.first_ns, first.syn_ns - SECOND, 0, first.octets, 1, first.flags)
    misses.update(A1 + B2, long_ago.pack())
    kernel.outbound(syn)
    assert [event.why for event in events(reader)] == [Ripe.SILENT]


def test_what_python_wants_to_see_goes_there(site: Site) -> None:
    _, kernel, _ = site
    packet, answer = udp(A1, B2), udp(B2, A1)
    kernel.loaded.maps[layout.MISSES].update(A1 + B2, Miss(flags=MissFlag.SLOW).pack())
    assert (kernel.outbound(packet), kernel.inbound(answer)) == (SLOW, SLOW)
    kernel.loaded.maps[layout.MISSES].delete(A1 + B2)
    assert kernel.outbound(packet) == packet
    kernel.configure(flags=SettingsFlag.SLOW_MISSES)
    assert (kernel.outbound(packet), kernel.inbound(answer)) == (SLOW, SLOW)
    prefix = SitePrefix(Prefix.parse("2001:db8:a1::/48"), PrefixFlag.SLOW)
    kernel.configure(flags=SettingsFlag(0), prefixes=(prefix,))
    assert (kernel.outbound(packet), kernel.inbound(answer)) == (SLOW, SLOW)


def test_what_python_wants_of_a_context_goes_there_when_its_miss_was_pushed_out(
    site: Site,
) -> None:
    """A host that scanned the world pushed it out: the peer of a pair with forks fell silent."""
    _, kernel, _ = site
    slow = OutFlow(A1 + B2, Mode.ULIDS, 1, 1, flags=OutFlag.SLOW)
    kernel.loaded.maps[layout.OUT].update(A1 + B2, slow.pack())
    assert (kernel.outbound(udp(A1, B2)), kernel.inbound(udp(B2, A1))) == (SLOW, SLOW)


@pytest.mark.parametrize("kind", ["marked", "whole prefix"])
def test_packets_to_locator_only_addresses_are_for_python_and_then_for_nobody(
    site: Site, kind: str
) -> None:
    _, kernel, reader = site
    first, second = kernel.settings.prefixes
    nobodys = replace(second, flags=PrefixFlag.NOBODYS)
    address_there = A1_ISP2
    if kind == "marked":
        marks = (0xC << 76).to_bytes(16)
        first, nobodys = (replace(each, marks=marks) for each in (first, second))
        address_there = address("2001:db8:a2:4001::10")
    kernel.configure(prefixes=(first, nobodys), after_packets=1)
    stray = udp(B2, address_there, bytes(20))
    asked, dropped = kernel.count(Counter.SLOW_NOBODYS), kernel.count(Counter.DROP_NOBODYS)
    outcomes = [kernel.inbound(stray) for _ in range(20)]
    assert outcomes[0] is SLOW and set(outcomes) == {SLOW, DROPPED}, "some in a second are told"
    settle()
    assert kernel.inbound(stray) is SLOW
    assert kernel.count(Counter.SLOW_NOBODYS) == asked + outcomes.count(SLOW) + 1
    assert kernel.count(Counter.DROP_NOBODYS) == dropped + outcomes.count(DROPPED)
    plain, answer = udp(A1, B2), udp(B2, A1)
    assert (kernel.inbound(answer), kernel.outbound(plain)) == (answer, plain)
    assert [event.ulids for event in events(reader)] == [A1 + B2]
    kernel.configure(prefixes=(replace(first, marks=bytes(16)), second))


@pytest.mark.parametrize(
    "answers",
    [
        (udp(B2, A1), udp(B2, A1, b"another")),
        tuple(build_packet(B2, A1, 58, b"\x81\x00" + bytes([n] * 6)) for n in (1, 2)),
        tuple(build_packet(B2, A1, 44, b"\x11\x00" + bytes([n] * 6)) for n in (0, 8)),
    ],
    ids=["udp", "pings", "fragments"],
)
def test_a_flow_that_is_settled_is_looked_at_again_after_a_moment(
    site: Site, answers: tuple[bytes, bytes]
) -> None:
    _, kernel, _ = site
    answer, another = answers

    def stays_settled() -> bool:
        """Whether the second packet came soon enough behind the first: a machine may be busy."""
        kernel.configure(flags=SettingsFlag(0))
        settle()
        assert kernel.inbound(answer) == answer
        kernel.configure(flags=SettingsFlag.SLOW_MISSES)
        return kernel.inbound(another) == another

    assert any(stays_settled() for _ in range(50))
    settle()
    assert kernel.inbound(answer) is SLOW


def test_dns_answers_are_copied_and_go_on(site: Site) -> None:
    _, kernel, reader = site
    answer = udp(B2, A1, b"not really DNS", ports=(53, 4000))
    for _ in range(2):
        assert kernel.inbound(answer) == answer
    assert [(e.kind, e.payload) for e in events(reader)] == [(EventKind.DNS, b"not really DNS")] * 2
    longest = udp(B2, A1, bytes(layout.DNS_OCTETS_MAX), ports=(53, 4000))
    assert kernel.inbound(longest) == longest
    assert len(events(reader)[0].payload) == layout.DNS_OCTETS_MAX
    longer = udp(B2, A1, bytes(layout.DNS_OCTETS_MAX + 1), ports=(53, 4000))
    assert kernel.inbound(longer) is SLOW
    empty = udp(B2, A1, ports=(53, 4000))
    assert kernel.inbound(empty) == empty
    assert events(reader) == []


def test_a_flood_of_dns_answers_leaves_room_for_what_matters(site: Site) -> None:
    """It took all: contexts that woke were not seen, and each answer more went by the queue."""
    _, kernel, reader = site
    lost = kernel.count(Counter.EVENTS_LOST)
    answer = udp(B2, A1, b"not really DNS", ports=(53, 4000))
    assert {kernel.inbound(answer) for _ in range(1000)} == {answer}
    kernel.configure(after_packets=1)
    kernel.outbound(udp(A1, B2))
    assert kernel.count(Counter.EVENTS_LOST) == lost
    told: list[Event] = []
    while more := events(reader):
        told += more
    assert [event.kind for event in told if event.kind is not EventKind.DNS] == [EventKind.RIPE]


def test_traffic_that_is_none_of_ours_is_left_alone(site: Site) -> None:
    _, kernel, reader = site
    kernel.configure(after_packets=1)
    for source, destination in (
        (B1, B2),
        (A1, A1_ISP2),
        (A1, b"\xff\x02" + bytes(13) + b"\x01"),
        (A1, b"\xfe\x80" + bytes(13) + b"\x01"),
    ):
        assert kernel.outbound(udp(source, destination)) is SLOW
    assert kernel.inbound(udp(B1, B2)) is SLOW
    assert events(reader) == []


@pytest.mark.parametrize("inside", [NEXT_SHIM, NEXT_DESTINATION])
def test_a_piece_of_a_datagram_that_may_be_put_together_later_is_not_marked(
    site: Site, inside: int
) -> None:
    """A stateful firewall joined pieces behind us; their mark took them past Python."""
    _, kernel, _ = site
    piece = build_packet(B1_ISP2, A1_ISP2, NEXT_FRAGMENT, bytes([inside, 0, 0, 1]) + bytes(20))
    assert kernel.inbound(piece) is SLOW
    plain = build_packet(B1, A1, NEXT_FRAGMENT, bytes([17, 0, 0, 1]) + bytes(20))
    assert kernel.inbound(plain) == plain


@pytest.mark.parametrize(
    ("flow", "verdict"),
    [
        (None, DROP),
        (OutFlow(A1_ISP2 + B1_ISP2, Mode.FLOWLABEL, 1, 1, label=5), REDIRECT),
        (OutFlow(A1_ISP2 + B1_ISP2, Mode.FLOWLABEL, 1, 9, label=5), DROP),
        (OutFlow(A1 + B1, Mode.ULIDS, 1, 1), PASS),
        (OutFlow(A1 + B1, Mode.ULIDS, 1, 0), DROP),
    ],
    ids=["flow gone", "other uplink", "unknown uplink", "back on ULIDs", "back, no uplink"],
)
def test_a_packet_that_was_marked_for_an_uplink_never_leaks(
    site: Site, flow: OutFlow | None, verdict: int
) -> None:
    _, kernel, _ = site
    out = kernel.loaded.maps[layout.OUT]
    out.delete(A1 + B1)
    if flow is not None:
        out.update(A1 + B1, flow.pack())
    packet = udp(A1, B1)
    marked = SkBuff(mark=layout.mark_of(2, SHIFT), ingress_index=LOOPBACK_INDEX)
    sent = kernel.trial("uplink_out", packet, marked)
    assert sent.verdict == verdict
    assert sent.packet[14:] == packet


def test_the_gateways_own_question_leaves_by_an_uplink_without_an_address(site: Site) -> None:
    """Such an uplink has link-local addresses alone, and the question one of the LAN's: it died."""
    _, kernel, _ = site
    question = SkBuff(mark=layout.mark_of(2, SHIFT))
    assert kernel.trial("uplink_out", udp(A2, B2, ports=(4000, 53)), question).verdict == PASS


@pytest.mark.parametrize("stale", [layout.MARK_PAST, 2])
def test_a_packet_out_of_a_tunnel_has_no_mark_of_ours(site: Site, stale: int) -> None:
    """VXLAN leaves the outer packet's mark on the inner one: none of these was looked at."""
    pair, kernel, _ = site
    within = SkBuff(mark=layout.mark_of(stale, SHIFT) | 0x12345)
    rehomed_packet = from_peer(pair, b"data")
    restored = kernel.trial("uplink_in", rehomed_packet, within)
    assert restored.packet[14:] == kernel.inbound(rehomed_packet)
    unknown = build_packet(B1_ISP2, A1_ISP2, NEXT_SHIM, bytes(8))
    chained = build_packet(A1, B1, NEXT_DESTINATION, bytes([17, 0, 1, 4]) + bytes(12))
    assert kernel.outbound(chained) is SLOW
    for program, packet in ("uplink_in", unknown), ("lan_in", chained):
        assert kernel.trial(program, packet, within).mark == 0x12345


def test_marks_of_others_are_not_touched(site: Site) -> None:
    _, kernel, _ = site
    packet = udp(A1, B1)
    seen = kernel.trial("lan_in", packet, SkBuff(mark=0x12345))
    assert seen.mark == layout.mark_of(2, SHIFT) | 0x12345
    sent = kernel.trial("uplink_out", packet, SkBuff(mark=seen.mark))
    assert sent.mark == 0x12345
    kernel.configure(mark_shift=0)
    assert kernel.trial("lan_in", packet, SkBuff(mark=0x7700)).mark == 0x7782


def test_what_a_daemon_shall_see_first_goes_on_by_its_uplink_without_one(site: Site) -> None:
    """A daemon that was killed while an answer was overdue took up to 0.75 s of packets with it."""
    _, kernel, _ = site
    outbound = kernel.loaded.maps[layout.OUT]
    flow = OutFlow.unpack(outbound.lookup(A1 + B1) or b"")
    outbound.update(A1 + B1, replace(flow, flags=flow.flags | OutFlag.WATCHED).pack())
    packet = udp(A1, B1)
    seen = kernel.trial("lan_in", packet, SkBuff(mark=0x12345))
    assert seen.mark == (MARK_SHOWN | 2) << SHIFT | 0x12345
    sent = kernel.trial("uplink_out", packet, SkBuff(mark=seen.mark))
    assert (sent.verdict, sent.mark) == (PASS, 0x12345)
    outbound.update(A1 + B1, flow.pack())
    assert sent.packet[14:] == kernel.outbound(packet)


def test_what_is_too_large_for_the_queue_is_not_shown_to_the_daemon(site: Site) -> None:
    """It was cut there and dropped, and so were TCP's repetitions: nothing was ever answered."""
    _, kernel, _ = site
    flow = OutFlow(A1_ISP2 + B1_ISP2, Mode.FLOWLABEL, 1, 2, flags=OutFlag.WATCHED, label=5)
    kernel.loaded.maps[layout.OUT].update(A1 + B1, flow.pack())
    packet = tcp(A1, B1, bytes(2800))
    largest = COPY_OCTETS - len(tcp(A1, B1))
    assert kernel.outbound(packet, gso_size=largest) is SLOW
    assert isinstance(kernel.outbound(packet, gso_size=largest + 1), bytes)


def test_large_packets_are_measured_by_their_segments(site: Site) -> None:
    _, kernel, _ = site
    large = tcp(A1, B1, bytes(2800))
    too_big = kernel.count(Counter.SLOW_TOO_BIG)
    assert kernel.outbound(large, gso_size=1433) is SLOW
    assert kernel.count(Counter.SLOW_TOO_BIG) == too_big + 1
    assert kernel.outbound(large, gso_size=1400) is SLOW, "there is nothing to split them"
    kernel.configure(split_ifindex=1)
    assert kernel.outbound(large, gso_size=1433) is SLOW
    assert kernel.outbound(large, gso_size=1432) is DROPPED, "a trial has no GSO type"
    kernel.configure(flags=kernel.settings.flags | SettingsFlag.BARE_UPLINK << 2)
    assert kernel.outbound(large, gso_size=1432) is SLOW, "the uplink has no link-layer header"
    kernel.configure(flags=SettingsFlag.BARE_UPLINK << 1)
    assert kernel.outbound(large, gso_size=1432) is DROPPED, "it is another uplink that has none"
    assert kernel.outbound(build_packet(A1, B1, 132, bytes(2800)), gso_size=1400) is SLOW


def test_what_is_watched_or_overdue_goes_by_the_kernel_when_no_daemon_lives(site: Site) -> None:
    """A killed daemon lost all that its hosts sent while an answer was overdue."""
    _, kernel, _ = site
    outbound, active = kernel.loaded.maps[layout.OUT], kernel.loaded.maps[layout.ACTIVE]
    flow = OutFlow.unpack(outbound.lookup(A1 + B1) or b"")
    watched = replace(flow, flags=flow.flags | OutFlag.WATCHED)
    silent = Activity(out_since_ns=1).pack()
    packet = tcp(A1, B1, b"data")
    for entry, overdue_ns in ((watched, 0), (flow, 1)):
        outbound.update(A1 + B1, entry.pack())
        active.update(flow.slot.to_bytes(4, "little"), silent)
        kernel.configure(overdue_ns=overdue_ns, attended_until_ns=1 << 62)
        assert kernel.outbound(packet) is SLOW
        kernel.configure(attended_until_ns=1)
        sent = kernel.outbound(packet)
        assert isinstance(sent, bytes) and sent != packet

"""A packet that does not fit with our 8 octets: the host is told, and the kernel may decide."""

from __future__ import annotations

from m6proxy.names import address
from m6proxy.reasons import Reason
from m6proxy.shim.demux import DemuxMode
from m6proxy.wire.ipv6 import NEXT_UDP, build_packet
from tests.harness.packets import icmp_error, tcp, udp
from tests.harness.pair import A1, B1, Pair
from tests.shim.moved import moved

HEADERS = 40


def _moved() -> Pair:
    """Alpha's pair on isp2, and both of alpha's uplinks with an MTU of 1500."""
    pair = Pair()
    pair.establish()
    for name in ("isp1", "isp2"):
        pair.alpha.engine.handle_uplink(name, up=True, mtu=1500, now=pair.clock.now)
    pair.cut_provider("a", 1)
    pair.stream(8.0)
    assert pair.alpha.context.rehomings == 1
    return pair


def _verdict(pair: Pair, octets: int) -> object:
    packet = build_packet(A1, B1, NEXT_UDP, bytes(octets - HEADERS))
    return pair.alpha.engine.handle_outbound(packet, pair.clock.now)


def _told(pair: Pair) -> list[int]:
    """Return the MTU of each Packet Too Big since the last call."""
    before = len(pair.alpha.sent)
    pair._settle(pair.alpha)
    icmp = [packet for _, packet in pair.alpha.sent[before:] if packet[6] == 58]
    return [int.from_bytes(packet[44:48]) for packet in icmp]


def test_the_first_is_dropped_and_counted_and_the_host_told() -> None:
    pair = _moved()
    assert isinstance(_verdict(pair, 1492), bytes)
    assert _verdict(pair, 1493) is Reason.TOO_BIG
    assert _told(pair) == [1492]
    assert pair.alpha.engine.drops[Reason.TOO_BIG] == 1


def test_datagrams_put_together_from_fragments_go_on_once_the_host_was_told() -> None:
    """Connection tracking on the gateway hands us a ping of 3000 octets in one piece.

    Refusing it for ever made every fragmented datagram of a re-homed pair die.
    """
    pair = _moved()
    assert _verdict(pair, 3000) is Reason.TOO_BIG
    for octets in (3000, 1500, 1493):
        rewritten = _verdict(pair, octets)
        assert isinstance(rewritten, bytes) and len(rewritten) == octets + 8
    assert _told(pair) == [1492], "told once, not for each"
    pair.run(1.1)
    assert isinstance(_verdict(pair, 1500), bytes)
    assert _told(pair) == [1492], "and again after a while: hosts forget"
    assert pair.alpha.engine.drops[Reason.TOO_BIG] == 1


def test_a_new_path_tells_anew() -> None:
    pair = _moved()
    assert _verdict(pair, 1500) is Reason.TOO_BIG
    pair.alpha.engine.handle_uplink("isp2", up=True, mtu=1400, now=pair.clock.now)
    assert _verdict(pair, 1400) is Reason.TOO_BIG
    assert 1392 in _told(pair)


def test_tcp_behind_a_tag_option_has_to_leave_more_room() -> None:
    """A router with large segments takes the option's header for that of TCP.

    It sent Packet Too Big for packets that fit, with the MTU that the host knew already, for as
    long as four bits of the sequence number stayed as they were.
    """
    pair = moved(demux=(DemuxMode.DSTOPT, DemuxMode.EXTHDR))
    engine, now = pair.alpha.engine, pair.clock.now
    fits, more = tcp(A1, B1, bytes(1400)), tcp(A1, B1, bytes(1401))
    assert len(fits) == 1460
    assert isinstance(engine.handle_outbound(fits, now), bytes)
    assert isinstance(engine.handle_outbound(udp(A1, B1, bytes(1444)), now), bytes)
    sent = engine.handle_outbound(fits, now)
    assert isinstance(sent, bytes)
    assert engine.handle_outbound(more, now) is Reason.TOO_BIG
    assert _told(pair) == [1460]
    far = icmp_error(address("2001:db8:66::1"), sent[8:24], 2, 0, 1400, sent)
    told = engine.handle_inbound(far, now)
    assert isinstance(told, bytes)
    assert int.from_bytes(told[44:48]) == 1360

"""ICMPv6 errors: made by the gateway, translated to ULIDs, or kept as our own."""

from __future__ import annotations

import pytest
from scapy.layers.inet6 import ICMPv6PacketTooBig, IPv6

from m6proxy.names import Address
from m6proxy.reasons import Reason
from m6proxy.shim import icmp
from m6proxy.shim.transitions import State
from m6proxy.shim.verdict import CONSUMED
from m6proxy.wire.checksum import icmpv6_checksum
from m6proxy.wire.ipv6 import build_packet
from m6proxy.wire.message import I1
from tests.harness.packets import find_messages, icmp_error, tcp, udp
from tests.harness.pair import A1, A1_ISP2, A_GATEWAY, B1, B1_ISP2, B2, Pair
from tests.shim.moved import moved

ROUTER = bytes.fromhex("20010db800ff00000000000000000001")
TOO_BIG, UNREACHABLE, EXCEEDED, PARAMETER = 2, 1, 3, 4
HEAD = 48
"""Where the quoted packet starts in an error without extension headers."""


@pytest.fixture
def pair() -> Pair:
    """Both ends on their second provider."""
    return moved()


def on_the_wire(pair: Pair, packet: bytes) -> bytes:
    """What a packet of a1 looks like behind its gateway."""
    verdict = pair.alpha.engine.handle_outbound(packet, pair.clock.now)
    assert isinstance(verdict, bytes)
    return verdict


def translated(pair: Pair, destination: Address, kind: int, word: int, quoted: bytes) -> bytes:
    verdict = pair.inject(pair.alpha, icmp_error(ROUTER, destination, kind, 0, word, quoted))
    assert isinstance(verdict, bytes)
    assert verdict[8:24] == ROUTER
    assert verdict[24:40] == A1
    assert len(verdict) == 40 + int.from_bytes(verdict[4:6])
    assert icmpv6_checksum(verdict[8:24], verdict[24:40], verdict[40:]) == 0
    return verdict


def test_the_gateway_says_packet_too_big(pair: Pair) -> None:
    packet = tcp(A1, B1, bytes(1440))
    assert len(packet) == 1500
    assert pair.alpha.engine.handle_outbound(packet, pair.clock.now) is Reason.TOO_BIG
    pair.settle(pair.alpha)
    error = IPv6(pair.alpha.delivered[-1][1])
    assert (error.src, error.dst) == ("2001:db8:a1:1::1", "2001:db8:a1:1::10")
    told = error[ICMPv6PacketTooBig]
    assert told.mtu == 1492
    right = told.cksum
    del error[ICMPv6PacketTooBig].cksum
    assert IPv6(bytes(error))[ICMPv6PacketTooBig].cksum == right
    assert len(bytes(error)) == 1280
    assert bytes(told.payload)[:1000] == packet[:1000]


@pytest.mark.parametrize("mtu", [1280, 1500, 9000, 65535])
def test_what_just_fits_and_what_does_not(pair: Pair, mtu: int) -> None:
    engine = pair.alpha.engine
    engine.handle_uplink("isp2", up=True, mtu=mtu, now=pair.clock.now)
    assert isinstance(engine.handle_outbound(udp(A1, B1, bytes(mtu - 56)), pair.clock.now), bytes)
    verdict = engine.handle_outbound(udp(A1, B1, bytes(mtu - 55)), pair.clock.now)
    assert verdict is Reason.TOO_BIG
    engine.take_effects()


def test_the_largest_packet_there_is(pair: Pair) -> None:
    packet = build_packet(A1, B1, 17, bytes(0xFFFF))
    pair.alpha.engine.handle_uplink("isp2", up=True, mtu=0x20000, now=pair.clock.now)
    assert pair.alpha.engine.handle_outbound(packet, pair.clock.now) is Reason.TOO_BIG


def test_without_an_address_of_its_own_the_gateway_is_silent() -> None:
    pair = moved(gateway=None)
    before = len(pair.alpha.delivered)
    verdict = pair.alpha.engine.handle_outbound(tcp(A1, B1, bytes(1440)), pair.clock.now)
    pair.settle(pair.alpha)
    assert verdict is Reason.TOO_BIG
    assert len(pair.alpha.delivered) == before


@pytest.mark.parametrize("kind", [UNREACHABLE, TOO_BIG, EXCEEDED, PARAMETER])
def test_an_error_about_a_moved_packet_speaks_of_the_hosts_packet(pair: Pair, kind: int) -> None:
    packet = tcp(A1, B1, b"data of the host")
    quoted = on_the_wire(pair, packet)
    assert translated(pair, A1_ISP2, kind, 0, quoted)[HEAD:] == packet


@pytest.mark.parametrize(("mtu", "told"), [(1400, 1392), (1280, 1272), (0, 0), (7, 0)])
def test_a_packet_too_big_makes_room_for_the_header(pair: Pair, mtu: int, told: int) -> None:
    verdict = translated(pair, A1_ISP2, TOO_BIG, mtu, on_the_wire(pair, tcp(A1, B1, b"x" * 500)))
    assert int.from_bytes(verdict[44:48]) == told


@pytest.mark.parametrize(
    ("pointer", "told"), [(0, 0), (6, 6), (8, 8), (40, 6), (41, 6), (47, 6), (48, 40), (60, 52)]
)
def test_a_pointer_points_into_the_hosts_packet(pair: Pair, pointer: int, told: int) -> None:
    """A pointer to our own header pointed 8 octets before it, into the host's addresses.

    What the host wrote there is the Next Header octet that our header stands for.
    """
    verdict = translated(pair, A1_ISP2, PARAMETER, pointer, on_the_wire(pair, tcp(A1, B1, b"x")))
    assert int.from_bytes(verdict[44:48]) == told


@pytest.mark.parametrize(("pointer", "told"), [(40, 40), (47, 47), (48, 40), (55, 40), (56, 48)])
def test_a_pointer_behind_hop_by_hop_options(pair: Pair, pointer: int, told: int) -> None:
    packet = build_packet(A1, B1, 0, b"\x11\x00\x01\x04\0\0\0\0" + bytes(16))
    verdict = translated(pair, A1_ISP2, PARAMETER, pointer, on_the_wire(pair, packet))
    assert int.from_bytes(verdict[44:48]) == told
    assert verdict[HEAD:] == packet


@pytest.mark.parametrize("octets", [48, 49, 60, 100])
def test_a_quoted_packet_that_is_cut(pair: Pair, octets: int) -> None:
    packet = tcp(A1, B1, bytes(200))
    quoted = on_the_wire(pair, packet)[:octets]
    verdict = translated(pair, A1_ISP2, UNREACHABLE, 0, quoted)
    assert verdict[HEAD:] == packet[: octets - 8]


@pytest.mark.parametrize("octets", [40, 44, 47])
def test_a_quote_without_the_whole_header_passes_unchanged(pair: Pair, octets: int) -> None:
    quoted = on_the_wire(pair, tcp(A1, B1, bytes(200)))[:octets]
    assert pair.inject(pair.alpha, icmp_error(ROUTER, A1_ISP2, 1, 0, 0, quoted)) is None


def test_errors_about_others_pass_unchanged(pair: Pair) -> None:
    plain = tcp(A1, B2, b"plain")
    moved_packet = on_the_wire(pair, tcp(A1, B1, b"x"))
    foreign_tag = moved_packet[:43] + b"\x66\x66\x66\x66\x66" + moved_packet[48:]
    foreign_pair = moved_packet[:24] + B2 + moved_packet[40:]
    for quoted in (plain, foreign_tag, foreign_pair):
        assert pair.inject(pair.alpha, icmp_error(ROUTER, A1_ISP2, 1, 0, 0, quoted)) is None


def test_a_wrong_checksum_is_the_hosts_to_refuse(pair: Pair) -> None:
    error = icmp_error(ROUTER, A1_ISP2, 1, 0, 0, on_the_wire(pair, tcp(A1, B1, b"x")))
    assert pair.inject(pair.alpha, error[:-1] + bytes((error[-1] ^ 1,))) is None


def test_echo_is_not_an_error(pair: Pair) -> None:
    quoted = on_the_wire(pair, tcp(A1, B1, b"x"))
    assert pair.inject(pair.alpha, icmp_error(ROUTER, A1_ISP2, 128, 0, 0, quoted)) is None


def test_behind_extension_headers_an_error_is_found_too(pair: Pair) -> None:
    packet = tcp(A1, B1, b"x")
    error = icmp_error(ROUTER, A1_ISP2, 1, 0, 0, on_the_wire(pair, packet))
    behind = build_packet(ROUTER, A1_ISP2, 60, b"\x3a\x00\x01\x04\0\0\0\0" + error[40:])
    verdict = pair.inject(pair.alpha, behind)
    assert isinstance(verdict, bytes)
    assert verdict[24:40] == A1
    assert verdict[40:48] == behind[40:48]
    assert verdict[56:] == packet
    assert icmpv6_checksum(ROUTER, A1, verdict[48:]) == 0


def test_errors_about_our_own_messages_are_ours(pair: Pair) -> None:
    for _, packet in pair.alpha.sent:
        error = icmp_error(ROUTER, packet[8:24], 1, 0, 0, packet)
        assert pair.inject(pair.alpha, error) is CONSUMED


def test_unrecognized_next_header_ends_an_exchange_only_for_the_i1_that_was_sent() -> None:
    pair = Pair()
    pair.lose = lambda packet: packet[6] == 140
    for _ in range(3):
        pair.talk(pair.alpha)
    ((_, packet, _),) = find_messages(pair.alpha.sent, I1)
    forged = packet[:52] + b"\x00\x00\x00\x00" + packet[56:]
    elsewhere = packet[:24] + B1_ISP2 + packet[40:]
    for quoted in (forged, elsewhere, packet[:50]):
        pair.inject(pair.alpha, icmp_error(B1, A1, PARAMETER, 1, 6, quoted))
    pair.inject(pair.alpha, icmp_error(B1, A1, PARAMETER, 0, 6, packet))
    assert pair.alpha.context.state is State.I1_SENT
    assert pair.inject(pair.alpha, icmp_error(B1, A1, PARAMETER, 1, 6, packet)) is CONSUMED
    assert pair.alpha.context.state.value == "NO-SUPPORT"


def test_the_quote_fits_the_minimum_mtu() -> None:
    for octets in (0, 1184, 1232, 1400, 65000):
        error = icmp.packet_too_big(udp(A1, B1, bytes(octets)), A_GATEWAY, 1492)
        assert len(error) == min(1280, 48 + 48 + octets)
        assert icmpv6_checksum(A_GATEWAY, A1, error[40:]) == 0

"""Past the gateway's IPv6 stack: what goes straight, and what must not.

A flow's first packet goes the ordinary way, and those behind it the way that it took
(m6proxy/dataplane/bpf/src/recent.h). So each test has a flow that goes straight, and then
something happens.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest

from m6proxy.dataplane.bpf.layout import Counter, Mode
from m6proxy.dataplane.offloads import GRO
from m6proxy.lab.build import Lab
from m6proxy.lab.plan import SOURCE_TABLE
from m6proxy.lab.topology import ALPHA, BETA
from m6proxy.names import Address, address
from m6proxy.wire.ipv6 import NEXT_ICMPV6, NEXT_UDP, build_packet
from tests.harness.fastpath import LAN, FastGateway, fast, offload
from tests.harness.gateway import A1, B1, Capture, link_sender, mac_of, ping, put_on_link
from tests.harness.netns import eventually, run_in
from tests.harness.netns import plain_lab as plain_lab
from tests.harness.packets import udp
from tests.netns.test_bpf_path import MODES, give_room, iperf, like_a_wire, rehome, snmp
from tests.steering.namespaces import inside

pytestmark = pytest.mark.netns

ALWAYS = 1 << 62
TIME_EXCEEDED, TOO_BIG, UNREACHABLE = 3, 2, 1
HOP_LIMIT_AT = 7
HOST_A, HOST_B = address(A1), address(B1)
USUAL = udp(HOST_A, HOST_B, bytes(100))
BURST = 20
UDP_NO_CHECK6_RX = 102


def with_hop_limit(packet: bytes, hop_limit: int) -> bytes:
    """The packet as if it had come that far."""
    return packet[:HOP_LIMIT_AT] + bytes([hop_limit]) + packet[HOP_LIMIT_AT + 1 :]


def without_checksum(packet: bytes) -> bytes:
    """A UDP packet whose sender computed none (RFC 6935)."""
    return packet[:46] + bytes(2) + packet[48:]


class Sender:
    """Puts packets on a link to a gateway, which has the programs."""

    def __init__(self, lab: Lab, gateway: FastGateway, node: str, link: str, into: str) -> None:
        self._gateway = gateway
        self._sock = link_sender(lab, node, link)
        self._mac = mac_of(lab, gateway.node, into)

    def send(self, packet: bytes, times: int = 1) -> None:
        """Send it, several times in a row."""
        for _ in range(times):
            put_on_link(self._sock, packet, self._mac)

    def sent_straight(self, packet: bytes) -> int:
        """How many of a burst go past the stack."""
        before = self._gateway.count(Counter.EXPRESS)
        self.send(packet, BURST)
        return self._gateway.count(Counter.EXPRESS) - before

    def goes_straight(self, packet: bytes) -> None:
        """Wait until the packets of a flow go past the stack."""
        eventually(lambda: self.sent_straight(packet) > 0, deadline_s=5, what="it goes straight")

    def close(self) -> None:
        """Close the socket."""
        self._sock.close()


@contextmanager
def outbound(lab: Lab) -> Iterator[tuple[FastGateway, Sender]]:
    """Alpha's gateway, and its host a1."""
    with fast(lab, ALPHA) as (alpha,):
        alpha.configure(express_until_ns=ALWAYS)
        assert ping(lab, "a1", ALPHA.lan_address) and ping(lab, "a1", B1)
        sender = Sender(lab, alpha, "a1", "eth0", LAN)
        try:
            yield alpha, sender
        finally:
            sender.close()


@contextmanager
def inbound(lab: Lab) -> Iterator[tuple[FastGateway, Sender]]:
    """Alpha's gateway, and its first provider."""
    with fast(lab, ALPHA) as (alpha,):
        alpha.configure(express_until_ns=ALWAYS)
        assert ping(lab, "a1", B1)
        sender = Sender(lab, alpha, "p1", "cust", "wan1")
        try:
            yield alpha, sender
        finally:
            sender.close()


def errors(capture: Capture, kind: int, source: str) -> list[bytes]:
    """The ICMPv6 errors of a kind that a node of the lab sent."""
    return [
        packet
        for packet in capture.packets()
        if packet[6] == NEXT_ICMPV6 and packet[40] == kind and packet[8:24] == address(source)
    ]


def udp_between(capture: Capture, source: Address, destination: Address) -> int:
    """How many UDP packets of a pair were seen."""
    return sum(
        packet[6] == NEXT_UDP and packet[8:40] == source + destination
        for packet in capture.packets()
    )


@MODES
@pytest.mark.parametrize("wire", [False, True], ids=["veth", "wire"])
def test_a_stream_that_moves_goes_straight_both_ways(
    plain_lab: Lab, mode: Mode, wire: bool
) -> None:
    give_room(plain_lab, mode)
    if wire:
        like_a_wire(plain_lab)
    with fast(plain_lab, ALPHA, BETA) as (alpha, beta):
        alpha.configure(express_until_ns=ALWAYS)
        beta.configure(express_until_ns=ALWAYS)
        tcp = iperf(plain_lab, meanwhile=lambda: rehome(alpha, beta, mode))
        counts = alpha.counts(), beta.counts()
        sent = iperf(plain_lab, "-u", "-b", "20M", "-l", "1200", meanwhile=lambda: None)
    assert tcp["bits_per_second"] > 50e6
    assert sent["lost_percent"] < 5
    for one in counts:
        both_ways = one["REWRITTEN"], one["RESTORED"]
        assert min(both_ways) > 100
        assert one["EXPRESS"] > 200
        assert not any(name.startswith("DROP") for name in one)
    for node in ("a1", "b1"):
        assert snmp(plain_lab, node) == {"tcp": 0, "udp": 0}


def test_without_the_lease_nothing_goes_straight(plain_lab: Lab) -> None:
    with outbound(plain_lab) as (alpha, sender):
        sender.goes_straight(USUAL)
        alpha.configure(express_until_ns=1)
        assert sender.sent_straight(USUAL) == 0
        alpha.configure(express_until_ns=0)
        assert sender.sent_straight(USUAL) == 0


def test_with_a_new_generation_nothing_is_known(plain_lab: Lab) -> None:
    """User space writes one with each change of settings or flows."""
    with outbound(plain_lab) as (alpha, sender):
        for generation in range(1, 50):
            sender.goes_straight(USUAL)
            before = alpha.count(Counter.EXPRESS)
            alpha.configure(generation=generation)
            sender.send(USUAL)
            assert alpha.count(Counter.EXPRESS) == before


def test_the_last_hop_is_answered(plain_lab: Lab) -> None:
    with outbound(plain_lab) as (_, sender), Capture(plain_lab, "a1", "eth0") as capture:
        sender.goes_straight(USUAL)
        sender.send(with_hop_limit(USUAL, 1))
        eventually(
            lambda: len(errors(capture, TIME_EXCEEDED, ALPHA.lan_address)) == 1,
            deadline_s=5,
            what="Time Exceeded of the gateway",
        )
        sender.goes_straight(USUAL)


def test_each_packet_is_one_hop_older(plain_lab: Lab) -> None:
    with outbound(plain_lab) as (_, sender), Capture(plain_lab, "p1", "cust") as capture:
        sender.goes_straight(USUAL)
        seen = {packet for packet in capture.packets() if packet[6] == NEXT_UDP}
        assert seen == {with_hop_limit(USUAL, USUAL[HOP_LIMIT_AT] - 1)}


def test_what_does_not_fit_is_answered(plain_lab: Lab) -> None:
    with outbound(plain_lab) as (_, sender), Capture(plain_lab, "a1", "eth0") as capture:
        run_in(plain_lab, "agw", "ip", "link", "set", "wan1", "mtu", "1300")
        sender.goes_straight(USUAL)
        sender.send(udp(HOST_A, HOST_B, bytes(1260)))
        eventually(
            lambda: len(errors(capture, TOO_BIG, ALPHA.lan_address)) == 1,
            deadline_s=5,
            what="Packet Too Big of the gateway",
        )
        sender.goes_straight(udp(HOST_A, HOST_B, bytes(1250)))


def test_another_route_is_followed(plain_lab: Lab) -> None:
    second = ALPHA.uplinks[1]
    with (
        outbound(plain_lab) as (alpha, sender),
        Capture(plain_lab, "p1", "cust") as old,
        Capture(plain_lab, "p2", "cust") as new,
    ):
        sender.goes_straight(USUAL)
        alpha.ip("route", "replace", "default", "via", second.provider_address,
                 "dev", second.interface, "table", str(SOURCE_TABLE))  # fmt: skip

        def moved() -> bool:
            sender.send(USUAL, BURST)
            return udp_between(new, HOST_A, HOST_B) > 0

        eventually(moved, deadline_s=5, what="packets by the other uplink")
        sender.goes_straight(USUAL)
        before = udp_between(old, HOST_A, HOST_B)
        sender.send(USUAL, BURST)
        assert udp_between(old, HOST_A, HOST_B) == before


def test_a_route_that_went_is_told(plain_lab: Lab) -> None:
    with outbound(plain_lab) as (alpha, sender), Capture(plain_lab, "a1", "eth0") as capture:
        sender.goes_straight(USUAL)
        alpha.ip("route", "add", "unreachable", "2001:db8:b1::/48")

        def told() -> bool:
            sender.send(USUAL)
            return bool(errors(capture, UNREACHABLE, ALPHA.lan_address))

        eventually(told, deadline_s=5, what="Destination Unreachable of the gateway")
        assert sender.sent_straight(USUAL) == 0


def test_a_more_specific_route_of_the_main_table_comes_first(plain_lab: Lab) -> None:
    """bpf_fib_lookup would not know: it takes no notice of suppress_prefixlength."""
    second = ALPHA.uplinks[1]
    from_second = udp(address(ALPHA.locator(ALPHA.hosts[0], second)), HOST_B, bytes(100))
    with (
        outbound(plain_lab) as (alpha, sender),
        Capture(plain_lab, "p1", "cust") as first,
        Capture(plain_lab, "p2", "cust") as other,
    ):
        sender.goes_straight(from_second)
        assert any(packet[8:40] == from_second[8:40] for packet in other.packets())
        assert not any(packet[8:40] == from_second[8:40] for packet in first.packets())
        alpha.ip("route", "add", "2001:db8:b1::/48", "via", ALPHA.uplinks[0].provider_address)

        def moved() -> bool:
            sender.send(from_second)
            return any(packet[8:40] == from_second[8:40] for packet in first.packets())

        eventually(moved, deadline_s=5, what="packets by the specific route")


def test_a_neighbour_is_found_first(plain_lab: Lab) -> None:
    back = udp(HOST_B, HOST_A, bytes(100))
    with inbound(plain_lab) as (_, sender), Capture(plain_lab, "a1", "eth0") as capture:
        run_in(plain_lab, "agw", "ip", "-6", "neigh", "flush", "dev", LAN)
        sender.goes_straight(back)
        arrived = udp_between(capture, HOST_B, HOST_A)
        sender.send(back, BURST)
        eventually(
            lambda: udp_between(capture, HOST_B, HOST_A) >= arrived + BURST,
            deadline_s=5,
            what="all arrive",
        )


def test_the_gateway_gets_what_is_for_itself(plain_lab: Lab) -> None:
    with outbound(plain_lab) as (_, sender):
        for own in (ALPHA.lan_address, ALPHA.uplinks[0].site_address):
            with (
                inside(plain_lab.namespace("agw")),
                socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as here,
            ):
                here.bind((own, 9))
                here.setblocking(False)
                here.setsockopt(socket.IPPROTO_UDP, UDP_NO_CHECK6_RX, 1)
                for_us = without_checksum(udp(HOST_A, address(own), b"for you"))
                assert sender.sent_straight(for_us) == 0
                heard = 0

                def all_heard(here: socket.socket = here) -> bool:
                    nonlocal heard
                    with suppress(BlockingIOError):
                        while here.recv(100):
                            heard += 1
                    return heard == BURST

                eventually(all_heard, deadline_s=5, what=f"all packets for {own}")


def test_no_packet_overtakes_another(plain_lab: Lab) -> None:
    """Even where the interface hands them over in batches, and large ones come between small."""
    offload(plain_lab, "agw", "wan1", GRO, on=True)
    stream = [udp(HOST_B, HOST_A, number.to_bytes(4) + bytes(size)) for number, size in sizes()]
    with inbound(plain_lab) as (alpha, sender), Capture(plain_lab, "a1", "eth0") as capture:
        for packet in stream:
            sender.send(packet)

        def numbers() -> list[int]:
            heard = [packet for packet in capture.packets() if packet[6] == NEXT_UDP]
            return [int.from_bytes(packet[48:52]) for packet in heard]

        eventually(lambda: len(numbers()) == len(stream), deadline_s=10, what="all arrive")
        assert numbers() == list(range(len(stream)))
        assert alpha.count(Counter.EXPRESS) > len(stream) / 2


def sizes() -> list[tuple[int, int]]:
    """Numbers and sizes of packets that grow and shrink at different paces."""
    return [(number, 100 + 300 * (number // 97 % 4) + number % 3) for number in range(4000)]


@pytest.mark.parametrize(
    "packet",
    [
        udp(HOST_A, address("fe80::1"), bytes(100)),
        udp(HOST_A, address("ff02::1"), bytes(100)),
        udp(HOST_A, address("ff0e::1"), bytes(100)),
        udp(address("fe80::1"), HOST_B, bytes(100)),
        udp(HOST_A, address("2001:db8:a1:1::20"), bytes(100)),
        udp(address("2001:db8:66::1"), HOST_B, bytes(100)),
        build_packet(HOST_A, HOST_B, 0, b"\x11\x00\x01\x04" + bytes(4) + USUAL[40:]),
        build_packet(HOST_A, HOST_B, 43, b"\x11\x00\x04\x00" + bytes(4) + USUAL[40:]),
        build_packet(HOST_A, HOST_B, 44, b"\x11\x00\x00\x00" + bytes(4) + USUAL[40:]),
        build_packet(HOST_A, HOST_B, 60, b"\x11\x00\x01\x04" + bytes(4) + USUAL[40:]),
        with_hop_limit(USUAL, 1),
        build_packet(HOST_A, HOST_B, 59, b""),
        USUAL + bytes(6),
    ],
    ids=["to link-local", "to its link", "to all", "from link-local", "to the LAN", "spoofed",
         "hop-by-hop", "routing", "fragment", "options", "last hop", "empty", "padded"],
)  # fmt: skip
def test_what_the_stack_must_see_does_not_go_straight(plain_lab: Lab, packet: bytes) -> None:
    with outbound(plain_lab) as (_, sender):
        for _ in range(3):
            assert sender.sent_straight(packet) == 0
        sender.goes_straight(USUAL)

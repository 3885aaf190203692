"""The raw sender on the wire: the source's prefix chooses the uplink."""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterator

import pytest

from m6proxy.dataplane.rawsend import RawSender
from m6proxy.names import address
from m6proxy.steering.routes import SourceRouting
from tests.steering.namespaces import (
    HOST_A,
    HOST_B,
    TwoSites,
    heard,
    inside,
    run,
    run_line,
    settings_of,
    sniffer,
    until,
)

pytestmark = pytest.mark.netns


@pytest.fixture
def sites() -> Iterator[TwoSites]:
    with TwoSites() as built, inside(built.gateway["a"]):
        SourceRouting(settings_of("a")).apply()
        yield built


def _packet(source: str, target: str, *, octets: int = 8, header: int = 140) -> bytes:
    fixed = struct.pack("!IHBB", 0x60000000, octets, header, 61)
    return fixed + address(source) + address(target) + bytes([59] + [0] * (octets - 1))


def _heard_on(sniffing: socket.socket, packet: bytes) -> bool:
    return packet in heard(sniffing)


def test_a_hosts_locator_as_source_leaves_by_its_own_uplink(sites: TwoSites) -> None:
    """Main's default leads over wan1; a socket that is not told the source takes it."""
    packet = _packet("2001:db8:a2:1::10", HOST_B)
    with (
        sniffer(sites.gateway["b"], "wan1") as first,
        sniffer(sites.gateway["b"], "wan2") as second,
    ):
        sender = RawSender()
        sender.send(packet)
        until(lambda: _heard_on(second, packet), "on wan2, unchanged")
        assert packet not in heard(first)
        with socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_RAW) as plain:
            plain.sendto(packet, (HOST_B, 0))
        until(lambda: _heard_on(first, packet), "the plain socket's packet on wan1")
        packet = _packet("2001:db8:a1:1::10", HOST_B)
        sender.send(packet)
        until(lambda: _heard_on(first, packet), "on wan1")
        sender.close()


def test_packet_too_big_from_the_gateway_reaches_a_host(sites: TwoSites) -> None:
    packet = _packet("2001:db8:a1:1::1", HOST_A, header=58, octets=48)
    sender = RawSender()
    with sniffer(sites.host["a"], "eth0") as host:
        sender.send(packet)
        until(lambda: _heard_on(host, packet), "on the LAN")
    sender.close()


def test_what_the_kernel_refuses_is_counted(sites: TwoSites) -> None:
    sender = RawSender()
    sender.send(_packet("2001:db8:a1:1::10", HOST_B, octets=1461))
    assert sender.losses()["send_too_big"] == 1
    run_line("ip6tables -A OUTPUT -p 140 -j DROP")
    sender.send(_packet("2001:db8:a1:1::10", HOST_B))
    assert sender.losses()["send_forbidden"] == 1
    run("ip", "link", "set", "wan2", "down")
    sender.send(_packet("2001:db8:a2:1::10", HOST_B))
    assert sender.losses()["send_no_route"] == 1
    sender.close()
    sender.send(_packet("2001:db8:a1:1::10", HOST_B))
    assert sender.losses()["send_failed"] == 1
    with pytest.raises(ValueError, match="40 octets"):
        sender.send(bytes(39))


def test_a_full_send_buffer_is_counted_and_does_not_block(
    sites: TwoSites, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full:
        def sendmsg(self, *_: object) -> int:
            raise BlockingIOError(errno.EAGAIN, "full")

    sender = RawSender()
    monkeypatch.setattr(sender, "_socket", Full())
    sender.send(_packet("2001:db8:a1:1::10", HOST_B))
    assert sender.losses()["send_buffer_full"] == 1

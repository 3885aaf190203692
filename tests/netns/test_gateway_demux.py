"""Each demux mode with real packets: octet by octet the same at the other host, and full size."""

from __future__ import annotations

import ipaddress
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import pytest

from m6proxy.lab import faults
from m6proxy.lab.build import Lab
from m6proxy.names import address
from m6proxy.shim.forward import with_label
from m6proxy.wire.ipv6 import build_packet
from tests.harness.gateway import (
    A1,
    A1_ISP2,
    B1,
    B1_ISP2,
    QUICK,
    Gateway,
    both,
    established,
    ping,
    rehomed,
)
from tests.harness.netns import eventually, run_in
from tests.harness.netns import lab as lab
from tests.harness.upper import UNKNOWN, upper_layers
from tests.steering.namespaces import inside

pytestmark = pytest.mark.netns

HOST_LABEL, HOPS, TRAFFIC_CLASS = 0x12345, 64, 0x28
HOP_LIMIT_AT = 7
MODES = {
    "exthdr": QUICK,
    "flowlabel": {
        **QUICK,
        "send_timeout_s: 3": "send_timeout_s: 1\n  demux: [flowlabel, exthdr]",
    },
    "dstopt": {
        **QUICK,
        "send_timeout_s: 3": "send_timeout_s: 1\n  demux: [dstopt, exthdr]",
    },
    "identifier": {
        **QUICK,
        "send_timeout_s: 3": "send_timeout_s: 1\n  demux: [identifier, exthdr]\n"
        "locators: {map: nsquare}",
    },
}
ON_ISP2 = {
    **dict.fromkeys(MODES, (A1_ISP2, B1_ISP2)),
    "identifier": ("2001:db8:a2:4001::10", "2001:db8:b2:4001::10"),
}


@contextmanager
def on_isp2(lab: Lab, mode: str) -> Iterator[tuple[Gateway, Gateway]]:
    """Both gateways in a mode, with the pair a1, b1 moved to isp2 of both sites."""
    with both(lab, MODES[mode]) as (alpha, beta):
        established(lab, alpha, beta)
        faults.cut(lab, "alpha.isp1")
        faults.cut(lab, "beta.isp1")
        rehomed(lab, alpha, ON_ISP2[mode])
        eventually(lambda: ping(lab, "a1", B1), deadline_s=10, what="answers again")
        for gateway, pair in ((alpha, (A1, B1)), (beta, (B1, A1))):
            context = gateway.context(*pair)
            assert context is not None and context["demux"] == mode
        yield alpha, beta


@contextmanager
def raw(lab: Lab) -> Iterator[tuple[socket.socket, socket.socket]]:
    """A socket on a1 that sends whole packets, and one on b1 that sees every IPv6 packet."""
    with inside(lab.namespace("a1")):
        sender = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_RAW)
    with inside(lab.namespace("b1")):
        receiver = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x86DD))
    receiver.settimeout(0.5)
    with sender, receiver:
        yield sender, receiver


def _crosses(sender: socket.socket, receiver: socket.socket, packet: bytes) -> bytes | None:
    """Send a packet, and return what arrives at b1 with its payload, if anything does."""
    sender.sendto(packet, (str(ipaddress.IPv6Address(packet[24:40])), 0))
    end_s = time.monotonic() + 3
    while time.monotonic() < end_s:
        try:
            got = receiver.recv(65_535)
        except TimeoutError:
            continue
        if got[40:] == packet[40:] and got[24:40] == packet[24:40]:
            return got
    return None


@pytest.mark.parametrize("mode", MODES)
def test_every_upper_layer_comes_out_at_the_other_host_as_sent(lab: Lab, mode: str) -> None:
    source, destination = address(A1), address(B1)
    with on_isp2(lab, mode), raw(lab) as (sender, receiver):
        for name, (protocol, octets) in upper_layers(source, destination).items():
            octets = octets if mode == "flowlabel" else octets[:1452]
            packet = build_packet(
                source,
                destination,
                protocol,
                octets,
                hop_limit=HOPS,
                traffic_class=TRAFFIC_CLASS,
                flow_label=HOST_LABEL,
            )
            arrived = _crosses(sender, receiver, packet)
            assert arrived is not None, name
            wanted = with_label(packet, 0 if mode == "flowlabel" else HOST_LABEL)
            assert arrived[:HOP_LIMIT_AT] == wanted[:HOP_LIMIT_AT], name
            assert arrived[HOP_LIMIT_AT] < HOPS
            assert arrived[HOP_LIMIT_AT + 1 :] == wanted[HOP_LIMIT_AT + 1 :], name


@pytest.mark.parametrize(
    ("mode", "fits"),
    [("exthdr", 1492), ("flowlabel", 1500), ("dstopt", 1492), ("identifier", 1500)],
)
def test_full_packets_pass_without_growth_and_are_refused_with_it(
    lab: Lab, mode: str, fits: int
) -> None:
    """A re-homed pair with flow labels needs nothing of the hosts: no Packet Too Big is sent."""
    with on_isp2(lab, mode) as (alpha, beta), raw(lab) as (sender, receiver):
        packet = build_packet(address(A1), address(B1), UNKNOWN, bytes(1500 - 40))
        if fits < 1500:
            assert _crosses(sender, receiver, packet) is None
            assert "TOO_BIG" in alpha.drops()
        else:
            assert _crosses(sender, receiver, packet) is not None
            assert "TOO_BIG" not in {**alpha.drops(), **beta.drops()}
        assert _crosses(sender, receiver, packet[:4] + (fits - 40).to_bytes(2) + packet[6:fits])
        for octets in (3000, 3700):
            eventually(
                partial(ping, lab, "a1", B1, "-s", str(octets)),
                deadline_s=6,
                what=f"a ping of {octets} octets, in fragments",
            )
        words = run_in(lab, "a1", "ip", "-6", "route", "get", B1).split()
        learned = int(words[words.index("mtu") + 1]) if "mtu" in words else 1500
        assert learned == fits

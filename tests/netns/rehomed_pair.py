"""A pair of hosts on the second providers of both sites, in each demux mode; packets by hand."""

from __future__ import annotations

import ipaddress
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager

from m6proxy.lab import faults
from m6proxy.lab.build import Lab
from m6proxy.lab.topology import ALPHA, BETA
from tests.harness.gateway import (
    A1,
    A1_ISP2,
    B1,
    B1_ISP2,
    EXTHDR,
    IN_KERNEL,
    QUICK,
    Gateway,
    established,
    ping,
    rehomed,
    running,
)
from tests.harness.netns import eventually
from tests.steering.namespaces import inside

MODES = {
    "exthdr": EXTHDR,
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


def bpf(mode: str = "exthdr") -> dict[str, str]:
    """The lab's configuration in a mode, with the fast path."""
    return {**MODES[mode], **IN_KERNEL}


@contextmanager
def on_isp2(
    lab: Lab, mode: str, *, fast: bool = False, environment: dict[str, str] | None = None
) -> Iterator[tuple[Gateway, Gateway]]:
    """Both gateways in a mode, with the pair a1, b1 moved to isp2 of both sites."""
    changes = bpf(mode) if fast else MODES[mode]
    with running(lab, ALPHA, BETA, changes=changes, environment=environment) as (alpha, beta):
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


def crosses(sender: socket.socket, receiver: socket.socket, packet: bytes) -> bytes | None:
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

"""Thousands of flows move again and again while packets of all of them are on their way.

Each packet is seen between the sites with the addresses and the header of before or with those
of afterwards, never with some of both, and none is lost. The maps are written as the daemon
does it, while a process of its own sends.
"""

from __future__ import annotations

import socket
import struct
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from m6proxy.dataplane.bpf.flowmaps import FlowMaps
from m6proxy.dataplane.bpf.layout import Counter
from m6proxy.lab.build import Lab
from m6proxy.lab.topology import ALPHA, BETA
from m6proxy.names import Address, LocatorPair, UlidPair, address
from m6proxy.shim.demux import DemuxMode
from m6proxy.shim.effects import InstallFlow, KernelEntry
from m6proxy.shim.forward import label_of
from m6proxy.wire.ipv6 import NEXT_UDP
from tests.harness.fastpath import fast
from tests.harness.gateway import B1, B1_ISP2, program
from tests.harness.netns import eventually
from tests.harness.netns import plain_lab as plain_lab
from tests.steering.namespaces import inside

pytestmark = pytest.mark.netns

FLOWS = 4096
PACKETS = 40_000
PER_S = 20_000
OURS, THEIRS = address(B1), address(B1_ISP2)
NUMBERS = {"isp1": 1, "isp2": 2}
SENDER = """
import socket, sys, time
flows, packets, per_s = map(int, sys.argv[1:4])
peer = socket.inet_pton(socket.AF_INET6, sys.argv[4])
prefix = socket.inet_pton(socket.AF_INET6, "2001:db8:a1:1:0:1::")[:14]
sender = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_RAW)
sender.connect((sys.argv[4], 0))
head = bytes.fromhex("60000000 0010 11 40")
start_s = time.monotonic()
for number in range(packets):
    source = prefix + (number % flows).to_bytes(2, "big")
    udp = bytes.fromhex("9c409c4000100001") + number.to_bytes(8, "big")
    sender.send(head + source + peer + udp)
    if number % 100 == 0:
        time.sleep(max(0, start_s + number / per_s - time.monotonic()))
"""
"""Its checksum is wrong, so that b1 is silent about a port where nobody listens."""
_STATISTICS = 6
_SO_RCVBUFFORCE = 33
_EVERY_PROTOCOL = 3
_SOL_PACKET = 263


def host(number: int, site: int) -> Address:
    """The address of one of alpha's hosts at a provider."""
    return address(f"2001:db8:a{site}:1:0:1::")[:14] + number.to_bytes(2)


def outbound(number: int, mode: DemuxMode, *, moved: bool) -> InstallFlow:
    """Alpha's flow."""
    local, other = host(number, 1), host(number, 2)
    addresses = other + THEIRS if moved else local + OURS
    entry = KernelEntry(
        slot=number,
        addresses=addresses,
        mode=mode,
        wanted=mode,
        label=number + 1,
        features=0,
        mtu=1500,
        uplink="isp2" if moved else "isp1",
        slow=False,
        watched=False,
        tags=((DemuxMode.EXTHDR, (1 << 40) + number),),
        untagged=(),
        local_locators=(local, other),
        peer_locators=(THEIRS, OURS) if moved else (OURS, THEIRS),
    )
    locators = LocatorPair(addresses[:16], addresses[16:])
    return InstallFlow(UlidPair(local, OURS), locators, number + 1, entry)


def inbound(number: int) -> InstallFlow:
    """Beta's, which takes alpha's packets however they come."""
    local, other = host(number, 1), host(number, 2)
    entry = KernelEntry(
        slot=number,
        addresses=OURS + local,
        mode=DemuxMode.EXTHDR,
        wanted=DemuxMode.EXTHDR,
        label=0,
        features=0,
        mtu=1500,
        uplink="isp1",
        slow=False,
        watched=False,
        tags=tuple((one, number + 1) for one in DemuxMode if one is not DemuxMode.IDENTIFIER),
        untagged=(other + THEIRS,),
        local_locators=(OURS, THEIRS),
        peer_locators=(local, other),
    )
    return InstallFlow(UlidPair(OURS, local), LocatorPair(OURS, local), (1 << 40) + number, entry)


@contextmanager
def seeing(lab: Lab, node: str, interface: str) -> Iterator[socket.socket]:
    """A socket that keeps all packets that an interface receives, before any program sees them."""
    with inside(lab.namespace(node)):
        seen = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0)
    seen.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 1 << 28)
    seen.bind((interface, _EVERY_PROTOCOL))
    with seen:
        seen.setblocking(False)
        yield seen


def taken(seen: socket.socket) -> dict[int, bytes]:
    """What came of the sender's packets, by their numbers; each of them once."""
    found: dict[int, bytes] = {}
    while True:
        try:
            packet, (_, _, kind, *_) = seen.recvfrom(2048)
        except BlockingIOError:
            break
        if kind == socket.PACKET_OUTGOING or b"\x9c\x40\x9c\x40" not in packet[40:52]:
            continue
        number = int.from_bytes(packet[-8:])
        assert number not in found, "one came twice"
        found[number] = packet
    _, lost = struct.unpack("=II", seen.getsockopt(_SOL_PACKET, _STATISTICS, 8))
    assert not lost, "the test did not see all"
    return found


def is_right(packet: bytes, number: int, mode: DemuxMode) -> str:
    """Which of the two ways a packet went; "" when it is neither."""
    flow = number % FLOWS
    addresses = packet[8:40]
    label = label_of(packet)
    if addresses == host(flow, 1) + OURS:
        return "before" if packet[6] == NEXT_UDP and not label else ""
    if addresses != host(flow, 2) + THEIRS:
        return ""
    if mode in (DemuxMode.FLOWLABEL, DemuxMode.IDENTIFIER):
        wanted = flow + 1 if mode is DemuxMode.FLOWLABEL else 0
        return "after" if packet[6] == NEXT_UDP and label == wanted else ""
    number_of_header = 140 if mode is DemuxMode.EXTHDR else 60
    tag = int.from_bytes(packet[44:48])
    return "after" if (packet[6], packet[40], tag) == (number_of_header, 17, flow + 1) else ""


def send(lab: Lab, packets: int, per_s: int) -> list[str]:
    """The words that start a sender on a1."""
    return [sys.executable, "-c", SENDER, str(FLOWS), str(packets), str(per_s), B1]


@pytest.mark.parametrize("mode", list(DemuxMode), ids=lambda mode: mode.name)
def test_no_packet_is_lost_or_mixed_while_all_flows_move(
    plain_lab: Lab, tmp_path: Path, mode: DemuxMode
) -> None:
    ways = [
        {one.ulids: one for one in (outbound(n, mode, moved=moved) for n in range(FLOWS))}
        for moved in (False, True)
    ]
    with ExitStack() as stack:
        alpha, beta = stack.enter_context(fast(plain_lab, ALPHA, BETA))
        kernel = FlowMaps(alpha.loaded.maps, NUMBERS)
        beta_flows = [inbound(n) for n in range(FLOWS)]
        FlowMaps(beta.loaded.maps, NUMBERS).apply({one.ulids: one for one in beta_flows})
        for way in ways:  # so that each router knows its neighbours
            kernel.apply(way)
            with seeing(plain_lab, "b1", "eth0") as first, \
                 program(plain_lab, "a1", *send(plain_lab, 20, 100)) as child:  # fmt: skip
                assert child.wait(30) == 0
                eventually(lambda: bool(taken(first)), deadline_s=5, what="a packet")
        wires = [stack.enter_context(seeing(plain_lab, "bgw", name)) for name in ("wan1", "wan2")]
        end = stack.enter_context(seeing(plain_lab, "b1", "eth0"))
        moves = 0
        output = tmp_path / "sender"
        words = send(plain_lab, PACKETS, PER_S)
        with program(plain_lab, "a1", *words, output=output) as child:
            while child.poll() is None:
                kernel.apply(ways[moves % 2])
                moves += 1
        assert child.returncode == 0, output.read_text()
        eventually(
            lambda: beta.count(Counter.RESTORED) == alpha.count(Counter.REWRITTEN),
            deadline_s=5,
            what="the last packet",
        )
        arrived = taken(end)
        seen = [taken(wire) for wire in wires]
        counts = alpha.counts()
    assert set(arrived) == set(range(PACKETS)), "one was lost"
    assert all(
        packet[8:40] == host(number % FLOWS, 1) + OURS and packet[6] == NEXT_UDP
        for number, packet in arrived.items()
    )
    assert sum(map(len, seen)) == PACKETS
    ways_seen = [{is_right(one, number, mode) for number, one in each.items()} for each in seen]
    assert ways_seen == [{"before"}, {"after"}]
    assert min(map(len, seen)) > PACKETS / 10 and moves > 10
    assert not [name for name in counts if name.startswith("DROP")], counts

"""The vectors of tests/equivalence on the wire: through a gateway's programs to the other side."""

from __future__ import annotations

from collections import Counter
from contextlib import suppress

import pytest

from m6proxy.lab.build import Lab
from m6proxy.lab.topology import ALPHA
from m6proxy.names import address
from tests.equivalence.kernel import write_flow
from tests.equivalence.test_vectors import MODES, reference, rehomed
from tests.equivalence.vectors import Vector, inbound, outbound
from tests.harness.fastpath import FastGateway, fast
from tests.harness.gateway import A1, Capture, link_sender, mac_of, ping, put_on_link
from tests.harness.netns import eventually
from tests.harness.netns import plain_lab as plain_lab
from tests.harness.pair import Pair

pytestmark = pytest.mark.netns

NUMBERS = {"isp1": 1, "isp2": 2}
HOP_LIMIT_AT = 7
KERNEL_REFUSES = ("jumbogram", "headers before the last", "all of them", "chain with")
"""What IPv6 forwarding itself does not pass, in the programs' opinion or not."""


def forwarded(packet: bytes) -> bytes:
    """The packet behind one router."""
    return packet[:HOP_LIMIT_AT] + bytes([packet[HOP_LIMIT_AT] - 1]) + packet[HOP_LIMIT_AT + 1 :]


def wanted(pair: Pair, vectors: list[Vector], *, is_outbound: bool) -> dict[str, bytes]:
    """What must arrive, by name: of the vectors that programs decide about and routers pass."""
    found = {}
    for vector in vectors:
        if not vector.is_fast or any(word in vector.name for word in KERNEL_REFUSES):
            continue
        verdict = reference(pair, vector.packet, is_outbound=is_outbound)
        packet = vector.packet if verdict is None else verdict
        assert isinstance(packet, bytes), vector.name
        rewritten = packet[8:24] == pair.alpha.context.route[:16]
        if rewritten if is_outbound else packet[24:40] == address(A1):
            found[vector.name] = forwarded(packet)
    return found


def fill(alpha: FastGateway, pair: Pair, bare: tuple[bytes, ...]) -> None:
    """Give the gateway of the lab the contexts of the engine."""
    assert pair.alpha.kernel is not None
    for flow in pair.alpha.kernel.flows.values():
        write_flow(alpha.loaded, flow, NUMBERS, bare)


@pytest.mark.parametrize("way", ["ordinary", "express"])
@pytest.mark.parametrize("direction", ["out", "in"])
@MODES
def test_what_comes_out_is_what_the_reference_says(
    plain_lab: Lab, mode: str, direction: str, way: str
) -> None:
    times = 1 if way == "ordinary" else 5
    pair, trials = rehomed(mode)
    is_outbound = direction == "out"
    vectors = list(outbound(pair.alpha.context) if is_outbound else inbound(pair))
    expected = wanted(pair, vectors, is_outbound=is_outbound)
    assert len(expected) > 10
    sender, link = ("a1", "eth0") if is_outbound else ("p2", "cust")
    receiver = ("p2", "cust") if is_outbound else ("a1", "eth0")
    mac = mac_of(plain_lab, "agw", "lan0" if is_outbound else "wan2")
    with (
        fast(plain_lab, ALPHA, with_auxiliary=False) as (alpha,),
        link_sender(plain_lab, sender, link) as sock,
        Capture(plain_lab, *receiver) as capture,
    ):
        fill(alpha, pair, trials.bare)
        alpha.configure(express_until_ns=0 if way == "ordinary" else 1 << 62)
        assert ping(plain_lab, "a1", ALPHA.lan_address)
        for vector in vectors:
            with suppress(OSError):  # longer than the link carries
                for _ in range(times):
                    put_on_link(sock, vector.packet, mac)

        def missing() -> list[str]:
            arrived = Counter(capture.packets())
            return [name for name, packet in expected.items() if arrived[packet] < times]

        with suppress(AssertionError):
            eventually(lambda: not missing(), deadline_s=5, what="all packets arrive")
        assert missing() == []
        counts = alpha.counts()
        assert not {name for name in counts if name.startswith("DROP")}
        assert counts.get("EXPRESS", 0) >= (times - 1) * 4

"""100,000 packets that nobody thought of: the programs do what the reference does, or nothing.

Each packet is a vector with some octets changed, mostly in its headers and mostly to values
that mean something. What a program leaves to Python counts only as far as it happens: enough
must be decided in the kernel, in each mode and direction.
"""

from __future__ import annotations

from random import Random

import pytest

from m6proxy.shim.forward import with_label
from tests.equivalence.judge import disagreement, is_whole, promised
from tests.equivalence.kernel import SLOW, KernelSite
from tests.equivalence.test_vectors import MODES, rehomed
from tests.equivalence.vectors import STRANGER, Vector, inbound, outbound
from tests.harness.pair import A1, A1_ISP2, A2, B1, B1_ISP2, Pair

pytestmark = pytest.mark.netns

PACKETS = 13_000
"""Of each mode in each direction; there are four modes."""
FAST_SHARE = 0.25
ADDRESSES = (A1, A1_ISP2, A2, B1, B1_ISP2, STRANGER)
NEXT_HEADERS = (0, 6, 17, 43, 44, 50, 51, 58, 59, 60, 140, 253)
OCTETS = (0, 1, 2, 4, 6, 17, 44, 58, 60, 64, 0x80, 0x9E, 140, 255)
LONGEST = 1600
HEAD = 56
"""Octets in which most changes happen."""


def mutated(random: Random, packet: bytes, labels: tuple[int, ...]) -> bytes:
    """One to four changes."""
    octets = bytearray(packet[:LONGEST])
    for _ in range(random.choice((0, 1, 1, 2, 4))):
        if len(octets) < 40:
            break
        match random.randrange(8):
            case 0:
                octets[6] = random.choice(NEXT_HEADERS)
            case 1:
                octets[8:24] = random.choice(ADDRESSES)
            case 2:
                octets[24:40] = random.choice(ADDRESSES)
            case 3:
                octets = bytearray(with_label(bytes(octets), random.choice(labels)))
            case 4:
                size = random.randrange(40, len(octets) + 1)
                del octets[size:]
                if random.randrange(2):
                    octets[4:6] = (size - 40).to_bytes(2)
            case 5:
                octets += bytes(random.randrange(16))
            case 6:
                at = random.randrange(min(HEAD, len(octets)))
                octets[at] = random.choice(OCTETS)
            case _:
                octets[random.randrange(len(octets))] = random.randrange(256)
    return bytes(octets)


def run(
    pair: Pair, kernel: KernelSite, vectors: list[Vector], *, is_outbound: bool, seed: int
) -> None:
    """Compare, and fail with the first packet that is not treated alike."""
    random, engine, context = Random(seed), pair.alpha.engine, pair.alpha.context
    packets = [each.packet for each in vectors if len(each.packet) >= 40]
    labels = tuple({0, 0x54321, context.label, context.peer_label})
    handle = engine.handle_outbound if is_outbound else engine.handle_inbound
    ask = kernel.outbound if is_outbound else kernel.inbound
    decided = 0
    for number in range(PACKETS):
        packet = mutated(random, random.choice(packets), labels)
        outcome = ask(packet)
        verdict = None
        if is_whole(packet):
            verdict = handle(packet[: promised(packet)], pair.clock.now)
            kernel.heed(engine.take_effects())
        decided += outcome is not SLOW
        wrong = disagreement(outcome, verdict, packet)
        assert wrong is None, f"packet {number} of seed {seed}: {packet.hex()}: {wrong}"
    assert decided > PACKETS * FAST_SHARE


@pytest.mark.parametrize("direction", ["out", "in"])
@MODES
def test_python_and_the_kernel_agree_on_any_packet(mode: str, direction: str) -> None:
    pair, kernel = rehomed(mode)
    is_outbound = direction == "out"
    vectors = list(outbound(pair.alpha.context) if is_outbound else inbound(pair))
    run(pair, kernel, vectors, is_outbound=is_outbound, seed=len(mode) * 2 + is_outbound)

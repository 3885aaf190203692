"""Each packet of the vectors through the reference and through the programs: the same octets."""

from __future__ import annotations

import pytest

from m6proxy.shim.demux import DemuxMode
from m6proxy.shim.verdict import Verdict
from tests.equivalence.judge import disagreement, is_whole, promised
from tests.equivalence.kernel import SLOW, KernelSite
from tests.equivalence.vectors import Vector, inbound, outbound
from tests.harness.pair import Pair, preagreed
from tests.shim.moved import moved

pytestmark = pytest.mark.netns

MODES = pytest.mark.parametrize("mode", ["exthdr", "flowlabel", "dstopt", "identifier"])


def rehomed(mode: str) -> tuple[Pair, KernelSite]:
    """Two gateways that left their first uplinks, and the programs of alpha's."""
    first = DemuxMode[mode.upper()]
    demux = (first,) if first is DemuxMode.EXTHDR else (first, DemuxMode.EXTHDR)
    if first is not DemuxMode.IDENTIFIER:
        pair = moved(demux=demux, kernel=True)
        return pair, KernelSite(pair.alpha)
    pair = moved(demux=demux, locator_map=preagreed, kernel=True)
    assert pair.alpha.context.demux == mode
    return pair, KernelSite(pair.alpha, [pair.alpha.context.last_in_pair])


def compare(pair: Pair, kernel: KernelSite, vector: Vector, *, is_outbound: bool) -> str | None:
    """Ask both; return what is wrong."""
    packet = vector.packet
    outcome = kernel.outbound(packet) if is_outbound else kernel.inbound(packet)
    verdict = reference(pair, packet, is_outbound=is_outbound) if is_whole(packet) else None
    if vector.is_fast and outcome is SLOW:
        return "the program left it to Python"
    return disagreement(outcome, verdict, packet)


def reference(pair: Pair, packet: bytes, *, is_outbound: bool) -> Verdict:
    """What the engine says of a packet that IPv6 itself lets in."""
    engine = pair.alpha.engine
    handle = engine.handle_outbound if is_outbound else engine.handle_inbound
    verdict = handle(packet[: promised(packet)], pair.clock.now)
    engine.take_effects()
    return verdict


@MODES
def test_what_a_host_sends(mode: str) -> None:
    pair, kernel = rehomed(mode)
    vectors = list(outbound(pair.alpha.context))
    wrong = {v.name: compare(pair, kernel, v, is_outbound=True) for v in vectors}
    assert not {name: why for name, why in wrong.items() if why}


@MODES
def test_what_an_uplink_brings(mode: str) -> None:
    pair, kernel = rehomed(mode)
    vectors = list(inbound(pair))
    wrong = {v.name: compare(pair, kernel, v, is_outbound=False) for v in vectors}
    assert not {name: why for name, why in wrong.items() if why}

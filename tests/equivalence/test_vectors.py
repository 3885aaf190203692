"""Each packet of the vectors through the reference and through the programs: the same octets."""

from __future__ import annotations

import pytest

from m6proxy.shim.demux import DemuxMode
from tests.equivalence.judge import disagreement, is_whole, promised
from tests.equivalence.kernel import SLOW, KernelSite
from tests.equivalence.vectors import Vector, inbound, outbound
from tests.harness.pair import Pair
from tests.shim.moved import moved

pytestmark = pytest.mark.netns

EXTHDR = (DemuxMode.EXTHDR,)
FLOWLABEL = (DemuxMode.FLOWLABEL, DemuxMode.EXTHDR)
DSTOPT = (DemuxMode.DSTOPT, DemuxMode.EXTHDR)
MODES = pytest.mark.parametrize(
    "demux", [EXTHDR, FLOWLABEL, DSTOPT], ids=["exthdr", "flowlabel", "dstopt"]
)


def compare(pair: Pair, kernel: KernelSite, vector: Vector, *, is_outbound: bool) -> str | None:
    """Ask both; return what is wrong."""
    packet, engine = vector.packet, pair.alpha.engine
    outcome = kernel.outbound(packet) if is_outbound else kernel.inbound(packet)
    verdict = None
    if is_whole(packet):
        handle = engine.handle_outbound if is_outbound else engine.handle_inbound
        verdict = handle(packet[: promised(packet)], pair.clock.now)
        engine.take_effects()
    if vector.is_fast and outcome is SLOW:
        return "the program left it to Python"
    return disagreement(outcome, verdict, packet)


@MODES
def test_what_a_host_sends(demux: tuple[DemuxMode, ...]) -> None:
    pair = moved(demux=demux, kernel=True)
    kernel = KernelSite(pair.alpha)
    vectors = list(outbound(pair.alpha.context))
    wrong = {v.name: compare(pair, kernel, v, is_outbound=True) for v in vectors}
    assert not {name: why for name, why in wrong.items() if why}


@MODES
def test_what_an_uplink_brings(demux: tuple[DemuxMode, ...]) -> None:
    pair = moved(demux=demux, kernel=True)
    kernel = KernelSite(pair.alpha)
    vectors = list(inbound(pair))
    wrong = {v.name: compare(pair, kernel, v, is_outbound=False) for v in vectors}
    assert not {name: why for name, why in wrong.items() if why}

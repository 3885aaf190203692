"""Trying a packet: the answer is the engine's, and the engine does not notice."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from m6proxy.reasons import Reason
from m6proxy.shim.context import Context
from m6proxy.shim.core import Core
from m6proxy.shim.demux import DemuxMode
from m6proxy.shim.effects import AskCapability
from m6proxy.shim.policy import EstablishPolicy
from m6proxy.shim.table import ContextTable
from m6proxy.wire.ipv6 import NEXT_UDP, build_packet
from tests.harness.packets import rewritten, udp
from tests.harness.pair import A1, A1_ISP2, A2, B1, B1_ISP2, Pair

MODES = [DemuxMode.EXTHDR, DemuxMode.FLOWLABEL, DemuxMode.DSTOPT]
UNSEEN = 2**40 + 7


def _moved(mode: DemuxMode) -> Pair:
    demux = (mode, DemuxMode.EXTHDR) if mode is not DemuxMode.EXTHDR else (mode,)
    pair = Pair(demux=demux)
    pair.establish()
    pair.cut_provider("a", 1)
    pair.cut_provider("b", 1)
    pair.stream(12.0, both=True)
    assert pair.alpha.context.route == A1_ISP2 + B1_ISP2
    return pair


def _state(core: Core) -> list[Any]:
    """Everything of a core that packets change, as plain values."""
    seen = (core.contexts, core.drops, core.rewritten, core.restored, len(core.effects))
    contexts = [
        {name: repr(getattr(context, name)) for name in Context.__slots__ if name != "forks"}
        for context in core.contexts
    ]
    sizes = [len(getattr(core.contexts, name)) for name in ContextTable.__slots__]
    return [copy.deepcopy(seen[1:]), contexts, sizes, len(core.accounts), core.timers]


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_the_answer_is_what_then_happens_and_nothing_changed_before(mode: DemuxMode) -> None:
    pair = _moved(mode)
    out = udp(A1, B1, b"from the host")
    for outbound, site in ((True, pair.alpha), (False, pair.beta)):
        engine, now = site.engine, pair.clock.now
        before = _state(engine._core)
        outcome = engine.try_packet(out, outbound=outbound, now=now)
        assert _state(engine._core) == before
        assert isinstance(outcome.verdict, bytes) and outcome.context is not None
        handle = engine.handle_outbound if outbound else engine.handle_inbound
        assert handle(out, now) == outcome.verdict
        out = outcome.verdict


def test_the_pair_that_would_ripen_does_not() -> None:
    pair = Pair(policy=EstablishPolicy(after_packets=1, after_octets=None, after_s=None))
    packet = udp(A1, B1, b"the first")
    for _ in range(3):
        outcome = pair.alpha.engine.try_packet(packet, outbound=True, now=0.0)
        assert outcome.verdict is None and outcome.context is None
        assert any(isinstance(effect, AskCapability) for effect in outcome.effects)
    assert not pair.alpha.engine.outbox and not list(pair.alpha.engine.contexts())


def test_an_unknown_tag_is_dropped_with_its_reason_and_not_counted() -> None:
    pair = Pair()
    packet = rewritten(B1_ISP2, A1_ISP2, UNSEEN, NEXT_UDP, bytes(20))
    outcome = pair.alpha.engine.try_packet(packet, outbound=False, now=0.0)
    assert outcome.verdict is Reason.NO_CONTEXT
    assert not pair.alpha.engine.drops and not pair.alpha.engine.outbox


def test_a_packet_has_a_header() -> None:
    with pytest.raises(ValueError, match="40 octets"):
        Pair().alpha.engine.try_packet(build_packet(A1, B1, 59, b"")[:39], outbound=True, now=0.0)


def _asks(pair: Pair, packet: bytes, *, outbound: bool = True) -> bool:
    now = pair.clock.now
    outcome = pair.alpha.engine.try_packet(packet, outbound=outbound, now=now)
    return any(isinstance(effect, AskCapability) for effect in outcome.effects)


def test_what_is_known_of_the_pair_its_uplink_and_its_peer_counts() -> None:
    """Two packets, one each way, make it ripe; a dead uplink the first one; a refusal none."""
    pair = Pair(policy=EstablishPolicy(after_packets=2, after_octets=None, after_s=None))
    engine, now = pair.alpha.engine, pair.clock.now
    there, back = udp(A1, B1, b"there"), udp(B1, A1, b"back")
    engine.handle_outbound(there, now)
    assert _asks(pair, back, outbound=False) and _asks(pair, there)
    assert not _asks(pair, udp(A2, B1, b"the first of another pair"))
    engine.handle_uplink("isp1", up=False, mtu=1500, now=now)
    engine.take_effects()
    assert _asks(pair, udp(A2, B1, b"its uplink is down"))
    engine._core.peers.refuse(B1, now + 60)
    assert not _asks(pair, there)

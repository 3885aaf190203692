"""The fake does with verdicts what the kernel does, with and without a daemon."""

from __future__ import annotations

from m6proxy.dataplane.memory import MemoryDataPlane
from m6proxy.dataplane.port import DataPlane
from m6proxy.names import LocatorPair, UlidPair
from m6proxy.reasons import Reason
from m6proxy.shim.effects import InstallFlow, RemoveFlow
from m6proxy.shim.verdict import CONSUMED, Verdict

PACKET = bytes([0x60, 0, 0, 0, 0, 0, 59, 64]) + bytes(range(16)) + bytes(range(16, 32))
SHIM = PACKET[:6] + b"\x8c" + PACKET[7:]
PAIR = UlidPair(PACKET[8:24], PACKET[24:40])
FLOW = InstallFlow(PAIR, LocatorPair(bytes(16), bytes(16)), 1)


def _opened(verdict: Verdict) -> MemoryDataPlane:
    plane = MemoryDataPlane()
    plane.open(outbound=lambda packet: verdict, inbound=lambda packet: verdict)
    return plane


def test_it_fits_the_port() -> None:
    plane: DataPlane = MemoryDataPlane()
    assert plane.losses() == {}


def test_accept_and_rewrite_deliver() -> None:
    assert _opened(None).inject_outbound(PACKET) == [PACKET]
    assert _opened(SHIM).inject_inbound(PACKET) == [SHIM]


def test_drop_is_counted_and_consumed_is_no_drop() -> None:
    plane = _opened(Reason.TOO_BIG)
    assert plane.inject_outbound(PACKET) == [] and plane.drops == {Reason.TOO_BIG: 1}
    plane = _opened(CONSUMED)
    assert plane.inject_inbound(SHIM) == [] and not plane.drops and plane.consumed == 1


def test_a_dead_daemon_lets_plain_packets_pass_and_nothing_else() -> None:
    plane = _opened(None)
    plane.apply_flows([FLOW])
    plane.close()
    assert plane.inject_outbound(PACKET) == [] and plane.inject_inbound(SHIM) == []
    assert plane.inject_inbound(PACKET) == [PACKET]
    plane.apply_flows([RemoveFlow(PAIR)])
    assert plane.inject_outbound(PACKET) == [PACKET]


def test_what_is_sent_is_written_down() -> None:
    plane = _opened(None)
    plane.send(SHIM)
    assert plane.sent == [SHIM]

"""Whatever arrives at either side of the gateway, the engine gives a verdict and goes on."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from hypothesis import given, settings
from hypothesis import strategies as st

from m6proxy.names import address
from m6proxy.reasons import Reason
from m6proxy.shim.demux import DemuxMode
from m6proxy.shim.engine import Engine
from m6proxy.shim.transitions import State
from m6proxy.shim.verdict import CONSUMED
from m6proxy.wire.checksum import checksum, icmpv6_checksum
from m6proxy.wire.ipv6 import NEXT_SHIM, build_packet
from m6proxy.wire.message import encode_message
from tests.harness.packets import is_control
from tests.harness.pair import A1, A1_ISP2, B1, B1_ISP2, Pair, nsquare
from tests.shim.moved import established, moved
from tests.wire.strategies import messages

ADDRESSES = [A1, A1_ISP2, B1, B1_ISP2, address("2001:db8:66::1"), bytes(16), b"\xff" * 16]
PROTOCOLS = [0, 6, 17, 43, 44, 50, 51, 58, 59, 60, 140, 253]
unhurried = settings(deadline=None, max_examples=200)


def both_away() -> Pair:
    """Each end waits for the other one, long enough that late packets may mean something."""
    pair = moved()
    for site in pair.sites.values():
        site.engine.park(3600.0, pair.clock.now)
        pair.settle(site)
    pair.run(10.0)
    return pair


@cache
def world(name: str) -> tuple[Pair, tuple[bytes, ...]]:
    """A pair in some state, and all packets that were ever on its wire."""
    if name == "new":
        return Pair(), ()
    if name == "half":
        pair = Pair()
        pair.lose = lambda packet: is_control(packet) and packet[42] == 4
        for _ in range(2):
            pair.talk(pair.alpha)
        pair.run(0.1)
        assert pair.alpha.context.state is State.I2_SENT
    else:
        labels = (DemuxMode.FLOWLABEL, DemuxMode.EXTHDR)
        options = (DemuxMode.DSTOPT, DemuxMode.EXTHDR)
        bare = (DemuxMode.IDENTIFIER, DemuxMode.EXTHDR)
        worlds: dict[str, Callable[[], Pair]] = {
            "established": established,
            "moved": moved,
            "labelled": lambda: moved(demux=labels),
            "optioned": lambda: moved(demux=options),
            "parked": both_away,
            "bare": lambda: moved(demux=bare, locator_map=nsquare),
        }
        pair = worlds[name]()
        pair.stream(2.0)
    return pair, tuple(dict.fromkeys(packet for _, packet in pair.wire))


WORLDS = st.sampled_from(
    ["new", "half", "established", "moved", "labelled", "optioned", "parked", "bare"]
)


def check(pair: Pair, packet: bytes) -> None:
    """Give a packet to both doors, let time pass, and look whether the engine still lives."""
    engine: Engine = pair.alpha.engine
    pair.clock.now += 0.01
    for handle in (engine.handle_inbound, engine.handle_outbound):
        verdict = handle(packet, pair.clock.now)
        assert verdict is None or verdict is CONSUMED or isinstance(verdict, bytes | Reason)
        engine.take_effects()
    engine.handle_timer(pair.clock.now)
    engine.take_effects()
    deadline_s = engine.next_deadline()
    assert deadline_s is None or deadline_s > pair.clock.now - 1e-9
    assert all(context.state is not State.IDLE for context in engine.contexts())


@unhurried
@given(WORLDS, st.binary(max_size=200))
def test_any_octets(name: str, packet: bytes) -> None:
    check(world(name)[0], packet)


@unhurried
@given(
    WORLDS,
    st.sampled_from(ADDRESSES),
    st.sampled_from(ADDRESSES),
    st.sampled_from(PROTOCOLS),
    st.binary(max_size=120),
)
def test_any_payload(
    name: str, source: bytes, destination: bytes, protocol: int, payload: bytes
) -> None:
    check(world(name)[0], build_packet(source, destination, protocol, payload))


@unhurried
@given(WORLDS, st.sampled_from(ADDRESSES), st.sampled_from(ADDRESSES), messages, st.data())
def test_any_message(
    name: str, source: bytes, destination: bytes, message: object, data: st.DataObject
) -> None:
    pair, _ = world(name)
    octets = bytearray(encode_message(message))  # type: ignore[arg-type]
    tags = [context.local_tag for context in pair.alpha.engine.contexts()]
    if tags and len(octets) >= 16 and data.draw(st.booleans()):
        octets[6:12] = data.draw(st.sampled_from(tags)).to_bytes(6)
        octets[4:6] = b"\0\0"
        octets[4:6] = checksum(bytes(octets[: 8 + 8 * octets[1]])).to_bytes(2)
    check(pair, build_packet(source, destination, NEXT_SHIM, bytes(octets)))


@unhurried
@given(WORLDS, st.data())
def test_mutants_of_what_was_on_the_wire(name: str, data: st.DataObject) -> None:
    pair, wire = world(name)
    if not wire:
        return
    packet = bytearray(data.draw(st.sampled_from(wire)))
    for _ in range(data.draw(st.integers(0, 3))):
        at = data.draw(st.integers(0, len(packet) - 1))
        packet[at] = data.draw(st.integers(0, 255))
    cut = data.draw(st.one_of(st.none(), st.integers(0, len(packet))))
    packet = packet[:cut]
    if len(packet) >= 48 and packet[6] == NEXT_SHIM and not packet[42] & 0x80:
        packet[44:46] = b"\0\0"
        packet[44:46] = checksum(bytes(packet[40 : 48 + 8 * packet[41]])).to_bytes(2)
    check(pair, bytes(packet))


@unhurried
@given(WORLDS, st.integers(0, 255), st.integers(0, 255), st.binary(max_size=60), st.data())
def test_errors_about_what_was_on_the_wire(
    name: str, kind: int, code: int, noise: bytes, data: st.DataObject
) -> None:
    pair, wire = world(name)
    quoted = data.draw(st.sampled_from(wire)) if wire else noise
    quoted = quoted[: data.draw(st.integers(0, len(quoted)))] + noise[:4]
    source, destination = ADDRESSES[4], data.draw(st.sampled_from([A1, A1_ISP2]))
    word = data.draw(st.integers(0, 0xFFFFFFFF)).to_bytes(4)
    body = bytes((kind, code, 0, 0)) + word + quoted
    right = icmpv6_checksum(source, destination, body).to_bytes(2)
    check(pair, build_packet(source, destination, 58, body[:2] + right + body[4:]))

"""Rewrite and restore: inverse of each other for every chain of headers, nothing else touched."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m6proxy.errors import MalformedMessage
from m6proxy.reasons import Reason
from m6proxy.shim import forward
from m6proxy.wire.dstopt import find_tag_option, option_tail
from m6proxy.wire.ipv6 import MAX_HEADERS, NEXT_SHIM, Walk, build_packet, find_shim, upper_layer
from tests.harness.packets import tcp
from tests.harness.pair import A1, A1_ISP2, B1, B1_ISP2

ULIDS = A1 + B1
LOCATORS = A1_ISP2 + B1_ISP2
TAIL = b"\x00\x80\x00\x12\x34\x56\x78"
BEFORE = (0, 43, 60)
ABOVE = (6, 17, 44, 50, 51, 58, 59, 89, 132, 140, 253)


def options_header(number: int, units: int, fill: bytes) -> bytes:
    body = (fill * (8 + 8 * units))[: 6 + 8 * units]
    return bytes((number, units)) + body


@st.composite
def packets(draw: st.DrawFn) -> bytes:
    """Packets with any chain of headers that may stand before the shim, and anything above."""
    chain = draw(st.lists(st.sampled_from(BEFORE), max_size=MAX_HEADERS - 1))
    above = draw(st.sampled_from(ABOVE))
    octets = b""
    for following in [*chain[1:], above] if chain else []:
        units = draw(st.integers(0, 3))
        octets += options_header(following, units, draw(st.binary(min_size=1, max_size=9)))
    octets += draw(st.binary(max_size=64))
    return build_packet(
        A1,
        B1,
        chain[0] if chain else above,
        octets,
        hop_limit=draw(st.integers(0, 255)),
        traffic_class=draw(st.integers(0, 255)),
        flow_label=draw(st.integers(0, 0xFFFFF)),
    )


def place_of(packet: bytes) -> Walk:
    place = find_shim(packet)
    assert place is not None
    return place


@settings(deadline=None, max_examples=500)
@given(packets())
def test_restore_is_the_inverse_of_rewrite(packet: bytes) -> None:
    rewritten = forward.rewrite(packet, LOCATORS, TAIL)
    assert len(rewritten) == len(packet) + forward.GROWTH_OCTETS
    assert int.from_bytes(rewritten[4:6]) == len(rewritten) - 40
    assert rewritten[8:40] == LOCATORS
    assert rewritten[:4] == packet[:4]
    assert rewritten[7] == packet[7]
    place = place_of(rewritten)
    assert rewritten[place.offset + 1 : place.offset + 8] == TAIL
    assert rewritten[place.offset + 8 :] == packet[place.offset :]
    assert forward.restore(rewritten, place, ULIDS) == packet


@settings(deadline=None, max_examples=300)
@given(packets())
def test_the_same_with_the_tag_as_an_option(packet: bytes) -> None:
    tail = option_tail(0x12345678)
    rewritten = forward.rewrite(packet, LOCATORS, tail, forward.OPTION)
    place = find_tag_option(rewritten)
    assert place is not None and rewritten[place.link] == 60
    assert rewritten[place.offset + 1 : place.offset + 8] == tail
    assert forward.restore(rewritten, place, ULIDS) == packet
    assert len(rewritten) == len(forward.rewrite(packet, LOCATORS, TAIL))


@settings(deadline=None, max_examples=500)
@given(packets(), st.integers(1, 0xFFFFF))
def test_unlabel_is_the_inverse_of_relabel_but_for_the_label(packet: bytes, label: int) -> None:
    relabelled = forward.relabel(packet, LOCATORS, label)
    assert forward.label_of(relabelled) == label
    assert relabelled[8:40] == LOCATORS
    assert forward.with_label(relabelled, 0)[:8] == forward.with_label(packet, 0)[:8]
    assert relabelled[40:] == packet[40:]
    assert forward.unlabel(relabelled, ULIDS) == forward.with_label(packet, 0)


def test_the_upper_layer_is_not_touched() -> None:
    packet = tcp(A1, B1, b"hello")
    rewritten = forward.rewrite(packet, LOCATORS, TAIL)
    assert rewritten[48:] == packet[40:]
    assert rewritten[40:48] == b"\x06" + TAIL
    assert upper_layer(rewritten) == (6, 48)


HBH = 0
ROUTING = 43
DESTINATION = 60


@pytest.mark.parametrize(
    ("chain", "shim_behind"),
    [
        ([], 0),
        ([HBH], 1),
        ([ROUTING], 1),
        ([DESTINATION], 0),
        ([HBH, DESTINATION], 1),
        ([HBH, DESTINATION, ROUTING], 3),
        ([DESTINATION, ROUTING, DESTINATION], 2),
        ([HBH, ROUTING, DESTINATION], 2),
    ],
)
@pytest.mark.parametrize("above", ABOVE)
def test_the_place_in_the_chain(chain: list[int], shim_behind: int, above: int) -> None:
    """RFC 5533 §4.6: behind what routers read, before everything that is end to end.

    A packet with destination options alone came out with its addresses twice and its first
    option header lost: its place is named by the fixed header, which was not thought of.
    """
    followers = [*chain[1:], above]
    octets = b"".join(options_header(n, 0, b"\x01\x04") for n in followers[: len(chain)])
    packet = build_packet(A1, B1, chain[0] if chain else above, octets + b"upper")
    rewritten = forward.rewrite(packet, LOCATORS, TAIL)
    at = 40 + 8 * shim_behind
    assert rewritten[at + 1 : at + 8] == TAIL
    assert rewritten[at] == [*chain, above][shim_behind]
    assert forward.restore(rewritten, place_of(rewritten), ULIDS) == packet


def test_what_does_not_fit_the_length_field() -> None:
    largest = build_packet(A1, B1, 17, bytes(0xFFFF - 8))
    assert len(forward.rewrite(largest, LOCATORS, TAIL)) == 40 + 0xFFFF
    for octets in (0xFFFF - 7, 0xFFFF):
        with pytest.raises(MalformedMessage) as caught:
            forward.rewrite(build_packet(A1, B1, 17, bytes(octets)), LOCATORS, TAIL)
        assert caught.value.reason is Reason.TOO_BIG


@pytest.mark.parametrize(
    ("packet", "reason"),
    [
        (build_packet(A1, B1, 60, b"\x06"), Reason.TRUNCATED),
        (build_packet(A1, B1, 60, b"\x06\xff" + bytes(14)), Reason.TRUNCATED),
        (build_packet(A1, B1, 0, b"\x3c\x00" + bytes(6)) + b"more", Reason.BAD_LENGTH),
        (build_packet(A1, B1, 60, (b"\x3c\x00" + bytes(6)) * 20), Reason.TOO_MANY_HEADERS),
    ],
)
def test_a_chain_without_a_place(packet: bytes, reason: Reason) -> None:
    with pytest.raises(MalformedMessage) as caught:
        forward.rewrite(packet, LOCATORS, TAIL)
    assert caught.value.reason is reason


@pytest.mark.parametrize("octets", range(8))
def test_a_length_below_the_header_is_refused(octets: int) -> None:
    packet = build_packet(A1_ISP2, B1_ISP2, NEXT_SHIM, b"\x11" + TAIL)
    packet = packet[:4] + octets.to_bytes(2) + packet[6:]
    with pytest.raises(MalformedMessage) as caught:
        forward.restore(packet, Walk(6, 40, NEXT_SHIM), ULIDS)
    assert caught.value.reason is Reason.BAD_LENGTH

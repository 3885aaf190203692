"""Header walks: where the shim header goes, where it is, what the upper layer is."""

from __future__ import annotations

import pytest

from m6proxy.errors import MalformedMessage
from m6proxy.names import address
from m6proxy.reasons import Reason
from m6proxy.wire.ipv6 import (
    HEADER_OCTETS,
    MAX_HEADERS,
    NEXT_AH,
    NEXT_DESTINATION,
    NEXT_ESP,
    NEXT_FRAGMENT,
    NEXT_HOP_BY_HOP,
    NEXT_ICMPV6,
    NEXT_NONE,
    NEXT_ROUTING,
    NEXT_SHIM,
    NEXT_TCP,
    NEXT_UDP,
    Walk,
    build_packet,
    find_shim,
    upper_layer,
    walk,
)
from m6proxy.wire.payload import is_payload, parse_payload_header, payload_header
from tests.vectors import load_vectors

PACKETS = load_vectors("packets.txt")
SRC, DST = address("2001:db8:a1::10"), address("2001:db8:b1::20")


def chain(*numbers: int, units: int = 0) -> bytes:
    """A packet with these headers; each extension header has 8 + 8 * ``units`` octets."""
    extensions = {NEXT_HOP_BY_HOP, NEXT_ROUTING, NEXT_DESTINATION, NEXT_SHIM}
    payload = b""
    for number, following in zip(numbers, [*numbers[1:], NEXT_NONE], strict=True):
        if number in extensions:
            flags = 0x80 if number == NEXT_SHIM else 0
            length = 0 if number == NEXT_SHIM else units
            payload += bytes((following, length, flags)) + bytes(5 + 8 * length)
        elif number == NEXT_FRAGMENT:
            payload += bytes((following,)) + bytes(7)
        elif number == NEXT_AH:
            payload += bytes((following, 4)) + bytes(22)
        else:
            payload += bytes(20)
    return build_packet(SRC, DST, numbers[0], payload)


def refused(packet: bytes) -> Reason:
    with pytest.raises(MalformedMessage) as from_walk:
        walk(packet)
    with pytest.raises(MalformedMessage) as from_find:
        find_shim(packet)
    assert from_walk.value.reason is from_find.value.reason
    return from_walk.value.reason


def test_vectors() -> None:
    plain, shimmed = PACKETS["plain udp"], PACKETS["payload header"]
    assert walk(plain) == Walk(6, 40, NEXT_UDP)
    assert find_shim(plain) is None
    assert upper_layer(plain) == (NEXT_UDP, 40)
    assert walk(shimmed) == find_shim(shimmed) == Walk(6, 40, NEXT_SHIM)
    assert upper_layer(shimmed) == (NEXT_UDP, 48)
    assert parse_payload_header(shimmed[40:]) == (NEXT_UDP, 0x123456789ABC)
    assert shimmed[40:48] == payload_header(NEXT_UDP, 0x123456789ABC)
    full = PACKETS["all before and after"]
    assert walk(full) == find_shim(full) == Walk(64, 72, NEXT_SHIM)
    assert upper_layer(full) == (NEXT_TCP, 96)


def test_build_packet_gives_the_vector() -> None:
    vector = PACKETS["plain udp"]
    assert vector == build_packet(
        SRC,
        DST,
        NEXT_UDP,
        vector[40:],
        hop_limit=63,
        traffic_class=0x0A,
        flow_label=0x12345,
    )


@pytest.mark.parametrize(
    "change",
    [
        {"src": b""},
        {"dst": bytes(17)},
        {"payload": bytes(65536)},
        {"hop_limit": 256},
        {"traffic_class": 256},
        {"flow_label": 1 << 20},
        {"next_header": -1},
    ],
)
def test_build_packet_refuses(change: dict[str, object]) -> None:
    arguments = {"src": SRC, "dst": DST, "next_header": NEXT_UDP, "payload": b""} | change
    with pytest.raises(ValueError, match=r"."):
        build_packet(**arguments)  # type: ignore[arg-type]


# RFC 5533 §11.1: skip hop-by-hop, routing, destination options that a routing header follows.
@pytest.mark.parametrize(
    ("numbers", "place"),
    [
        ((NEXT_TCP,), Walk(6, 40, NEXT_TCP)),
        ((NEXT_HOP_BY_HOP, NEXT_TCP), Walk(40, 48, NEXT_TCP)),
        ((NEXT_ROUTING, NEXT_TCP), Walk(40, 48, NEXT_TCP)),
        ((NEXT_DESTINATION, NEXT_TCP), Walk(6, 40, NEXT_DESTINATION)),
        ((NEXT_DESTINATION, NEXT_ROUTING, NEXT_TCP), Walk(48, 56, NEXT_TCP)),
        ((NEXT_DESTINATION, NEXT_DESTINATION, NEXT_ROUTING, NEXT_TCP), Walk(56, 64, NEXT_TCP)),
        ((NEXT_HOP_BY_HOP, NEXT_DESTINATION, NEXT_TCP), Walk(40, 48, NEXT_DESTINATION)),
        (
            (NEXT_HOP_BY_HOP, NEXT_DESTINATION, NEXT_ROUTING, NEXT_DESTINATION, NEXT_TCP),
            Walk(56, 64, NEXT_DESTINATION),
        ),
        ((NEXT_FRAGMENT, NEXT_TCP), Walk(6, 40, NEXT_FRAGMENT)),
        ((NEXT_ROUTING, NEXT_FRAGMENT, NEXT_DESTINATION), Walk(40, 48, NEXT_FRAGMENT)),
        ((NEXT_AH, NEXT_TCP), Walk(6, 40, NEXT_AH)),
        ((NEXT_ESP,), Walk(6, 40, NEXT_ESP)),
        ((NEXT_HOP_BY_HOP, NEXT_ICMPV6), Walk(40, 48, NEXT_ICMPV6)),
        ((NEXT_HOP_BY_HOP, NEXT_SHIM, NEXT_TCP), Walk(40, 48, NEXT_SHIM)),
    ],
)
def test_place_of_the_shim_header(numbers: tuple[int, ...], place: Walk) -> None:
    assert walk(chain(*numbers)) == place


@pytest.mark.parametrize(
    ("numbers", "place"),
    [
        ((NEXT_SHIM,), Walk(6, 40, NEXT_SHIM)),
        ((NEXT_HOP_BY_HOP, NEXT_SHIM, NEXT_TCP), Walk(40, 48, NEXT_SHIM)),
        ((NEXT_DESTINATION, NEXT_SHIM, NEXT_TCP), Walk(40, 48, NEXT_SHIM)),
        ((NEXT_DESTINATION, NEXT_ROUTING, NEXT_SHIM), Walk(48, 56, NEXT_SHIM)),
        ((NEXT_DESTINATION, NEXT_TCP), None),
        ((NEXT_FRAGMENT, NEXT_SHIM), None),
        ((NEXT_AH, NEXT_SHIM), None),
        ((NEXT_ESP,), None),
        ((NEXT_HOP_BY_HOP, NEXT_UDP), None),
    ],
)
def test_find_shim(numbers: tuple[int, ...], place: Walk | None) -> None:
    assert find_shim(chain(*numbers)) == place


@pytest.mark.parametrize(
    ("numbers", "found"),
    [
        ((NEXT_TCP,), (NEXT_TCP, 40)),
        ((NEXT_HOP_BY_HOP, NEXT_DESTINATION, NEXT_ROUTING, NEXT_UDP), (NEXT_UDP, 64)),
        ((NEXT_SHIM, NEXT_FRAGMENT, NEXT_DESTINATION, NEXT_TCP), (NEXT_TCP, 64)),
        ((NEXT_AH, NEXT_TCP), (NEXT_TCP, 64)),
        ((NEXT_ESP,), (NEXT_ESP, 40)),
        ((NEXT_HOP_BY_HOP, 253), (253, 48)),
        ((NEXT_NONE,), (NEXT_NONE, 40)),
        ((NEXT_HOP_BY_HOP,), (NEXT_NONE, 48)),
    ],
)
def test_upper_layer(numbers: tuple[int, ...], found: tuple[int, int]) -> None:
    assert upper_layer(chain(*numbers)) == found


def test_a_control_message_is_an_upper_layer() -> None:
    packet = build_packet(SRC, DST, NEXT_SHIM, load_vectors("messages.txt")["i1"])
    assert upper_layer(packet) == (NEXT_SHIM, 40)
    assert not is_payload(packet, 40)
    assert not is_payload(packet, len(packet))


def test_only_the_first_fragment_has_an_upper_layer() -> None:
    whole = chain(NEXT_FRAGMENT, NEXT_TCP)
    for octets in (b"\x00\x08", b"\x00\x09", b"\x01\x00", b"\xff\xf8"):
        assert upper_layer(whole[:42] + octets + whole[44:]) is None
    assert upper_layer(whole[:42] + b"\x00\x01" + whole[44:]) == (NEXT_TCP, 48)


def test_the_length_of_each_header_is_honoured() -> None:
    packet = chain(NEXT_HOP_BY_HOP, NEXT_DESTINATION, NEXT_ROUTING, NEXT_SHIM, NEXT_TCP, units=2)
    assert walk(packet) == find_shim(packet) == Walk(88, 112, NEXT_SHIM)
    assert upper_layer(packet) == (NEXT_TCP, 120)


@pytest.mark.parametrize("number", [NEXT_HOP_BY_HOP, NEXT_DESTINATION, NEXT_ROUTING])
def test_a_header_past_the_end(number: int) -> None:
    for payload in (b"", b"\x06", b"\x06\x00" + bytes(5), b"\x06\x01" + bytes(13)):
        packet = build_packet(SRC, DST, number, payload)
        assert refused(packet) is Reason.TRUNCATED
        assert upper_layer(packet) is None


@pytest.mark.parametrize("number", [NEXT_FRAGMENT, NEXT_AH])
def test_upper_layer_of_a_cut_header(number: int) -> None:
    assert upper_layer(build_packet(SRC, DST, number, bytes(7))) is None


def test_upper_layer_behind_an_ah_that_runs_past_the_end() -> None:
    assert upper_layer(build_packet(SRC, DST, NEXT_AH, b"\x06\x04" + bytes(21))) is None


def test_a_cut_shim_header_is_not_found() -> None:
    packet = build_packet(SRC, DST, NEXT_SHIM, b"\x06\x00\x80" + bytes(4))
    with pytest.raises(MalformedMessage) as caught:
        find_shim(packet)
    assert caught.value.reason is Reason.TRUNCATED
    assert upper_layer(packet) is None


def test_what_is_no_ipv6_packet() -> None:
    packet = PACKETS["plain udp"]
    assert refused(packet[: HEADER_OCTETS - 1]) is Reason.TRUNCATED
    assert refused(b"") is Reason.TRUNCATED
    assert refused(b"\x45" + packet[1:]) is Reason.BAD_LENGTH
    assert refused(packet + b"\0") is Reason.BAD_LENGTH
    assert refused(packet[:-1]) is Reason.BAD_LENGTH
    assert upper_layer(b"\x45" + packet[1:]) is None
    assert upper_layer(packet[:39]) is None


def test_a_quoted_packet_may_be_cut() -> None:
    packet = PACKETS["payload header"]
    assert find_shim(packet[:48], whole=False) == Walk(6, 40, NEXT_SHIM)
    assert walk(packet[:44], whole=False) == Walk(6, 40, NEXT_SHIM)
    assert upper_layer(packet[:48]) == (NEXT_UDP, 48)
    with pytest.raises(MalformedMessage):
        find_shim(packet[:47], whole=False)


def test_the_count_of_headers_is_bounded() -> None:
    most = chain(*[NEXT_DESTINATION] * (MAX_HEADERS - 1), NEXT_ROUTING, NEXT_TCP)
    assert walk(most) == Walk(96, 104, NEXT_TCP)
    assert find_shim(most) is None
    assert upper_layer(most) == (NEXT_TCP, 104)
    more = chain(*[NEXT_DESTINATION] * MAX_HEADERS, NEXT_ROUTING, NEXT_TCP)
    assert refused(more) is Reason.TOO_MANY_HEADERS
    assert upper_layer(more) is None


def test_payload_header_refuses() -> None:
    for octets, reason in (
        (b"\x11\x00\x80" + bytes(4), Reason.TRUNCATED),
        (b"\x11\x00\x00" + bytes(5), Reason.BAD_FIELD),
        (b"\x11\x01\x80" + bytes(13), Reason.BAD_LENGTH),
    ):
        with pytest.raises(MalformedMessage) as caught:
            parse_payload_header(octets)
        assert caught.value.reason is reason
    for next_header, tag in ((256, 1), (-1, 1), (6, 1 << 47), (6, -1)):
        with pytest.raises(ValueError, match="47 bits"):
            payload_header(next_header, tag)

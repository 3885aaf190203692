"""The context tag in a destination option: its octets, and where it is found."""

from __future__ import annotations

import pytest

from m6proxy.errors import MalformedMessage
from m6proxy.reasons import Reason
from m6proxy.wire.dstopt import find_tag_option, option_tag, option_tail, short_tag
from m6proxy.wire.ipv6 import NEXT_DESTINATION, Walk, build_packet
from tests.vectors import load_vectors

PACKETS = load_vectors("packets.txt")
SRC = bytes.fromhex("20010db800a200000000000000000010")
DST = bytes.fromhex("20010db800b200000000000000000020")
TAG = 0x123456789ABC
HBH, ROUTING, FRAGMENT, AH, SHIM, UDP = 0, 43, 44, 51, 140, 17
PAD = bytes.fromhex("00010400000000")
OURS = option_tail(TAG)
LONGER = bytes.fromhex("019e0456789abc") + bytes.fromhex("0106000000000000")
OTHER_LENGTH = bytes.fromhex("009e0356789a00")
SECOND = bytes.fromhex("0000009e020000")


def test_the_vector() -> None:
    packet = PACKETS["tag option"]
    place = find_tag_option(packet)
    assert place == Walk(6, 40, NEXT_DESTINATION)
    assert option_tag(packet, 40) == short_tag(TAG) == 0x56789ABC
    assert packet[41:48] == OURS


def chain(*headers: tuple[int, bytes]) -> bytes:
    """A packet with these extension headers, each a number and all octets but its first."""
    numbers = [*(number for number, _ in headers), UDP]
    octets = b"".join(
        bytes([after]) + rest for after, (_, rest) in zip(numbers[1:], headers, strict=True)
    )
    return build_packet(SRC, DST, numbers[0], octets + bytes(8))


@pytest.mark.parametrize(
    ("headers", "offset"),
    [
        ([(60, OURS)], 40),
        ([(60, PAD), (60, OURS)], 48),
        ([(HBH, PAD), (60, OURS), (ROUTING, PAD)], 48),
        ([(60, OURS), (SHIM, OURS)], 40),
        ([(60, OURS), (60, OURS)], 40),
        ([(60, PAD)], None),
        ([(60, LONGER)], None),
        ([(60, OTHER_LENGTH)], None),
        ([(60, SECOND)], None),
        ([(HBH, OURS)], None),
        ([(FRAGMENT, OURS), (60, OURS)], None),
        ([(SHIM, PAD), (60, OURS)], None),
        ([(AH, OURS), (60, OURS)], None),
        ([], None),
    ],
)
def test_where_it_is_found(headers: list[tuple[int, bytes]], offset: int | None) -> None:
    place = find_tag_option(chain(*headers))
    assert (place.offset if place is not None else None) == offset


def test_no_chain_is_followed_for_ever() -> None:
    with pytest.raises(MalformedMessage) as caught:
        find_tag_option(chain(*[(60, PAD)] * 12))
    assert caught.value.reason is Reason.TOO_MANY_HEADERS


@pytest.mark.parametrize("octets", [40, 41, 44, 47])
def test_a_quotation_that_ends_in_it(octets: int) -> None:
    with pytest.raises(MalformedMessage) as caught:
        find_tag_option(PACKETS["tag option"][:octets], whole=False)
    assert caught.value.reason is Reason.TRUNCATED

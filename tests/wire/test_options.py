"""What the options refuse."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from m6proxy.errors import MalformedMessage
from m6proxy.reasons import Reason
from m6proxy.wire.options import (
    ForkedInstance,
    KeepaliveTimeout,
    LocatorList,
    LocatorPreferences,
    Preference,
    ResponderValidator,
    SenderName,
    UlidPairOption,
    UnknownOption,
    encode_options,
    parse_options,
)


def option(number: int, contents: bytes, critical: bool = False) -> bytes:
    return encode_options([UnknownOption(number, critical, contents)])


def refusal(octets: bytes) -> tuple[Reason, int]:
    with pytest.raises(MalformedMessage) as caught:
        parse_options(octets)
    return caught.value.reason, caught.value.pointer


@pytest.mark.parametrize(
    ("number", "contents"),
    [
        (2, ""),
        (2, "00000001"),
        (2, "00000001 00 000000000000"),  # 6 octets of inner padding instead of 7
        (2, "00000001 01 c9" + "00" * 6 + "00" * 15),  # the locator is cut
        (2, "00000001 01 c9" + "00" * 6 + "00" * 17),
        (2, "00000001 02 c9 c9" + "00" * 5 + "00" * 16),  # two promised, one there
        (2, "00000001 ff"),
        (3, ""),
        (3, "00000001"),
        (3, "00000001 00"),  # elements of no octets
        (3, "00000001 00 01"),
        (3, "00000001 02 00"),
        (3, "00000001 03 00 01 02 03"),
        (3, "00000001 01" + "00" * 256),  # a list has at most 255 locators
        (6, "00" * 35),
        (6, "00" * 37),
        (6, ""),
        (7, "000000"),
        (7, "0000000000"),
        (10, "0003"),
        (10, ""),
        (0x4001, ""),
        (0x4001, "00"),  # the root is no host's name
        (0x4001, "026131"),  # no end
        (0x4001, "0261310000"),  # octets behind the end
        (0x4001, "036131"),  # the label is cut
        (0x4001, "0361310000"),  # a zero in a label
        (0x4001, "02413100"),  # upper case
        (0x4001, "03612e6200"),  # a dot in a label
        (0x4001, "02c3a900"),  # not ASCII
        (0x4001, "c00c00"),  # compression
        (0x4001, "40" + "61" * 64 + "00"),  # a label of 64 octets
        (0x4001, ("3f" + "61" * 63) * 4 + "00"),  # 255 octets of text
    ],
)
def test_contents_that_do_not_parse(number: int, contents: str) -> None:
    first = option(499, b"")
    octets = first + option(number, bytes.fromhex(contents))
    assert refusal(octets) == (Reason.BAD_OPTION, len(first))


@pytest.mark.parametrize("cut", range(1, 8))
def test_options_that_end_early(cut: int) -> None:
    octets = option(7, bytes(4))[:-cut]
    reason, _ = refusal(octets)
    assert reason is Reason.BAD_LENGTH


def test_a_critical_unknown_option_is_pointed_at() -> None:
    octets = option(7, bytes(4)) + option(499, b"abc", critical=True)
    assert refusal(octets) == (Reason.CRITICAL_OPTION, 8)


def test_a_range_of_octets_is_parsed_in_place() -> None:
    octets = b"\xff" * 16 + option(7, bytes(4)) + b"\xff" * 8
    assert parse_options(octets, 16, 24) == (ForkedInstance(0),)


def test_the_longest_name() -> None:
    name = ".".join(["a" * 63] * 3 + ["b" * 61])
    assert len(name) == 253
    assert parse_options(encode_options([SenderName(name)])) == (SenderName(name),)


@pytest.mark.parametrize("length", range(40))
def test_total_length_is_that_of_the_formula(length: int) -> None:
    octets = encode_options([ResponderValidator(bytes(length))])
    assert len(octets) == 11 + length - (length + 3) % 8  # RFC 5533 §5.15


@pytest.mark.parametrize(
    "build",
    [
        lambda: LocatorList(1 << 32, (), ()),
        lambda: LocatorList(0, (1,), ()),
        lambda: LocatorList(0, (256,), (bytes(16),)),
        lambda: LocatorList(0, (-1,), (bytes(16),)),
        lambda: LocatorList(0, (1,), (bytes(4),)),
        lambda: LocatorList(0, (1,) * 256, (bytes(16),) * 256),
        lambda: Preference(256),
        lambda: Preference(0, -1),
        lambda: Preference(0, 0, 256),
        lambda: LocatorPreferences(0, 0, ()),
        lambda: LocatorPreferences(0, 256, ()),
        lambda: LocatorPreferences(-1, 1, ()),
        lambda: LocatorPreferences(0, 1, (Preference(0, 1),)),
        lambda: LocatorPreferences(0, 2, (Preference(0, 1, 1),)),
        lambda: LocatorPreferences(0, 3, (Preference(0, 1, 1, b"x"),)),
        lambda: LocatorPreferences(0, 4, (Preference(0, 1, 1),)),
        lambda: UlidPairOption(bytes(16), bytes(15)),
        lambda: ForkedInstance(1 << 32),
        lambda: KeepaliveTimeout(1 << 16),
        lambda: SenderName(""),
        lambda: SenderName("a."),
        lambda: SenderName("A"),
        lambda: SenderName("a..b"),
        lambda: SenderName("a b"),
        lambda: SenderName("é"),
        lambda: SenderName("a" * 64),
        lambda: SenderName(".".join(["a" * 63] * 4)),
        lambda: ResponderValidator(bytes(1 << 16)),
        lambda: UnknownOption(1 << 15, False, b""),
    ],
)
def test_an_invalid_option_cannot_exist(build: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match=r"."):
        build()

"""The checksum against the sum as RFC 1071 writes it, and against a real ICMPv6 message."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m6proxy.names import address
from m6proxy.wire.checksum import checksum, icmpv6_checksum


def summed(octets: bytes) -> int:
    """RFC 1071 §4.1, word by word."""
    octets += bytes(len(octets) % 2)
    total = 0
    for at in range(0, len(octets), 2):
        total += octets[at] << 8 | octets[at + 1]
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


@settings(deadline=None)
@given(st.binary(max_size=200) | st.binary(max_size=8).map(lambda b: b * 150))
def test_same_as_the_plain_sum(octets: bytes) -> None:
    assert checksum(octets) == summed(octets)


@pytest.mark.parametrize(
    ("octets", "expected"),
    [
        ("", 0xFFFF),
        ("0000", 0xFFFF),
        ("ffff", 0x0000),
        ("00000000ffffffff", 0x0000),
        ("0001f203f4f5f6f7", 0x220D),  # RFC 1071 §3: the sum is ddf2
        ("0001f203f4f5f6f701", 0x210D),
    ],
)
def test_known_sums(octets: str, expected: int) -> None:
    assert checksum(bytes.fromhex(octets)) == expected


@settings(deadline=None)
@given(st.binary(min_size=2, max_size=60).filter(lambda b: len(b) % 2 == 0))
def test_octets_with_their_checksum_sum_to_zero(octets: bytes) -> None:
    assert checksum(octets + checksum(octets).to_bytes(2)) == 0


def test_icmpv6() -> None:
    # An echo request fe80::1 -> fe80::2, identifier 1, sequence 1, no data. The words:
    # fe80+1 + fe80+2 + 8 + 3a + 8000 + 1 + 1 = 27d47, folded 7d49, complement 82b6.
    src, dst = address("fe80::1"), address("fe80::2")
    message = bytes.fromhex("8000000000010001")
    assert icmpv6_checksum(src, dst, message) == 0x82B6
    assert icmpv6_checksum(src, dst, bytes.fromhex("800082b600010001")) == 0
    with pytest.raises(ValueError, match="16 octets"):
        icmpv6_checksum(src, b"", message)

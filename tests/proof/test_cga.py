"""CGA parameters against the example of RFC 3972, and against everything that is not one."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from m6proxy.errors import MalformedMessage
from m6proxy.names import address
from m6proxy.proof.cga import CgaParameters, Extension

EXAMPLE = bytes.fromhex(
    "89a8a8b2e858d8b8f2633f44d2d4ce9b"  # modifier, after one increment
    "fe80000000000000"  # subnet prefix
    "00"  # collision count
    "305c300d06092a864886f70d0101010500034b003048024100"  # SubjectPublicKeyInfo, RSA, 512 bits
    "c2c2f137305454f10bd9cea36844b530e9211a4b262b16467cb7dfba1f595c01"
    "94f275be5a4d386f2c3c2382508773c7867f9b3b9e63a09c7bc48f7a54ebefaf"
    "0203010001"
)
CGA = address("fe80::3c4a:5bf6:ffb4:ca6c")


def test_the_example_of_rfc_3972_appendix_a() -> None:
    parameters = CgaParameters.parse(EXAMPLE)
    assert parameters.encode() == EXAMPLE
    assert parameters.verify(CGA)


@pytest.mark.parametrize("bit", [*range(64), *range(72, 128)])
def test_any_other_address_fails(bit: int) -> None:
    # bits 64 to 66 are Sec; 70 and 71 the u and g bits: Sec has a test of its own
    other = (int.from_bytes(CGA) ^ 1 << 127 - bit).to_bytes(16)
    assert not CgaParameters.parse(EXAMPLE).verify(other)


@pytest.mark.parametrize("bit", [70, 71])
def test_u_and_g_bits_do_not_count(bit: int) -> None:
    other = (int.from_bytes(CGA) ^ 1 << 127 - bit).to_bytes(16)
    assert CgaParameters.parse(EXAMPLE).verify(other)


@pytest.mark.parametrize(
    ("sec", "fits"), [(0, True), (1, True), (2, False), (3, False), (7, False)]
)
def test_sec_asks_for_zeros_in_hash2(sec: int, fits: bool) -> None:
    identifier = int.from_bytes(CGA[8:]) & ~(7 << 61) | sec << 61
    assert CgaParameters.parse(EXAMPLE).verify(CGA[:8] + identifier.to_bytes(8)) is fits


def test_a_changed_modifier_or_collision_count_fails() -> None:
    parameters = CgaParameters.parse(EXAMPLE)
    assert not replace(parameters, modifier=bytes(16)).verify(CGA)
    assert not replace(parameters, collisions=3).verify(CGA)


@pytest.mark.parametrize("octets", [EXAMPLE[:cut] for cut in range(len(EXAMPLE))])
def test_cut_anywhere_is_malformed(octets: bytes) -> None:
    with pytest.raises(MalformedMessage):
        CgaParameters.parse(octets)


def test_extensions_are_kept_and_hashed() -> None:
    octets = EXAMPLE + Extension(0x0012, bytes(12)).encode() + Extension(9, b"").encode()
    parameters = CgaParameters.parse(octets)
    assert [e.number for e in parameters.extensions] == [0x0012, 9]
    assert parameters.encode() == octets
    assert not parameters.verify(CGA)


@given(st.binary(max_size=300))
def test_any_octets_parse_or_are_malformed(octets: bytes) -> None:
    try:
        parameters = CgaParameters.parse(octets)
    except MalformedMessage:
        return
    assert parameters.encode() == octets

"""Encode, then parse: the same value comes back, and the octets keep their rules."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from m6proxy.names import TAG_MASK
from m6proxy.wire.checksum import checksum
from m6proxy.wire.ipv6 import build_packet, find_shim, upper_layer, walk
from m6proxy.wire.message import Message, encode_message, parse_message
from m6proxy.wire.options import Option, encode_options, parse_options
from m6proxy.wire.payload import is_payload, parse_payload_header, payload_header
from tests.wire.strategies import addresses, messages, option_lists


@settings(deadline=None)
@given(option_lists)
def test_options(options: tuple[Option, ...]) -> None:
    octets = encode_options(options)
    assert len(octets) % 8 == 0
    assert parse_options(octets) == options


@settings(deadline=None)
@given(messages, st.binary(max_size=9))
def test_messages(message: Message, behind: bytes) -> None:
    octets = encode_message(message)
    assert octets[0] == 59
    assert len(octets) == 8 + 8 * octets[1]
    assert checksum(octets) == 0
    assert parse_message(octets + behind) == message


@settings(deadline=None)
@given(st.integers(0, 255), st.integers(0, TAG_MASK), st.binary(max_size=4))
def test_payload_headers(next_header: int, tag: int, behind: bytes) -> None:
    octets = payload_header(next_header, tag)
    assert is_payload(octets)
    assert parse_payload_header(octets + behind) == (next_header, tag)


@settings(deadline=None)
@given(addresses, addresses, st.sampled_from([6, 17, 58, 253]), st.binary(max_size=60))
def test_packets(src: bytes, dst: bytes, protocol: int, payload: bytes) -> None:
    packet = build_packet(src, dst, protocol, payload)
    assert packet[8:24] == src
    assert packet[24:40] == dst
    assert walk(packet) == (6, 40, protocol)
    assert find_shim(packet) is None
    assert upper_layer(packet) == (protocol, 40)


@given(messages)
def test_the_checksum_of_a_message_is_that_of_its_octets(message: Message) -> None:
    """It is computed from the two parts of a message before they are put together."""
    octets = encode_message(message)
    assert int.from_bytes(octets[4:6]) == checksum(octets[:4] + b"\0\0" + octets[6:])

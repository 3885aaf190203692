"""Whatever arrives gives a value that encodes again, or MalformedMessage."""

from __future__ import annotations

from hypothesis import example, given, settings
from hypothesis import strategies as st

from m6proxy.errors import MalformedMessage
from m6proxy.wire.checksum import checksum
from m6proxy.wire.ipv6 import HEADER_OCTETS, MAX_HEADERS, build_packet, find_shim, upper_layer, walk
from m6proxy.wire.message import MAX_MESSAGE_OCTETS, encode_message, parse_message
from m6proxy.wire.options import encode_options, parse_options
from m6proxy.wire.payload import is_payload, parse_payload_header
from tests.vectors import load_vectors
from tests.wire.strategies import messages

MESSAGES = list(load_vectors("messages.txt").values())
PACKETS = list(load_vectors("packets.txt").values())
TYPES = [0, 1, 2, 3, 4, 5, 6, 60, 61, 64, 65, 66, 67, 68, 127]

# The machine may be busy with other tests: no example has a deadline.
unhurried = settings(deadline=None, max_examples=300)


def sealed(octets: bytes) -> bytes:
    """Make octets look like a message as far as length, P, S and checksum go."""
    octets = octets[: 8 * min(256, len(octets) // 8)]
    head = bytes((59, len(octets) // 8 - 1, octets[2] & 0x7F, octets[3] & 0xFE))
    blank = head + b"\0\0" + octets[6:]
    return head + checksum(blank).to_bytes(2) + blank[6:]


def parse_or_refuse(octets: bytes) -> None:
    """Parse; when that gives a value, encode it and find the same value in the result."""
    try:
        message = parse_message(octets)
    except MalformedMessage as error:
        assert 0 <= error.pointer <= max(8, len(octets))
        return
    if 8 + 8 * octets[1] <= MAX_MESSAGE_OCTETS:
        assert parse_message(encode_message(message)) == message


@unhurried
@given(st.binary(max_size=300))
@example(b"")
def test_any_octets_as_a_message(octets: bytes) -> None:
    parse_or_refuse(octets)


@unhurried
@given(st.sampled_from(TYPES), st.binary(min_size=8, max_size=300))
def test_any_octets_with_a_right_checksum(number: int, octets: bytes) -> None:
    parse_or_refuse(sealed(octets[:2] + bytes((number,)) + octets[3:]))


@st.composite
def mutants(draw: st.DrawFn, valid: st.SearchStrategy[bytes]) -> bytes:
    """Valid octets with some overwritten, cut, doubled or inserted."""
    octets = bytearray(draw(valid))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, len(octets) - 1)))
        match draw(st.integers(0, 3)):
            case 0:
                octets[at : at + 1] = draw(st.binary(min_size=1, max_size=1))
            case 1:
                del octets[at : at + draw(st.integers(1, 16))]
            case 2:
                octets[at:at] = octets[at : at + draw(st.integers(1, 16))]
            case _:
                octets[at:at] = draw(st.binary(min_size=1, max_size=16))
    return bytes(octets)


@unhurried
@given(mutants(st.sampled_from(MESSAGES) | messages.map(encode_message)))
def test_mutated_messages(octets: bytes) -> None:
    parse_or_refuse(octets)
    if len(octets) >= 8:
        parse_or_refuse(sealed(octets))


@unhurried
@given(st.binary(max_size=200))
def test_any_octets_as_options(octets: bytes) -> None:
    try:
        options = parse_options(octets)
    except MalformedMessage as error:
        assert 0 <= error.pointer <= len(octets)
        return
    assert parse_options(encode_options(options)) == options


OPTION_NUMBERS = [1, 2, 3, 4, 5, 6, 7, 10, 0x4001]


@unhurried
@given(st.sampled_from(OPTION_NUMBERS), st.integers(0, 12), st.binary(max_size=150))
def test_any_octets_as_the_contents_of_an_option(number: int, small: int, tail: bytes) -> None:
    # A small octet where the counts stand makes contents that nearly fit.
    contents = tail[:4] + bytes((small,)) + tail[5:]
    octets = (number << 1).to_bytes(2) + len(contents).to_bytes(2) + contents
    octets += bytes(-len(octets) % 8)
    try:
        options = parse_options(octets)
    except MalformedMessage as error:
        assert error.pointer == 0
        return
    assert parse_options(encode_options(options)) == options


def _walk_everything(packet: bytes) -> None:
    found = upper_layer(packet)
    if found is not None:
        assert HEADER_OCTETS <= found[1] <= len(packet)
    for whole in (True, False):
        for search in (walk, find_shim):
            try:
                place = search(packet, whole=whole)
            except MalformedMessage as error:
                assert 0 <= error.pointer <= len(packet)
                continue
            if place is not None:
                assert place.link < place.offset <= len(packet)
                assert packet[place.link] == place.next_header
    if len(packet) >= HEADER_OCTETS:
        is_payload(packet, HEADER_OCTETS)


@unhurried
@given(st.binary(max_size=120) | mutants(st.sampled_from(PACKETS)))
def test_any_octets_as_a_packet(packet: bytes) -> None:
    _walk_everything(packet)


HEADERS = [0, 6, 17, 43, 44, 50, 51, 59, 60, 140]


@unhurried
@given(
    st.lists(
        st.tuples(st.sampled_from(HEADERS), st.integers(0, 2), st.binary(min_size=6, max_size=30)),
        max_size=MAX_HEADERS + 3,
    )
)
def test_any_chain_of_headers(headers: list[tuple[int, int, bytes]]) -> None:
    payload = b"".join(bytes((number, units)) + octets for number, units, octets in headers)
    _walk_everything(build_packet(bytes(16), bytes(16), headers[0][0] if headers else 60, payload))


@unhurried
@given(st.binary(max_size=20))
def test_any_octets_as_a_payload_header(octets: bytes) -> None:
    try:
        next_header, tag = parse_payload_header(octets)
    except MalformedMessage:
        return
    assert is_payload(octets)
    assert next_header == octets[0]
    assert tag < 1 << 47

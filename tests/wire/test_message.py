"""What the message codec refuses, where it points, and what it may not send."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from m6proxy.errors import MalformedMessage
from m6proxy.reasons import Reason
from m6proxy.wire.checksum import checksum
from m6proxy.wire.message import (
    I1,
    I2,
    MAX_MESSAGE_OCTETS,
    MAX_QUOTE_OCTETS,
    R1,
    R2,
    ErrorMessage,
    I2bis,
    Keepalive,
    Probe,
    ProbeRecord,
    ProbeState,
    UnknownMessage,
    UpdateAck,
    encode_message,
    find,
    parse_message,
)
from m6proxy.wire.options import (
    KeepaliveTimeout,
    LocatorList,
    ResponderValidator,
    UnknownOption,
    encode_options,
)
from tests.vectors import load_vectors

MESSAGES = load_vectors("messages.txt")
RECORD = ProbeRecord(bytes(16), bytes(16), 1)


def sealed(octets: bytes) -> bytes:
    """Put the right checksum into a message."""
    blank = octets[:4] + b"\0\0" + octets[6:]
    return blank[:4] + checksum(blank).to_bytes(2) + blank[6:]


def changed(octets: bytes, at: int, value: int) -> bytes:
    return sealed(octets[:at] + bytes((value,)) + octets[at + 1 :])


def with_options(octets: bytes, options: bytes) -> bytes:
    """Append octets of options to a message and correct its length and checksum."""
    return changed(octets + options, 1, (len(octets) + len(options)) // 8 - 1)


def refusal(octets: bytes) -> tuple[Reason, int]:
    with pytest.raises(MalformedMessage) as caught:
        parse_message(octets)
    return caught.value.reason, caught.value.pointer


@pytest.mark.parametrize("length", range(8))
def test_shorter_than_a_header(length: int) -> None:
    assert refusal(MESSAGES["i1"][:length]) == (Reason.TRUNCATED, length)


def test_payload_bit_and_hip_bit() -> None:
    assert refusal(changed(MESSAGES["i1"], 2, 0x81)) == (Reason.BAD_FIELD, 2)
    assert refusal(changed(MESSAGES["i1"], 3, 0x01)) == (Reason.BAD_FIELD, 3)


def test_the_header_may_not_end_past_the_packet() -> None:
    assert refusal(MESSAGES["i1"][:-1]) == (Reason.BAD_LENGTH, 1)
    assert refusal(changed(MESSAGES["i1"], 1, 2)) == (Reason.BAD_LENGTH, 1)


def test_octets_behind_the_header_are_not_the_message() -> None:
    # RFC 5533 §5.3: a payload behind the header is not part of the checksum.
    assert parse_message(MESSAGES["i1"] + b"\xff" * 11) == parse_message(MESSAGES["i1"])


@pytest.mark.parametrize("name", MESSAGES)
def test_each_flipped_bit_is_noticed(name: str) -> None:
    octets = MESSAGES[name]
    for bit in range(len(octets) * 8):
        mutant = bytearray(octets)
        mutant[bit // 8] ^= 1 << bit % 8
        with pytest.raises(MalformedMessage):
            parse_message(bytes(mutant))


@pytest.mark.parametrize(
    ("number", "least"),
    [
        (1, 16),
        (2, 16),
        (3, 24),
        (4, 16),
        (5, 16),
        (6, 32),
        (64, 16),
        (65, 16),
        (66, 16),
        (67, 56),
        (68, 16),
    ],
)
def test_least_length_of_each_type(number: int, least: int) -> None:
    for length in range(8, least, 8):
        octets = sealed(bytes((59, length // 8 - 1, number)) + bytes(length - 3))
        assert refusal(octets) == (Reason.BAD_LENGTH, 1)


def test_probe_counts_and_state() -> None:
    probe = MESSAGES["probe inbound ok"]
    assert refusal(changed(probe, 12, 0x10)) == (Reason.BAD_FIELD, 12)
    assert refusal(changed(probe, 13, 0xC0)) == (Reason.BAD_FIELD, 13)
    assert refusal(changed(probe, 12, 0x13)) == (Reason.BAD_LENGTH, 12)
    assert refusal(changed(probe, 12, 0xFF)) == (Reason.BAD_LENGTH, 12)


def test_inbound_ok_without_a_received_record_is_legal() -> None:
    # RFC 5534 §5.2 says MUST include one; §6.1 sends it when payload ended the silence.
    probe = Probe(1, ProbeState.INBOUND_OK, (RECORD,))
    assert parse_message(encode_message(probe)) == probe


@pytest.mark.parametrize("octets", [sealed(bytes.fromhex("3b01020000000000") + bytes(8))])
def test_r1_without_validator(octets: bytes) -> None:
    assert refusal(octets) == (Reason.MISSING_OPTION, 2)


def test_i2_without_validator() -> None:
    octets = sealed(bytes.fromhex("3b02030000000000") + bytes(16))
    assert refusal(octets) == (Reason.MISSING_OPTION, 2)


def test_unknown_options_go_by_the_critical_bit() -> None:
    ignored = encode_options([UnknownOption(499, False, b"x")])
    critical = encode_options([UnknownOption(499, True, b"x")])
    message = parse_message(with_options(MESSAGES["update ack"], ignored))
    assert isinstance(message, UpdateAck)
    assert message.options == (UnknownOption(499, False, b"x"),)
    octets = with_options(MESSAGES["update ack"], ignored + critical)
    assert refusal(octets) == (Reason.CRITICAL_OPTION, 16 + 8)


def test_options_out_of_place_go_by_the_critical_bit() -> None:
    # RFC 5533 §5.15: "or that is not listed as a valid option for the different message types".
    here = encode_options([KeepaliveTimeout(9)])
    message = parse_message(with_options(MESSAGES["keepalive"], here))
    assert message == Keepalive(0x43210FEDCBA9, (KeepaliveTimeout(9),))
    critical = bytes((here[0], here[1] | 1)) + here[2:]
    octets = with_options(MESSAGES["keepalive"], critical)
    assert refusal(octets) == (Reason.CRITICAL_OPTION, 16)


def test_a_listed_option_may_be_marked_critical() -> None:
    octets = with_options(MESSAGES["i1"], bytes.fromhex("000f000400000007"))
    message = parse_message(octets)
    assert isinstance(message, I1)
    assert len(message.options) == 1


def test_malformed_contents_out_of_place_are_ignored() -> None:
    message = parse_message(with_options(MESSAGES["keepalive"], bytes.fromhex("0014000299990000")))
    assert message == Keepalive(0x43210FEDCBA9, (UnknownOption(10, False, b"\x99\x99"),))
    octets = with_options(MESSAGES["i1"], bytes.fromhex("000e000299990000"))
    assert refusal(octets) == (Reason.BAD_OPTION, 16)


def test_options_must_use_up_the_message() -> None:
    octets = with_options(MESSAGES["i1"], bytes.fromhex("000e000500000000"))
    assert refusal(octets) == (Reason.BAD_LENGTH, 16 + 2)
    octets = with_options(MESSAGES["i1"], bytes.fromhex("000effff00000000"))
    assert refusal(octets) == (Reason.BAD_LENGTH, 16 + 2)


def test_a_message_never_makes_a_packet_of_more_than_1280_octets() -> None:
    locators = tuple(n.to_bytes(16) for n in range(71))
    fits = R2(1, 2, (LocatorList(1, (201,) * 71, locators),))
    assert len(encode_message(fits)) == MAX_MESSAGE_OCTETS - 8
    too_long = R2(1, 2, (LocatorList(1, (201,) * 75, (bytes(16),) * 75),))
    with pytest.raises(ValueError, match="at most 1240"):
        encode_message(too_long)


def test_longer_messages_of_others_are_read() -> None:
    options = encode_options([LocatorList(1, (1,) * 90, (bytes(16),) * 90)])
    message = parse_message(with_options(MESSAGES["r2"], options))
    assert isinstance(message, R2)
    assert len(message.options) == 4


@pytest.mark.parametrize(("quoted", "parsed"), [(0, 8), (1, 8), (8, 8), (9, 16), (1232, 1232)])
def test_quoted_packet_is_filled_up_with_zeros(quoted: int, parsed: int) -> None:
    packet = b"\x66" * quoted
    message = parse_message(encode_message(ErrorMessage(0, 2, packet)))
    assert message == ErrorMessage(0, 2, packet + bytes(parsed - quoted))


def test_quote_has_a_bound() -> None:
    encode_message(ErrorMessage(0, 0, bytes(MAX_QUOTE_OCTETS)))
    with pytest.raises(ValueError, match="at most"):
        encode_message(ErrorMessage(0, 0, bytes(MAX_QUOTE_OCTETS + 1)))


def test_find_gives_the_first_of_a_type() -> None:
    options = (ResponderValidator(b"a"), ResponderValidator(b"b"))
    assert find(options, ResponderValidator) == ResponderValidator(b"a")
    assert find(options, KeepaliveTimeout) is None


@pytest.mark.parametrize(
    "build",
    [
        lambda: I1(1 << 47, 0),
        lambda: I1(-1, 0),
        lambda: I1(0, 1 << 32),
        lambda: R1(0, 0, ()),
        lambda: I2(0, 0, 0, ()),
        lambda: I2bis(0, 0, 0, 1 << 47, ()),
        lambda: ProbeRecord(bytes(15), bytes(16), 0),
        lambda: ProbeRecord(bytes(16), bytes(16), 0, 1 << 32),
        lambda: Probe(0, ProbeState.EXPLORING, ()),
        lambda: Probe(0, ProbeState.EXPLORING, (RECORD,) * 16),
        lambda: Probe(0, ProbeState.EXPLORING, (RECORD,), (RECORD,) * 16),
        lambda: ErrorMessage(128, 0, b""),
        lambda: ErrorMessage(0, 1 << 16, b""),
        lambda: UnknownMessage(1, bytes(2)),
        lambda: UnknownMessage(128, bytes(2)),
        lambda: UnknownMessage(60, bytes(8)),
        lambda: UnknownMessage(60, bytes(2), 128),
    ],
)
def test_an_invalid_message_cannot_exist(build: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match=r"."):
        build()

"""Hand-made octets against values, in both directions."""

from __future__ import annotations

import pytest

from m6proxy.names import Prefix, address
from m6proxy.wire.message import (
    I1,
    I2,
    R1,
    R2,
    CapabilityReply,
    CapabilityRequest,
    Close,
    CloseAck,
    ErrorCode,
    ErrorMessage,
    I2bis,
    Keepalive,
    Message,
    Probe,
    ProbeRecord,
    ProbeState,
    R1bis,
    UnknownMessage,
    UpdateAck,
    UpdateRequest,
    encode_message,
    parse_message,
)
from m6proxy.wire.options import (
    BROKEN,
    METHOD_CGA,
    METHOD_DNS,
    METHOD_HBA,
    TRANSIENT,
    CgaParameters,
    CgaSignature,
    Demux,
    Features,
    ForkedInstance,
    KeepaliveTimeout,
    LocatorDelta,
    LocatorList,
    LocatorPreferences,
    Option,
    ParkTime,
    PayloadCount,
    Preference,
    ResponderValidator,
    Scope,
    SenderName,
    UlidPairOption,
    UnknownOption,
    encode_options,
    parse_options,
)
from tests.harness.hba import hba_set
from tests.vectors import load_vectors, parse_vectors

MESSAGES = load_vectors("messages.txt")
OPTIONS = load_vectors("options.txt")

A1, A2 = address("2001:db8:a1::10"), address("2001:db8:a2::10")
B1, B2 = address("2001:db8:b1::20"), address("2001:db8:b2::20")

HBA = hba_set([address(f"2001:db8:a{n}:1::")[:8] for n in (1, 2)])

CGA = MESSAGES["i2 with cga"]
"""Its address, key and signature are only carried: their octets are taken from their places."""

PROBED = ProbeRecord(A2, B1, 0x11223344)

MESSAGE_VALUES: dict[str, Message] = {
    "i1": I1(0x123456789ABC, 0xDEADBEEF),
    "i1 with options": I1(0x7FFFFFFFFFFF, 1, (UlidPairOption(A1, B1), ForkedInstance(42))),
    "r1": R1(0xDEADBEEF, 0xCAFEF00D, (ResponderValidator(bytes(range(20))),)),
    "i2": I2(
        0x123456789ABC,
        0xDEADBEEF,
        0xCAFEF00D,
        (
            ResponderValidator(bytes(range(20))),
            LocatorList(1, (METHOD_DNS, METHOD_DNS), (A1, A2)),
            LocatorPreferences(1, 3, (Preference(0, 1, 10), Preference(BROKEN, 2, 20))),
            SenderName("a1.alpha.example"),
            KeepaliveTimeout(3),
        ),
    ),
    "i2 with hba": I2(
        0x123456789ABC,
        0xDEADBEEF,
        0xCAFEF00D,
        (
            ResponderValidator(bytes.fromhex("f1f2f3f4")),
            LocatorList(5, (METHOD_HBA, METHOD_HBA), (HBA[0][0], HBA[1][0])),
            CgaParameters(HBA[0][1].encode()),
        ),
    ),
    "i2 with cga": I2(
        0x123456789ABC,
        0xDEADBEEF,
        0xCAFEF00D,
        (
            ResponderValidator(bytes.fromhex("f1f2f3f4")),
            LocatorList(5, (METHOD_CGA, METHOD_CGA), (CGA[48:64], CGA[64:80])),
            CgaParameters(CGA[84 : 84 + 187]),
            CgaSignature(CGA[276 : 276 + 128]),
        ),
    ),
    "r2": R2(
        1,
        0xDEADBEEF,
        (
            LocatorList(7, (METHOD_HBA,), (B2,)),
            CgaParameters(bytes.fromhex("a0a1a2a3a4a5a6a7a8")),
            CgaSignature(bytes.fromhex("b0b1b2b3b4b5b6b7")),
        ),
    ),
    "r1bis": R1bis(0x43210FEDCBA9, 0xCAFEF00D, (ResponderValidator(bytes.fromhex("f1f2f3f4")),)),
    "i2bis": I2bis(
        0x123456789ABC,
        0xDEADBEEF,
        0xCAFEF00D,
        0x43210FEDCBA9,
        (ResponderValidator(bytes.fromhex("f1f2f3f4")), UlidPairOption(A1, B1)),
    ),
    "update request": UpdateRequest(
        0x43210FEDCBA9,
        0x0BADCAFE,
        (LocatorPreferences(2, 1, (Preference(BROKEN), Preference(TRANSIENT))),),
    ),
    "update ack": UpdateAck(0x43210FEDCBA9, 0x0BADCAFE),
    "close": Close(0x43210FEDCBA9, 0x0BADCAFE, 0x123456789ABC),
    "close ack": CloseAck(0x123456789ABC, 0x0BADCAFE, 0x43210FEDCBA9),
    "keepalive": Keepalive(0x43210FEDCBA9),
    "probe exploring": Probe(0x43210FEDCBA9, ProbeState.EXPLORING, (PROBED,)),
    "probe inbound ok": Probe(
        0x123456789ABC,
        ProbeState.INBOUND_OK,
        (ProbeRecord(B1, A2, 0x55667788, 9), ProbeRecord(B2, A1, 0x55667789)),
        (PROBED,),
    ),
    "error": ErrorMessage(
        ErrorCode.CRITICAL_OPTION, 0x38, bytes.fromhex("6000000000188c4020010db800a10000")
    ),
    "capability request": CapabilityRequest(0xDEADBEEF, (Features(5),)),
    "capability reply": CapabilityReply(0xDEADBEEF),
    "unknown": UnknownMessage(124, bytes(range(1, 11)), 0x2A),
}

RECEIVED_ONLY: dict[str, Message] = {
    "keepalive with reserved bits": Keepalive(0x43210FEDCBA9),
    "r1 with reserved bits": R1(0xDEADBEEF, 0xCAFEF00D, (ResponderValidator(b"\xaa"),)),
    "i2bis with reserved bits": I2bis(0x123456789ABC, 0xDEADBEEF, 0xCAFEF00D, 0x43210FEDCBA9, ()),
    "close with reserved bits": Close(0x43210FEDCBA9, 0x0BADCAFE, 0x123456789ABC),
    "probe with reserved bits": Probe(0x43210FEDCBA9, ProbeState.OPERATIONAL, (PROBED,)),
}

OPTION_VALUES: dict[str, Option] = {
    "empty validator": ResponderValidator(b""),
    "validator": ResponderValidator(bytes((1, 2, 3, 4, 5))),
    "empty locator list": LocatorList(0xFFFFFFFF, (), ()),
    "locator list of three": LocatorList(
        258,
        (METHOD_HBA, METHOD_CGA, METHOD_DNS),
        tuple(address(f"2001:db8:a{n}::{n}") for n in (1, 2, 3)),
    ),
    "locator list of seven": LocatorList(
        1, (METHOD_HBA,) * 7, tuple(address(f"2001:db8:a1::{n}") for n in range(1, 8))
    ),
    "preferences of one octet": LocatorPreferences(1, 1, (Preference(BROKEN | TRANSIENT),)),
    "preferences of two octets": LocatorPreferences(
        1, 2, (Preference(0, 5), Preference(0x80, 255))
    ),
    "preferences of five octets": LocatorPreferences(
        1, 5, (Preference(TRANSIENT, 7, 9, b"\xab\xcd"),)
    ),
    "no preferences": LocatorPreferences(1, 3, ()),
    "cga parameters": CgaParameters(bytes.fromhex("a1a2a3")),
    "cga signature": CgaSignature(bytes.fromhex("b1b2b3b4")),
    "ulid pair": UlidPairOption(A1, B1),
    "forked instance": ForkedInstance(0x80000001),
    "keepalive timeout": KeepaliveTimeout(65535),
    "sender name": SenderName("_x1.a-b-c0"),
    "unknown": UnknownOption(499, False, b"\xbe\xef"),
    "features": Features(0x80000021),
    "locator delta": LocatorDelta(
        1, 0xFFFFFFFE, ((METHOD_DNS, Preference(BROKEN, 2, 3), A1),), (B1,)
    ),
    "demux by flow label": Demux(1, 0xABCDE),
    "demux by addresses alone": Demux(2, stand_in=address("2001:db8:a1:4001::10")),
    "demux by destination option": Demux(3),
    "scope": Scope(
        1,
        0xFFFFFFFE,
        ((Prefix.parse("2001:db8:a1::/48"), Preference(BROKEN, 2, 3)),),
        ((0x123456789ABC, 0x43210FEDCBA9), (0x7FFFFFFFFFFF, 1)),
    ),
    "park time": ParkTime(3 * 86_400),
    "payload count": PayloadCount(0xFFFFFFFE),
}

OPTIONS_RECEIVED_ONLY: dict[str, tuple[Option, ...]] = {
    "forked instance marked critical": (ForkedInstance(0x80000001),),
    "scope with reserved bits set": (Scope(1, 2, (), ((0x123456789ABC, 0x43210FEDCBA9),)),),
    "reserved bits set": (UlidPairOption(A1, B1), KeepaliveTimeout(3)),
}


@pytest.mark.parametrize("name", MESSAGES)
def test_message_is_parsed(name: str) -> None:
    assert parse_message(MESSAGES[name]) == {**MESSAGE_VALUES, **RECEIVED_ONLY}[name]


@pytest.mark.parametrize("name", MESSAGE_VALUES)
def test_message_is_encoded(name: str) -> None:
    assert encode_message(MESSAGE_VALUES[name]).hex() == MESSAGES[name].hex()


@pytest.mark.parametrize("name", OPTIONS)
def test_option_is_parsed(name: str) -> None:
    wanted = {n: (value,) for n, value in OPTION_VALUES.items()} | OPTIONS_RECEIVED_ONLY
    assert parse_options(OPTIONS[name]) == wanted[name]


@pytest.mark.parametrize("name", OPTION_VALUES)
def test_option_is_encoded(name: str) -> None:
    assert encode_options([OPTION_VALUES[name]]).hex() == OPTIONS[name].hex()


def test_all_options_in_one_list() -> None:
    octets = b"".join(OPTIONS[name] for name in OPTION_VALUES)
    assert parse_options(octets) == tuple(OPTION_VALUES.values())
    assert encode_options(OPTION_VALUES.values()) == octets


@pytest.mark.parametrize("text", ["01  # before a section", "[a]\n01\n[a]\n02", "[a]\nxyz"])
def test_a_bad_vector_file_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"section|hexadecimal"):
        parse_vectors(text)

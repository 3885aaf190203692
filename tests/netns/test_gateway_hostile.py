"""Forged and malformed packets from the middle of the network, and protocols nobody knows."""

from __future__ import annotations

import json
import random
import socket
import struct
from collections.abc import Callable
from functools import partial

import pytest

from m6proxy.lab import faults
from m6proxy.lab.build import Lab
from m6proxy.names import Address, address
from m6proxy.wire.ipv6 import NEXT_ESP, NEXT_SHIM, build_packet
from m6proxy.wire.message import (
    I2,
    R1,
    R2,
    ErrorCode,
    ErrorMessage,
    Keepalive,
    Message,
    Probe,
    ProbeRecord,
    ProbeState,
    R1bis,
    UnknownMessage,
    UpdateAck,
    encode_message,
)
from m6proxy.wire.options import ResponderValidator
from tests.harness.gateway import (
    A1,
    A1_ISP2,
    B1,
    B1_ISP2,
    C1,
    PLANES,
    Capture,
    Gateway,
    Json,
    both,
    established,
    ping,
    raw_socket,
    rehomed,
    send_raw,
)
from tests.harness.netns import eventually
from tests.harness.netns import lab as lab

pytestmark = pytest.mark.netns

HOST, PEER, STRANGER = address(A1), address(B1), address(C1)
NEXT_SCTP = 132
EXPERIMENT = 253
GUESS = 0x1234_5678_9ABC
VALIDATOR = (ResponderValidator(bytes(32)),)


def _message(message: Message, *, src: Address = PEER, dst: Address = HOST) -> bytes:
    return build_packet(src, dst, NEXT_SHIM, encode_message(message))


def _octets(octets: bytes, *, src: Address = PEER) -> bytes:
    return build_packet(src, HOST, NEXT_SHIM, octets)


def _spoilt(message: Message) -> bytes:
    octets = bytearray(encode_message(message))
    octets[4] ^= 0x55
    return _octets(bytes(octets))


def _payload(tag: int, *, src: Address = PEER) -> bytes:
    return _octets(struct.pack("!BB", 17, 0) + (1 << 47 | tag).to_bytes(6) + bytes(12), src=src)


def _probe() -> Probe:
    return Probe(GUESS, ProbeState.EXPLORING, (ProbeRecord(PEER, HOST, 1, 0),), ())


FORGERIES: dict[str, tuple[Callable[[Json], bytes], str]] = {
    "wrong checksum": (lambda _: _spoilt(Keepalive(GUESS)), "BAD_CHECKSUM"),
    "four octets": (lambda _: _octets(b"\x3b\0\x42\0"), "TRUNCATED"),
    "shorter than it says": (lambda _: _octets(b"\x3b\x10\x01\0" + bytes(12)), "BAD_LENGTH"),
    "unknown type": (lambda _: _message(UnknownMessage(99, bytes(10))), "UNKNOWN_TYPE"),
    "payload of no context": (lambda c: _payload(int(c["local_tag"], 16) ^ 1), "NO_CONTEXT"),
    "payload from elsewhere": (
        lambda c: _payload(int(c["local_tag"], 16), src=STRANGER),
        "WRONG_LOCATOR",
    ),
    "Keepalive of no context": (lambda _: _message(Keepalive(GUESS)), "NO_CONTEXT"),
    "Probe of no context": (lambda _: _message(_probe()), "NO_CONTEXT"),
    "Probe from elsewhere": (
        lambda c: _message(
            Probe(
                int(c["local_tag"], 16),
                ProbeState.EXPLORING,
                (ProbeRecord(STRANGER, HOST, 1, 0),),
                (),
            ),
            src=STRANGER,
        ),
        "NO_CONTEXT",
    ),
    "Probe that lies about itself": (
        lambda c: _message(
            Probe(
                int(c["local_tag"], 16), ProbeState.EXPLORING, (ProbeRecord(HOST, PEER, 1, 0),), ()
            )
        ),
        "BAD_FIELD",
    ),
    "R1 that nobody asked for": (lambda _: _message(R1(7, 8, VALIDATOR)), "WRONG_NONCE"),
    "R2 that nobody asked for": (lambda _: _message(R2(GUESS, 7)), "WRONG_NONCE"),
    "R1bis for no tag of ours": (lambda _: _message(R1bis(GUESS, 8, VALIDATOR)), "NO_CONTEXT"),
    "acknowledgement of nothing": (
        lambda c: _message(UpdateAck(int(c["local_tag"], 16), 77)),
        "WRONG_NONCE",
    ),
    "I2 with a made-up validator": (lambda _: _message(I2(GUESS, 7, 8, VALIDATOR)), "VALIDATOR"),
    "R1 without its validator": (
        lambda _: _octets(encode_message(R2(0, 7))[:2] + _resealed(R2(0, 7), 2)),
        "MISSING_OPTION",
    ),
    "error message": (
        lambda _: _message(ErrorMessage(ErrorCode.UNKNOWN_TYPE, 0, bytes(8))),
        "PEER_ERROR",
    ),
    "I1 from inside the site": (
        lambda _: _message(Keepalive(GUESS), src=address("2001:db8:a1:1::20")),
        "NO_CONTEXT",
    ),
}
"""What is sent, made from alpha's view of its context, and part of the reason that it counts by."""


def _resealed(message: Message, number: int) -> bytes:
    """The octets from the type on, with another type and a right checksum."""
    octets = bytearray(encode_message(message))
    octets[2] = number
    octets[4:6] = b"\0\0"
    total = sum(struct.unpack(f"!{len(octets) // 2}H", octets))
    total = (total & 0xFFFF) + (total >> 16)
    octets[4:6] = (0xFFFF - (total & 0xFFFF) - (total >> 16)).to_bytes(2)
    return bytes(octets[2:])


def _counted(gateway: Gateway, reason: str) -> int:
    rows = json.loads(gateway.cli("drops", "--json"))
    return sum(int(row["count"]) for row in rows if reason in row["reason"])


def _total(gateway: Gateway) -> int:
    return sum(gateway.drops().values())


def _key(context: Json | None) -> list[object]:
    assert context is not None
    keys = ("state", "local_tag", "peer_tag", "local_locator", "peer_locator", "peer_locators")
    return [context[key] for key in keys]


@pytest.mark.parametrize("plane", PLANES)
def test_forgeries_are_counted_by_reason_and_change_nothing(lab: Lab, plane: str) -> None:
    with both(lab, PLANES[plane]) as (alpha, beta), raw_socket(lab, "core") as core:
        established(lab, alpha, beta)
        context = alpha.context(A1, B1)
        assert context is not None
        for name, (forge, reason) in FORGERIES.items():
            before, total = _sum(alpha, reason), _total(alpha)
            send_raw(core, forge(context))
            eventually(
                partial(_reaches, alpha, reason, before + 1),
                deadline_s=5,
                what=f"{name} is counted as {reason}: {alpha.drops()}",
            )
            assert _total(alpha) == total + 1, f"{name} is counted twice"
        assert _counted(alpha, "WRONG_NONCE") == 3
        assert _key(alpha.context(A1, B1)) == _key(context)
        assert ping(lab, "a1", B1, "-c", "5", "-i", "0.1")
        assert alpha.ask("/v1/status")["losses"]["sink_failed"] == 0
        assert len(alpha.contexts()) == 1


def _reaches(gateway: Gateway, reason: str, count: int) -> bool:
    return _sum(gateway, reason) == count


def _sum(gateway: Gateway, reason: str) -> int:
    return sum(count for name, count in gateway.drops().items() if reason in name)


@pytest.mark.parametrize("plane", PLANES)
def test_a_flood_of_garbage_leaves_a_re_homed_session_alone(lab: Lab, plane: str) -> None:
    """Random octets behind next header 140, from the peer's own addresses, to both locators."""
    chance = random.Random(5533)
    with both(lab, PLANES[plane]) as (alpha, beta), raw_socket(lab, "core") as core:
        established(lab, alpha, beta)
        faults.cut(lab, "alpha.isp1")
        rehomed(lab, alpha, (A1_ISP2, B1))
        eventually(lambda: ping(lab, "a1", B1), deadline_s=10, what="answers again")
        before = _key(alpha.context(A1, B1))
        for _ in range(2000):
            octets = bytearray(chance.randbytes(8 * chance.randrange(1, 40)))
            if chance.random() < 0.5:
                octets[1] = len(octets) // 8 - 1
                octets[2] = chance.choice((1, 2, 3, 4, 5, 6, 64, 65, 66, 67, 68))
            source = chance.choice((PEER, address(B1_ISP2), STRANGER))
            send_raw(core, build_packet(source, address(A1_ISP2), NEXT_SHIM, bytes(octets)))
        eventually(
            lambda: alpha.ask("/v1/status")["packets"]["inbound"] > 1900,
            deadline_s=10,
            what="they came",
        )
        assert ping(lab, "a1", B1, "-c", "10", "-i", "0.1")
        assert _total(alpha) >= 1900
        assert _key(alpha.context(A1, B1)) == before
        assert alpha.ask("/v1/status")["losses"]["sink_failed"] == 0
        assert len(alpha.words()) < 50_000, "the log must not grow with a flood"


def _strange(src: str, dst: str, protocol: int, payload: bytes) -> bytes:
    return build_packet(address(src), address(dst), protocol, payload)


def _crosses(lab: Lab, protocol: int, size: int) -> None:
    """A packet of a protocol goes from a1 to b1 and another back; the octets are the same."""
    chance = random.Random(protocol * 1000 + size)
    for sender, src, receiver, dst in (("a1", A1, "b1", B1), ("b1", B1, "a1", A1)):
        payload = chance.randbytes(size)
        packet = _strange(src, dst, protocol, payload)

        def came(sender: str = sender, receiver: str = receiver, packet: bytes = packet) -> bool:
            with Capture(lab, receiver, "eth0") as capture, raw_socket(lab, sender) as sock:
                send_raw(sock, packet)
                return _seen(capture, packet)

        eventually(came, deadline_s=5, what=f"protocol {protocol} from {sender} to {receiver}")


def _seen(capture: Capture, packet: bytes) -> bool:
    """Wait a moment for a packet that is the same but for its hop limit and flow label."""
    try:
        eventually(
            lambda: any(got[6] == packet[6] and got[8:] == packet[8:] for got in capture.packets()),
            deadline_s=1,
            what="it arrives",
        )
    except AssertionError:
        return False
    return True


@pytest.mark.parametrize("plane", PLANES)
def test_protocols_that_nobody_knows_pass_and_re_home(lab: Lab, plane: str) -> None:
    """Before there is a context, with one, and re-homed; up to what fits with 8 octets more."""
    protocols = (EXPERIMENT, NEXT_SCTP, NEXT_ESP, socket.IPPROTO_AH)
    rewritten, restored = (
        ("kernel_rewritten", "kernel_restored") if plane == "bpf" else ("rewritten", "restored")
    )
    with both(lab, PLANES[plane]) as (alpha, beta):
        _crosses(lab, EXPERIMENT, 100)
        established(lab, alpha, beta)
        for protocol in protocols:
            _crosses(lab, protocol, 1200)
        faults.cut(lab, "alpha.isp1")
        rehomed(lab, alpha, (A1_ISP2, B1))
        before = alpha.ask("/v1/status")["packets"]
        for protocol in protocols:
            _crosses(lab, protocol, 8)
            _crosses(lab, protocol, 1201)
            _crosses(lab, protocol, 1452)
        after = alpha.ask("/v1/status")["packets"]
        assert after[rewritten] - before[rewritten] >= 3 * len(protocols)
        assert after[restored] - before[restored] >= 3 * len(protocols)

"""When a pair deserves a context: thresholds, selectors, silence, bounded memory."""

from __future__ import annotations

import pytest

from m6proxy.names import Prefix
from m6proxy.shim.policy import Accounts, EstablishPolicy, Selector
from m6proxy.wire.ipv6 import build_packet
from tests.harness.packets import tcp, udp
from tests.harness.pair import A1, B1, B2

KEY = A1 + B1
NOTHING = EstablishPolicy(after_octets=None, after_packets=None, after_s=None)


def asked_after(policy: EstablishPolicy, packet: bytes, pause_s: float = 0.0) -> int | None:
    """After how many outbound packets a context is asked for; None for none of 100."""
    accounts = Accounts(policy)
    for number in range(1, 101):
        if accounts.count(KEY, packet, outbound=True, now=10.0 + number * pause_s):
            return number
    return None


@pytest.mark.parametrize(
    ("policy", "pause_s", "expected"),
    [
        (EstablishPolicy(), 0.0, 21),
        (EstablishPolicy(), 1.0, 11),
        (EstablishPolicy(after_octets=None), 0.0, None),
        (EstablishPolicy(after_octets=None, after_packets=3, after_s=None), 0.0, 3),
        (EstablishPolicy(after_octets=150, after_s=None), 0.0, 2),
        (EstablishPolicy(after_octets=None, after_s=2.5), 1.0, 4),
        (EstablishPolicy(after_octets=1), 0.0, 1),
        (NOTHING, 1.0, None),
    ],
)
def test_the_first_threshold_that_is_crossed(
    policy: EstablishPolicy, pause_s: float, expected: int | None
) -> None:
    packet = udp(A1, B1, bytes(52))
    assert len(packet) == 100
    assert asked_after(policy, packet, pause_s) == expected


@pytest.mark.parametrize(
    ("always", "never", "packet", "asked"),
    [
        ("2001:db8:b1::/48", "", udp(A1, B1), True),
        ("2001:db8:b2::/48", "", udp(A1, B1), False),
        ("2001:db8:b1:1::10", "", udp(A1, B1), True),
        ("udp", "", udp(A1, B1), True),
        ("udp", "", tcp(A1, B1), False),
        ("TCP/443", "", tcp(A1, B1, port=443), True),
        ("tcp/4000", "", tcp(A1, B1, port=443), True),
        ("tcp/80", "", tcp(A1, B1, port=443), False),
        ("89", "", build_packet(A1, B1, 89, b"ospf"), True),
        ("udp/53", "", build_packet(A1, B1, 17, b"\0"), False),
        ("udp", "", build_packet(A1, B1, 60, b"\x11\0\1\4\0\0\0\0" + bytes(8)), True),
        ("udp", "", build_packet(A1, B1, 60, b"\x11"), False),
        ("2001:db8::/32", "2001:db8:b1::/48", udp(A1, B1), False),
        ("udp", "2001:db8:b1::/48", udp(A1, B1), False),
        ("2001:db8:b1::/48", "udp", udp(A1, B1), False),
        ("2001:db8:b1::/48", "udp", tcp(A1, B1), True),
    ],
)
def test_selectors(always: str, never: str, packet: bytes, asked: bool) -> None:
    policy = EstablishPolicy(
        None,
        None,
        None,
        always=(Selector.parse(always),),
        never=(Selector.parse(never),) if never else (),
    )
    assert (asked_after(policy, packet) is not None) == asked


def test_never_outweighs_every_threshold() -> None:
    policy = EstablishPolicy(1, 1, 0.0, never=(Selector(Prefix.parse("2001:db8:b1::/48")),))
    assert asked_after(policy, udp(A1, B1)) is None


@pytest.mark.parametrize(
    "text", ["", "tcp/", "tcp/0", "tcp/65536", "esp/5", "256", "-1", "nonsense", "tcp/x", "::/129"]
)
def test_a_wrong_selector_says_why(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        Selector.parse(text)


def test_both_directions_count_but_one_that_is_never_answered_is_not_ripe() -> None:
    accounts = Accounts(EstablishPolicy(after_octets=None, after_packets=3, after_s=None))
    packet = udp(B1, A1)
    assert not any(accounts.count(KEY, packet, outbound=False, now=1.0) for _ in range(50))
    assert accounts.count(KEY, udp(A1, B1), outbound=True, now=1.0)
    assert accounts.count(KEY, packet, outbound=False, now=1.0)


def test_silence_ends() -> None:
    accounts = Accounts(EstablishPolicy(after_packets=1))
    assert accounts.count(KEY, udp(A1, B1), outbound=True, now=1.0)
    accounts.silence(KEY, 31.0)
    assert not accounts.count(KEY, udp(A1, B1), outbound=True, now=30.9)
    assert accounts.count(KEY, udp(A1, B1), outbound=True, now=31.0)
    accounts.silence(A1 + B2, 99.0)
    assert len(accounts) == 1


def test_accounts_are_bounded_and_whoever_talks_is_not_forgotten() -> None:
    """The account of a pair in full traffic was thrown out when it was the first opened.

    So a scan from the outside could keep contexts from ever being asked for.
    """
    accounts = Accounts(EstablishPolicy(None, 50, None), limit=10)
    asked = False
    for number in range(60):
        asked |= accounts.count(KEY, udp(A1, B1), outbound=True, now=1.0)
        for stranger in range(5):
            key = A1 + (number * 5 + stranger).to_bytes(16)
            accounts.count(key, udp(B1, A1), outbound=False, now=1.0)
        assert len(accounts) <= 10
    assert asked


def test_a_pair_that_was_held_counts_from_its_first_packet() -> None:
    """The pair of a closed context was ripe with its first packet: its time had gone on."""
    accounts = Accounts(EstablishPolicy(after_s=10.0))
    key, packet = A1 + B1, udp(A1, B1)
    accounts.hold(key, 100.0, 160.0)
    assert not accounts.count(key, packet, outbound=True, now=400.0)
    assert not accounts.count(key, packet, outbound=True, now=409.0)
    assert accounts.count(key, packet, outbound=True, now=410.0)
    accounts.hold(key, 410.0, 470.0)
    assert not accounts.count(key, packet, outbound=True, now=469.0)
    assert accounts.count(key, packet, outbound=True, now=470.0)

"""What peers showed of themselves beyond any context."""

from __future__ import annotations

from m6proxy.discovery.remembered import CAPABLE_S, RememberedPeers
from m6proxy.names import address

B1 = address("2001:db8:b1::1")
B1_ISP2 = address("2001:db8:b2::1")
B2 = address("2001:db8:b1::2")


def test_a_good_answer_is_remembered_for_an_hour() -> None:
    peers = RememberedPeers()
    peers.note_capable(B1, 100.0)
    assert peers.is_capable(B1, 100.0 + CAPABLE_S - 1)
    assert not peers.is_capable(B1, 100.0 + CAPABLE_S)
    assert not peers.is_capable(B2, 100.0)


def test_a_refusal_is_for_an_address_or_for_an_address_and_an_identifier() -> None:
    peers = RememberedPeers()
    peers.refuse(B1, 160.0)
    assert peers.refused_until_s(B1, B1, 100.0) == 160.0
    assert peers.refused_until_s(B1, B2, 100.0) == 160.0
    assert peers.refused_until_s(B1, B1, 160.0) == 0.0
    peers.refuse(B1_ISP2, 160.0, B1)
    assert peers.refused_until_s(B1_ISP2, B1, 100.0) == 160.0
    assert peers.refused_until_s(B1_ISP2, B2, 100.0) == 0.0


def test_the_last_word_counts() -> None:
    peers = RememberedPeers()
    peers.refuse(B1, 160.0)
    peers.refuse(B1, 160.0, B1)
    peers.note_capable(B1, 100.0)
    assert peers.refused_until_s(B1, B1, 100.0) == 0.0
    peers.refuse(B1, 160.0)
    assert not peers.is_capable(B1, 100.0)


def test_it_is_bounded_and_forgets_the_oldest() -> None:
    peers = RememberedPeers(limit=3)
    for number in range(10):
        octets = B1[:15] + bytes([number])
        peers.note_capable(octets, 100.0)
        peers.refuse(octets[::-1], 160.0)
    assert len(peers) == 6
    assert not peers.is_capable(B1[:15] + b"\x06", 100.0)
    assert peers.is_capable(B1[:15] + b"\x07", 100.0)

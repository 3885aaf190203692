"""The search: in which order pairs are tried, how fast, and which reports count."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from m6proxy.names import Address, LocatorPair, address
from m6proxy.proof.judge import Proof
from m6proxy.shim.exploration import REMEMBERED_PROBES, Exploration, best, candidates, preferred
from m6proxy.shim.locators import LocalSet, PeerLocator, Uplink
from m6proxy.wire.message import ProbeRecord
from tests.harness.pair import A1, A1_ISP2, B1, B1_ISP2, uplinks

LOCAL = LocalSet(A1, uplinks("a"), 1)
STRANGER = address("2001:db8:ff::66")
AA, AB = LocatorPair(A1, B1), LocatorPair(A1, B1_ISP2)
BA, BB = LocatorPair(A1_ISP2, B1), LocatorPair(A1_ISP2, B1_ISP2)


def peer(*, broken: Address = b"", unproved: Address = b"") -> tuple[PeerLocator, ...]:
    return tuple(
        PeerLocator(
            octets,
            Proof.NONE if octets == unproved else Proof.DNS,
            priority=priority,
            broken=octets == broken,
        )
        for priority, octets in enumerate((B1, B1_ISP2), start=1)
    )


def with_isp1_down() -> LocalSet:
    down, up = uplinks("a")
    return LocalSet(A1, (Uplink(down.name, down.prefix, 1, up=False), up), 2)


@pytest.mark.parametrize("current", [AA, AB, BA, BB])
def test_the_current_pair_first_then_the_likes_of_both(current: LocatorPair) -> None:
    order = candidates(LOCAL, peer(), current)
    assert order == (current, *(pair for pair in (AA, BA, AB, BB) if pair != current))


def test_what_had_to_be_left_comes_last() -> None:
    order = candidates(LOCAL, peer(), BA, frozenset({A1}))
    assert order == (BA, BB, AA, AB)
    assert candidates(LOCAL, peer(), BB, frozenset({A1, B1}))[-1] == AA


def test_where_nobody_prefers_anything_the_addresses_decide() -> None:
    """RFC 6724: like labels first, then the longest common prefix, then the order of the lists."""
    equal = tuple(replace(uplink, preference=1) for uplink in uplinks("a"))
    local = LocalSet(A1, equal, 1)
    near_one, near_two = address("2001:db8:a1:f::10"), address("2001:db8:a2:f::10")
    private = address("fd00:a:1::10")
    offered = [PeerLocator(octets, Proof.DNS) for octets in (private, B1, near_one, near_two)]
    order = candidates(local, offered, LocatorPair(A1_ISP2, B1))
    assert order == (
        (A1_ISP2, B1),
        *((A1, near_one), (A1_ISP2, near_two)),
        *((A1_ISP2, near_one), (A1, near_two)),
        (A1, B1),
        *((A1, private), (A1_ISP2, private)),
    )
    for place, pair in enumerate(order[1:], start=1):
        assert best(order[place:], local, offered) == pair
    offered[0].priority = offered[2].priority = 1
    assert candidates(local, offered, order[0])[1:3] == ((A1_ISP2, near_two), (A1, near_two))


def test_equals_are_no_reason_to_go_back() -> None:
    equal = tuple(replace(uplink, preference=1) for uplink in uplinks("a"))
    offered = tuple(PeerLocator(octets, Proof.DNS) for octets in (B1, B1_ISP2))
    assert preferred(LocalSet(A1, equal, 1), offered, BB) == ((), True)
    assert preferred(LOCAL, peer(), BB) == ((AA, BA, AB), False)


def test_unproved_locators_are_never_candidates() -> None:
    assert candidates(LOCAL, peer(unproved=B1_ISP2), AA) == (AA, BA)
    assert candidates(LOCAL, (PeerLocator(STRANGER, Proof.NONE),), AA) == ()


def test_the_peers_broken_ones_can_be_asked_for() -> None:
    assert set(candidates(LOCAL, peer(broken=B1), AA, peers_broken=True)) == {AA, AB, BA, BB}


def test_broken_ones_only_when_nothing_else_is_left() -> None:
    assert candidates(with_isp1_down(), peer(), AA) == (BA, BB)
    assert candidates(LOCAL, peer(broken=B1), AA) == (AB, BB)
    assert candidates(LOCAL, peer(broken=B1, unproved=B1_ISP2), AA) == (AA, BA)


def test_the_best_of_what_works() -> None:
    assert best((BB, BA), LOCAL, peer()) == BA
    assert best((BB,), LOCAL, peer()) == BB
    assert best((LocatorPair(A1, STRANGER),), LOCAL, peer()) is None
    assert best((), LOCAL, peer()) is None


@given(st.data())
def test_the_best_of_one_is_the_best_of_one_and_of_what_is_of_no_use(data: st.DataObject) -> None:
    """What one report confirms, which is the usual case, is answered by a shorter way."""
    addresses = [A1, A1_ISP2, B1, B1_ISP2, STRANGER]
    pair = LocatorPair(data.draw(st.sampled_from(addresses)), data.draw(st.sampled_from(addresses)))
    offered = peer()
    for locator in offered:
        locator.stands_in = data.draw(st.booleans())
    useless = LocatorPair(STRANGER, STRANGER)
    assert best((pair,), LOCAL, offered) == best((pair, useless), LOCAL, offered)


def test_round_and_round() -> None:
    search = Exploration((AA, AB, BA), 1.0, 0)
    assert [search.take_pair() for _ in range(4)] == [AA, AB, BA, AA]
    search.prefer(BB)
    assert [search.take_pair() for _ in range(4)] == [BB, AB, BA, AA]
    assert Exploration((), 1.0, 0).take_pair() is None


def test_no_pair_starves_when_the_peer_probes_all_the_time() -> None:
    """Each probe of the peer started the round anew: the one pair that worked never came up."""
    search = Exploration((AA, AB, BA, BB), 1.0, 0)
    taken = set()
    for _ in range(8):
        search.prefer(AB)
        taken |= {search.take_pair(), search.take_pair()}
    assert taken == {AA, AB, BA, BB}


def test_four_quick_probes_then_doubling_to_a_minute() -> None:
    search = Exploration((AA,), 1.0, 0)
    waits = []
    for _ in range(15):
        search.probes += 1
        waits.append(search.wait_s())
    assert waits[:4] == [0.5] * 4
    assert all(later == min(60.0, 2 * earlier) for earlier, later in pairwise(waits[3:]))
    assert waits[-1] == 60.0


def test_only_reports_of_our_own_probes_count() -> None:
    search = Exploration((AA, AB), 1.0, 0)
    mine = ProbeRecord(A1, B1, 7)
    search.note_sent(mine)
    assert search.confirmed((mine,)) == (AA,)
    assert search.confirmed((ProbeRecord(A1, B1, 8),)) == ()
    assert search.confirmed((ProbeRecord(A1, B1_ISP2, 7),)) == ()
    assert search.confirmed((ProbeRecord(A1, B1, 7, data=9),)) == (AA,)
    for nonce in range(100, 100 + REMEMBERED_PROBES):
        search.note_sent(ProbeRecord(A1, B1, nonce))
    assert search.confirmed((mine,)) == ()

"""Locator sets: a host's address under each uplink, and what is said of it."""

from __future__ import annotations

import gc
from dataclasses import replace

import pytest

from m6proxy.names import Prefix, address
from m6proxy.shim.core import ShimSettings
from m6proxy.shim.locators import LocalSet, LocalSets
from m6proxy.wire.options import BROKEN, TRANSIENT, Preference
from tests.harness.entropy import SeededEntropy
from tests.harness.pair import A1, A1_ISP2, A2, B1, Pair, uplinks


def make() -> LocalSets:
    return LocalSets(uplinks("a"), SeededEntropy(1))


def test_the_set_is_the_host_under_each_prefix_in_order_of_preference() -> None:
    local = LocalSet(A1_ISP2, reversed(uplinks("a")), 3)
    assert local.locators == (A1, A1_ISP2)
    uplink = local.uplink_of(A1_ISP2)
    assert uplink is not None
    assert uplink.name == "isp2"
    assert local.uplink_of(A2) is None


def test_a_broken_uplink_is_said_to_be_broken() -> None:
    sets = make()
    before = sets.by_ulid(A1)
    assert sets.change("isp1", up=False, mtu=1500)
    after = sets.by_ulid(A1)
    assert after.generation != before.generation
    assert after.locators == before.locators
    listed, preferences = after.options()
    assert listed.generation == preferences.generation == after.generation
    assert [p.flags for p in preferences.preferences] == [BROKEN, 0]
    assert [p.priority for p in preferences.preferences] == [1, 2]


def test_no_change_is_no_change() -> None:
    sets = make()
    local = sets.by_ulid(A1)
    assert not sets.change("isp1", up=True, mtu=1500)
    assert sets.by_ulid(A1) is local
    with pytest.raises(KeyError):
        sets.change("isp9", up=True, mtu=1500)


def test_sets_are_shared_and_die_with_their_last_holder() -> None:
    sets = make()
    local = sets.by_ulid(A1)
    assert sets.by_ulid(A1) is local
    del local
    gc.collect()
    assert len(sets._by_ulid) == 0


def test_who_is_local_and_whose_locator_it_is() -> None:
    sets = make()
    assert sets.is_local(A1_ISP2)
    assert not sets.is_local(B1)
    assert sets.same_host(A1, A1)
    assert sets.same_host(A1, A1_ISP2)
    assert sets.same_host(A1_ISP2, A1)
    assert not sets.same_host(A1, A2)
    assert not sets.same_host(address("2001:db8:ffff::10"), A1)


def test_weight_and_temporary_are_told_and_decide_at_the_peer() -> None:
    """Where no uplink has a weight, none is told: two octets for each locator are enough."""
    first, second = uplinks("a")
    plain = LocalSet(A1, (first, second), 1).options()[1]
    assert plain.element_octets == 2
    weighted = LocalSet(A1, (replace(first, weight=3), replace(second, temporary=True)), 1)
    told = weighted.options()[1]
    assert told.element_octets == 3
    assert told.preferences == (Preference(0, 1, 3), Preference(TRANSIENT, 2))


def test_contexts_share_the_uplinks_of_the_peer_by_its_weights() -> None:
    """Alpha gives isp2 and isp3 the same preference and isp3 three times the weight."""

    def adjust(settings: ShimSettings) -> ShimSettings:
        first, second = settings.uplinks
        third = replace(second, name="isp3", prefix=Prefix.parse("2001:db8:a3::/48"), weight=3)
        return replace(settings, uplinks=(first, replace(second, weight=1), third))

    chosen = []
    for seed in range(60):
        pair = Pair(seed=seed, adjust=adjust)
        pair.establish()
        equals = [x for x in pair.beta.context.peer_locators if x.priority == 2 and x.weight]
        chosen.append(min(equals, key=lambda locator: locator.lot).weight)
    assert 35 <= chosen.count(3) <= 55

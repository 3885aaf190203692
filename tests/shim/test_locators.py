"""Locator sets: a host's address under each uplink, and what is said of it."""

from __future__ import annotations

import gc

import pytest

from m6proxy.names import address
from m6proxy.shim.locators import LocalSet, LocalSets
from m6proxy.wire.options import BROKEN
from tests.harness.entropy import SeededEntropy
from tests.harness.pair import A1, A1_ISP2, A2, B1, uplinks


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

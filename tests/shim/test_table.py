"""The table finds a context under each of its names, and forgets all of them."""

from __future__ import annotations

import pytest

from m6proxy.names import LocatorPair
from m6proxy.shim.context import Context, Handshake
from m6proxy.shim.locators import LocalSet
from m6proxy.shim.table import ContextTable
from tests.harness.entropy import SeededEntropy
from tests.harness.pair import A1, A1_ISP2, B1, B1_ISP2, B2, uplinks

LOCAL = LocalSet(A1, uplinks("a"), 1)
KEY = A1 + B1


def make(tag: int = 5, fii: int = 0, key: bytes = KEY) -> Context:
    return Context(key, fii, tag, LOCAL)


def everything(table: ContextTable) -> tuple[int, ...]:
    return (
        len(table),
        len(table.by_tag),
        len(table.by_outbound),
        len(table.by_inbound),
        len(table._by_nonce),
        len(table._by_peer_tag),
    )


def test_all_names_find_it_and_removal_forgets_them() -> None:
    table, context = ContextTable(), make()
    table.add(context)
    context.handshake = Handshake(77, LocatorPair(A1, B1))
    table.bind_nonce(context, 77)
    table.bind_peer_tag(context, 9)
    table.open(context)
    assert table.by_pair(KEY) is context
    assert table.by_tag[5] is context
    assert table.by_nonce(77) is context
    assert table.by_peer_tag(9) == (context,)
    assert table.by_sent(9, LocatorPair(A1_ISP2, B1)) is context
    assert table.by_sent(9, LocatorPair(A1, B1_ISP2)) is None
    assert table.by_outbound[KEY] is context
    assert table.by_inbound[B1 + A1] is context
    table.remove(context)
    assert everything(table) == (0, 0, 0, 0, 0, 0)


def test_a_pair_or_a_tag_is_taken_once() -> None:
    table = ContextTable()
    table.add(make())
    with pytest.raises(ValueError, match="exists already"):
        table.add(make(tag=6))
    with pytest.raises(ValueError, match="exists already"):
        table.add(make(fii=1))
    assert everything(table)[:2] == (1, 1)


def test_a_fork_lives_beside_and_is_not_found_by_packets() -> None:
    table, main, fork = ContextTable(), make(), make(tag=6, fii=3)
    for context in (main, fork):
        table.add(context)
        table.open(context)
    assert table.by_outbound[KEY] is main
    assert table.by_pair(KEY, 3) is fork
    table.remove(fork)
    assert table.by_outbound[KEY] is main


def test_two_peers_may_choose_the_same_tag() -> None:
    table, one, two = ContextTable(), make(), make(tag=6, key=A1 + B2)
    for context in (one, two):
        table.add(context)
        table.bind_peer_tag(context, 9)
    assert table.by_peer_tag(9) == (one, two)
    assert table.by_sent(9, LocatorPair(A1, B2)) is two
    table.bind_peer_tag(one, 10)
    assert table.by_peer_tag(9) == (two,)
    table.remove(two)
    assert table.by_peer_tag(9) == ()
    assert one.peer_tag == 10


def test_a_new_nonce_replaces_the_old_one() -> None:
    table, context = ContextTable(), make()
    table.add(context)
    context.handshake = Handshake(1, LocatorPair(A1, B1))
    table.bind_nonce(context, 1)
    table.unbind_nonce(context)
    context.handshake = Handshake(2, LocatorPair(A1, B1))
    table.bind_nonce(context, 2)
    assert table.by_nonce(1) is None
    assert table.by_nonce(2) is context


def test_a_new_tag_is_one_that_nobody_has() -> None:
    class Stuck(SeededEntropy):
        draws = iter([5, 5, 8])

        def tag(self) -> int:
            return next(self.draws)

    table = ContextTable()
    table.add(make(tag=5))
    assert table.new_tag(Stuck(1)) == 8

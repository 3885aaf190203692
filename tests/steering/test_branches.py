"""Every pair is found by the way that its packets take, and the way is short."""

from __future__ import annotations

import ipaddress

from hypothesis import given
from hypothesis import strategies as st

from m6proxy.names import UlidPair, address
from m6proxy.steering.branches import LEAF_PAIRS, ROOT, Tree, grow

addresses = st.binary(min_size=16, max_size=16)
pairs = st.lists(st.builds(UlidPair, addresses, addresses), unique=True, max_size=60)


def _matches(bits: str, octets: bytes) -> bool:
    value, mask = (int(ipaddress.IPv6Address(text)) for text in bits.split("/"))
    return int.from_bytes(octets) & mask == value


def _walk(tree: Tree, pair: UlidPair) -> tuple[bool, int]:
    """Follow the rules as the kernel does: whether the pair is found, and rules looked at."""
    chain, looked_at = ROOT, 0
    while True:
        for split in (split for split in tree.splits if split.chain == chain):
            looked_at += 1
            if _matches(split.bits, pair.local if split.side == "-s" else pair.peer):
                chain = split.branch
                break
        else:
            for leaf in (leaf for leaf in tree.leaves if leaf.chain == chain):
                looked_at += 1
                if leaf.pair == pair:
                    return True, looked_at
            return False, looked_at


@given(pairs, st.builds(UlidPair, addresses, addresses))
def test_a_pair_is_found_if_and_only_if_it_is_in(members: list[UlidPair], other: UlidPair) -> None:
    tree = grow(members)
    assert all(_walk(tree, pair)[0] for pair in members)
    assert _walk(tree, other)[0] == (other in members)
    assert len(tree.leaves) == len(members)


def test_few_pairs_stay_in_one_chain() -> None:
    tree = grow([UlidPair(bytes(15) + bytes([n]), bytes(16)) for n in range(LEAF_PAIRS)])
    assert not tree.branches and not tree.splits


def test_many_pairs_of_one_host_are_found_within_tens_of_rules() -> None:
    local = address("2001:db8:a1::1")
    members = [UlidPair(local, address(f"2001:db8:{n % 16:x}:1::{n // 16:x}")) for n in range(1024)]
    tree = grow(members)
    assert max(_walk(tree, pair)[1] for pair in members[::37]) <= 3 * 16 + LEAF_PAIRS
    assert len(set(tree.branches)) == len(tree.branches)

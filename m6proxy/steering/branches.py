"""Spread many pairs over small chains, so that a packet meets tens of rules, not thousands.

A chain is walked rule by rule: measured, 4,096 pairs in one chain bring the gateway from
120,000 to 6,000 packets per second. A chain with too many pairs is divided by the four
bits, of either address, that divide it most evenly; a packet goes to the branch of its
own bits (``-g``: what finds nothing there goes back behind the root).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from m6proxy.names import UlidPair, address_text

ROOT = "M6PROXY-REHOMED"
BRANCH_PREFIX = "M6PROXY-R-"
LEAF_PAIRS = 12
"""A chain with at most so many pairs is not divided."""

_LIKELY = (31, 63, 30, 62, 29, 61, 28, 60)
"""Groups of four bits that usually differ: the ends of the two addresses (0 to 31 local,
32 to 63 peer)."""
_ALL = (*_LIKELY, *(n for n in range(63, -1, -1) if n not in _LIKELY))


@dataclass(frozen=True, slots=True)
class Split:
    """One rule that sends packets with certain bits from a chain to a branch of it."""

    chain: str
    side: str
    """``-s`` or ``-d``."""
    bits: str
    """Address and mask, as ip6tables takes them."""
    branch: str


@dataclass(frozen=True, slots=True)
class Leaf:
    """One pair and the chain that its rule stands in."""

    chain: str
    pair: UlidPair


@dataclass(frozen=True, slots=True)
class Tree:
    """The chains of all re-homed pairs."""

    branches: tuple[str, ...]
    """Chains beside the root, numbered from 0."""
    splits: tuple[Split, ...]
    leaves: tuple[Leaf, ...]


def branch_name(number: int) -> str:
    """Return the name of the branch with this number."""
    return f"{BRANCH_PREFIX}{number}"


def grow(pairs: Sequence[UlidPair]) -> Tree:
    """Build the chains for the pairs; the order of the pairs is kept within a chain."""
    branches: list[str] = []
    splits: list[Split] = []
    leaves: list[Leaf] = []
    waiting = [(ROOT, [(pair, (pair.local + pair.peer).hex()) for pair in pairs])]
    while waiting:
        chain, members = waiting.pop()
        place = _best_place([digits for _, digits in members]) if members else None
        if place is None:
            leaves += [Leaf(chain, pair) for pair, _ in members]
            continue
        groups: dict[str, list[tuple[UlidPair, str]]] = {}
        for member in members:
            groups.setdefault(member[1][place], []).append(member)
        for digit, group in sorted(groups.items()):
            branch = branch_name(len(branches))
            branches.append(branch)
            side = "-s" if place < 32 else "-d"
            splits.append(Split(chain, side, _bits(place % 32, digit), branch))
            waiting.append((branch, group))
    return Tree(tuple(branches), tuple(splits), tuple(leaves))


def _best_place(members: Sequence[str]) -> int | None:
    """Return the hexadecimal digit that divides best; None when they are few enough."""
    if len(members) <= LEAF_PAIRS:
        return None
    for places in (_LIKELY, _ALL):
        largest = {
            place: max(Counter(digits[place] for digits in members).values()) for place in places
        }
        best = min(places, key=largest.__getitem__)
        if largest[best] * 2 <= len(members):
            return best
    return best if largest[best] < len(members) else None


def _bits(place: int, digit: str) -> str:
    shift = 4 * (31 - place)
    bits, mask = ((value << shift).to_bytes(16) for value in (int(digit, 16), 0xF))
    return f"{address_text(bits)}/{address_text(mask)}"

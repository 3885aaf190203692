"""The search for a working pair: which pairs, in which order, how fast (RFC 5534 §4.3).

The order: the current pair first, so that a false alarm moves nothing; then by how far a pair
is from what both ends prefer (the place of our locator plus the place of the peer's), and
where two are equally far, the one that keeps the peer's better locator: each end tries its
own other uplink first. Where neither end prefers anything, RFC 6724 decides, and at last the
order of the lists. So one dead provider at either end costs at most two probes more, one
at each end three, and nobody is moved to a backup uplink that is not needed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from operator import itemgetter
from typing import Final, TypeAlias, TypeVar

from m6proxy.names import Address, LocatorPair
from m6proxy.proof.judge import Proof
from m6proxy.shim.locators import LocalSet, PeerLocator
from m6proxy.shim.timers import (
    INITIAL_PROBE_TIMEOUT_S,
    INITIAL_PROBES,
    MAX_PROBE_TIMEOUT_S,
    NEVER,
    backoff_s,
)
from m6proxy.wire.message import ProbeRecord

RECORDS_MAX: Final = 4
"""How many records of each kind a Probe carries; 8 records are 320 octets."""
REMEMBERED_PROBES: Final = 32
_Liked: TypeAlias = tuple[int, int, float, bool, bool]
"""Of a locator of the peer: priority, flags, lot, whether it is proved, and whether suspect."""
_Place: TypeAlias = tuple[tuple[int, int, int], int, int]
"""Where a pair comes in the order, and the places of its locators in the two sets."""
_MATTERS: Final = PeerLocator.BROKEN | PeerLocator.TRANSIENT | PeerLocator.STANDS_IN
Liked = TypeVar("Liked")
_FIRST = itemgetter(0)
_UNPROVED: Final = Proof.NONE


class Exploration:
    """The probes of one search, sent and received, and what comes next."""

    __slots__ = (
        "_pairs",
        "_reported",
        "answered",
        "due_s",
        "ended_s",
        "packets_out",
        "probes",
        "received",
        "sent",
        "slot_s",
        "started_s",
    )

    def __init__(self, pairs: Sequence[LocatorPair], now: float, packets_out: int) -> None:
        self._pairs = tuple(pairs)
        self._reported: tuple[int, ...] = ()
        """The nonces of those of our probes that the peer reported."""
        self.started_s = now
        self.ended_s = NEVER
        """When the context became operational again."""
        self.due_s = NEVER
        """When the next probe is sent."""
        self.slot_s = NEVER
        """The same, once the pace of all searches has a slot for it."""
        self.probes = 0
        """How many were sent; decides how long to wait."""
        self.answered = False
        """Whether a probe that left open what the peer hears got its answer since our last one."""
        self.packets_out = packets_out
        """How many the context had sent when it began."""
        self.sent: tuple[ProbeRecord, ...] = ()
        """The latest first."""
        self.received: tuple[ProbeRecord, ...] = ()
        """The latest last."""

    def restart(self, pairs: Sequence[LocatorPair], now: float, packets_out: int) -> None:
        """Search anew, at the initial rate. What was sent stays known; §5.2 of RFC 5534 wants
        only those probes reported that came since the last transition to Exploring."""
        self._pairs = tuple(pairs)
        self.received = ()
        self.probes = 0
        self.answered = False
        self.packets_out = packets_out
        self.started_s = now
        self.ended_s = NEVER

    def widen(self, pairs: Sequence[LocatorPair]) -> None:
        """Candidates that were not there when the search began come next; others keep theirs."""
        fresh = tuple(pair for pair in pairs if pair not in self._pairs)
        self._pairs = fresh + self._pairs

    def take_pair(self) -> LocatorPair | None:
        """The pair to probe now, round and round; None when there is none to try."""
        if not self._pairs:
            return None
        pair = self._pairs[0]
        self._pairs = (*self._pairs[1:], pair)
        return pair

    def prefer(self, pair: LocatorPair) -> None:
        """Probe this pair next: a probe of the peer just came through it, the other way.

        The others keep their turn, however often this happens: none is starved.
        """
        if not self._pairs or self._pairs[0] != pair:
            self._pairs = (pair, *[other for other in self._pairs if other != pair])

    def note_sent(self, record: ProbeRecord) -> None:
        """Remember a probe of ours; tuples, for 100,000 searches at once hold few probes each."""
        self.sent = (record, *self.sent[: REMEMBERED_PROBES - 1])

    def note_received(self, record: ProbeRecord) -> None:
        """Remember a probe of the peer, to be reported."""
        if record not in self.received:
            self.received = (*self.received[1 - RECORDS_MAX :], record)

    def wait_s(self) -> float:
        """The nominal wait after the probe just sent: 0.5 s four times, then doubling to 60 s."""
        spent = max(0, self.probes - INITIAL_PROBES)
        return backoff_s(INITIAL_PROBE_TIMEOUT_S, spent, MAX_PROBE_TIMEOUT_S)

    def end(self, now: float) -> None:
        """Stop probing; late reports of what was sent are still understood."""
        self.due_s = NEVER
        self.ended_s = now

    def confirmed(self, reports: Sequence[ProbeRecord]) -> tuple[LocatorPair, ...]:
        """Which of our probes the peer reports to have received, as pairs, newest last.

        A report counts only when addresses and nonce are those of a probe that we sent.
        """
        known = []
        for report in reports:
            src, dst, nonce, _ = report
            for record in self.sent:
                if record[2] == nonce and record[0] == src and record[1] == dst:
                    known.append(LocatorPair(src, dst))
                    if nonce not in self._reported:
                        self._reported = (*self._reported[1 - REMEMBERED_PROBES :], nonce)
                    break
        return tuple(known)

    def unreported(self) -> tuple[ProbeRecord, ...]:
        """What goes along with the next probe (RFC 5534 §6.1): the newest of our probes that
        the peer did not report, as far as they fit, newest first.
        """
        if not self._reported:
            return self.sent[: RECORDS_MAX - 1]
        open_ = [record for record in self.sent if record.nonce not in self._reported]
        return tuple(open_[: RECORDS_MAX - 1])


def candidates(
    local: LocalSet,
    peer: Iterable[PeerLocator],
    current: LocatorPair,
    suspects: frozenset[Address] = frozenset(),
    *,
    peers_broken: bool = False,
) -> tuple[LocatorPair, ...]:
    """All pairs that may be probed, in the order in which to try them.

    Only proved locators of the peer, and neither end's broken ones unless nothing else is left;
    with ``peers_broken``, the peer's broken ones as well.
    """
    mine = local.locators
    theirs: list[Address] = []
    liked: list[_Liked] = []
    drawn = False
    for one in peer:
        octets = one.address
        theirs.append(octets)
        liked.append(
            (
                one.priority,
                one.flags & _MATTERS,
                one.lot,
                one.proof is not _UNPROVED,
                bool(suspects) and octets in suspects,  # or its octets would be fetched in vain
            )
        )
        drawn = drawn or one.weight != 0
    suspected = tuple([octets in suspects for octets in mine]) if suspects else ()
    places = _places.__wrapped__ if drawn else _places  # lots are each context's own
    found, tied = places(local.ranks, local.broken, suspected, tuple(liked), peers_broken)
    pairs = [LocatorPair(mine[ours], theirs[others]) for _, ours, others in found]
    if tied:
        ties = [(place, *_by_address(pair)) for (place, *_), pair in zip(found, pairs, strict=True)]
        order = sorted(range(len(pairs)), key=ties.__getitem__)
        pairs = [pairs[index] for index in order]
    if current in pairs and pairs[0] != current:
        pairs.remove(current)
        pairs.insert(0, current)
    return tuple(pairs)


@lru_cache(maxsize=4096)
def _places(
    ranks: tuple[int, ...],
    broken: tuple[bool, ...],
    suspected: tuple[bool, ...],
    liked: tuple[_Liked, ...],
    peers_broken: bool,
) -> tuple[tuple[_Place, ...], bool]:
    """The order of all pairs but for what addresses say, and whether they have to say something.

    It is the same for most contexts of a site, whose hosts differ by their addresses only.
    ``suspected`` is of our locators, and empty when none is.
    """
    proved = [
        ((priority, flags & PeerLocator.TRANSIENT, lot), index)
        for index, (priority, flags, lot, is_proved, _) in enumerate(liked)
        if is_proved and not flags & PeerLocator.STANDS_IN
    ]
    ranked = _by_liking(proved)
    peers = [
        one for one in ranked if peers_broken or not liked[one[1]][1] & PeerLocator.BROKEN
    ] or ranked
    alive = [index for index in range(len(ranks)) if not broken[index]] or list(range(len(ranks)))
    found: list[_Place] = []
    for rank, others in peers:
        for ours in alive:
            doubts = bool(suspected and suspected[ours]) + liked[others][4]
            found.append(((doubts, ranks[ours] + rank, rank), ours, others))
    found.sort(key=_FIRST)
    tied = len({place for place, *_ in found}) < len(found)
    return tuple(found), tied


def best(
    pairs: Iterable[LocatorPair], local: LocalSet, peer: Iterable[PeerLocator]
) -> LocatorPair | None:
    """Of the pairs that work, the one that both ends like best; None when there is none."""
    works = tuple(pairs)
    if len(works) == 1:
        only = works[0]
        for one in peer:
            if one.address == only.peer and not one.flags & PeerLocator.STANDS_IN:
                return only if only.local in local.locators else None
        return None
    mine = dict(zip(local.locators, local.ranks, strict=True))
    theirs = {locator.address: rank for rank, locator in _ranked(peer)}
    usable = [LocatorPair(ours, one) for one in theirs for ours in mine if (ours, one) in works]
    return min(
        usable,
        key=lambda p: (mine[p.local] + theirs[p.peer], theirs[p.peer], *_by_address(p)),
        default=None,
    )


def preferred(
    local: LocalSet, peer: tuple[PeerLocator, ...], current: LocatorPair
) -> tuple[tuple[LocatorPair, ...], bool]:
    """The usable pairs that both ends like better than the current one, the best first.

    Also whether the current pair is the best there is, whatever can be used just now.
    """
    mine = dict(zip(local.locators, local.ranks, strict=True))
    theirs = {locator.address: rank for rank, locator in _ranked(peer)}
    nowhere = len(mine) + len(theirs)
    rank = mine.get(current.local, nowhere) + theirs.get(current.peer, nowhere)
    better = tuple(
        pair
        for pair in candidates(local, peer, current)
        if mine[pair.local] + theirs[pair.peer] < rank
    )
    return better, rank == 0


def _ranked(peer: Iterable[PeerLocator]) -> list[tuple[int, PeerLocator]]:
    """The best first, with how many are better; among equals the stable ones, then by lot (SRV)."""
    return _by_liking(
        [((one.priority, one.transient, one.lot), one) for one in peer if not one.stands_in]
    )


def _by_liking(likings: list[tuple[tuple[int, int, float], Liked]]) -> list[tuple[int, Liked]]:
    likings.sort(key=_FIRST)
    ranked: list[tuple[int, Liked]] = []
    for place, (liking, one) in enumerate(likings):
        same = place > 0 and liking == likings[place - 1][0]
        ranked.append((ranked[-1][0] if same else place, one))
    return ranked


def _by_address(pair: LocatorPair) -> tuple[bool, int]:
    """What RFC 6724 says where nobody prefers anything: like labels first (§5 rule 5; here
    unique local addresses among themselves), then the longest common prefix (§5 rule 9).
    """
    foreign = _is_unique_local(pair.local) is not _is_unique_local(pair.peer)
    differing = int.from_bytes(pair.local) ^ int.from_bytes(pair.peer)
    return foreign, differing.bit_length()


def _is_unique_local(octets: Address) -> bool:
    return octets[0] & 0xFE == 0xFC

"""The search for a working pair: which pairs, in which order, how fast (RFC 5534 §4.3).

The order: the current pair first, so that a false alarm moves nothing; then by how far a pair
is from what both ends prefer (the place of our locator plus the place of the peer's), and
where two are equally far, the one that keeps the peer's better locator: each end tries its
own other uplink first. So one dead provider at either end costs at most two probes more, one
at each end three, and nobody is moved to a backup uplink that is not needed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from typing import Final

from m6proxy.names import Address, LocatorPair
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


class Exploration:
    """The probes of one search, sent and received, and what comes next."""

    __slots__ = ("_pairs", "due_s", "ended_s", "probes", "received", "sent", "slot_s", "started_s")

    def __init__(self, pairs: Sequence[LocatorPair], now: float) -> None:
        self._pairs = tuple(pairs)
        self.started_s = now
        self.ended_s = NEVER
        """When the context became operational again."""
        self.due_s = NEVER
        """When the next probe is sent."""
        self.slot_s = NEVER
        """The same, once the pace of all searches has a slot for it."""
        self.probes = 0
        """How many were sent; decides how long to wait."""
        self.sent: deque[ProbeRecord] = deque(maxlen=REMEMBERED_PROBES)
        self.received: deque[ProbeRecord] = deque(maxlen=RECORDS_MAX)

    def restart(self, pairs: Sequence[LocatorPair], now: float) -> None:
        """Search anew, at the initial rate. What was sent stays known; §5.2 of RFC 5534 wants
        only those probes reported that came since the last transition to Exploring."""
        self._pairs = tuple(pairs)
        self.received.clear()
        self.probes = 0
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
        pair, *rest = self._pairs
        self._pairs = (*rest, pair)
        return pair

    def prefer(self, pair: LocatorPair) -> None:
        """Probe this pair next: a probe of the peer just came through it, the other way.

        The others keep their turn, however often this happens: none is starved.
        """
        self._pairs = (pair, *(other for other in self._pairs if other != pair))

    def wait_s(self) -> float:
        """The nominal wait after the probe just sent: 0.5 s four times, then doubling to 60 s."""
        spent = max(0, self.probes - INITIAL_PROBES)
        return backoff_s(INITIAL_PROBE_TIMEOUT_S, spent, MAX_PROBE_TIMEOUT_S)

    def end(self, now: float) -> None:
        """Stop probing; late reports of what was sent are still understood."""
        self.due_s = NEVER
        self.ended_s = now

    def confirmed(self, reports: Iterable[ProbeRecord]) -> tuple[LocatorPair, ...]:
        """Which of our probes the peer reports to have received, as pairs, newest last.

        A report counts only when addresses and nonce are those of a probe that we sent.
        """
        mine = {(record.src, record.dst, record.nonce) for record in self.sent}
        return tuple(
            LocatorPair(report.src, report.dst)
            for report in reports
            if (report.src, report.dst, report.nonce) in mine
        )


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
    ranked_peers = _by_priority([locator for locator in peer if locator.proved])
    peers = [x.address for x in ranked_peers if peers_broken or not x.broken]
    peers = peers or [locator.address for locator in ranked_peers]
    alive = [
        octets for octets, broken in zip(local.locators, local.broken, strict=True) if not broken
    ]
    ranked = sorted(
        (len(suspects & {ours, peers[theirs]}), mine + theirs, theirs, ours)
        for mine, ours in enumerate(alive or local.locators)
        for theirs in range(len(peers))
    )
    pairs = [LocatorPair(ours, peers[theirs]) for _, _, theirs, ours in ranked]
    return tuple(sorted(pairs, key=lambda pair: pair != current))


def best(
    pairs: Iterable[LocatorPair], local: LocalSet, peer: Iterable[PeerLocator]
) -> LocatorPair | None:
    """Of the pairs that work, the one that both ends like best; None when there is none."""
    mine = {octets: place for place, octets in enumerate(local.locators)}
    theirs = {locator.address: place for place, locator in enumerate(_by_priority(peer))}
    usable = [pair for pair in pairs if pair.local in mine and pair.peer in theirs]
    return min(usable, key=lambda p: mine[p.local] + theirs[p.peer], default=None)


def preferred(
    local: LocalSet, peer: tuple[PeerLocator, ...], current: LocatorPair
) -> tuple[tuple[LocatorPair, ...], bool]:
    """The usable pairs that both ends like better than the current one, the best first.

    Also whether the current pair is the best there is, whatever can be used just now.
    """
    mine = {octets: place for place, octets in enumerate(local.locators)}
    theirs = {locator.address: place for place, locator in enumerate(_by_priority(peer))}
    nowhere = len(mine) + len(theirs)
    rank = mine.get(current.local, nowhere) + theirs.get(current.peer, nowhere)
    better = tuple(
        pair
        for pair in candidates(local, peer, current)
        if mine[pair.local] + theirs[pair.peer] < rank
    )
    return better, rank == 0


def _by_priority(peer: Iterable[PeerLocator]) -> list[PeerLocator]:
    """The best first; among equals the stable ones, and of these as the lots fell (SRV)."""
    return sorted(peer, key=lambda locator: (locator.priority, locator.transient, locator.lot))

"""The journal keeps the last events, numbered, and forgets the oldest."""

from __future__ import annotations

from m6proxy.daemon.journal import KEPT, Journal
from m6proxy.names import UlidPair
from tests.harness.pair import A1, B1


def test_events_are_numbered_from_one_with_time_and_pair() -> None:
    journal = Journal(lambda: 1234.5)
    journal.note("ready")
    journal.note("re-homed", "over there", UlidPair(A1, B1))
    first, second = journal.after(0)
    assert (first.seq, first.time, first.what, first.detail) == (1, 1234.5, "ready", "")
    assert first.local_ulid is None and first.peer_ulid is None
    assert (second.seq, second.local_ulid) == (2, "2001:db8:a1:1::10")
    assert second.peer_ulid == "2001:db8:b1:1::10"
    assert journal.after(1) == [second] and journal.after(2) == []


def test_only_the_last_are_kept_and_numbers_go_on() -> None:
    journal = Journal(lambda: 0.0)
    for _ in range(KEPT + 10):
        journal.note("probe sent")
    kept = journal.after(0)
    assert len(kept) == KEPT
    assert (kept[0].seq, kept[-1].seq) == (11, KEPT + 10)

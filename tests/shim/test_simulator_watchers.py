"""The simulator can fail: the engine is broken in one place, and the right watcher says so.

Each break is one that somebody could make: a check left out, a number halved, an entry that
is never released. Some seed of a few must fail by the name of the invariant that it breaks.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

import pytest

from m6proxy.names import LocatorPair, Tag, UlidPair
from m6proxy.proof.judge import Proof
from m6proxy.shim import close, establish, forward, lifecycle, park, peerset, reap
from m6proxy.shim.context import Context
from m6proxy.shim.core import Core
from m6proxy.shim.effects import RemoveFlow
from m6proxy.shim.exploration import Exploration, candidates
from m6proxy.shim.locators import LocalSet, PeerLocator
from m6proxy.shim.pending import PendingProofs
from m6proxy.shim.table import ContextTable
from m6proxy.wire.ipv6 import Walk
from tests.harness.simulator.__main__ import main
from tests.harness.simulator.invariants import Broken, Invariant
from tests.harness.simulator.schedule import generate
from tests.harness.simulator.world import World

SEEDS = range(300)

Break = Callable[[pytest.MonkeyPatch], None]


def one_tag_for_all(patch: pytest.MonkeyPatch) -> None:
    """The first tag that any peer chose is taken for the tag of every context."""
    real, first = ContextTable.bind_peer_tag, dict[int, Tag]()

    def bind(table: ContextTable, context: Context, tag: Tag) -> None:
        real(table, context, tag and first.setdefault(id(table), tag))

    patch.setattr(ContextTable, "bind_peer_tag", bind)


def no_r1bis(patch: pytest.MonkeyPatch) -> None:
    """Who uses a context that is lost here is not told."""
    patch.setattr(establish, "respond_r1bis", lambda *_: None)


def no_second_probe(patch: pytest.MonkeyPatch) -> None:
    """A search sends one probe and waits for ever."""
    patch.setattr(Exploration, "wait_s", lambda _: 1e6)


def no_recovery(patch: pytest.MonkeyPatch) -> None:
    """An R1bis is not heeded."""
    patch.setattr(establish, "handle_r1bis", lambda *_: None)


def swapped_addresses(patch: pytest.MonkeyPatch) -> None:
    """Restoring puts the ULIDs back the wrong way round."""
    real = forward.restore

    def restore(packet: bytes, place: Walk, addresses: bytes) -> bytes:
        return real(packet, place, addresses[16:] + addresses[:16])

    patch.setattr(forward, "restore", restore)


def label_left_on(patch: pytest.MonkeyPatch) -> None:
    """A labelled packet gets its ULIDs back and keeps the label."""
    patch.setattr(forward, "unlabel", lambda packet, ulids: packet[:8] + ulids + packet[40:])


def proof_skipped(patch: pytest.MonkeyPatch) -> None:
    """What a peer lists is believed."""
    patch.setattr(
        peerset, "prove_listed", lambda _, locators, *others: (Proof.DNS,) * len(locators)
    )


def reports_not_read(patch: pytest.MonkeyPatch) -> None:
    """A search ends on the pair that is liked least, whether it was reported or not."""

    def best(_: object, local: LocalSet, peer: Iterable[PeerLocator]) -> LocatorPair | None:
        return candidates(local, peer, LocatorPair(b"", b""))[-1]

    patch.setattr(reap, "best", best)


def probes_twice_as_fast(patch: pytest.MonkeyPatch) -> None:
    real = Exploration.wait_s
    patch.setattr(Exploration, "wait_s", lambda exploration: real(exploration) / 2)


def no_backoff_of_exchanges(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(establish, "backoff_s", lambda *_: 0.3)


def close_too_often(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(close, "backoff_s", lambda *_: 0.1)
    patch.setattr(close, "CLOSE_SENT_MAX", 9)


def nonces_kept(patch: pytest.MonkeyPatch) -> None:
    """The entry of an exchange stays when it is over."""
    patch.setattr(ContextTable, "unbind_nonce", lambda *_: None)


def peer_tags_kept(patch: pytest.MonkeyPatch) -> None:
    """The entry of a peer's tag stays when its context ends."""
    real = ContextTable.bind_peer_tag
    patch.setattr(
        ContextTable, "bind_peer_tag", lambda table, of, tag: real(table, of, tag) if tag else None
    )


def proofs_pending_for_ever(patch: pytest.MonkeyPatch) -> None:
    """An I2 that waited for its proof is answered and kept."""

    def take(pending: PendingProofs, key: bytes, now: float) -> list[object]:
        waiting = pending._by_pair.get(key, {})
        return [
            (fii, message, route)
            for fii, (message, route, until_s) in waiting.items()
            if now <= until_s
        ]

    patch.setattr(PendingProofs, "take", take)


def no_wake(patch: pytest.MonkeyPatch) -> None:
    """The loop is not told that a deadline moved up."""
    patch.setattr(Core, "wake", lambda _: None)


def flows_not_installed(patch: pytest.MonkeyPatch) -> None:
    """Other data planes are not told that a context left its ULIDs."""

    def forget(ulids: UlidPair, *_: object) -> RemoveFlow:
        return RemoveFlow(ulids)

    patch.setattr(lifecycle, "InstallFlow", forget)


def parked_packets_pass(patch: pytest.MonkeyPatch) -> None:
    """What a host sends to a peer that is away goes out as it is."""
    patch.setattr(park, "handle_outbound", lambda *_: None)


def timers_run_while_parked(patch: pytest.MonkeyPatch) -> None:
    """The timers of a context that waits are not stopped."""
    patch.setattr(reap, "rest", lambda _: None)


BREAKS: list[tuple[Break, Invariant]] = [
    (one_tag_for_all, Invariant.TAGS),
    (no_r1bis, Invariant.TAGS),
    (no_second_probe, Invariant.DELIVERY),
    (no_recovery, Invariant.DELIVERY),
    (swapped_addresses, Invariant.ADDRESSES),
    (label_left_on, Invariant.ADDRESSES),
    (proof_skipped, Invariant.GROUND),
    (reports_not_read, Invariant.GROUND),
    (probes_twice_as_fast, Invariant.RATES),
    (no_backoff_of_exchanges, Invariant.RATES),
    (close_too_often, Invariant.RATES),
    (nonces_kept, Invariant.MEMORY),
    (peer_tags_kept, Invariant.MEMORY),
    (proofs_pending_for_ever, Invariant.MEMORY),
    (no_wake, Invariant.TIMERS),
    (flows_not_installed, Invariant.ANSWERS),
    (parked_packets_pass, Invariant.PARKED),
    (timers_run_while_parked, Invariant.PARKED),
]


def broken_by(seed: int) -> Invariant | None:
    """Which invariant a seed breaks."""
    try:
        World(generate(seed)).play()
    except Broken as broken:
        return broken.invariant
    return None


@pytest.mark.parametrize(
    ("damage", "invariant"), BREAKS, ids=lambda given: getattr(given, "__name__", None)
)
def test_the_watchers_see_it(
    damage: Break, invariant: Invariant, monkeypatch: pytest.MonkeyPatch
) -> None:
    damage(monkeypatch)
    assert any(broken_by(seed) is invariant for seed in SEEDS)


def test_every_invariant_is_seen_broken() -> None:
    assert {invariant for _, invariant in BREAKS} == set(Invariant)


def test_a_seed_that_fails_prints_its_schedule_and_replays(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    swapped_addresses(monkeypatch)
    assert main(["--seed", "0", "--count", "20"]) == 1
    told = capsys.readouterr().out
    found = re.search(r"seed (\d+) fails: .*ADDRESSES.*", told)
    assert found is not None
    schedule = str(generate(int(found[1])))
    assert schedule in told
    for _ in range(2):
        assert main(["--seed", found[1], "--steps"]) == 1
        replayed = capsys.readouterr().out
        assert replayed.startswith(schedule)
        assert found[0] in replayed

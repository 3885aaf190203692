"""The file by which a killed daemon's successor knows pairs again."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from m6proxy.daemon import memos
from m6proxy.daemon.memos import Memos
from m6proxy.names import UlidPair
from m6proxy.shim.context import Context
from m6proxy.shim.memo import PairMemo
from tests.daemon.parts import until
from tests.harness.pair import A1, B1, B2, Pair
from tests.shim.test_forks import forked

OTHER = UlidPair(A1, B2)


class FakeEngine:
    """What is remembered of pairs, as a test wants it."""

    def __init__(self, pair: Pair) -> None:
        self._engine = pair.alpha.engine
        self.named: dict[UlidPair, PairMemo | None] = {}

    def memo_of(self, pair: UlidPair) -> PairMemo | None:
        return self.named[pair] if pair in self.named else self._engine.memo_of(pair)

    def contexts(self) -> Iterator[Context]:
        return self._engine.contexts()


Story = Callable[[Memos, FakeEngine, Path], Awaitable[None]]


def told(tmp_path: Path, story: Story) -> None:
    """Run a story about a site with a pair that has a fork."""
    pair = forked()

    async def run() -> None:
        path = tmp_path / "alpha.contexts"
        engine = FakeEngine(pair)
        kept = Memos(path, engine)
        try:
            await story(kept, engine, path)
        finally:
            kept.remove()
        assert list(tmp_path.iterdir()) == []

    asyncio.run(run())


def test_what_was_written_is_read_by_a_successor(tmp_path: Path) -> None:
    async def story(kept: Memos, engine: FakeEngine, path: Path) -> None:
        assert kept.read() == {}
        pair = next(engine.contexts()).pair
        kept.note(pair)
        await until(path.exists, "the first pairs are in the file")
        memo = engine.memo_of(pair)
        assert memo is not None and len(memo.forks) == 1 and memo.main.peer_name
        assert kept.read() == {memo.key: memo}
        assert path.stat().st_mode & 0o777 == 0o600
        odd = replace(memo.main, peer_order=(B1, B2), peer_parameters=b"\1\2", peer_name=None)
        engine.named[pair] = replace(memo, main=odd, forks=())
        kept.note(pair)
        await until(lambda: kept.read() == {memo.key: engine.named[pair]}, "the later line counts")
        engine.named[pair] = None
        kept.note(pair)
        await until(lambda: kept.read() == {}, "the pair is gone")

    told(tmp_path, story)


def test_lines_that_mean_nothing_are_passed_over(tmp_path: Path) -> None:
    async def story(kept: Memos, engine: FakeEngine, path: Path) -> None:
        pair = next(engine.contexts()).pair
        kept.note(pair)
        await until(path.exists, "the first pairs are in the file")
        whole = path.read_text()
        path.write_text(f'[]\n["00"]\n7\n[null,[]]\n{whole[:90]}\n{whole}["{A1.hex()}"\n')
        assert list(kept.read()) == [pair.local + pair.peer]
        path.write_bytes(b"\xff\n")
        assert kept.read() == {}

    told(tmp_path, story)


def test_the_file_is_written_anew_when_most_of_it_is_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memos, "SPARE_LINES", 4)

    async def story(kept: Memos, engine: FakeEngine, path: Path) -> None:
        pair = next(engine.contexts()).pair
        engine.named[OTHER] = None
        for _ in range(30):
            kept.note(pair)
            kept.note(OTHER)
            await asyncio.sleep(memos.SOON_S * 1.5)
        assert len(path.read_text().splitlines()) < 20
        assert list(kept.read()) == [pair.local + pair.peer]

    told(tmp_path, story)


def test_a_file_that_cannot_be_written_is_told_once_and_no_reason_to_stop(tmp_path: Path) -> None:
    async def run() -> None:
        pair = forked()
        kept = Memos(tmp_path / "nowhere" / "alpha.contexts", FakeEngine(pair))
        for _ in range(3):
            kept.note(next(pair.alpha.engine.contexts()).pair)
            await until(lambda: kept._timer is None, "the write was tried")
        kept.remove()

    with capture_logs() as logs:
        asyncio.run(run())
    assert [line["event"] for line in logs] == ["contexts are not remembered"]


def test_many_pairs_are_written_in_portions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file takes its place when the last portion is in it."""
    monkeypatch.setattr(memos, "PORTION", 1)

    async def story(kept: Memos, engine: FakeEngine, path: Path) -> None:
        pair = next(engine.contexts()).pair
        memo = engine.memo_of(pair)
        assert memo is not None
        other = replace(memo, key=OTHER.local + OTHER.peer)
        engine.named[OTHER] = other
        kept.note(OTHER)
        await until(path.exists, "the pairs are in the file")
        assert kept.read() == {memo.key: memo, other.key: other}
        assert len(path.read_text().splitlines()) == 2

    told(tmp_path, story)

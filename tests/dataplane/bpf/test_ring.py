"""The ring buffer's reading end."""

from __future__ import annotations

import asyncio
import mmap
from collections.abc import Iterator

import pytest

from m6proxy.dataplane.bpf.load import Loaded
from m6proxy.dataplane.bpf.ring import RingReader
from tests.dataplane.bpf.trial import ETHERNET
from tests.dataplane.bpf.trial import trial as trial

pytestmark = pytest.mark.netns

RECORD_OCTETS = 64
RECORDS_THAT_FIT = mmap.PAGESIZE // (8 + RECORD_OCTETS)


@pytest.fixture
def reader(trial: Loaded) -> Iterator[RingReader]:
    opened = RingReader(trial.maps["events"])
    yield opened
    opened.close()


def packet(number: int) -> bytes:
    return ETHERNET + number.to_bytes(4, "big") + bytes(60)


def test_records_come_in_order_over_many_turns_of_the_ring(
    trial: Loaded, reader: RingReader
) -> None:
    tell = trial.programs["tell"]
    numbers = iter(range(1000))
    for count in (1, 7, RECORDS_THAT_FIT, 30, 50, 2):
        sent = [packet(next(numbers)) for _ in range(count)]
        for each in sent:
            tell.trial(each)
        assert reader.read() == [each[:RECORD_OCTETS] for each in sent]
        assert reader.read() == []


def test_a_full_ring_keeps_what_it_has(trial: Loaded, reader: RingReader) -> None:
    trial.programs["tell"].trial(packet(1), repeat=500)
    assert len(reader.read()) == RECORDS_THAT_FIT
    trial.programs["tell"].trial(packet(2))
    assert reader.read() == [packet(2)[:RECORD_OCTETS]]


def test_a_turn_takes_no_more_than_its_share(trial: Loaded, reader: RingReader) -> None:
    trial.programs["tell"].trial(packet(1), repeat=10)
    assert [len(reader.read(4)) for _ in range(4)] == [4, 4, 2, 0]


def test_discarded_records_are_passed_over(trial: Loaded, reader: RingReader) -> None:
    """A frame that is too short for the program's record."""
    trial.programs["tell"].trial(ETHERNET + bytes(45))
    trial.programs["tell"].trial(packet(3))
    assert reader.read() == [packet(3)[:RECORD_OCTETS]]


def test_the_loop_wakes_up_when_the_kernel_writes(trial: Loaded, reader: RingReader) -> None:
    def take(got: asyncio.Future[list[bytes]]) -> None:
        got.set_result(reader.read())

    async def first() -> list[bytes]:
        loop = asyncio.get_running_loop()
        got: asyncio.Future[list[bytes]] = loop.create_future()
        loop.add_reader(reader.fileno(), take, got)
        loop.call_soon(trial.programs["tell"].trial, packet(9))
        try:
            return await asyncio.wait_for(got, 5)
        finally:
            loop.remove_reader(reader.fileno())

    assert asyncio.run(first()) == [packet(9)[:RECORD_OCTETS]]

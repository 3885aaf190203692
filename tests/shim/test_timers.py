"""The heap of deadlines against a naive model, and its memory."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from m6proxy.shim.context import Context, HeldAck, PendingUpdate
from m6proxy.shim.exploration import Exploration
from m6proxy.shim.held import HeldSegments
from m6proxy.shim.locators import LocalSet
from m6proxy.shim.timers import NEVER, RELEASE_EXPLORATION_S, TimerHeap, backoff_s
from m6proxy.shim.transitions import State
from m6proxy.wire.message import UpdateRequest
from tests.harness.pair import A1, B1, uplinks

LOCAL = LocalSet(A1, uplinks("a"), 1)


def contexts(count: int) -> list[Context]:
    return [Context(A1 + B1, 0, tag, LOCAL) for tag in range(1, count + 1)]


class Wakes:
    """Counts how often the heap says that its first deadline moved up."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> None:
        self.count += 1


STEPS = st.one_of(
    st.tuples(st.just("arm"), st.integers(0, 4), st.integers(1, 12)),
    st.tuples(st.just("cancel"), st.integers(0, 4), st.just(0)),
    st.tuples(st.just("pop"), st.just(0), st.integers(1, 12)),
)


@settings(deadline=None, max_examples=400)
@given(st.lists(STEPS, max_size=60))
def test_the_heap_is_a_dictionary_of_deadlines(steps: list[tuple[str, int, int]]) -> None:
    wakes = Wakes()
    heap, five = TimerHeap(wakes), contexts(5)
    model: dict[Context, float] = {}
    for what, which, number in steps:
        context, when_s = five[which], number / 8
        match what:
            case "arm":
                first_s, already = heap.next_deadline(), wakes.count
                heap.arm(context, when_s)
                model[context] = min(model.get(context, when_s), when_s)
                if first_s is None or model[context] < first_s:
                    assert wakes.count == already + 1
            case "cancel":
                heap.cancel(context)
                model.pop(context, None)
            case _:
                taken = heap.take_due(when_s, 2)
                due = sorted(deadline_s for deadline_s in model.values() if deadline_s <= when_s)
                assert [model[context] for context in taken] == due[:2]
                for context in taken:
                    assert context.armed_s == NEVER
                    del model[context]
        assert len(heap) == len(model)
        assert heap.next_deadline() == min(model.values(), default=None)


def test_never_is_not_a_deadline() -> None:
    heap, (context,) = TimerHeap(Wakes()), contexts(1)
    heap.arm(context, NEVER)
    assert heap.next_deadline() is None


def test_dead_entries_are_thrown_away() -> None:
    """A context that slept till 300 s was armed at 3 s anew with every burst of traffic.

    Each burst left an entry behind that lived for 300 s: 75 dead ones for each live one.
    """
    heap, (busy, *many) = TimerHeap(Wakes()), contexts(101)
    for now in range(0, 1200, 4):
        heap.arm(busy, now + 3.5)
        for context in many:
            heap.arm(context, now + 3.0)
        for due in heap.take_due(now + 3.0, len(many)):
            heap.arm(due, now + 303.0)
        assert len(heap) == 101
        assert sum(map(len, heap._heaps.values())) == heap._entries <= 300
        assert len(heap._quarters) == len(heap._heaps) <= 1300
        assert heap.take_due(now + 3.5, 2) == [busy]
        heap.arm(busy, now + 7.5)


def test_dead_entries_are_thrown_away_a_piece_at_a_time() -> None:
    """All of 100,000 contexts at once took 63 ms to look through, and no packet passed."""
    heap, many = TimerHeap(Wakes()), contexts(2000)
    for number, context in enumerate(many):
        heap.arm(context, 300.0 + number / 100)
        heap.arm(context, 100.0 + number / 100)
    before, longest = heap._entries, 0
    for context in many:
        heap.cancel(context)
        before, longest = heap._entries, max(longest, before - heap._entries)
    assert heap._entries <= 100
    assert longest <= 50
    assert heap.next_deadline() is None


def test_an_entry_that_is_there_twice_counts_once() -> None:
    """Armed, cancelled and armed at the same time again, an entry was live twice.

    After throwing the dead ones away the count of live entries was wrong.
    """
    heap, many = TimerHeap(Wakes()), contexts(200)
    for context in many:
        heap.arm(context, 50.0)
    for context in many[:10]:
        heap.cancel(context)
        heap.arm(context, 50.0)
    for context in many[10:]:
        heap.cancel(context)
    assert len(heap) == 10
    assert len(heap.take_due(60.0, 200)) == 10
    assert len(heap) == 0


TIMES = st.sampled_from([NEVER, 10.0, 20.0, 30.0, 40.0])


@given(st.lists(TIMES, min_size=9, max_size=9), st.booleans())
def test_a_context_wakes_at_its_first_deadline(times: list[float], carries: bool) -> None:
    (context,) = contexts(1)
    context.state = State.ESTABLISHED if carries else State.E_FAILED
    context.last_traffic_s = 25.0
    send_s, keepalive_s, next_s, holddown_s, probe_s, ended_s, update_s, held_s, again_s = times
    context.send_due_s, context.holddown_due_s = send_s, holddown_s
    context.keepalive_due_s, context.keepalive_next_s = keepalive_s, next_s
    set_ = [time_s for time_s in (send_s, keepalive_s, holddown_s) if time_s]
    set_ += [25.0 + 300.0] if carries else []
    set_ += [next_s] if keepalive_s and next_s else []
    if ended_s:
        context.exploration = Exploration((), 0.0, 0)
        context.exploration.due_s, context.exploration.ended_s = probe_s, ended_s
        set_.append(probe_s or ended_s + RELEASE_EXPLORATION_S)
    if update_s:
        context.update = PendingUpdate(UpdateRequest(1, 2), None)
        context.update.timeout_due_s = update_s
        set_.append(update_s)
    if held_s:
        context.held = HeldSegments()
        context.held.until_s = held_s
        set_ += [held_s] if send_s == NEVER else []
    if again_s:
        context.held_ack = HeldAck(3, context.locators, again_s)
        set_.append(again_s)
    assert context.next_deadline_s(300.0) == min(set_, default=NEVER)


def test_backoff_doubles_up_to_its_limit() -> None:
    assert [backoff_s(4.0, n) for n in range(5)] == [4, 8, 16, 32, 64]
    assert [backoff_s(4.0, n, 120.0) for n in (4, 5, 6, 10_000)] == [64, 120, 120, 120]

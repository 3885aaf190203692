"""What is asked next, and what the answers amount to; no network."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from m6proxy.discovery.codec import Reading
from m6proxy.discovery.plan import (
    Answer,
    Ask,
    LocalPlan,
    NamedPlan,
    PeerPlan,
    Plan,
    Question,
    ptr_question,
)
from m6proxy.names import address
from tests.discovery.values import ALPHA

A1 = address("2001:db8:a1:1::10")
NOW = 100.0
A1_NAME = "a1.alpha.example"
PTR = ptr_question(A1)
AAAA = Question(A1_NAME, Ask.AAAA)
SVCB = Question(f"_m6proxy.{A1_NAME}", Ask.SVCB)

FOUND = {
    PTR: Answer(NOW + 500, names=(A1_NAME,)),
    AAAA: Answer(NOW + 400, addresses=(A1,)),
    SVCB: Answer(NOW + 300, reading=Reading(ALPHA)),
}
NOTHING = Answer(NOW + 60)
FAILED = Answer(NOW + 30, failed=True)


def ask_all(plan: Plan, known: dict[Question, Answer]) -> list[Question]:
    """Answer everything from what is known, else with nothing; return what was asked."""
    asked: list[Question] = []
    for _ in range(50):
        if plan.done:
            return asked
        for question in plan.questions():
            asked.append(question)
            plan.answer(question, known.get(question, NOTHING))
    raise AssertionError("the plan does not end")


def test_ptr_is_asked_with_the_learned_names_and_confirms_them() -> None:
    plan = PeerPlan(A1, learned=(A1_NAME,))
    assert set(plan.questions()) == {PTR, AAAA, SVCB}
    assert plan.questions() == ()
    plan.answer(AAAA, FOUND[AAAA])
    plan.answer(SVCB, FOUND[SVCB])
    assert not plan.done
    plan.answer(PTR, FOUND[PTR])
    assert plan.done
    data = plan.outcome().data
    assert data is not None
    assert (data.name, data.owns_ulid, data.expires_s) == (A1_NAME, True, NOW + 300)


def test_ptr_alone() -> None:
    plan = PeerPlan(A1)
    assert ask_all(plan, FOUND) == [PTR, AAAA, SVCB]
    assert plan.outcome().data is not None


def test_a_confirmed_name_ends_the_search() -> None:
    plan = PeerPlan(A1, learned=("slow.example", A1_NAME))
    plan.questions()
    for question, answer in FOUND.items():
        plan.answer(question, answer)
    assert plan.done
    data = plan.outcome().data
    assert data is not None and data.name == A1_NAME


def test_learned_name_without_ptr_owns_nothing() -> None:
    plan = PeerPlan(A1, learned=(A1_NAME,))
    ask_all(plan, FOUND | {PTR: FAILED})
    outcome = plan.outcome()
    assert outcome.data is not None
    assert (outcome.data.owns_ulid, outcome.until_s, outcome.failed) == (False, NOW + 300, True)


def test_a_published_prefix_covers_the_address() -> None:
    plan = PeerPlan(A1, learned=(A1_NAME,))
    ask_all(plan, {SVCB: FOUND[SVCB]})
    assert plan.outcome().data is not None


def test_a_name_that_covers_another_address_is_refused() -> None:
    stranger = address("2001:db8:bad::1")
    plan = PeerPlan(stranger, learned=(A1_NAME,))
    ask_all(plan, FOUND)
    outcome = plan.outcome()
    assert (outcome.data, outcome.until_s, outcome.failed) == (None, NOW + 60, False)


def test_configured_names_are_the_only_ones() -> None:
    plan = PeerPlan(A1, {"config.example": frozenset({A1})}, learned=(A1_NAME,))
    record = Question("_m6proxy.config.example", Ask.SVCB)
    asked = ask_all(plan, FOUND | {record: FOUND[SVCB]})
    assert {question.name for question in asked} == {"config.example", record.name}
    data = plan.outcome().data
    assert data is not None and data.owns_ulid and data.covers(A1)


def test_four_aliases_are_followed_and_no_more() -> None:
    def chain(hops: int) -> dict[Question, Answer]:
        known = dict(FOUND)
        names = [SVCB.name, *(f"hop{number}.example" for number in range(hops))]
        for name, target in itertools.pairwise(names):
            known[Question(name, Ask.SVCB)] = Answer(NOW + 50, reading=Reading(alias=target))
        known[Question(names[-1], Ask.SVCB)] = FOUND[SVCB]
        return known

    plan = PeerPlan(A1)
    ask_all(plan, chain(4))
    outcome = plan.outcome()
    assert outcome.data is not None
    assert outcome.until_s == NOW + 50  # an alias is part of what was used
    plan = PeerPlan(A1)
    ask_all(plan, chain(5))
    assert plan.outcome().data is None


def test_giving_up_counts_what_is_missing_as_failed() -> None:
    for plan in (PeerPlan(A1, learned=("x.example",)), NamedPlan("x.example", A1), LocalPlan(A1)):
        plan.questions()
        plan.give_up(NOW)
        assert plan.done
        outcome = plan.outcome()
        assert (outcome.data, outcome.until_s, outcome.failed) == (None, NOW + 30, True)


def test_named_needs_ptr_or_configuration_to_own() -> None:
    plan = NamedPlan(A1_NAME, A1)
    ask_all(plan, FOUND)
    data = plan.outcome().data
    assert data is not None and data.owns_ulid
    plan = NamedPlan(A1_NAME, A1, frozenset({A1}))
    assert PTR not in ask_all(plan, FOUND)
    data = plan.outcome().data
    assert data is not None and data.owns_ulid
    plan = NamedPlan(A1_NAME, A1)
    ask_all(plan, FOUND | {PTR: Answer(NOW, names=("else.example",)), SVCB: NOTHING})
    data = plan.outcome().data
    assert data is not None and not data.owns_ulid and data.capability is None


def test_a_name_too_long_for_a_record_is_asked_for_addresses_only() -> None:
    name = ".".join(["a" * 61] * 4)
    plan = NamedPlan(name, A1)
    assert set(plan.questions()) == {PTR, Question(name, Ask.AAAA)}


def test_local_name_is_confirmed_denied_or_unchecked() -> None:
    def local(known: dict[Question, Answer]) -> str | None:
        plan = LocalPlan(A1)
        ask_all(plan, known)
        data = plan.outcome().data
        return data.name if data is not None else None

    assert local(FOUND) == A1_NAME
    assert local({PTR: FOUND[PTR]}) is None
    assert local({PTR: FOUND[PTR], AAAA: FAILED, SVCB: FAILED}) == A1_NAME
    assert local({}) is None


NAMES = ("a1.alpha.example", "b.example", "c.example")
ANSWERS = st.sampled_from(
    [
        NOTHING,
        FAILED,
        *FOUND.values(),
        Answer(NOW + 10, names=NAMES),
        *(Answer(NOW + 10, reading=Reading(alias=f"_m6proxy.{name}")) for name in NAMES),
    ]
)


@given(st.data(), st.lists(st.sampled_from(NAMES), max_size=6))
def test_every_plan_ends_and_never_lies(draw: st.DataObject, learned: list[str]) -> None:
    plan = PeerPlan(A1, learned=learned)
    for _ in range(40):
        if plan.done:
            break
        for question in plan.questions():
            plan.answer(question, draw.draw(ANSWERS))
    assert plan.done
    data = plan.outcome().data
    assert data is None or (data.covers(A1) and data.capability is not None)

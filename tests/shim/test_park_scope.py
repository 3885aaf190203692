"""One question for all contexts with a peer's gateway, when the site goes away (decision 16)."""

from __future__ import annotations

from dataclasses import replace

from m6proxy.shim.features import Feature
from m6proxy.shim.park import NAMED_MAX
from m6proxy.shim.timers import PARK_GRACE_S, PARK_SENT_MAX
from m6proxy.wire.message import UpdateAck, UpdateRequest, find
from m6proxy.wire.options import LocatorList, ParkTime, Scope
from tests.harness.packets import control, find_messages
from tests.harness.pair import Pair, Site
from tests.shim.test_park import darken, unpark
from tests.shim.test_park import park as go
from tests.shim.test_scope import contexts, crowd

FOR_S = 600


def parked(site: Site) -> list[bool]:
    return [context.parking is not None for context in contexts(site)]


def questions(pair: Pair) -> list[tuple[float, UpdateRequest]]:
    return [
        (when, message)
        for when, _, message in find_messages(pair.alpha.sent, UpdateRequest)
        if find(message.options, ParkTime) is not None
    ]


def test_one_question_and_one_answer_park_all_contexts() -> None:
    pair = crowd(20)
    go(pair, pair.alpha, FOR_S)
    pair.run(1.0)
    ((_, request),) = questions(pair)
    ((_, _, answer),) = find_messages(pair.beta.sent, UpdateAck)
    listed, asked = find(request.options, LocatorList), find(request.options, Scope)
    agreed = find(answer.options, Scope)
    assert listed is not None and not listed.locators and asked is not None and agreed is not None
    assert len(asked.tags) == 20 and not asked.prefixes
    assert {(ours, theirs) for theirs, ours in agreed.tags} == set(asked.tags)
    assert find(answer.options, ParkTime) == ParkTime(FOR_S)
    assert all(parked(pair.alpha)) and all(parked(pair.beta))
    away = pair.alpha.engine.away
    assert away is not None and (away.granted, away.asked, away.shortest_s) == (20, 0, FOR_S)
    unpark(pair, pair.alpha)
    pair.run(5.0)
    assert not any(parked(pair.alpha)) and not any(parked(pair.beta))


def test_a_message_is_as_full_as_can_be() -> None:
    pair = crowd(NAMED_MAX + 1, hosts=150)
    go(pair, pair.alpha, FOR_S)
    pair.run(1.0)
    sizes = sorted(
        len(about.tags) if (about := find(one.options, Scope)) is not None else 1
        for _, one in questions(pair)
    )
    assert sizes == [1, NAMED_MAX]
    assert max(len(packet) for _, packet in pair.alpha.sent) > 1280 - 12
    assert all(parked(pair.beta))


def test_who_is_not_named_in_the_answer_is_asked_alone() -> None:
    """The peer has one of the contexts no more, and one that knows nothing of scopes."""
    pair = crowd(6)
    changed, *_ = contexts(pair.beta)[3:]
    changed.peer_features &= ~Feature.SCOPE
    go(pair, pair.alpha, FOR_S)
    pair.run(1.0)
    first, second = (message for _, message in questions(pair))
    assert find(first.options, Scope) is not None
    assert (find(second.options, Scope), second.receiver_tag) == (None, changed.local_tag)
    assert all(parked(pair.beta))
    away = pair.alpha.engine.away
    assert away is not None and away.granted == 6


def test_a_peer_that_looks_at_one_context_only_is_asked_about_each() -> None:
    pair = crowd(5)
    for context in contexts(pair.beta):
        context.peer_features &= ~Feature.SCOPE
    go(pair, pair.alpha, FOR_S)
    pair.run(1.0)
    assert len(questions(pair)) == 5
    assert all(parked(pair.beta))


def test_a_peer_that_will_not_wait_says_so_of_all() -> None:
    pair = crowd(5)
    core = pair.beta.engine._core
    core.settings = replace(core.settings, park_max_s=0.0)
    go(pair, pair.alpha, FOR_S)
    pair.run(1.0)
    assert len(questions(pair)) == 1
    assert not any(parked(pair.beta))
    away = pair.alpha.engine.away
    assert away is not None and (away.refused, away.asked) == (5, 0)


def test_without_an_answer_the_question_is_repeated_and_then_each_asks_once() -> None:
    pair = crowd(5)
    darken(pair, "b")
    go(pair, pair.alpha, FOR_S)
    pair.run(FOR_S / 2)
    together = [message for _, message in questions(pair) if find(message.options, Scope)]
    alone = [
        message.receiver_tag for _, message in questions(pair) if not find(message.options, Scope)
    ]
    assert len(together) == PARK_SENT_MAX
    assert len(alone) == len(set(alone)) == 4, "all but the one that the question went over"
    away = pair.alpha.engine.away
    assert away is not None and (away.granted, away.refused, away.asked) == (0, 0, 5)


def test_tags_that_are_not_the_senders_park_nothing() -> None:
    """Somebody who has one context with beta names others with one tag of two right."""
    pair = crowd(3)
    mine, *others = contexts(pair.alpha)
    theirs = {context.peer_tag: context for context in contexts(pair.beta)}
    beta_mine = theirs[mine.local_tag]
    guessed = tuple((one.peer_tag, one.local_tag ^ 1) for one in others)
    options = (LocatorList(1, (), ()), Scope(0, 0, (), guessed), ParkTime(60))
    request = UpdateRequest(beta_mine.local_tag, 7, options)
    pair.inject(pair.beta, control(mine.outbound_key[:16], mine.outbound_key[16:], request))
    assert [context.parking is not None for context in contexts(pair.beta)] == [
        context is beta_mine for context in contexts(pair.beta)
    ]
    ((_, _, answer),) = find_messages(pair.beta.sent, UpdateAck)
    assert find(answer.options, Scope) is None


def test_contexts_of_a_peer_that_stays_away_end_together() -> None:
    pair = crowd(5)
    go(pair, pair.alpha, 60)
    pair.run(1.0)
    darken(pair, "a")
    pair.run(60 + PARK_GRACE_S + 1)
    assert not contexts(pair.beta)

"""Odd locator sets, how they rank, and when they are acknowledged (decision 11)."""

from __future__ import annotations

from collections import Counter

import pytest

from m6proxy.names import Address, address
from m6proxy.proof.judge import Proof
from m6proxy.shim.effects import AskProof, Effect
from m6proxy.shim.exploration import best, candidates
from m6proxy.shim.verdict import CONSUMED
from m6proxy.wire.message import Probe, UpdateAck, UpdateRequest
from m6proxy.wire.options import (
    BROKEN,
    METHOD_DNS,
    TRANSIENT,
    LocatorList,
    LocatorPreferences,
    Option,
    Preference,
)
from tests.harness.packets import control, find_messages
from tests.harness.pair import A1, A1_ISP2, B1, B1_ISP2, NAMES, Pair, name_data
from tests.shim.exchange import EVE, lose_first
from tests.shim.moved import established, moved

LINK_LOCAL = address("fe80::1")
NEW = address("2001:db8:b2:7::10")
"""Another address in beta's second prefix: DNS covers it."""


def listed(*locators: Address, generation: int = 9) -> LocatorList:
    return LocatorList(generation, (METHOD_DNS,) * len(locators), locators)


def ranked(*elements: tuple[int, int, int], generation: int = 9) -> LocatorPreferences:
    return LocatorPreferences(generation, 3, tuple(Preference(*one) for one in elements))


def tell(pair: Pair, *options: Option, nonce: int = 7) -> object:
    """Beta's side tells alpha something."""
    request = UpdateRequest(pair.alpha.context.local_tag, nonce, options)
    return pair.inject(pair.alpha, control(B1, A1, request))


def acks(pair: Pair) -> list[int]:
    """The requests that alpha acknowledged."""
    return [ack.request_nonce for _, _, ack in find_messages(pair.alpha.sent, UpdateAck)]


# --- odd sets ---------------------------------------------------------------------------


def test_a_set_of_one_is_all_that_is_tried() -> None:
    pair = established()
    assert tell(pair, listed(B1)) is CONSUMED
    pair.cut_provider("b", 1)
    pair.stream(10.0)
    assert {packet[24:40] for _, packet in pair.wire} <= {A1, A1_ISP2, B1}
    assert [x.address for x in pair.alpha.context.peer_locators] == [B1]


@pytest.mark.parametrize("locators", [(), (EVE,), (LINK_LOCAL,), (bytes(16),)])
def test_with_nothing_usable_in_it_the_path_stays(locators: tuple[Address, ...]) -> None:
    """A path is tested and not left when the peer names nothing that could take its place."""
    pair = established()
    assert tell(pair, listed(*locators)) is CONSUMED
    pair.run(1.0)
    assert pair.alpha.context.route[16:] == B1
    assert find_messages(pair.alpha.sent, Probe), "it is tested"
    assert len(pair.stream(3.0, both=True)) > 100


def test_the_ulid_may_cease_to_be_a_locator() -> None:
    pair = moved()
    generation = pair.beta.context.local_set.generation
    request = UpdateRequest(pair.alpha.context.local_tag, 3, (listed(B1_ISP2),))
    route = pair.alpha.context.route
    packet = control(route[16:], route[:16], request)
    assert pair.inject(pair.alpha, packet) is CONSUMED
    kept = {x.address: (x.listed, x.broken) for x in pair.alpha.context.peer_locators}
    assert kept == {B1_ISP2: (True, False), B1: (False, True)}
    assert generation != pair.alpha.context.peer_generation == 9
    assert len(pair.stream(3.0, both=True)) > 100
    assert pair.alpha.context.route == route


def test_of_a_locator_that_is_listed_twice_the_first_counts() -> None:
    pair = established()
    options = (listed(B1, B1_ISP2, B1), ranked((0, 1, 0), (0, 2, 0), (BROKEN, 9, 0)))
    assert tell(pair, *options) is CONSUMED
    found = {x.address: (x.broken, x.priority) for x in pair.alpha.context.peer_locators}
    assert found == {B1: (False, 1), B1_ISP2: (False, 2)}
    assert tell(pair, ranked((0, 3, 0), (BROKEN, 4, 0), (0, 0, 0))) is CONSUMED
    found = {x.address: (x.broken, x.priority) for x in pair.alpha.context.peer_locators}
    assert found == {B1: (False, 3), B1_ISP2: (True, 4)}


def test_preferences_alone_count_only_what_the_peer_listed() -> None:
    pair = established()
    assert tell(pair, listed(B1_ISP2)) is CONSUMED
    assert len(pair.alpha.context.peer_locators) == 2, "the ULID is kept"
    assert tell(pair, ranked((0, 5, 0))) is CONSUMED


# --- how they rank ----------------------------------------------------------------------


def test_the_transient_one_is_last_among_equals_and_only_there() -> None:
    pair = established()
    tell(pair, listed(B1, B1_ISP2), ranked((TRANSIENT, 1, 0), (0, 1, 0)))
    context = pair.alpha.context
    assert [x.transient for x in context.peer_locators] == [True, False]
    pairs = candidates(context.local_set, context.peer_locators, context.locators)
    away = [pair.peer for pair in pairs[1:]]
    assert away[0] == B1_ISP2
    assert best(pairs, context.local_set, context.peer_locators) == (A1, B1_ISP2)
    tell(pair, ranked((TRANSIENT, 1, 0), (0, 2, 0)))
    assert best(pairs, context.local_set, context.peer_locators) == (A1, B1)
    tell(pair, ranked((0, 1, 0), (0, 1, 0)))
    assert not context.peer_locators[0].transient


def test_weight_shares_among_equals_as_in_srv() -> None:
    pair = established()
    context = pair.alpha.context
    first: Counter[Address] = Counter()
    pairs = candidates(context.local_set, context.peer_locators, context.locators)
    for number in range(400):
        tell(pair, listed(B1, B1_ISP2), ranked((0, 1, 10), (0, 1, 30)), nonce=number)
        chosen = best(pairs, context.local_set, context.peer_locators)
        assert chosen is not None
        first[chosen.peer] += 1
    assert 60 < first[B1] < 140, "a quarter of 400"
    tell(pair, ranked((0, 1, 0), (0, 1, 1)))
    assert best(pairs, context.local_set, context.peer_locators) == (A1, B1_ISP2)
    tell(pair, ranked((0, 1, 1), (0, 2, 255)))
    assert best(pairs, context.local_set, context.peer_locators) == (A1, B1), "priority first"


def test_without_weights_the_order_is_that_of_the_list() -> None:
    pair = established()
    tell(pair, listed(B1_ISP2, B1), ranked((0, 1, 0), (0, 1, 0)))
    context = pair.alpha.context
    pairs = candidates(context.local_set, context.peer_locators, context.locators)
    assert best(pairs, context.local_set, context.peer_locators) == (A1, B1_ISP2)


# --- acknowledged when proved (§7.2, §5.11) -----------------------------------------------


class SlowDns:
    """Alpha's questions about proofs wait here until somebody answers them."""

    def __init__(self, pair: Pair) -> None:
        self.pair = pair
        self.questions: list[AskProof] = []
        carry_out = pair.carry_out

        def hold(site: object, effect: Effect) -> None:
            if site is pair.alpha and isinstance(effect, AskProof):
                self.questions.append(effect)
            else:
                carry_out(pair.alpha if site is pair.alpha else pair.beta, effect)

        pair.carry_out = hold

    def answer(self, *, known: bool = True) -> None:
        question = self.questions.pop(0)
        data = name_data(NAMES[B1], B1, "b") if known else None
        now = self.pair.clock.now
        self.pair.alpha.engine.handle_proof(question.pair, data, NAMES[A1], now)
        self.pair.settle(self.pair.alpha)


def proof_of(pair: Pair, octets: Address) -> Proof:
    (found,) = (x for x in pair.alpha.context.peer_locators if x.address == octets)
    return found.proof


def test_new_locators_are_acknowledged_when_they_are_proved() -> None:
    pair = established()
    dns = SlowDns(pair)
    tell(pair, listed(B1, NEW))
    pair.run(2.0)
    assert acks(pair) == []
    assert proof_of(pair, NEW) is Proof.NONE
    dns.answer()
    assert acks(pair) == [7]
    assert proof_of(pair, NEW) is Proof.DNS


def test_a_request_that_comes_again_meanwhile_is_one_question_and_one_answer() -> None:
    pair = established()
    dns = SlowDns(pair)
    for _ in range(3):
        tell(pair, listed(B1, NEW))
        pair.run(1.0)
    assert len(dns.questions) == 1
    dns.answer()
    assert acks(pair) == [7]
    tell(pair, listed(B1, NEW))
    assert acks(pair) == [7, 7], "the acknowledgement was lost: it is given again"


def test_a_newer_request_takes_the_place_of_the_older() -> None:
    pair = established()
    dns = SlowDns(pair)
    tell(pair, listed(B1, NEW))
    tell(pair, listed(B1, NEW, EVE, generation=10), nonce=8)
    dns.answer()
    assert acks(pair) == [8]


def test_dead_dns_delays_the_acknowledgement_and_proves_nothing() -> None:
    pair = established()
    dns = SlowDns(pair)
    tell(pair, listed(B1, NEW))
    dns.answer(known=False)
    assert acks(pair) == [7]
    assert proof_of(pair, NEW) is Proof.NONE


def test_dns_that_never_answers_delays_it_for_six_seconds() -> None:
    pair = established()
    SlowDns(pair)
    tell(pair, listed(B1, NEW))
    pair.run(5.9)
    assert acks(pair) == []
    pair.run(0.2)
    assert acks(pair) == [7]
    pair.run(20.0)
    assert acks(pair) == [7]


def test_nothing_new_to_prove_is_acknowledged_at_once() -> None:
    pair = established()
    dns = SlowDns(pair)
    tell(pair, listed(B1_ISP2, B1))
    assert (acks(pair), dns.questions) == ([7], [])


def test_a_search_takes_in_what_was_proved_meanwhile() -> None:
    """Locators proved during a search waited for the next search."""
    pair = established()
    pair.talk(pair.alpha)
    dns = SlowDns(pair)
    tell(pair, listed(NEW))
    pair.run(1.0)
    assert all(packet[24:40] != NEW for _, packet in pair.alpha.sent)
    pair.cut_provider("b", 1)
    pair.run(1.0)
    dns.answer()
    pair.run(1.5)
    assert any(packet[24:40] == NEW for _, packet in pair.alpha.sent)


def test_a_lost_acknowledgement_costs_one_timeout() -> None:
    pair = established()
    lost = lose_first(pair, UpdateAck)
    pair.alpha.engine.handle_uplink("isp1", up=False, mtu=1500, now=pair.clock.now)
    pair.settle(pair.alpha)
    pair.run(7.0)
    assert len(lost) == 1
    assert pair.alpha.context.update is None

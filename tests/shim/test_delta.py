"""Differences of locator sets instead of whole ones, and what happens when the ends disagree."""

from __future__ import annotations

import pytest

from m6proxy.names import Address
from m6proxy.proof.judge import Proof
from m6proxy.reasons import Reason
from m6proxy.shim.locators import LocalSet
from m6proxy.shim.verdict import CONSUMED
from m6proxy.wire.message import ErrorCode, ErrorMessage, UpdateAck, UpdateRequest, encode_message
from m6proxy.wire.options import (
    BROKEN,
    METHOD_CGA,
    METHOD_DNS,
    LocatorDelta,
    LocatorList,
    Option,
    Preference,
    find,
)
from tests.harness.packets import control, find_messages
from tests.harness.pair import A1, A1_ISP2, A2, B1, B1_ISP2, Pair, uplinks
from tests.shim.exchange import EVE, lose_first
from tests.shim.moved import established
from tests.shim.test_locator_sets import NEW, SlowDns, acks, tell


def uplink(pair: Pair, name: str = "isp1", *, up: bool) -> None:
    pair.alpha.engine.handle_uplink(name, up=up, mtu=1500, now=pair.clock.now)
    pair.settle(pair.alpha)


def requests(pair: Pair) -> list[UpdateRequest]:
    return [request for _, _, request in find_messages(pair.alpha.sent, UpdateRequest)]


def differences(pair: Pair) -> list[bool]:
    """Of each Update Request of alpha, whether it was a difference."""
    return [find(request.options, LocatorDelta) is not None for request in requests(pair)]


def broken(pair: Pair) -> dict[Address, bool]:
    """What beta knows of alpha's locators."""
    return {x.address: x.broken for x in pair.beta.context.peer_locators}


def agreed(pair: Pair) -> bool:
    return pair.beta.context.peer_generation == pair.alpha.context.local_set.generation


def delta(
    pair: Pair, *added: Address, removed: tuple[Address, ...] = (), method: int = METHOD_DNS
) -> LocatorDelta:
    """A difference to the list of beta's that alpha has."""
    elements = tuple((method, Preference(0, 5), octets) for octets in added)
    return LocatorDelta(pair.alpha.context.peer_generation, 77, elements, removed)


def locators(pair: Pair) -> dict[Address, Proof]:
    """Beta's list as alpha has it."""
    return {x.address: x.proof for x in pair.alpha.context.peer_locators if x.listed}


def test_an_uplink_that_goes_is_told_as_a_difference() -> None:
    pair = established()
    uplink(pair, up=False)
    pair.run(1.0)
    (request,) = requests(pair)
    (option,) = request.options
    assert isinstance(option, LocatorDelta)
    assert option.added == ((METHOD_DNS, Preference(BROKEN, 1), A1),)
    assert option.removed == ()
    assert broken(pair) == {A1: True, A1_ISP2: False}
    assert agreed(pair)
    assert pair.alpha.context.update is None
    uplink(pair, up=True)
    pair.run(1.0)
    assert broken(pair) == {A1: False, A1_ISP2: False}
    assert agreed(pair)
    assert differences(pair) == [True, True]


def test_what_changed_between_two_sets() -> None:
    first, second = uplinks("a")
    before = LocalSet(A1, (first,), 1)
    after = LocalSet(A1, (second,), 2)
    change = after.since(before)
    assert (change.base_generation, change.generation) == (1, 2)
    assert [octets for _, _, octets in change.added] == [A1_ISP2]
    assert change.removed == (A1,)
    assert before.since(before) == LocatorDelta(1, 1, (), ())


@pytest.mark.parametrize("kind", [UpdateRequest, UpdateAck])
def test_a_loss_costs_a_repetition_and_nothing_else(
    kind: type[UpdateRequest | UpdateAck],
) -> None:
    """A request that was taken in already is about an older list; it is acknowledged again."""
    pair = established()
    lost = lose_first(pair, kind)
    uplink(pair, up=False)
    pair.run(7.0)
    assert len(lost) == 1
    assert agreed(pair)
    assert pair.alpha.context.update is None
    assert differences(pair) == [True, True]
    assert not find_messages(pair.beta.sent, ErrorMessage)


def test_a_base_that_the_peer_does_not_have_brings_the_whole_list() -> None:
    """Two changes, of which the first was taken in and its acknowledgement lost."""
    pair = established()
    lose_first(pair, UpdateAck)
    uplink(pair, up=False)
    pair.run(0.2)
    uplink(pair, up=True)
    pair.run(1.0)
    ((_, _, error),) = find_messages(pair.beta.sent, ErrorMessage)
    assert (error.code, error.pointer) == (ErrorCode.GENERATION_OUT_OF_SYNC, 40 + 16 + 4)
    assert differences(pair) == [True, True, False]
    assert agreed(pair)
    assert broken(pair) == {A1: False, A1_ISP2: False}
    assert pair.alpha.context.update is None
    uplink(pair, up=False)
    pair.run(1.0)
    assert differences(pair)[-1]
    assert agreed(pair)


def test_the_error_may_be_lost_too() -> None:
    pair = established()
    pair.beta.context.peer_generation ^= 1
    lost = lose_first(pair, ErrorMessage)
    uplink(pair, up=False)
    pair.run(7.0)
    assert len(lost) == 1
    assert differences(pair) == [True, True, False]
    assert agreed(pair)


def test_a_forged_error_changes_nothing() -> None:
    pair = established()
    pair.lose = lambda packet: True
    uplink(pair, up=False)
    pair.run(0.1)
    (request,) = requests(pair)
    quoted = control(A1_ISP2, B1, request)
    for wrong in (
        quoted[:55] + b"\x00" + quoted[56:],
        quoted[:51] + b"\x00" + quoted[52:],
        quoted[:48],
    ):
        packet = control(B1, A1, ErrorMessage(3, 60, wrong))
        assert pair.inject(pair.alpha, packet) is Reason.PEER_ERROR
    elsewhere = control(A2, A1, ErrorMessage(3, 60, quoted))
    assert pair.inject(pair.alpha, elsewhere) is Reason.PEER_ERROR
    assert differences(pair) == [True]
    genuine = control(B1, A1, ErrorMessage(3, 60, quoted))
    assert pair.inject(pair.alpha, genuine) is CONSUMED
    assert differences(pair) == [True, False]
    assert pair.inject(pair.alpha, genuine) is Reason.PEER_ERROR, "once"


def test_a_peer_that_did_not_announce_it_gets_whole_lists() -> None:
    pair = established()
    pair.alpha.context.peer_features = 0
    uplink(pair, up=False)
    pair.run(1.0)
    assert differences(pair) == [False]
    assert agreed(pair)


def test_what_is_added_is_used_only_when_it_is_proved() -> None:
    pair = established()
    dns = SlowDns(pair)
    assert tell(pair, delta(pair, NEW, EVE)) is CONSUMED
    assert locators(pair) == {
        B1: Proof.ULID,
        B1_ISP2: Proof.DNS,
        NEW: Proof.NONE,
        EVE: Proof.NONE,
    }
    assert acks(pair) == []
    dns.answer()
    assert locators(pair)[NEW] is Proof.DNS
    assert locators(pair)[EVE] is Proof.NONE
    assert acks(pair) == [7]


def test_removing_needs_no_proof_and_keeps_the_path_until_another_answers() -> None:
    pair = established()
    dns = SlowDns(pair)
    assert tell(pair, delta(pair, removed=(B1, EVE))) is CONSUMED
    assert locators(pair) == {B1_ISP2: Proof.DNS}
    assert (acks(pair), dns.questions) == ([7], [])
    pair.run(1.0)
    assert pair.alpha.context.route[16:] == B1_ISP2


def test_what_is_removed_and_added_is_there() -> None:
    pair = established()
    assert tell(pair, delta(pair, B1_ISP2, removed=(B1_ISP2,))) is CONSUMED
    assert set(locators(pair)) == {B1, B1_ISP2}
    found = {x.address: x.priority for x in pair.alpha.context.peer_locators}
    assert found[B1_ISP2] == 5


@pytest.mark.parametrize("base", [0, 1])
def test_a_wrong_base_changes_nothing(base: int) -> None:
    pair = established()
    before = locators(pair)
    option = LocatorDelta(base, 77, (), (B1,))
    assert tell(pair, option) is Reason.DELTA_BASE
    assert locators(pair) == before
    assert acks(pair) == []


def test_a_method_that_we_do_not_have_changes_nothing() -> None:
    pair = established()
    before = locators(pair)
    assert tell(pair, delta(pair, NEW, method=77)) is Reason.BAD_METHOD
    assert tell(pair, delta(pair, NEW, method=METHOD_CGA)) is Reason.BAD_METHOD
    assert locators(pair) == before


def test_beside_a_whole_list_a_difference_does_not_count() -> None:
    pair = established()
    options: tuple[Option, ...] = (
        LocatorList(9, (METHOD_DNS,), (B1,)),
        delta(pair, NEW),
    )
    assert tell(pair, *options) is CONSUMED
    assert set(locators(pair)) == {B1}


def test_a_difference_of_sixty_locators_fits_a_message() -> None:
    many = tuple((METHOD_DNS, Preference(0), A1[:15] + bytes((n,))) for n in range(60))
    assert len(encode_message(UpdateRequest(1, 2, (LocatorDelta(1, 2, many, ()),)))) <= 1240

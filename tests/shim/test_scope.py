"""One Update about all contexts with a peer, when an uplink goes (mobike-design §2.3)."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m6proxy.names import Address, Prefix
from m6proxy.proof.judge import Proof
from m6proxy.reasons import Reason
from m6proxy.shim.context import Context, Parking
from m6proxy.shim.features import Feature
from m6proxy.shim.locators import PeerLocator
from m6proxy.shim.policy import EstablishPolicy
from m6proxy.shim.scope import carrier_of, key_of, most, tell
from m6proxy.shim.transitions import ReapState, State
from m6proxy.shim.verdict import CONSUMED
from m6proxy.wire.checksum import checksum
from m6proxy.wire.ipv6 import NEXT_SHIM, build_packet
from m6proxy.wire.message import UpdateAck, UpdateRequest, find
from m6proxy.wire.options import (
    BROKEN,
    METHOD_DNS,
    LocatorDelta,
    LocatorList,
    Option,
    Preference,
    Scope,
    encode_options,
)
from tests.harness.packets import control, find_messages, tcp
from tests.harness.pair import A1, B1, Pair, Site, name_data

ISP1 = Prefix.parse("2001:db8:a1::/48")
MOST = 97
"""1,280 octets less 40 + 16 + 16 of headers and fields and two prefixes of 20, by 12."""


def host(first: Address, number: int) -> Address:
    return first[:14] + number.to_bytes(2)


def name(ulid: Address) -> str:
    return f"h{int.from_bytes(ulid[14:])}.{'beta' if ulid[5] >= 0xB0 else 'alpha'}.example"


def crowd(contexts: int = 20, *, hosts: int = 50, seed: int = 1) -> Pair:
    """Hosts of alpha have so many contexts with hosts of beta, all on their ULIDs."""
    pair = Pair(
        seed=seed,
        policy=EstablishPolicy(after_packets=1),
        requests_per_s=1e6,
        adjust=lambda settings: replace(settings, probes_per_s=2000.0),
    )
    pair.data = lambda ulid: name_data(name(ulid), ulid, "ab"[ulid[5] >= 0xB0])
    for number in range(contexts):
        local, peer = host(A1, 1 + number % hosts), host(B1, 1 + number // hosts)
        pair.names |= {local: name(local), peer: name(peer)}
        pair.host_sends(pair.alpha, tcp(local, peer))
        pair.run(0.001)
    pair.run(40.0)
    for site in pair.sites.values():
        assert sum(context.carries for context in site.engine.contexts()) == contexts
        site.sent.clear()
    return pair


def lose_isp1(pair: Pair, *, up: bool = False) -> None:
    """Alpha's first uplink goes, or comes back."""
    cut = {("a", 1, "in"), ("a", 1, "out")}
    pair.cut = pair.cut - cut if up else pair.cut | cut
    pair.alpha.engine.handle_uplink("isp1", up=up, mtu=1500, now=pair.clock.now)
    pair.settle(pair.alpha)


def contexts(site: Site) -> list[Context]:
    return list(site.engine.contexts())


def requests(site: Site) -> list[tuple[Scope | None, UpdateRequest]]:
    """The Updates that a site sent; None: about one context."""
    return [
        (find(message.options, Scope), message)
        for _, _, message in find_messages(site.sent, UpdateRequest)
    ]


def about_many(site: Site) -> list[Scope]:
    return [scope for scope, _ in requests(site) if scope is not None]


def about_one(site: Site) -> list[int]:
    return [message.receiver_tag for scope, message in requests(site) if scope is None]


def knows(pair: Pair, *, broken: bool = True) -> list[bool]:
    """For each context of beta, whether it has heard of alpha's first uplink."""
    return [
        {one.address[:6]: one.broken for one in context.peer_locators}[A1[:6]] is broken
        for context in contexts(pair.beta)
    ]


def assert_agreed(pair: Pair, *, broken: bool = True) -> None:
    """All contexts of beta know alpha's set, and alpha knows that they do."""
    assert all(knows(pair, broken=broken))
    generations = {context.local_tag: context for context in contexts(pair.beta)}
    for context in contexts(pair.alpha):
        assert context.update is None
        assert context.told_set is context.local_set
        assert generations[context.peer_tag].peer_generation == context.local_set.generation


def lose(pair: Pair, kind: type[UpdateRequest] | type[UpdateAck], count: int = 1) -> None:
    """The first messages of a kind are lost."""
    lost: list[bytes] = []

    def loses(packet: bytes) -> bool:
        if len(lost) < count and find_messages([(0.0, packet)], kind):
            lost.append(packet)
            return True
        return False

    pair.lose = loses


@pytest.mark.parametrize("alone", [False, True])
def test_five_hundred_contexts_are_told_in_six_messages(alone: bool) -> None:
    """It took one message and one acknowledgement for each: 1,000 instead of 12."""
    pair = crowd(500)
    if alone:
        for context in contexts(pair.alpha):
            context.peer_features &= ~Feature.SCOPE
    lose_isp1(pair)
    pair.run(3.0)
    messages = len(requests(pair.alpha))
    acks = len(find_messages(pair.beta.sent, UpdateAck))
    assert (messages, acks) == ((500, 500) if alone else (6, 6))
    assert_agreed(pair)
    assert all(context.route[:6] != A1[:6] for context in contexts(pair.alpha))


def test_a_message_is_as_full_as_it_can_be() -> None:
    pair = crowd(MOST + 1)
    assert most(pair.alpha.engine._core) == MOST
    lose_isp1(pair)
    pair.run(3.0)
    assert [len(scope.tags) for scope in about_many(pair.alpha)] == [MOST]
    assert len(about_one(pair.alpha)) == 1
    assert max(len(packet) for _, packet in pair.alpha.sent) <= 1280
    assert_agreed(pair)


def test_each_message_has_a_nonce_of_its_own_and_says_all_of_each_uplink() -> None:
    pair = crowd(2 * MOST)
    lose_isp1(pair)
    pair.run(3.0)
    (first, one), (second, other) = requests(pair.alpha)
    assert one.request_nonce != other.request_nonce
    assert first is not None
    assert second is not None
    assert not set(first.tags) & set(second.tags)
    assert first.prefixes == (
        (ISP1, Preference(BROKEN, 1)),
        (Prefix.parse("2001:db8:a2::/48"), Preference(0, 2)),
    )


def test_the_uplink_that_comes_back_is_told_in_the_same_way() -> None:
    pair = crowd(20)
    lose_isp1(pair)
    pair.run(3.0)
    lose_isp1(pair, up=True)
    pair.run(3.0)
    assert len(about_many(pair.alpha)) == 2
    assert not about_one(pair.alpha)
    assert_agreed(pair, broken=False)


@pytest.mark.parametrize("kind", [UpdateRequest, UpdateAck])
@pytest.mark.parametrize("count", [1, 2])
def test_what_is_lost_is_repeated_as_it_was(
    kind: type[UpdateRequest] | type[UpdateAck], count: int
) -> None:
    pair = crowd(20)
    lose(pair, kind, count)
    lose_isp1(pair)
    pair.run(19.0)
    sent = about_many(pair.alpha)
    assert sent == sent[:1] * (count + 1)
    assert not about_one(pair.alpha)
    assert_agreed(pair)


def test_without_an_answer_each_context_tells_for_itself() -> None:
    pair = crowd(20)
    pair.lose = lambda packet: any(
        find(message.options, Scope) for _, _, message in find_messages([(0.0, packet)], UpdateAck)
    )
    lose_isp1(pair)
    pair.run(35.0)
    assert len(about_one(pair.alpha)) == 20 - 1
    pair.lose = lambda packet: False
    pair.run(120.0)
    assert_agreed(pair)


def test_a_context_that_the_peer_lost_is_told_by_itself_and_set_up_again() -> None:
    pair = crowd(20)
    gone = contexts(pair.beta)[7]
    pair.beta.engine._core.contexts.remove(gone)
    lose_isp1(pair)
    pair.run(1.0)
    assert about_one(pair.alpha)[0] == gone.local_tag
    pair.run(20.0)
    assert len(about_many(pair.alpha)) == 1
    assert len(contexts(pair.beta)) == 20
    assert all(knows(pair))


def test_a_peer_that_lost_everything_is_told_again() -> None:
    pair = crowd(20)
    pair.restart(pair.beta)
    lose_isp1(pair)
    pair.run(60.0)
    assert len(contexts(pair.beta)) == 20
    assert all(knows(pair))


def test_a_context_with_another_list_is_told_all_of_ours() -> None:
    pair = crowd(20)
    other = contexts(pair.beta)[3]
    other.peer_generation ^= 1
    lose_isp1(pair)
    pair.run(3.0)
    ((_, own),) = [(scope, message) for scope, message in requests(pair.alpha) if scope is None]
    assert own.receiver_tag == other.local_tag
    assert find(own.options, LocatorList) is not None
    assert_agreed(pair)


def test_a_parked_context_is_left_to_its_own_return() -> None:
    pair = crowd(20)
    pair.beta.engine.park(60.0, pair.clock.now)
    pair.settle(pair.beta)
    pair.run(3.0)
    pair.alpha.sent.clear()
    lose_isp1(pair)
    pair.run(3.0)
    assert not requests(pair.alpha)
    pair.beta.engine.unpark(pair.clock.now)
    pair.settle(pair.beta)
    pair.run(10.0)
    assert all(knows(pair))


def test_a_second_event_before_the_answer_to_the_first() -> None:
    pair = crowd(20)
    lose_isp1(pair)
    pair.run(0.005)
    assert about_many(pair.alpha)
    lose_isp1(pair, up=True)
    pair.run(30.0)
    assert_agreed(pair, broken=False)


def test_peers_that_differ_in_place_domain_list_or_feature_are_told_apart() -> None:
    pair = crowd(6)
    lose_isp1(pair)
    one, *others = (context for context in contexts(pair.alpha))
    key = key_of(one)
    assert key is not None
    assert {key_of(context) for context in others} == {key}
    assert one.told_set is not None
    one.told_set.generation ^= 1
    others[0].peer_name = "h1.gamma.example"
    others[1].peer_name = "h1"
    others[2].peer_features = 0
    others[3].peer_locators = others[3].peer_locators[:1]
    assert key_of(one) != key != key_of(others[0])
    assert key_of(others[0]) is not None
    assert [key_of(context) for context in others[1:4]] == [None] * 3
    assert key_of(others[4]) == key


# --- what bad input gets -------------------------------------------------------------------


def forged(*named: Context, **wrong: int) -> Scope:
    """Beta is told of contexts as alpha would, but for what is wrong with the last of them."""
    base = named[0].peer_generation
    tags = [(context.local_tag, context.peer_tag) for context in named]
    own, senders = tags[-1]
    tags[-1] = (own ^ wrong.get("own", 0), senders ^ wrong.get("senders", 0))
    said = ((ISP1, Preference(BROKEN, 1)),)
    return Scope(base ^ wrong.get("base", 0), 77, said, tuple(tags))


def tell_beta(pair: Pair, carrier: Context, source: Address, *options: Option) -> object:
    message = UpdateRequest(carrier.local_tag, 5, options)
    return pair.inject(pair.beta, control(source, carrier.outbound_key[:16], message))


def heard(pair: Pair) -> list[Context]:
    return [context for context in contexts(pair.beta) if context.peer_generation == 77]


@given(st.sampled_from(["own", "senders"]), st.integers(0, 46))
@settings(max_examples=8, deadline=None)
def test_a_wrong_tag_of_two_touches_nothing_but_the_others(which: str, bit: int) -> None:
    pair = crowd(4)
    one, two, three, _ = contexts(pair.beta)
    scope = forged(one, two, three, **{which: 1 << bit})
    assert tell_beta(pair, one, one.outbound_key[16:], scope) is CONSUMED
    assert heard(pair) == [one, two]
    ((_, _, ack),) = find_messages(pair.beta.sent, UpdateAck)
    answer = find(ack.options, Scope)
    assert answer is not None
    assert answer.tags == tuple((c.peer_tag, c.local_tag) for c in (one, two))


def test_a_locator_in_use_that_is_broken_is_left_without_waiting_for_the_peers_probes() -> None:
    pair = crowd(4)
    one, two, three, _ = contexts(pair.beta)
    tell_beta(pair, one, one.outbound_key[16:], forged(one, two))
    pair.run(3.0)
    assert [context.route[16:22] == ISP1.network[:6] for context in (one, two, three)] == [
        *(False, False, True),
    ]


def test_who_was_told_parked_or_ended_meanwhile_is_not_named() -> None:
    pair = crowd(5)
    lose_isp1(pair)
    core, now = pair.alpha.engine._core, pair.clock.now
    one, two, away, unsure, _ = named = contexts(pair.alpha)
    key = key_of(one)
    assert key is not None
    one.told_set, away.parking, unsure.told_set = one.local_set, Parking(), None
    assert tell(core, key, named, now)
    pair.settle(pair.alpha)
    (scope,) = about_many(pair.alpha)
    assert [sender for _, sender in scope.tags] == [two.local_tag, named[4].local_tag]
    assert one.update is None and away.update is None
    assert unsure.update is not None and unsure.update.named is None, "all of our list"


def test_a_message_goes_over_a_path_that_works_if_there_is_one() -> None:
    pair = crowd(2)
    one, two = contexts(pair.alpha)
    assert carrier_of([one, two]) is one
    one.reap_state = ReapState.EXPLORING
    assert carrier_of([one, two]) is two
    two.reap_state = ReapState.EXPLORING
    assert carrier_of([one, two]) is one


def test_another_list_is_not_changed() -> None:
    pair = crowd(4)
    one, two, *_ = contexts(pair.beta)
    scope = forged(one, two, base=1)
    tell_beta(pair, one, one.outbound_key[16:], scope)
    assert not heard(pair)


def test_a_message_over_another_sites_context_touches_none_of_it() -> None:
    """Who has a context with us, and saw both tags of another site's, says nothing for that.

    Nor when that site listed his address, as long as nobody proved it.
    """
    pair = crowd(4)
    one, two, three, _ = contexts(pair.beta)
    eve = bytes.fromhex("20010db800e10001") + bytes(7) + b"\1"
    two.peer_locators += (PeerLocator(eve, Proof.NONE),)
    two.peer_locators[-1].listed = True
    for locator in one.peer_locators:
        locator.address = eve if locator.address == one.outbound_key[16:] else locator.address
    assert tell_beta(pair, one, eve, forged(one, two, three)) is CONSUMED
    assert heard(pair) == [one]


def test_a_forged_acknowledgement_says_nothing() -> None:
    pair = crowd(4)
    pair.lose = lambda packet: bool(find_messages([(0.0, packet)], UpdateAck))
    lose_isp1(pair)
    pair.run(0.5)
    carrier = next(c for c in contexts(pair.alpha) if c.update is not None and c.update.named)
    peer = carrier.outbound_key[16:]
    ack = UpdateAck(carrier.local_tag, 1234, ())
    local = carrier.route[:16]
    assert pair.inject(pair.alpha, control(peer, local, ack)) is Reason.WRONG_NONCE
    assert all(context.update is not None for context in contexts(pair.alpha))


def test_an_acknowledgement_without_names_leaves_each_to_itself() -> None:
    """As of a peer that forgot that it announced the feature."""
    pair = crowd(4)
    for context in contexts(pair.beta):
        context.peer_features &= ~Feature.SCOPE
    lose_isp1(pair)
    pair.run(3.0)
    assert len(about_one(pair.alpha)) == 4
    assert_agreed(pair)


def test_beside_a_list_and_without_the_feature_it_is_ignored() -> None:
    pair = crowd(4)
    one, two, *_ = contexts(pair.beta)
    locators = LocatorList(5, (METHOD_DNS,), (one.outbound_key[16:],))
    tell_beta(pair, one, one.outbound_key[16:], locators, forged(one, two))
    assert one.peer_generation == 5
    delta = LocatorDelta(5, 6, (), ())
    tell_beta(pair, one, one.outbound_key[16:], delta, forged(one, two))
    assert one.peer_generation == 6
    two.peer_features = 0
    tell_beta(pair, two, two.outbound_key[16:], forged(two))
    assert not heard(pair)


def test_a_longer_message_than_an_answer_can_be_is_taken_in_as_far_as_that() -> None:
    pair = crowd(4)
    one, two, *_ = contexts(pair.beta)
    scope = forged(one, *([one] * 99), two)
    body = encode_options((scope,))
    head = bytes((59, (16 + len(body)) // 8 - 1, 64, 0))
    fixed = one.local_tag.to_bytes(6) + (5).to_bytes(4)
    message = head + checksum(head + bytes(2) + fixed + body).to_bytes(2) + fixed + body
    source = one.outbound_key[16:]
    packet = build_packet(source, one.outbound_key[:16], NEXT_SHIM, message)
    assert pair.inject(pair.beta, packet) is CONSUMED
    assert heard(pair) == [one]
    ((_, ack, _),) = find_messages(pair.beta.sent, UpdateAck)
    assert len(ack) <= 1280


def test_one_that_is_not_established_is_left_out() -> None:
    pair = crowd(4)
    one, two, *_ = contexts(pair.beta)
    two.state = State.CLOSING
    tell_beta(pair, one, one.outbound_key[16:], forged(one, two))
    assert heard(pair) == [one]


def test_a_site_that_asks_too_often_is_not_answered() -> None:
    pair = crowd(4)
    one, two, *_ = contexts(pair.beta)
    pair.beta.engine._core.requests_limit = type(pair.beta.engine._core.requests_limit)(1.0, 1.0)
    source = one.outbound_key[16:]
    assert tell_beta(pair, one, source, forged(one)) is CONSUMED
    assert tell_beta(pair, two, source, forged(two)) is Reason.RATE_LIMITED
    assert heard(pair) == [one]
    assert len(find_messages(pair.beta.sent, UpdateAck)) == 1


@given(st.lists(st.tuples(st.booleans(), st.floats(0.0, 6.0)), min_size=1, max_size=6), st.data())
@settings(max_examples=15, deadline=None)
def test_whatever_is_lost_all_are_told_in_the_end(
    events: list[tuple[bool, float]], data: st.DataObject
) -> None:
    pair = crowd(12)
    pair.lose = lambda packet: (
        bool(
            find_messages([(0.0, packet)], UpdateRequest)
            or find_messages([(0.0, packet)], UpdateAck)
        )
        and data.draw(st.booleans())
    )
    up = True
    for changes, wait_s in events:
        if changes:
            up = not up
            lose_isp1(pair, up=up)
        pair.run(wait_s)
    pair.lose = lambda packet: False
    pair.run(200.0)
    assert_agreed(pair, broken=not up)

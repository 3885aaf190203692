"""Forks: traffic of one pair that goes by a context of its own, over another uplink."""

from __future__ import annotations

from dataclasses import replace

from m6proxy.shim.context import Context
from m6proxy.shim.core import ShimSettings
from m6proxy.shim.effects import AskProof, Effect
from m6proxy.shim.policy import EstablishPolicy, FailbackMode, ForkRule, Selector
from m6proxy.shim.timers import NO_R1_HOLDDOWN_S
from m6proxy.shim.transitions import ReapState, State
from m6proxy.wire.message import I1, I2, Close, UpdateAck, UpdateRequest
from m6proxy.wire.options import METHOD_DNS, ForkedInstance, LocatorList, UlidPairOption
from tests.harness.packets import control, find_messages, route_of, tcp, udp
from tests.harness.pair import A1, A1_ISP2, A2, B1, B1_ISP2, NAMES, Pair, Site, name_data

B1_NEW = B1_ISP2[:-1] + b"\x99"
BULK = ForkRule((Selector.parse("tcp/873"),), "isp2")


def adjust(settings: ShimSettings) -> ShimSettings:
    """Only alpha has the rule; beta answers."""
    own = any(uplink.prefix.contains(A1) for uplink in settings.uplinks)
    return replace(settings, forks=(BULK,) if own else ())


def returning(settings: ShimSettings) -> ShimSettings:
    """The same with contexts that go back to the best pair."""
    return replace(adjust(settings), failback=FailbackMode.HARD, failback_hold_s=5.0)


def forked() -> Pair:
    """Both ends have the pair's context and alpha's fork."""
    pair = Pair(adjust=adjust)
    for _ in range(3):
        pair.talk(pair.alpha)
        pair.run(0.2)
    for site in pair.sites.values():
        assert [context.carries for context in site.engine.contexts()] == [True, True]
    return pair


def both(pair: Pair, letter: str = "a") -> tuple[Context, Context]:
    """The pair's context and its fork."""
    main, fork = sorted(pair.sites[letter].engine.contexts(), key=lambda context: context.fii)
    return main, fork


def bulk(pair: Pair) -> bytes:
    packet = tcp(A1, B1, b"bulk", port=873)
    pair.host_sends(pair.alpha, packet)
    return packet


def test_a_fork_is_set_up_over_its_uplink_with_an_identifier_of_its_own() -> None:
    pair = forked()
    (main, fork), (other, their_fork) = both(pair), both(pair, "b")
    assert main.fii == other.fii == 0
    assert fork.fii == their_fork.fii != 0
    assert (fork.local_tag, fork.peer_tag) == (their_fork.peer_tag, their_fork.local_tag)
    assert len({main.local_tag, fork.local_tag}) == 2
    assert fork.route == A1_ISP2 + B1
    assert their_fork.route == B1 + A1_ISP2
    i1, i2 = find_messages(pair.alpha.sent, I1)[-1], find_messages(pair.alpha.sent, I2)[-1]
    identity = {UlidPairOption(A1, B1), ForkedInstance(fork.fii)}
    assert route_of(i1[1]) == route_of(i2[1]) == (A1_ISP2, B1)
    assert set(i1[2].options) == identity
    assert identity <= set(i2[2].options)
    assert not pair.alpha.flows
    assert not pair.beta.flows


def test_packets_are_sorted_by_the_selectors_and_come_out_as_sent() -> None:
    pair = forked()
    main, fork = both(pair)
    rest = pair.talk(pair.alpha, 10)
    taken = bulk(pair)
    assert [packet[8:24] for _, packet in pair.wire[-2:]] == [A1, A1_ISP2]
    pair.run(0.1)
    assert [packet for _, packet in pair.beta.delivered[-2:]] == [rest, taken]
    assert (main.packets_out, fork.packets_out) == (2, 1)
    assert both(pair, "b")[1].packets_in == 1


def test_a_fork_is_rehomed_by_itself() -> None:
    pair = forked()
    main, fork = both(pair)
    pair.cut_provider("a", 2)
    for _ in range(100):
        bulk(pair)
        pair.talk(pair.alpha, 10)
        pair.talk(pair.beta, 10)
        pair.run(0.1)
    assert main.wire_addresses is None
    assert fork.route in (A1 + B1, A1 + B1_ISP2)
    assert fork.reap_state is ReapState.OPERATIONAL
    taken = bulk(pair)
    pair.run(0.1)
    assert pair.beta.delivered[-1][1] == taken


def test_going_back_to_the_best_pair_leaves_forks_where_they_are() -> None:
    pair = Pair(adjust=returning)
    for _ in range(200):
        pair.talk(pair.alpha, 1000)
        bulk(pair)
        pair.talk(pair.beta, 10)
        pair.run(0.2)
    main, fork = both(pair)
    assert main.route == A1 + B1
    assert fork.route == A1_ISP2 + B1
    assert both(pair, "b")[1].route == B1 + A1_ISP2


def test_a_pair_and_its_forks_end_together_and_tell_the_peer() -> None:
    """The peer kept its fork only while that was used, and forgot it without a word."""
    pair = forked()
    for _ in range(50):
        pair.talk(pair.alpha, 10)
        pair.run(10.0)
    assert all(context.carries for letter in "ab" for context in both(pair, letter))
    main, fork = ({one.local_tag, one.peer_tag} for one in both(pair))
    pair.run(320.0)
    told = {message.receiver_tag for _, _, message in find_messages(pair.wire_control(), Close)}
    assert told & main
    assert told & fork
    for site in pair.sites.values():
        assert not list(site.engine.contexts())
    core = pair.alpha.engine._core
    assert not core.contexts.by_forked
    assert not core.contexts.by_outbound
    assert not core.contexts.by_inbound
    assert not core.contexts.all_of_pair(A1 + B1)


def test_a_fork_that_the_peer_lost_comes_back_as_a_fork() -> None:
    pair = forked()
    fork = both(pair)[1]
    pair.restart(pair.beta)
    bulk(pair)
    pair.run(0.5)
    again = pair.beta.context
    assert again.fii == fork.fii
    assert (again.local_tag, again.peer_tag) == (fork.peer_tag, fork.local_tag)
    taken = bulk(pair)
    pair.run(0.1)
    assert pair.beta.delivered[-1][1] == taken


def test_a_late_proof_reaches_the_pair_and_its_forks() -> None:
    """The acknowledgement of a fork waited for the longest time that a proof may take."""
    pair = forked()
    questions = []
    carry_out = pair.carry_out

    def hold(site: Site, effect: Effect) -> None:
        if isinstance(effect, AskProof):
            questions.append(effect)
        else:
            carry_out(site, effect)

    pair.carry_out = hold
    for context in both(pair):
        offered = LocatorList(7, (METHOD_DNS,) * 2, (B1, B1_NEW))
        request = UpdateRequest(context.local_tag, 7, (offered,))
        pair.inject(pair.alpha, control(B1, context.route[:16], request))
    data = name_data(NAMES[B1], B1, "b")
    pair.alpha.engine.handle_proof(questions[0].pair, data, NAMES[A1], pair.clock.now)
    pair.settle(pair.alpha)
    assert len(find_messages(pair.alpha.sent, UpdateAck)) == 2
    for context in both(pair):
        found = context.peer_locator(B1_NEW)
        assert found is not None
        assert found.proved


def test_traffic_of_a_fork_alone_keeps_the_pair() -> None:
    pair = forked()
    for _ in range(50):
        bulk(pair)
        pair.run(10.0)
    assert all(context.carries for letter in "ab" for context in both(pair, letter))


def test_until_a_fork_is_there_its_traffic_goes_by_the_pair() -> None:
    """The exchange of the fork fails; it is tried again after the hold-down."""
    pair = Pair(adjust=adjust)
    pair.cut_provider("a", 2)
    for _ in range(3):
        pair.talk(pair.alpha)
        pair.run(0.2)
    main, fork = both(pair)
    assert (main.state, fork.state) == (State.ESTABLISHED, State.I1_SENT)
    bulk(pair)
    assert pair.wire[-1][1][8:24] == A1
    while fork.state is State.I1_SENT:
        pair.talk(pair.alpha, 10)
        pair.run(1.0)
    assert fork.state is State.E_FAILED
    bulk(pair)
    assert pair.wire[-1][1][8:24] == A1
    assert not pair.alpha.engine._core.peers.refused_until_s(B1, B1, pair.clock.now)
    pair.cut.clear()
    for _ in range(int(NO_R1_HOLDDOWN_S) + 2):
        pair.talk(pair.alpha, 10)
        pair.run(1.0)
    main, again = both(pair)
    assert again is not fork
    assert again.carries
    bulk(pair)
    assert pair.wire[-1][1][8:24] == A1_ISP2


def test_a_rule_for_the_uplink_of_the_ulids_or_for_a_dead_one_makes_no_fork() -> None:
    for rule, down in ((ForkRule(BULK.match, "isp1"), False), (BULK, True)):
        pair = Pair(adjust=lambda settings, rule=rule: replace(settings, forks=(rule,)))  # type: ignore[misc]
        if down:
            for site in pair.sites.values():
                site.engine.handle_uplink("isp2", up=False, mtu=1500, now=1000.0)
        pair.establish()
        assert pair.alpha.context.fii == 0
        assert not pair.alpha.engine._core.contexts.by_forked


def test_pairs_without_forks_keep_the_usual_path() -> None:
    pair = forked()
    contexts = pair.alpha.engine._core.contexts
    assert set(contexts.by_forked) == {A1 + B1}
    assert not contexts.by_outbound
    plain = Pair(policy=EstablishPolicy(after_octets=1))
    plain.establish()
    assert not plain.alpha.engine._core.contexts.by_forked
    packet = udp(A2, B1, b"x")
    pair.host_sends(pair.alpha, packet)
    assert pair.wire[-1][1] == packet


def test_a_rule_takes_prefixes_protocols_and_ports() -> None:
    rule = ForkRule((Selector.parse("2001:db8:b2::/48"), Selector.parse("tcp/873")), "isp2")
    assert rule.takes(udp(A1, B1_ISP2))
    assert not rule.takes(udp(A1, B1))
    assert rule.takes(tcp(A1, B1, port=873))
    assert not rule.takes(tcp(A1, B1, port=80))
    assert not rule.takes(tcp(A1, B1, port=873)[:42])


def test_a_gateway_that_stops_closes_forks_too() -> None:
    pair = forked()
    pair.alpha.engine.close_all(pair.clock.now)
    pair.settle(pair.alpha)
    pair.run(1.0)
    for site in pair.sites.values():
        assert not list(site.engine.contexts())

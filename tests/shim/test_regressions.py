"""Faults that reviews found: each test tells the story of one, and that it does not come back."""

from __future__ import annotations

import pytest

from m6proxy.discovery.capability import Capability, NameData, PrefixLocator
from m6proxy.names import UNSPECIFIED, Address, Prefix, address
from m6proxy.proof.judge import Proof
from m6proxy.reasons import Reason
from m6proxy.shim.close import end_idle
from m6proxy.shim.core import ShimSettings
from m6proxy.shim.effects import AskCapability, SendPacket
from m6proxy.shim.engine import Engine
from m6proxy.shim.establish import VALIDATOR_OCTETS_MAX
from m6proxy.shim.forward import rewrite
from m6proxy.shim.locators import UPLINKS_MAX, Uplink
from m6proxy.shim.policy import EstablishPolicy
from m6proxy.shim.reap import suspect
from m6proxy.shim.transitions import ReapState, State
from m6proxy.shim.verdict import CONSUMED
from m6proxy.wire.checksum import checksum
from m6proxy.wire.ipv6 import NEXT_SHIM, build_packet
from m6proxy.wire.message import (
    I1,
    I2,
    R1,
    ErrorCode,
    ErrorMessage,
    I2bis,
    Keepalive,
    Message,
    Probe,
    ProbeRecord,
    ProbeState,
    R1bis,
    UpdateAck,
    UpdateRequest,
    encode_message,
)
from m6proxy.wire.options import (
    BROKEN,
    METHOD_DNS,
    LocatorList,
    LocatorPreferences,
    Option,
    Preference,
    ResponderValidator,
    SenderName,
    UlidPairOption,
)
from tests.harness.entropy import SeededEntropy
from tests.harness.packets import (
    control,
    find_messages,
    icmp_error,
    is_control,
    rewritten,
    tcp,
)
from tests.harness.pair import A1, A1_ISP2, B1, B1_ISP2, NAMES, Pair, Site, name_data, uplinks
from tests.shim.exchange import begin, exchange_from
from tests.shim.moved import established, moved
from tests.shim.test_forks import both, bulk, forked

ROUTER = address("2001:db8:ff::1")
GROUP = address("ff0e::1")
LINK_LOCAL = address("fe80::1")


def listed(*locators: Address, generation: int = 9, method: int = METHOD_DNS) -> LocatorList:
    return LocatorList(generation, (method,) * len(locators), locators)


def tell_alpha(pair: Pair, *options: Option) -> object:
    message = UpdateRequest(pair.alpha.context.local_tag, 7, options)
    return pair.inject(pair.alpha, control(B1, A1, message))


def uplink_changes(pair: Pair, site: Site, *, up: bool) -> None:
    site.engine.handle_uplink("isp1", up=up, mtu=1500, now=pair.clock.now)
    pair.settle(site)


# --- exchanges -------------------------------------------------------------------------------


def test_a_repeated_i2_with_another_list_is_read() -> None:
    """An I2 that repeated the tag in use got its R2 unread: a list that had changed was missed.

    The initiator took the R2 for the word that its new list had arrived.
    """
    pair = Pair()
    pair.inject(pair.beta, control(A1, B1, I1(5, 1)))
    ((_, _, r1),) = find_messages(pair.beta.sent, R1)
    options = (*r1.options, SenderName(NAMES[A1]))
    for offer in (listed(A1), listed(A1, A1_ISP2, generation=10)):
        message = I2(5, 1, r1.responder_nonce, (*options, offer))
        assert pair.inject(pair.beta, control(A1, B1, message)) is CONSUMED
        assert tuple(x.address for x in pair.beta.context.peer_locators) == offer.locators
    context = pair.beta.context
    assert {x.address: x.proved for x in context.peer_locators} == {A1: True, A1_ISP2: True}
    assert (context.peer_generation, context.state) == (10, State.ESTABLISHED)


def test_a_repeated_i2bis_with_another_list_is_read() -> None:
    """As above, after a loss of state: the list of the recovery was missed."""
    pair = established()
    context, lost_tag = pair.beta.context, 0x777
    pair.inject(pair.beta, control(A1, B1, Keepalive(lost_tag)))
    (_, _, r1bis) = find_messages(pair.beta.sent, R1bis)[-1]
    options = (*r1bis.options, UlidPairOption(A1, B1), SenderName(NAMES[A1]))
    message = I2bis(
        context.peer_tag, 1, r1bis.responder_nonce, lost_tag, (*options, listed(A1, generation=10))
    )
    assert pair.inject(pair.beta, control(A1, B1, message)) is CONSUMED
    assert context.peer_generation == 10
    assert [x.address for x in context.peer_locators if x.listed] == [A1]


@pytest.mark.parametrize("state", [State.E_FAILED, State.NO_SUPPORT])
def test_the_tag_of_a_refusal_is_a_tag_of_no_context(state: State) -> None:
    """Messages with the tag that a refused exchange had offered were dropped without a word.

    The peer, whose R2 was lost, went on using a context that nobody had.
    """
    pair = Pair()
    pair.lose = lambda packet: bool(find_messages([(0.0, packet)], R1))
    begin(pair)
    pair.run(0.1)
    context = pair.alpha.context
    if state is State.NO_SUPPORT:
        _, packet = pair.alpha.sent[0]
        pair.inject(pair.alpha, icmp_error(B1, A1, 4, 1, 6, packet))
    else:
        while context.state is State.I1_SENT:
            pair.run(5.0)
    assert context.state is state
    tag = context.local_tag
    record = ProbeRecord(B1, A1, 1)
    messages: tuple[Message, ...] = (
        Keepalive(tag),
        Probe(tag, ProbeState.EXPLORING, (record,)),
        UpdateRequest(tag, 1),
        UpdateAck(tag, 1),
    )
    packets = [control(B1, A1, message) for message in messages]
    for packet in (*packets, rewritten(B1, A1, tag, 17, b"payload")):
        pair.alpha.sent.clear()
        assert pair.inject(pair.alpha, packet) is Reason.NO_CONTEXT
        ((_, _, answer),) = find_messages(pair.alpha.sent, R1bis)
        assert answer.packet_tag == tag
    assert context.state is state


@pytest.mark.parametrize("kind", [I2, I2bis])
def test_a_refused_i2_is_told_where_its_method_is(kind: type[I2 | I2bis]) -> None:
    """The pointer was computed as if the options began at octet 16, which is so for R2.

    An I2 was even refused without any Error: it was judged when its octets were gone.
    """
    pair = Pair()
    pair.alpha.sent.clear()
    if kind is I2:
        verdict = exchange_from(pair, A1, None, listed(A1, method=1))
        options_at = 24
    else:
        pair.inject(pair.beta, control(A1, B1, Keepalive(0x777)))
        ((_, _, r1bis),) = find_messages(pair.beta.sent, R1bis)
        options = (*r1bis.options, UlidPairOption(A1, B1), listed(A1, method=1))
        message = I2bis(5, 1, r1bis.responder_nonce, 0x777, options)
        verdict = pair.inject(pair.beta, control(A1, B1, message))
        options_at = 32
    assert verdict is Reason.BAD_METHOD
    ((_, packet, error),) = find_messages(pair.beta.sent, ErrorMessage)
    assert (error.code, packet[24:40]) == (ErrorCode.METHOD_FAILED, A1)
    assert error.pointer > 40 + options_at
    assert error.packet[error.pointer] == 1
    head = error.packet[error.pointer - 9 : error.pointer]
    assert int.from_bytes(head[:2]) >> 1 == 2, "the option is the locator list"
    assert not list(pair.beta.engine.contexts())


@pytest.mark.parametrize(
    ("source", "destination"), [(UNSPECIFIED, B1), (GROUP, B1), (A1, UNSPECIFIED), (A1, GROUP)]
)
def test_addresses_are_looked_at_before_anything_else(
    source: Address, destination: Address
) -> None:
    """The octets were parsed first: a critical option was answered with an Error to a group.

    One packet with a forged source made the gateway speak to all of a multicast group.
    """
    pair = Pair()
    body = encode_message(Keepalive(5)) + bytes.fromhex("7fff000000000000")
    body = body[:1] + b"\x02" + body[2:4] + b"\0\0" + body[6:]
    body = body[:4] + checksum(body).to_bytes(2) + body[6:]
    packet = build_packet(A1, B1, NEXT_SHIM, body)
    assert pair.inject(pair.beta, packet) is Reason.CRITICAL_OPTION
    ((_, _, _),) = find_messages(pair.beta.sent, ErrorMessage)
    pair.beta.sent.clear()
    packet = build_packet(source, destination, NEXT_SHIM, body)
    assert pair.inject(pair.beta, packet) is Reason.BAD_ADDRESS
    assert not pair.beta.sent


# --- locator sets ----------------------------------------------------------------------------


def test_preferences_alone_are_counted_against_the_list_that_the_peer_sent() -> None:
    """They were compared with our set, which keeps the ULID that the peer's list left out.

    So the right number of preferences was refused with Error 4, a wrong one was taken.
    """
    pair = established()
    assert tell_alpha(pair, listed(B1_ISP2)) is CONSUMED
    assert len(pair.alpha.context.peer_locators) == 2
    two = LocatorPreferences(9, 1, (Preference(0), Preference(0)))
    assert tell_alpha(pair, two) is Reason.PREFERENCE_COUNT
    assert tell_alpha(pair, LocatorPreferences(9, 1, (Preference(BROKEN),))) is CONSUMED
    broken = {x.address: x.broken for x in pair.alpha.context.peer_locators}
    assert broken == {B1: True, B1_ISP2: True}


@pytest.mark.parametrize("never", [GROUP, LINK_LOCAL, UNSPECIFIED])
def test_what_no_host_can_have_is_never_proved_nor_probed(never: Address) -> None:
    """A record that covered everything proved a group or a link-local address in a list.

    The gateway would have probed it, and sent payload to whoever answered.
    """
    pair = established()
    everything = tuple(
        PrefixLocator(Prefix.parse(p), 1)
        for p in ("::/64", "ff0e::/64", "fe80::/64", "2001:db8:b2::/48")
    )
    pair.data = lambda _: NameData(
        NAMES[B1], frozenset({B1, never}), Capability(prefixes=everything), owns_ulid=True
    )
    assert tell_alpha(pair, listed(B1, B1_ISP2, never)) is CONSUMED
    pair.cut_provider("b", 1)
    pair.cut_provider("b", 2)
    pair.stream(40.0)
    proofs = {x.address: x.proof for x in pair.alpha.context.peer_locators}
    assert proofs[never] is Proof.NONE
    assert all(packet[24:40] != never for _, packet in pair.wire)
    assert all(packet[24:40] != never for _, packet in pair.alpha.sent)


# --- reachability ----------------------------------------------------------------------------


def test_a_new_search_reports_only_what_came_since() -> None:
    """Back in Exploring, probes of before were reported again: RFC 5534 §5.2 wants only newer.

    The peer read from them that a path works which had died meanwhile.
    """
    pair = established()
    pair.lose = is_control
    old = ProbeRecord(B1, A1, 77)
    message = Probe(pair.alpha.context.local_tag, ProbeState.EXPLORING, (old,))
    assert pair.inject(pair.alpha, control(B1, A1, message)) is CONSUMED
    assert find_messages(pair.alpha.sent, Probe)[-1][2].received == (old,)
    pair.run(4.0)
    exploring = [
        probe
        for _, _, probe in find_messages(pair.alpha.sent, Probe)
        if probe.state is ProbeState.EXPLORING
    ]
    assert exploring
    assert all(old not in probe.received for probe in exploring)


def test_an_update_that_nobody_hears_is_a_silence() -> None:
    """An Update Request went out without a timer for its answer: a context without traffic
    sent it over a dead path for ever and never searched for another."""
    pair = established()
    pair.run(20.0)
    pair.cut_provider("b", 1)
    pair.alpha.sent.clear()
    assert pair.alpha.context.send_due_s == 0.0
    pair.alpha.engine.handle_uplink("isp2", up=False, mtu=1500, now=pair.clock.now)
    pair.settle(pair.alpha)
    pair.run(0.1)
    assert find_messages(pair.alpha.sent, UpdateRequest)
    assert pair.alpha.context.send_due_s
    pair.run(20.0)
    assert pair.alpha.context.route[16:] == B1_ISP2
    assert pair.alpha.context.update is None


def test_after_an_uplinks_event_those_on_it_move_first_and_nobody_at_once() -> None:
    """All contexts sent their Update in the same instant, in the order of their birth.

    Thousands of packets at once filled the queue that the first probe had to pass.
    """
    pair = Pair(policy=EstablishPolicy(after_packets=1), requests_per_s=1e6)
    pair.data = lambda ulid: name_data(f"h{ulid[-1]}", ulid, "ab"[ulid[5] >= 0xB0])
    hosts = [A1[:15] + bytes((number,)) for number in range(1, 21)]
    for host in hosts:
        pair.host_sends(pair.alpha, tcp(host, B1))
        pair.run(0.001)
    pair.run(1.0)
    contexts = list(pair.alpha.engine.contexts())
    for context in contexts[:10]:
        context.route = uplinks("a")[1].prefix.graft(context.outbound_key[:16]) + B1
    pair.alpha.sent.clear()
    uplink_changes(pair, pair.alpha, up=False)
    assert not pair.alpha.sent
    start_s = pair.clock.now
    pair.run(0.05)
    updates = find_messages(pair.alpha.sent, UpdateRequest)
    assert len(updates) == 20
    times = [when for when, _, _ in updates]
    assert all(later - earlier > 0.001 for earlier, later in zip(times, times[11:], strict=False))
    assert times[0] > start_s
    tags = [context.peer_tag for context in (*contexts[10:], *contexts[:10])]
    assert [message.receiver_tag for _, _, message in updates] == tags


# --- sizes and ICMPv6 --------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "before", "after"), [(1, 8, 7), (3, 16, 15), (1, 0, 0)])
def test_the_length_of_a_quotation_shrinks_with_it(kind: int, before: int, after: int) -> None:
    """RFC 4884 §4.2: an error may tell how long its quotation is; ours is 8 octets shorter.

    Unchanged, the length reached 8 octets into the extension behind the quotation.
    """
    pair = moved()
    quoted = pair.alpha.engine.handle_outbound(tcp(A1, B1, bytes(100)), pair.clock.now)
    assert isinstance(quoted, bytes)
    error = icmp_error(ROUTER, A1_ISP2, kind, 0, before << 24, quoted)
    verdict = pair.inject(pair.alpha, error)
    assert isinstance(verdict, bytes)
    assert verdict[44:48] == bytes((after, 0, 0, 0))


def test_the_largest_i2_fits() -> None:
    """The largest set, the longest name and the longest validator made a packet beyond 1280.

    ``Core.send`` refuses such a packet as a fault of ours, in the middle of an exchange.
    """
    settings = ShimSettings(
        uplinks=tuple(
            Uplink(f"isp{n}", Prefix.parse(f"2001:db8:a{n:x}::/48"), n) for n in range(UPLINKS_MAX)
        ),
        establish=EstablishPolicy(after_packets=1),
        send_timeout_s=3.0,
    )
    engine = Engine(settings, SeededEntropy(1))
    host = address("2001:db8:a0::10")
    label = "x" * 63
    name = ".".join((label, label, label, "x" * 61))
    assert len(name) == 253
    engine.handle_outbound(tcp(host, B1), 1.0)
    (pair,) = (x.pair for x in engine.take_effects() if isinstance(x, AskCapability))
    engine.handle_capability(pair, name_data(NAMES[B1], B1, "b"), name, 1.0)
    context = next(engine.contexts())
    assert context.handshake is not None
    validator = ResponderValidator(bytes(VALIDATOR_OCTETS_MAX))
    r1 = R1(context.handshake.initiator_nonce, 1, (validator,))
    engine.take_effects()
    assert engine.handle_inbound(control(B1, host, r1), 1.0) is CONSUMED
    sent = [(1.0, x.packet) for x in engine.take_effects() if isinstance(x, SendPacket)]
    ((_, packet, i2),) = find_messages(sent, I2)
    assert len(packet) <= 1280
    assert len(next(o for o in i2.options if isinstance(o, LocatorList)).locators) == UPLINKS_MAX


def test_a_locator_that_was_called_broken_once_is_tried_when_no_other_answers() -> None:
    """The Update that took BROKEN back was lost on the dead path, and nobody tried the locator."""
    pair = established()
    alpha = pair.alpha.engine
    alpha.handle_uplink("isp2", up=False, mtu=1500, now=pair.clock.now)
    pair.settle(pair.alpha)
    pair.run(1.0)
    assert [locator.broken for locator in pair.beta.context.peer_locators] == [False, True]
    pair.lose = lambda packet: bool(find_messages([(0.0, packet)], UpdateRequest))
    alpha.handle_uplink("isp2", up=True, mtu=1500, now=pair.clock.now)
    pair.settle(pair.alpha)
    pair.cut |= {("a", 1, "in"), ("a", 2, "out")}
    arrived_s = pair.stream(20.0, both=True, interval_s=0.1)
    assert pair.beta.context.route[16:] == A1_ISP2
    assert pair.alpha.delivered[-1][0] > arrived_s[-1] - 0.5


def test_a_pair_that_closes_takes_its_forks_along() -> None:
    """The acknowledgement of the pair's Close ended a fork in use: a ValueError in the engine."""
    pair = forked()
    main, fork = both(pair)
    end_idle(pair.alpha.engine._core, main, pair.clock.now)
    assert (main.state, fork.state) == (State.CLOSING, State.ESTABLISHED)
    pair.settle(pair.alpha)
    pair.run(1.0)
    assert not list(pair.alpha.engine.contexts())


def test_a_fork_on_the_ulids_does_not_speak_for_its_pair() -> None:
    """A fork that was re-homed to the ULIDs sent plain packets there, which the peer took for its
    pair's: they hid from the peer that what it sent on the pair's own path was never answered."""
    pair = forked()
    main, fork = both(pair)
    pair.cut_provider("a", 2)
    while fork.route != A1 + B1 or fork.reap_state is not ReapState.OPERATIONAL:
        taken = bulk(pair)
        pair.run(0.1)
    heard = both(pair, "b")[0].packets_in
    taken = bulk(pair)
    assert pair.wire[-1][1] == rewrite(taken, A1 + B1, fork.shim_tail)
    pair.run(0.1)
    assert pair.beta.delivered[-1][1] == taken
    assert both(pair, "b")[0].packets_in == heard
    assert not main.wire_addresses


def test_a_fork_hears_what_dns_says_later() -> None:
    """DNS was dead when a fork was set up again; its answer went to the pair's context only.

    The fork refused for ever what its peer sent from a locator that nobody had proved.
    """
    pair = forked()
    _, peers_fork = both(pair, "b")
    pair.restart(pair.alpha)
    pair.dns = False
    suspect(pair.beta.engine._core, peers_fork, pair.clock.now)
    pair.run(1.0)
    fork = pair.alpha.context
    assert fork.fii == peers_fork.fii
    assert [locator.proof for locator in fork.peer_locators] == [Proof.ULID, Proof.NONE]
    found = name_data(NAMES[B1], B1, "b")
    pair.alpha.engine.handle_proof(fork.pair, found, NAMES[A1], pair.clock.now)
    assert [locator.proof for locator in fork.peer_locators] == [Proof.ULID, Proof.DNS]


def test_plain_packets_of_a_peer_that_lost_its_context_do_not_hide_a_dead_path() -> None:
    """The peer's plain packets on the ULIDs were taken for the answers that were due to ours.

    The peer had lost the context and would not begin one, so that it missed nothing; what we
    sent over other locators died on the way, and our Update went unanswered for ever.
    """
    pair = moved()
    pair.capable = False
    pair.restart(pair.beta)
    pair.cut.clear()
    pair.cut_provider("a", 2)
    for up in (False, True):
        pair.alpha.engine.handle_uplink("isp1", up=up, mtu=1500, now=pair.clock.now)
    arrived_s = pair.stream(30.0, both=True, interval_s=0.1)
    assert arrived_s
    assert arrived_s[-1] > pair.clock.now - 0.5

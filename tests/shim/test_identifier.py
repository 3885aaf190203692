"""Demux mode identifier: a re-homed packet with nothing but locator-only addresses."""

from __future__ import annotations

from dataclasses import replace

import pytest

from m6proxy.discovery.addressing import PLAIN
from m6proxy.names import Address, LocatorPair, address, address_text
from m6proxy.proof.judge import Proof
from m6proxy.reasons import Reason
from m6proxy.shim import reap
from m6proxy.shim.demux import DemuxMode
from m6proxy.shim.engine import Engine
from m6proxy.shim.features import Feature
from m6proxy.shim.policy import ForkRule, Selector
from m6proxy.shim.transitions import ReapState
from m6proxy.wire.ipv6 import NEXT_SHIM, build_packet
from m6proxy.wire.message import (
    I2,
    ErrorCode,
    ErrorMessage,
    R1bis,
    UpdateRequest,
    encode_message,
    find,
)
from m6proxy.wire.options import Demux, Features, LocatorList
from tests.harness.entropy import SeededEntropy
from tests.harness.packets import control, find_messages, icmp_error, udp
from tests.harness.pair import A1, A1_ISP2, A2, B1, B2, Pair, Site, nsquare, preagreed
from tests.harness.upper import UNKNOWN, upper_layers
from tests.shim.moved import moved

ADDRESSES = (DemuxMode.IDENTIFIER, DemuxMode.EXTHDR)
ALLOWED = (DemuxMode.EXTHDR, DemuxMode.IDENTIFIER)
TAGS = (DemuxMode.EXTHDR,)
A1_AT_2, B1_AT_2 = address("2001:db8:a2:4001::10"), address("2001:db8:b2:4001::10")
A1_AT_1, B1_AT_1 = address("2001:db8:a1:4001::10"), address("2001:db8:b1:4001::10")
"""What stands in for the ULIDs."""
ROUTER = address("2001:db8:ff::1")
STRANGER = address("2001:db8:c1:1::10")
HOST_LABEL = 0x12345


@pytest.fixture
def bare() -> Pair:
    """Both ends on their second provider, with n-square addresses."""
    return moved(demux=ADDRESSES, locator_map=nsquare)


def one_moved(letter: str, **settings: object) -> Pair:
    """One end had to leave its first provider."""
    pair = Pair(**{"demux": ADDRESSES, "locator_map": nsquare, **settings})  # type: ignore[arg-type]
    pair.establish()
    pair.cut_provider(letter, 1)
    pair.stream(8.0, both=True, interval_s=0.1)
    assert pair.sites[letter].context.route[:16] != pair.sites[letter].ulid
    return pair


def crosses(pair: Pair, site: Site) -> tuple[bytes, bytes]:
    """One packet of the site's host, which must arrive as it was: sent, and on the wire."""
    other = pair.other(site)
    before = len(other.delivered)
    packet = pair.talk(site)
    _, wire = pair.wire[-1]
    pair.run(0.1)
    assert [arrived for _, arrived in other.delivered[before:]] == [packet]
    return packet, wire


def addresses(packet: bytes) -> tuple[Address, Address]:
    return packet[8:24], packet[24:40]


@pytest.mark.parametrize("locator_map", [nsquare, preagreed])
@pytest.mark.parametrize("name", upper_layers(A1, B1))
def test_every_upper_layer_comes_out_as_it_went_in(name: str, locator_map: object) -> None:
    pair = moved(demux=ADDRESSES, locator_map=locator_map)  # type: ignore[arg-type]
    protocol, octets = upper_layers(A1, B1)[name]
    packet = build_packet(
        A1, B1, protocol, octets, hop_limit=7, traffic_class=0xB8, flow_label=HOST_LABEL
    )
    before = len(pair.beta.delivered)
    pair.host_sends(pair.alpha, packet)
    _, sent = pair.wire[-1]
    assert sent[:8] + sent[40:] == packet[:8] + packet[40:], "only the addresses differ"
    assert addresses(sent) == tuple(pair.alpha.context.locators)
    pair.run(0.1)
    assert [arrived for _, arrived in pair.beta.delivered[before:]] == [packet]


def test_both_ends_ask_for_it_and_name_what_stands_in_for_their_ulid(bare: Pair) -> None:
    (_, _, i2), *_ = find_messages(bare.wire_control(), I2)
    assert find(i2.options, Demux) == Demux(DemuxMode.IDENTIFIER, stand_in=A1_AT_1)
    features = find(i2.options, Features)
    assert features is not None and features.bits & Feature.IDENTIFIER
    assert bare.alpha.context.locators == LocatorPair(A1_AT_2, B1_AT_2)
    assert {site.context.demux for site in bare.sites.values()} == {"identifier"}


@pytest.mark.parametrize("letter", ["a", "b"])
def test_an_end_that_stayed_is_reached_by_what_stands_in_for_its_ulid(letter: str) -> None:
    """The ULID itself, from a place that is not the peer's, would look like a plain packet."""
    pair = one_moved(letter)
    for site in pair.sites.values():
        _, wire = crosses(pair, site)
        away, home = (A1_AT_2, B1_AT_1) if letter == "a" else (B1_AT_2, A1_AT_1)
        stayed = B1 if letter == "a" else A1
        moved_one = site.letter == letter
        assert addresses(wire) == ((away, home) if moved_one else (stayed, away))
        assert site.context.demux == "identifier"
        assert site.context.route[16:] == (pair.other(site).context.route[:16])


def test_a_stand_in_gets_no_packet_before_its_proof_and_its_test() -> None:
    pair = Pair(demux=ADDRESSES, locator_map=nsquare)
    pair.dns = True
    pair.establish()
    context = pair.alpha.context
    (stand_in,) = (known for known in context.peer_locators if known.stands_in)
    assert (stand_in.address, stand_in.proof, stand_in.tested) == (B1_AT_1, Proof.DNS, False)
    stand_in.proof = Proof.NONE
    pair.dns = False
    pair.cut_provider("a", 1)
    pair.stream(8.0, both=True, interval_s=0.1)
    packet, wire = crosses(pair, pair.alpha)
    assert addresses(wire) == (A1_AT_2, B1) and len(wire) == len(packet) + 8
    assert not any(addresses(sent)[1] == B1_AT_1 for _, sent in pair.wire)
    assert context.demux == "exthdr"


def test_a_stand_in_proved_while_the_peer_is_away_is_tested_on_its_return() -> None:
    """The proof began a test of a context that waits."""
    pair = one_moved("a")
    context = pair.alpha.context
    (stand_in,) = (known for known in context.peer_locators if known.stands_in)
    stand_in.tested = False
    pair.beta.engine.park(60.0, pair.clock.now)
    pair.settle(pair.beta)
    pair.run(1.0)
    reap.test_stand_in(pair.alpha.engine._core, context, pair.clock.now)
    assert context.parking is not None and context.exploration is None
    pair.beta.engine.unpark(pair.clock.now)
    pair.settle(pair.beta)
    pair.run(5.0)
    assert stand_in.tested


def test_pre_agreed_identifiers_need_the_payload_header_towards_a_ulid() -> None:
    """No locator-only address is in the prefix of the identifiers."""
    pair = one_moved("a", locator_map=preagreed)
    packet, wire = crosses(pair, pair.alpha)
    assert addresses(wire) == (A1_ISP2, B1) and len(wire) == len(packet) + 8
    packet, wire = crosses(pair, pair.beta)
    assert addresses(wire) == (B1, A1_ISP2) and len(wire) == len(packet)


@pytest.mark.parametrize(
    ("alpha", "beta", "modes"),
    [
        (ADDRESSES, TAGS, ("exthdr", "exthdr")),
        (TAGS, ADDRESSES, ("exthdr", "exthdr")),
        (ADDRESSES, ADDRESSES, ("identifier", "identifier")),
        (ALLOWED, ALLOWED, ("exthdr", "exthdr")),
        # alpha has locators that could be a host's: from there it needs the tag
        (ALLOWED, ADDRESSES, ("exthdr", "exthdr")),
    ],
)
def test_a_direction_does_without_a_tag_when_both_ends_addresses_allow(
    alpha: tuple[DemuxMode, ...], beta: tuple[DemuxMode, ...], modes: tuple[str, str]
) -> None:
    pair = mixed(alpha, beta)
    pair.cut_provider("a", 1)
    pair.cut_provider("b", 1)
    pair.stream(8.0, both=True, interval_s=0.1)
    assert (pair.alpha.context.demux, pair.beta.context.demux) == modes
    for site in pair.sites.values():
        crosses(pair, site)


def mixed(alpha: tuple[DemuxMode, ...], beta: tuple[DemuxMode, ...]) -> Pair:
    """Two ends with a context; who asks for the mode has n-square addresses."""
    pair = Pair()
    for site, demux in ((pair.alpha, alpha), (pair.beta, beta)):
        asks = demux[0] is DemuxMode.IDENTIFIER
        chosen = nsquare(site.letter) if asks else PLAIN
        site.settings = replace(site.settings, demux=demux, locator_map=chosen)
        site.engine = Engine(site.settings, SeededEntropy(len(demux)))
    pair.establish()
    return pair


def test_one_end_alone_has_locator_only_addresses() -> None:
    """As long as the other is at its ULID nothing is ambiguous; then the payload header is."""
    pair = mixed(ALLOWED, ADDRESSES)
    pair.cut_provider("b", 1)
    pair.stream(8.0, both=True, interval_s=0.1)
    packet, wire = crosses(pair, pair.alpha)
    assert addresses(wire) == (A1, B1_AT_2) and len(wire) == len(packet)
    packet, wire = crosses(pair, pair.beta)
    assert addresses(wire) == (B1_AT_2, A1) and len(wire) == len(packet) + 8
    pair.cut_provider("a", 1)
    pair.stream(8.0, both=True, interval_s=0.1)
    packet, wire = crosses(pair, pair.alpha)
    assert addresses(wire) == (A1_ISP2, B1_AT_2) and len(wire) == len(packet) + 8


def test_a_fork_has_its_tag_since_its_addresses_are_another_contexts_too() -> None:
    rule = ForkRule((Selector.parse("tcp/873"),), "isp2")
    pair = Pair(
        demux=ADDRESSES,
        locator_map=nsquare,
        adjust=lambda settings: replace(settings, forks=(rule,)),
    )
    for _ in range(3):
        pair.talk(pair.alpha)
        pair.run(0.2)
    pair.cut_provider("a", 1)
    pair.stream(8.0, both=True, interval_s=0.1)
    main, *forks = sorted(pair.alpha.engine.contexts(), key=lambda context: context.fii)
    assert main.route == A1_AT_2 + B1 and main.route in {fork.route for fork in forks}
    assert main.demux == "identifier" and {fork.demux for fork in forks} == {"exthdr"}


@pytest.mark.parametrize("source", [B1, B1_AT_2, A1, STRANGER, ROUTER])
@pytest.mark.parametrize("destination", [A1_AT_2, A1_AT_1, address("2001:db8:a1:c001::10")])
def test_what_is_of_no_context_reaches_no_host(source: Address, destination: Address) -> None:
    pair = Pair(demux=ADDRESSES, locator_map=nsquare)
    pair.establish()
    packet = build_packet(source, destination, UNKNOWN, b"whose?")
    assert pair.inject(pair.alpha, packet) is Reason.NOBODYS_ADDRESS
    assert pair.alpha.engine.drops == {Reason.NOBODYS_ADDRESS: 1}


def test_addresses_of_two_contexts_are_never_mixed_up(bare: Pair) -> None:
    b2_at_2 = address("2001:db8:b2:4001::20")
    a2_at_2 = address("2001:db8:a2:4001::20")
    for source, destination in ((b2_at_2, A1_AT_2), (B1_AT_2, a2_at_2), (B2, A1_AT_2)):
        packet = build_packet(source, destination, UNKNOWN, b"another's")
        assert bare.inject(bare.alpha, packet) is Reason.NOBODYS_ADDRESS
    for source, destination in ((B1, A1), (B2, A1), (B1, A2), (STRANGER, A1_ISP2)):
        plain = build_packet(source, destination, UNKNOWN, b"plain")
        assert bare.inject(bare.alpha, plain) is None


def test_a_host_that_sends_to_a_locator_only_address_is_not_taken_for_its_context(
    bare: Pair,
) -> None:
    """A peer that restored such a packet would deliver what its host never meant."""
    pair = one_moved("b")
    stray = build_packet(A1, B1_AT_2, UNKNOWN, b"by hand")
    assert pair.alpha.engine.handle_outbound(stray, pair.clock.now) is Reason.NOBODYS_ADDRESS
    assert bare.inject(bare.beta, stray) is Reason.NOBODYS_ADDRESS, "nor where nothing was told"


def test_a_hosts_own_shim_packets_keep_their_tag_so_that_nobody_takes_them_for_ours(
    bare: Pair,
) -> None:
    inner = encode_message(ErrorMessage(0, 0, bytes(8)))
    for head, upper in ((NEXT_SHIM, inner), (60, bytes([NEXT_SHIM, 0, 1, 4, 0, 0, 0, 0]) + inner)):
        packet = build_packet(A1, B1, head, upper)
        before = len(bare.beta.delivered)
        bare.host_sends(bare.alpha, packet)
        assert len(bare.wire[-1][1]) == len(packet) + 8
        bare.run(0.1)
        assert [arrived for _, arrived in bare.beta.delivered[before:]] == [packet]


def test_locator_only_addresses_are_never_ulids(bare: Pair) -> None:
    pair = Pair(demux=ADDRESSES, locator_map=nsquare)
    odd = build_packet(A1_AT_2, B1, UNKNOWN, bytes(4000))
    for _ in range(3):
        assert pair.alpha.engine.handle_outbound(odd, pair.clock.now) is None
        pair.settle(pair.alpha)
    assert not list(pair.alpha.engine.contexts()) and not pair.alpha.reports


def test_a_locator_without_proof_restores_nothing(bare: Pair) -> None:
    beta = bare.beta
    listed = LocatorList(99, (201, 201), (A1_AT_2, STRANGER))
    update = UpdateRequest(beta.context.local_tag, 5, (listed,))
    bare.inject(beta, control(A1_AT_2, B1_AT_2, update))
    bare.inject(beta, control(STRANGER, B1_AT_2, UpdateRequest(beta.context.local_tag, 6, ())))
    packet = build_packet(STRANGER, B1_AT_2, UNKNOWN, b"?")
    assert bare.inject(beta, packet) is Reason.UNPROVED_LOCATOR


def test_a_full_packet_needs_no_packet_too_big(bare: Pair) -> None:
    alpha = bare.alpha
    for uplink in ("isp1", "isp2"):
        alpha.engine.handle_uplink(uplink, up=True, mtu=1500, now=bare.clock.now)
    full = udp(A1, B1, bytes(1500 - 48))
    verdict = alpha.engine.handle_outbound(full, bare.clock.now)
    assert isinstance(verdict, bytes) and len(verdict) == 1500
    over = udp(A1, B1, bytes(1501 - 48))
    assert alpha.engine.handle_outbound(over, bare.clock.now) is Reason.TOO_BIG
    bare.settle(alpha)
    assert int.from_bytes(alpha.delivered[-1][1][44:48]) == 1500


@pytest.mark.parametrize(("kind", "word"), [(1, 0), (2, 1400), (3, 0), (4, 40)])
def test_an_error_names_ulids_and_no_other_size(bare: Pair, kind: int, word: int) -> None:
    packet = build_packet(A1, B1, UNKNOWN, bytes(300), flow_label=HOST_LABEL)
    sent = bare.alpha.engine.handle_outbound(packet, bare.clock.now)
    assert isinstance(sent, bytes)
    error = icmp_error(ROUTER, A1_AT_2, kind, 0, word, sent[:200])
    verdict = bare.inject(bare.alpha, error)
    assert verdict == icmp_error(ROUTER, A1, kind, 0, word, packet[:200])


def test_an_error_about_what_went_to_a_stand_in_names_ulids_too() -> None:
    pair = one_moved("a")
    packet = build_packet(A1, B1, UNKNOWN, bytes(300))
    sent = pair.alpha.engine.handle_outbound(packet, pair.clock.now)
    assert isinstance(sent, bytes) and addresses(sent) == (A1_AT_2, B1_AT_1)
    verdict = pair.inject(pair.alpha, icmp_error(ROUTER, A1_AT_2, 1, 0, 0, sent[:200]))
    assert verdict == icmp_error(ROUTER, A1, 1, 0, 0, packet[:200])


def test_an_error_about_our_own_probe_is_not_for_the_host(bare: Pair) -> None:
    probe = next(sent for _, sent in reversed(bare.alpha.sent) if addresses(sent)[0] == A1_AT_2)
    error = icmp_error(ROUTER, A1_AT_2, 1, 0, 0, probe)
    before = len(bare.alpha.delivered)
    assert not isinstance(bare.inject(bare.alpha, error), bytes)
    assert len(bare.alpha.delivered) == before


@pytest.mark.parametrize("locator_map", [nsquare, preagreed])
@pytest.mark.parametrize("lost", ["a", "b"])
def test_after_a_loss_of_state_nothing_is_delivered_wrong_and_a_round_trip_mends_it(
    lost: str, locator_map: object
) -> None:
    """The first packet of the peer is dropped and told of; its Probe gets R1bis (decision 17)."""
    pair = moved(demux=ADDRESSES, locator_map=locator_map)  # type: ignore[arg-type]
    pair.stream(13.0, both=True, interval_s=0.1)
    site = pair.sites[lost]
    other = pair.other(site)
    pair.restart(site)
    already, start_s = len(site.delivered), pair.clock.now
    while pair.clock.now < start_s + 3.0:
        pair.talk(other, 100)
        pair.run(0.1)
    arrived = site.delivered[already:]
    assert all(addresses(packet) == (other.ulid, site.ulid) for _, packet in arrived)
    assert arrived and arrived[0][0] < start_s + 0.5
    assert site.engine.drops[Reason.NOBODYS_ADDRESS] <= 2
    assert other.context.demux == "identifier"
    assert find_messages(pair.wire_control(), R1bis)


def test_a_peer_that_was_dead_for_long_is_found_as_soon_as_it_is_back(bare: Pair) -> None:
    """The search that its death began has slowed down; the first bare packet quickens it."""
    bare.lose = lambda packet: packet[24:40] == B1_AT_2
    bare.stream(30.0, interval_s=0.1)
    assert bare.alpha.context.reap_state is ReapState.EXPLORING
    bare.restart(bare.beta)
    bare.lose = lambda packet: False
    start_s = bare.clock.now
    times = bare.stream(2.0, interval_s=0.1)
    assert times and times[0] < start_s + 0.5
    assert bare.alpha.context.demux == "identifier"


def test_the_word_of_a_lost_context_starts_a_test_and_nothing_else(bare: Pair) -> None:
    alpha = bare.alpha
    bare.stream(13.0, both=True, interval_s=0.1)
    route = alpha.context.route
    quoted = build_packet(A1_AT_2, B1_AT_2, UNKNOWN, b"")
    lost = ErrorMessage(ErrorCode.NO_CONTEXT, 0, quoted)
    for source, destination, message in (
        (STRANGER, A1_AT_2, lost),
        (B1_AT_2, A1_AT_2, ErrorMessage(ErrorCode.NO_CONTEXT, 0, quoted[:39])),
        (B1_AT_2, A1_AT_2, ErrorMessage(0, 0, quoted)),
    ):
        bare.inject(alpha, control(source, destination, message))
        assert alpha.context.exploration is None or not alpha.context.exploration.due_s
    sent = len(alpha.sent)
    for _ in range(20):
        bare.inject(alpha, control(B1_AT_2, A1_AT_2, lost))
        bare.stream(0.2, both=True, interval_s=0.1)
    assert len(alpha.sent) - sent <= 4, "one test in ten seconds"
    assert alpha.context.route == route and alpha.context.reap_state is ReapState.OPERATIONAL
    assert alpha.context.demux == "identifier", "a hint is no reason to doubt the path"


def test_who_sends_to_nobody_is_told_with_little_and_not_often() -> None:
    pair = Pair(demux=ADDRESSES, locator_map=nsquare)
    big = build_packet(STRANGER, A1_AT_2, UNKNOWN, bytes(1400))
    for _ in range(100):
        pair.inject(pair.alpha, big)
    errors = [packet for _, packet in pair.alpha.sent]
    assert len(errors) == 10 and all(len(packet) < 100 for packet in errors)
    silent = Pair(locator_map=nsquare)
    silent.inject(silent.alpha, big)
    assert not silent.alpha.sent, "nobody was asked to send without tags"


def test_a_path_that_loses_bare_packets_gets_the_payload_header(bare: Pair) -> None:
    bare.lose = lambda packet: packet[6] != NEXT_SHIM
    bare.stream(10.0, both=True, interval_s=0.1)
    assert {site.context.demux for site in bare.sites.values()} == {"exthdr"}
    for site in bare.sites.values():
        crosses(bare, site)


def test_the_mode_can_be_changed_by_an_update(bare: Pair) -> None:
    alpha, beta = bare.alpha.context, bare.beta.context
    asked = Demux(DemuxMode.IDENTIFIER, stand_in=B1_AT_1)
    for nonce, (demux, mode) in enumerate(((Demux(0), "exthdr"), (asked, "identifier"))):
        update = UpdateRequest(alpha.local_tag, nonce, (demux,))
        bare.inject(bare.alpha, control(B1_AT_2, A1_AT_2, update))
        assert alpha.demux == mode
        packet, wire = crosses(bare, bare.alpha)
        assert (len(wire) == len(packet)) is (mode == "identifier")
    update = UpdateRequest(beta.local_tag, 9, (Demux(0),))
    bare.inject(bare.beta, control(A1_AT_2, B1_AT_2, update))
    stray = build_packet(A1_AT_2, B1_AT_2, UNKNOWN, b"late")
    assert bare.inject(bare.beta, stray) is Reason.NOBODYS_ADDRESS


def test_nothing_is_kept_before_a_context_is_re_homed_or_after_its_end(bare: Pair) -> None:
    fresh = Pair(demux=ADDRESSES, locator_map=nsquare)
    fresh.establish()
    bare.run(2000)
    for site in (*fresh.sites.values(), *bare.sites.values()):
        table = site.engine._core.contexts
        assert not table.by_untagged and not table.by_sent_label and not table._untagged_keys


def test_the_record_tells_an_initiator_which_locators_to_try() -> None:
    """The ULIDs are dead from the start: the exchange goes over locator-only addresses."""
    pair = Pair(demux=ADDRESSES, locator_map=nsquare)
    plain = pair.data

    def marked(octets: Address) -> object:
        found = plain(octets)
        assert found is not None and found.capability is not None
        return replace(found, capability=replace(found.capability, mark_at=48))

    pair.data = marked  # type: ignore[assignment]
    pair.cut_provider("b", 1)
    segment = bytes.fromhex("13881389" + "00000001" + "00000000" + "5002ffff00000000")
    for wait_s in (1.0, 2.0, 4.0):
        pair.host_sends(pair.alpha, build_packet(A1, B1, 6, segment))
        pair.run(wait_s)
    assert pair.alpha.context.carries, [address_text(p[24:40]) for _, p in pair.wire]
    assert pair.alpha.context.locators == LocatorPair(A1, B1_AT_2)
    assert pair.beta.delivered[-1][1][8:40] == A1 + B1

"""How a re-homed packet finds its context: by its tag, as a header or an option, or by a flow
label with the addresses."""

from __future__ import annotations

from dataclasses import replace

import pytest

from m6proxy.proof.judge import Proof
from m6proxy.reasons import Reason
from m6proxy.shim import arrivals, forward
from m6proxy.shim.demux import DemuxMode
from m6proxy.shim.effects import What
from m6proxy.shim.engine import Engine
from m6proxy.shim.features import Feature
from m6proxy.shim.routability import ReturnRoutability
from m6proxy.shim.transitions import ReapState
from m6proxy.shim.verdict import CONSUMED
from m6proxy.wire.ipv6 import NEXT_SHIM, build_packet
from m6proxy.wire.message import (
    I2,
    R2,
    I2bis,
    Probe,
    ProbeRecord,
    ProbeState,
    R1bis,
    UpdateRequest,
    find,
)
from m6proxy.wire.options import (
    BROKEN,
    Demux,
    Features,
    LocatorList,
    LocatorPreferences,
    PayloadCount,
    Preference,
)
from tests.harness.entropy import SeededEntropy
from tests.harness.packets import control, find_messages, icmp_error, tcp, udp
from tests.harness.pair import A1, A1_ISP2, A2, B1, B1_ISP2, B2, Pair
from tests.harness.upper import UNKNOWN, upper_layers
from tests.shim.moved import moved

TAGS = (DemuxMode.EXTHDR,)
LABELS = (DemuxMode.FLOWLABEL, DemuxMode.EXTHDR)
OPTIONS = (DemuxMode.DSTOPT, DemuxMode.EXTHDR)
ALL = (DemuxMode.DSTOPT, DemuxMode.FLOWLABEL, DemuxMode.EXTHDR)
ANY_BUT_ASKING = (DemuxMode.EXTHDR, DemuxMode.FLOWLABEL, DemuxMode.DSTOPT)
TAGS_OR_LABELS = (DemuxMode.EXTHDR, DemuxMode.FLOWLABEL)
ROUTER = bytes.fromhex("20010db800ff00000000000000000001")
HOST_LABEL = 0x12345
NEXT_OPTIONS = 60


@pytest.fixture
def labelled() -> Pair:
    """Both ends on their second provider, with flow labels."""
    return moved(demux=LABELS)


def mixed(alpha: tuple[DemuxMode, ...], beta: tuple[DemuxMode, ...]) -> Pair:
    """Two ends of different policies, both moved to isp2."""
    pair = Pair()
    for seed, (site, demux) in enumerate(((pair.alpha, alpha), (pair.beta, beta))):
        site.settings = replace(site.settings, demux=demux)
        site.engine = Engine(site.settings, SeededEntropy(seed))
    pair.establish()
    pair.cut_provider("a", 1)
    pair.cut_provider("b", 1)
    pair.stream(8.0, both=True, interval_s=0.1)
    return pair


@pytest.fixture
def optioned() -> Pair:
    """Both ends on their second provider, with tags in options."""
    return moved(demux=OPTIONS)


@pytest.mark.parametrize("demux", [TAGS, LABELS, OPTIONS], ids=["exthdr", "flowlabel", "dstopt"])
@pytest.mark.parametrize("name", upper_layers(A1, B1))
def test_every_upper_layer_comes_out_as_it_went_in(name: str, demux: tuple[DemuxMode, ...]) -> None:
    pair = moved(demux=demux)
    protocol, octets = upper_layers(A1, B1)[name]
    packet = build_packet(
        A1, B1, protocol, octets, hop_limit=7, traffic_class=0xB8, flow_label=HOST_LABEL
    )
    for site in pair.sites.values():
        for uplink in ("isp1", "isp2"):
            site.engine.handle_uplink(uplink, up=True, mtu=1508, now=pair.clock.now)
    before = len(pair.beta.delivered)
    pair.host_sends(pair.alpha, packet)
    _, sent = pair.wire[-1]
    assert (sent[8:24], sent[24:40]) == (A1_ISP2, B1_ISP2)
    assert len(sent) == len(packet) + (0 if demux == LABELS else 8)
    pair.run(0.1)
    ((_, arrived),) = pair.beta.delivered[before:]
    kept = 0 if demux == LABELS else HOST_LABEL
    assert arrived == forward.with_label(packet, kept)
    assert arrived[40:] == octets


def test_both_ends_name_a_label_before_anything_is_sent_with_it(labelled: Pair) -> None:
    (_, _, i2), *_ = find_messages(labelled.wire_control(), I2)
    (_, _, r2), *_ = find_messages(labelled.wire_control(), R2)
    for message, site in ((i2, labelled.alpha), (r2, labelled.beta)):
        option, features = find(message.options, Demux), find(message.options, Features)
        assert option == Demux(DemuxMode.FLOWLABEL, site.context.label) and option.label
        assert features is not None and features.bits & Feature.FLOWLABEL
        assert labelled.other(site).context.peer_label == option.label
        assert site.context.demux == "flowlabel"


@pytest.mark.parametrize(
    ("alpha", "beta", "modes"),
    [
        (LABELS, TAGS, ("exthdr", "exthdr")),
        (TAGS, LABELS, ("exthdr", "exthdr")),
        (TAGS_OR_LABELS, LABELS, ("flowlabel", "exthdr")),
        (LABELS, TAGS_OR_LABELS, ("exthdr", "flowlabel")),
        (TAGS_OR_LABELS, TAGS_OR_LABELS, ("exthdr", "exthdr")),
        (OPTIONS, OPTIONS, ("dstopt", "dstopt")),
        (OPTIONS, TAGS, ("exthdr", "exthdr")),
        (OPTIONS, LABELS, ("exthdr", "exthdr")),
        (ALL, LABELS, ("flowlabel", "flowlabel")),
        (ALL, OPTIONS, ("dstopt", "dstopt")),
        (OPTIONS, ANY_BUT_ASKING, ("exthdr", "dstopt")),
    ],
)
def test_each_direction_has_the_mode_that_its_receiver_asks_for_and_its_sender_allows(
    alpha: tuple[DemuxMode, ...], beta: tuple[DemuxMode, ...], modes: tuple[str, str]
) -> None:
    pair = mixed(alpha, beta)
    assert (pair.alpha.context.demux, pair.beta.context.demux) == modes
    for site in pair.sites.values():
        other = pair.other(site)
        before = len(other.delivered)
        packet = pair.talk(site)
        pair.run(0.1)
        assert [arrived for _, arrived in other.delivered[before:]] == [packet]


def test_plain_packets_cost_nothing_until_a_context_is_re_homed() -> None:
    pair = Pair(demux=LABELS)
    pair.establish()
    for site in pair.sites.values():
        table = site.engine._core.contexts
        assert site.context.label in table.by_label
        assert not table.expected_labels and not table.by_sent_label


def test_the_label_means_nothing_between_other_addresses(labelled: Pair) -> None:
    """Only source, destination and label together are a context's (l3-shim-approach §9.2.1)."""
    label = labelled.alpha.context.label
    for source, destination in ((B1, A1), (B2, A1_ISP2), (B1_ISP2, A2), (ROUTER, A1_ISP2)):
        packet = build_packet(source, destination, UNKNOWN, b"plain", flow_label=label)
        assert labelled.inject(labelled.alpha, packet) is None
    other = build_packet(B1_ISP2, A1_ISP2, UNKNOWN, b"plain", flow_label=label ^ 1)
    assert labelled.inject(labelled.alpha, other) is None
    ours = build_packet(B1_ISP2, A1_ISP2, UNKNOWN, b"ours", flow_label=label)
    assert labelled.inject(labelled.alpha, ours) == build_packet(B1, A1, UNKNOWN, b"ours")


def test_a_hosts_own_label_is_never_mistaken_for_a_context(labelled: Pair) -> None:
    """Hosts that use the same locators as ULIDs, and by chance the same label: it is taken away."""
    label = labelled.alpha.context.peer_label
    for chosen, kept in ((label, 0), (label ^ 1, label ^ 1)):
        packet = build_packet(A1_ISP2, B1_ISP2, UNKNOWN, b"plain", flow_label=chosen)
        before = len(labelled.beta.delivered)
        labelled.host_sends(labelled.alpha, packet)
        labelled.run(0.1)
        ((_, arrived),) = labelled.beta.delivered[before:]
        assert arrived == forward.with_label(packet, kept)


def test_a_locator_without_proof_restores_nothing(labelled: Pair) -> None:
    beta, stranger = labelled.beta, ROUTER
    listed = LocatorList(99, (201, 201), (A1_ISP2, stranger))
    update = UpdateRequest(beta.context.local_tag, 5, (listed,))
    labelled.inject(beta, control(A1_ISP2, B1_ISP2, update))
    packet = build_packet(stranger, B1_ISP2, UNKNOWN, b"?", flow_label=beta.context.label)
    assert labelled.inject(beta, packet) is Reason.UNPROVED_LOCATOR


def test_a_full_packet_needs_no_packet_too_big(labelled: Pair) -> None:
    alpha = labelled.alpha
    for uplink in ("isp1", "isp2"):
        alpha.engine.handle_uplink(uplink, up=True, mtu=1500, now=labelled.clock.now)
    full = udp(A1, B1, bytes(1500 - 48))
    verdict = alpha.engine.handle_outbound(full, labelled.clock.now)
    assert isinstance(verdict, bytes) and len(verdict) == 1500
    over = udp(A1, B1, bytes(1501 - 48))
    assert alpha.engine.handle_outbound(over, labelled.clock.now) is Reason.TOO_BIG
    labelled.settle(alpha)
    assert int.from_bytes(alpha.delivered[-1][1][44:48]) == 1500


@pytest.mark.parametrize(("kind", "word"), [(1, 0), (2, 1400), (3, 0), (4, 40)])
def test_an_error_about_a_labelled_packet_names_ulids_and_no_other_size(
    labelled: Pair, kind: int, word: int
) -> None:
    packet = build_packet(A1, B1, UNKNOWN, bytes(300), flow_label=HOST_LABEL)
    sent = labelled.alpha.engine.handle_outbound(packet, labelled.clock.now)
    assert isinstance(sent, bytes)
    error = icmp_error(ROUTER, A1_ISP2, kind, 0, word, sent[:200])
    verdict = labelled.inject(labelled.alpha, error)
    assert verdict == icmp_error(ROUTER, A1, kind, 0, word, forward.with_label(packet, 0)[:200])


def test_the_mode_can_be_changed_by_an_update(labelled: Pair) -> None:
    alpha, beta = labelled.alpha.context, labelled.beta.context
    for mode, label, demux in ((0, 0, "exthdr"), (7, 5, "exthdr"), (1, beta.label, "flowlabel")):
        update = UpdateRequest(alpha.local_tag, 5, (Demux(mode, label),))
        labelled.inject(labelled.alpha, control(B1_ISP2, A1_ISP2, update))
        assert alpha.demux == demux
        before = len(labelled.beta.delivered)
        packet = labelled.talk(labelled.alpha)
        assert (labelled.wire[-1][1][6] == NEXT_SHIM) is (demux == "exthdr")
        labelled.run(0.1)
        assert (labelled.beta.delivered[before:][0][1]) == packet


def test_a_path_that_loses_labels_gets_the_payload_header_and_the_next_is_tried_anew() -> None:
    """Probes carry no label: without this the path would be found good for ever."""
    pair = moved(demux=LABELS)
    carry = pair._carry
    pair._carry = lambda site, packet: carry(site, forward.with_label(packet, 0))  # type: ignore[method-assign]
    pair.stream(10.0, both=True, interval_s=0.1)
    assert {site.context.demux for site in pair.sites.values()} == {"exthdr"}
    before = len(pair.beta.delivered)
    packet = pair.talk(pair.alpha)
    pair.run(0.1)
    assert [arrived for _, arrived in pair.beta.delivered[before:]] == [packet]
    pair._carry = carry  # type: ignore[method-assign]
    pair.cut.clear()
    pair.cut_provider("a", 2)
    pair.stream(8.0, both=True, interval_s=0.1)
    assert pair.alpha.context.route == A1 + B1_ISP2
    assert pair.alpha.context.demux == "flowlabel"
    before = len(pair.beta.delivered)
    packet = pair.talk(pair.alpha)
    assert len(pair.wire[-1][1]) == len(packet), "no payload header"
    pair.run(0.1)
    assert [arrived for _, arrived in pair.beta.delivered[before:]] == [packet]


@pytest.mark.parametrize("demux", [LABELS, OPTIONS], ids=["flowlabel", "dstopt"])
def test_a_move_by_the_peers_word_and_its_test_are_no_reason_to_doubt(
    demux: tuple[DemuxMode, ...],
) -> None:
    """The new pair is tested a moment after it is used, and packets had no time to be answered."""
    at_once = ReturnRoutability.NEVER
    pair = Pair(demux=demux, adjust=lambda given: replace(given, return_routability=at_once))
    pair.establish()
    pair.run(20.0)
    beta = pair.beta.context
    said = LocatorPreferences(beta.peer_generation, 2, (Preference(BROKEN, 1), Preference(0, 2)))
    for _ in range(50):
        pair.beta.engine._core.pace.take(pair.clock.now)  # others search too: the test has to wait
    pair.inject(pair.beta, control(A1_ISP2, B1, UpdateRequest(beta.local_tag, 5, (said,))))
    pair.run(1.0)
    assert beta.route == B1 + A1_ISP2 and beta.exploration is not None
    assert beta.rehomed_s is not None and beta.exploration.ended_s > beta.rehomed_s
    assert beta.unlabelled_route is None and beta.demux == demux[0].name.lower()


def test_a_hint_is_no_reason_to_doubt_that_labels_arrive(labelled: Pair) -> None:
    """It begins a test that the pair passes, and so does a path that loses labels."""
    labelled.stream(12.0, both=True, interval_s=0.2)
    alpha = labelled.alpha
    before = len(alpha.what(What.SILENCE))
    sent = alpha.engine.handle_outbound(udp(A1, B1, b"data"), labelled.clock.now)
    assert isinstance(sent, bytes)
    labelled.inject(alpha, icmp_error(ROUTER, A1_ISP2, 1, 0, 0, sent))
    labelled.stream(2.0, both=True, interval_s=0.1)
    assert len(alpha.what(What.SILENCE)) == before + 1, "it was tested"
    assert [site.context.demux for site in labelled.sites.values()] == ["flowlabel"] * 2


@pytest.mark.parametrize("kernel", [False, True], ids=["slow", "fast"])
@pytest.mark.parametrize("demux", [LABELS, OPTIONS], ids=["flowlabel", "dstopt"])
def test_a_segment_that_tcp_repeats_is_no_reason_while_anything_arrives(
    demux: tuple[DemuxMode, ...], kernel: bool
) -> None:
    """A flood beside it starves TCP: that says nothing of the path (seen with iperf3)."""
    pair = moved(demux=demux, kernel=kernel)
    pair.lose = lambda packet: packet[40:] == segment[40:] or packet[48:] == segment[40:]
    segment = tcp(A1, B1, bytes(1000))
    for _ in range(60):
        pair.host_sends(pair.alpha, segment)
        pair.stream(0.1)
        pair.run(0.9)
    assert len(pair.alpha.what(What.HINT)) > 2, "the segments began tests"
    assert [site.context.demux for site in pair.sites.values()] == [demux[0].name.lower()] * 2


@pytest.mark.parametrize("demux", [LABELS, OPTIONS], ids=["flowlabel", "dstopt"])
def test_an_outage_of_the_path_is_no_reason(demux: tuple[DemuxMode, ...]) -> None:
    """Its end looks like a path that lets probes alone pass; what came before it tells."""
    pair = moved(demux=demux)
    for _ in range(3):
        pair.stream(5.0, both=True, interval_s=0.1)
        everywhere = set(pair.cut)
        for number in (1, 2):
            pair.cut_provider("a", number)
        pair.stream(5.0, both=True, interval_s=0.1)
        assert pair.alpha.context.reap_state is not ReapState.OPERATIONAL
        pair.cut = everywhere
    pair.stream(10.0, both=True, interval_s=0.1)
    assert [site.context.demux for site in pair.sites.values()] == [demux[0].name.lower()] * 2


@pytest.mark.parametrize("kernel", [False, True], ids=["slow", "fast"])
def test_each_direction_of_a_path_is_judged_by_itself(kernel: bool) -> None:
    """Options pass from beta to alpha only, whoever notices the silence."""
    pair = moved(demux=OPTIONS, kernel=kernel)
    pair.lose = lambda packet: packet[8:24] == A1_ISP2 and packet[6] == NEXT_OPTIONS
    pair.stream(10.0, both=True, interval_s=0.1)
    assert (pair.alpha.context.demux, pair.beta.context.demux) == ("exthdr", "dstopt")
    assert pair.stream(1.0, interval_s=0.1)


@pytest.mark.parametrize("kernel", [False, True], ids=["slow", "fast"])
def test_hosts_that_send_more_rarely_than_keepalives_go_are_not_given_up(kernel: bool) -> None:
    """Each gateway hears the other all the time: nothing but the Keepalive tells what is lost."""
    pair = moved(demux=OPTIONS, kernel=kernel)
    pair.lose = lambda packet: packet[8:24] == A1_ISP2 and packet[6] == NEXT_OPTIONS
    for _ in range(20):
        pair.talk(pair.alpha)
        pair.run(1.0)
        pair.talk(pair.beta)
        pair.run(1.0)
    assert (pair.alpha.context.demux, pair.beta.context.demux) == ("exthdr", "dstopt")
    before = len(pair.beta.delivered)
    packet = pair.talk(pair.alpha)
    pair.run(0.1)
    assert [arrived for _, arrived in pair.beta.delivered[before:]] == [packet]


def test_what_the_peer_refuses_has_arrived() -> None:
    """DNS is silent, and the locator not proved: that is no fault of the path."""
    pair = Pair(demux=OPTIONS)
    pair.establish()
    for locator in pair.beta.context.peer_locators[1:]:
        locator.proof = Proof.NONE
    pair.dns = False
    pair.cut.add(("a", 1, "out"))
    pair.stream(20.0, interval_s=0.1)
    assert pair.beta.context.packets_unproved > 50 and pair.alpha.context.route[:16] == A1_ISP2
    assert pair.alpha.context.demux == "dstopt"


@pytest.mark.parametrize("kernel", [False, True], ids=["slow", "fast"])
def test_a_path_that_loses_options_is_left_to_tcp_alone_soon_enough(kernel: bool) -> None:
    """TCP was silent for long and repeats itself rarely: what the gateway repeats counts, too."""
    pair = Pair(demux=OPTIONS, kernel=kernel)
    pair.establish()
    pair.lose = lambda packet: packet[6] == NEXT_OPTIONS
    segment = tcp(A1, B1, bytes(1000))
    pair.cut_provider("a", 1)
    times = [pair.clock.now + after_s for after_s in (0, 0.2, 0.6, 1.4, 3.0, 6.2, 12.6)]
    for at_s in times:
        pair.run(at_s - pair.clock.now)
        pair.host_sends(pair.alpha, segment)
    pair.run(3.1)
    assert pair.alpha.context.demux == "exthdr"
    assert pair.beta.delivered[-1][1] == segment, "without waiting for TCP"


def test_a_count_of_a_peer_that_sends_no_modes_is_nothing(labelled: Pair) -> None:
    """It is read where packets go in a mode that a path could lose, and nowhere else."""
    plain = moved()
    for pair in (plain, labelled):
        probes = find_messages(pair.wire_control(), Probe)
        said = [find(probe.options, PayloadCount) for _, _, probe in probes]
        assert all(option is not None for option in said) is (pair is labelled)
        assert any(option is not None for option in said) is (pair is labelled)
    assert plain.alpha.context.arrived is None
    assert labelled.alpha.context.arrived is not None


def test_the_payload_header_is_doubted_no_more() -> None:
    """Once it stands in for a mode that the path loses, an outage is an outage."""
    pair = moved(demux=OPTIONS)
    pair.lose = lambda packet: packet[6] == NEXT_OPTIONS
    pair.stream(10.0, both=True, interval_s=0.1)
    everywhere = set(pair.cut)
    for number in (1, 2):
        pair.cut_provider("a", number)
    pair.stream(5.0, both=True, interval_s=0.1)
    pair.cut, back_s = everywhere, pair.clock.now
    pair.stream(20.0, both=True, interval_s=0.1)
    for site in pair.sites.values():
        assert site.what(What.OPERATIONAL)[-1] > back_s
        assert len(site.what(What.UPDATED)) == 1, "no dstopt on this path"


def test_a_probe_that_says_nothing_of_what_arrived_changes_nothing(labelled: Pair) -> None:
    """Not every peer that takes a mode knows the option."""
    context = labelled.alpha.context
    known = context.arrived
    probe = Probe(context.local_tag, ProbeState.EXPLORING, (ProbeRecord(B1_ISP2, A1_ISP2, 1),))
    assert labelled.inject(labelled.alpha, control(B1_ISP2, A1_ISP2, probe)) is CONSUMED
    assert known is not None and context.arrived == known


def test_of_three_packets_one_would_have_arrived_and_of_two_perhaps_none(labelled: Pair) -> None:
    context = labelled.alpha.context
    assert context.arrived is not None
    before = context.arrived.sent
    assert not arrivals.are_lost(context, before + 2)
    assert arrivals.are_lost(context, before + 3)
    context.arrived = context.arrived._replace(route=A1 + B1)
    assert not arrivals.are_lost(context, before + 3), "that was said of another pair"


def test_a_peer_that_lost_its_state_recovers_by_its_control_messages(labelled: Pair) -> None:
    labelled.restart(labelled.beta)
    labelled.stream(20.0, interval_s=0.1)
    before = len(labelled.beta.delivered)
    packet = labelled.talk(labelled.alpha)
    labelled.run(0.1)
    assert [arrived for _, arrived in labelled.beta.delivered[before:]] == [packet]


@pytest.mark.parametrize("first", [True, False])
def test_plain_packets_of_a_peer_that_lost_its_state_cause_a_test_at_once(
    labelled: Pair, first: bool
) -> None:
    """The ULIDs work again, so that the peer's packets do arrive: silence would not tell."""
    labelled.cut.clear()
    labelled.stream(12.0, both=True, interval_s=0.1)
    lost, kept = labelled.beta, labelled.alpha
    assert kept.context.demux == lost.context.demux == "flowlabel"
    labelled.restart(lost)
    start_s = labelled.clock.now
    if first:
        labelled.talk(lost)
    labelled.stream(1.0, both=True, interval_s=0.05)
    (recovered_s, _, _), *_ = (
        found for found in find_messages(labelled.wire_control(), I2bis) if found[0] >= start_s
    )
    assert recovered_s < start_s + 0.2
    before = len(lost.delivered)
    packet = labelled.talk(kept)
    labelled.run(0.1)
    assert [arrived for _, arrived in lost.delivered[before:]] == [packet]


def test_labels_are_forgotten_with_their_contexts(labelled: Pair) -> None:
    labelled.run(2000)
    for site in labelled.sites.values():
        table = site.engine._core.contexts
        assert not len(table)
        assert not table.by_label and not table.expected_labels and not table.by_sent_label


def test_the_first_labelled_packet_needs_no_announcement() -> None:
    """The peer may be quicker than its probe: the label is found after the miss."""
    pair = Pair(demux=LABELS)
    pair.establish()
    label = pair.alpha.context.label
    ours = build_packet(B1_ISP2, A1_ISP2, UNKNOWN, b"ours", flow_label=label)
    assert pair.inject(pair.alpha, ours) == build_packet(B1, A1, UNKNOWN, b"ours")


def test_the_option_stands_where_the_payload_header_would(optioned: Pair) -> None:
    alpha, beta = optioned.alpha, optioned.beta
    packet = udp(A1, B1, b"hello")
    sent = alpha.engine.handle_outbound(packet, optioned.clock.now)
    tag = beta.context.local_tag & 0xFFFFFFFF
    assert isinstance(sent, bytes)
    assert sent[4:8] == (len(packet) - 32).to_bytes(2) + b"\x3c" + packet[7:8]
    assert sent[8:40] == A1_ISP2 + B1_ISP2
    assert sent[40:48] == b"\x11\x00\x9e\x04" + tag.to_bytes(4)
    assert sent[48:] == packet[40:]
    assert optioned.inject(beta, sent) == packet


def test_the_option_is_offered_and_only_where_it_is_asked_for(optioned: Pair) -> None:
    (_, _, i2), *_ = find_messages(optioned.wire_control(), I2)
    features = find(i2.options, Features)
    assert find(i2.options, Demux) == Demux(DemuxMode.DSTOPT)
    assert features is not None and features.bits & Feature.DSTOPT
    table = moved().alpha.engine._core.contexts
    assert not table.by_short_tag and not table.by_sent_option


def test_the_best_liked_mode_is_named_first() -> None:
    pair = moved(demux=ALL)
    (_, _, i2), *_ = find_messages(pair.wire_control(), I2)
    assert [option for option in i2.options if isinstance(option, Demux)] == [
        Demux(DemuxMode.DSTOPT),
        Demux(DemuxMode.FLOWLABEL, pair.alpha.context.label),
    ]


def test_a_tag_that_nobody_gave_out_is_dropped_and_recovery_is_offered(optioned: Pair) -> None:
    beta = optioned.beta
    unknown = beta.context.local_tag & 0xFFFFFFFF ^ 1
    packet = _with_option(A1_ISP2, B1_ISP2, unknown)
    assert optioned.inject(beta, packet) is Reason.NO_CONTEXT
    *_, (_, _, r1bis) = find_messages(optioned.wire_control(), R1bis)
    assert r1bis.packet_tag == unknown


def test_a_right_tag_from_elsewhere_restores_nothing(optioned: Pair) -> None:
    tag = optioned.beta.context.local_tag & 0xFFFFFFFF
    for source, destination in ((ROUTER, B1_ISP2), (A1_ISP2, B2)):
        packet = _with_option(source, destination, tag)
        assert optioned.inject(optioned.beta, packet) is Reason.WRONG_LOCATOR


def test_who_did_not_ask_for_options_passes_them_on() -> None:
    pair = moved()
    packet = _with_option(A1_ISP2, B1_ISP2, pair.beta.context.local_tag & 0xFFFFFFFF)
    assert pair.inject(pair.beta, packet) is None


@pytest.mark.parametrize("octets", [41, 44, 47])
def test_an_option_that_is_cut_is_a_plain_packet(optioned: Pair, octets: int) -> None:
    packet = _with_option(A1_ISP2, B1_ISP2, 1)[:octets]
    packet = packet[:4] + (octets - 40).to_bytes(2) + packet[6:]
    assert optioned.inject(optioned.beta, packet) is None


def test_a_peer_that_lost_its_state_is_found_by_the_options_tag(optioned: Pair) -> None:
    optioned.restart(optioned.beta)
    optioned.stream(1.0, interval_s=0.1)
    assert optioned.beta.context.carries, "R1bis and I2bis, in a few round trips"
    before = len(optioned.beta.delivered)
    packet = optioned.talk(optioned.alpha)
    optioned.run(0.1)
    assert [arrived for _, arrived in optioned.beta.delivered[before:]] == [packet]


@pytest.mark.parametrize(
    ("kind", "word", "told"), [(1, 0, 0), (2, 1400, 1392), (3, 0, 0), (4, 42, 6), (4, 50, 42)]
)
def test_an_error_about_an_option_names_ulids_and_8_octets_less(
    optioned: Pair, kind: int, word: int, told: int
) -> None:
    packet = build_packet(A1, B1, UNKNOWN, bytes(300), flow_label=HOST_LABEL)
    sent = optioned.alpha.engine.handle_outbound(packet, optioned.clock.now)
    assert isinstance(sent, bytes)
    error = icmp_error(ROUTER, A1_ISP2, kind, 0, word, sent[:200])
    verdict = optioned.inject(optioned.alpha, error)
    quoted = packet[:192]
    assert verdict == icmp_error(ROUTER, A1, kind, 0, told, quoted)


def test_a_path_that_drops_options_gets_the_payload_header() -> None:
    pair = moved(demux=OPTIONS)
    pair.lose = lambda packet: packet[6] == 60
    pair.stream(10.0, both=True, interval_s=0.1)
    assert {site.context.demux for site in pair.sites.values()} == {"exthdr"}
    before = len(pair.beta.delivered)
    packet = pair.talk(pair.alpha)
    pair.run(0.1)
    assert [arrived for _, arrived in pair.beta.delivered[before:]] == [packet]


def test_tags_of_options_are_forgotten_with_their_contexts(optioned: Pair) -> None:
    optioned.run(2000)
    for site in optioned.sites.values():
        table = site.engine._core.contexts
        assert not len(table) and not table.by_short_tag and not table.by_sent_option


def test_late_options_of_a_closed_context_invite_no_recovery(optioned: Pair) -> None:
    tag = optioned.beta.context.local_tag & 0xFFFFFFFF
    optioned.alpha.engine.close_all(optioned.clock.now)
    optioned.run(1.0)
    before = len(find_messages(optioned.wire_control(), R1bis))
    assert optioned.inject(optioned.beta, _with_option(A1_ISP2, B1_ISP2, tag)) is Reason.NO_CONTEXT
    assert len(find_messages(optioned.wire_control(), R1bis)) == before


def _with_option(source: bytes, destination: bytes, short: int) -> bytes:
    head = b"\x11\x00\x9e\x04" + short.to_bytes(4)
    return build_packet(source, destination, 60, head + udp(A1, B1, b"?")[40:])

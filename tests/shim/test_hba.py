"""Peers with hash-based addresses: proved without any name (RFC 5535, RFC 5533 §7.2)."""

from __future__ import annotations

import pytest

from m6proxy.daemon.view import context_view
from m6proxy.discovery.capability import NameData
from m6proxy.names import Address, address
from m6proxy.proof.judge import Evidence, Proof, prove_ulid
from m6proxy.reasons import Reason
from m6proxy.shim.peerset import check_locators, peer_parameters
from m6proxy.shim.transitions import State
from m6proxy.shim.verdict import CONSUMED
from m6proxy.wire.message import (
    I1,
    I2,
    R1,
    R2,
    ErrorCode,
    ErrorMessage,
    I2bis,
    Keepalive,
    R1bis,
    UpdateAck,
    find,
    parse_message,
)
from m6proxy.wire.options import (
    METHOD_CGA,
    METHOD_DNS,
    METHOD_HBA,
    LocatorList,
    Option,
    SenderName,
    UlidPairOption,
)
from m6proxy.wire.options import CgaParameters as CgaOption
from tests.harness.hba import become_hba, hba_set
from tests.harness.packets import control, find_messages, udp
from tests.harness.pair import B1, B1_ISP2, Pair
from tests.shim.exchange import EVE
from tests.shim.nameless import Nameless, proofs
from tests.vectors import load_vectors

UNPROVED_ULID = Reason.UNPROVED_ULID
PREFIXES = [address(f"2001:db8:c{n}:1::")[:8] for n in (1, 2, 3)]
MADE = hba_set(PREFIXES)
H1, H2, H3 = (octets for octets, _ in MADE)
PARAMETERS = CgaOption(MADE[0][1].encode())
(THIEF, THIEFS), _ = hba_set([PREFIXES[0], EVE[:8]], seed=2)
HOST = Nameless(H1)
exchange, update = HOST.exchange, HOST.update


def listed(*locators: Address, methods: tuple[int, ...] = (), generation: int = 3) -> LocatorList:
    return LocatorList(generation, methods or (METHOD_HBA,) * len(locators), locators)


def with_hba() -> Pair:
    pair = Pair()
    assert exchange(pair, H1, listed(H1, H2), PARAMETERS) is CONSUMED
    assert pair.beta.context.state is State.ESTABLISHED
    return pair


# --- what it is for --------------------------------------------------------------------------


def test_a_host_without_a_name_is_a_peer_and_survives_its_provider() -> None:
    """The other end is the same engine with an HBA host behind it, as far as the wire shows."""
    pair = Pair()
    (ulid, _), (other, _) = become_hba(pair.alpha)
    pair.establish()
    context = pair.beta.context
    assert context.peer_name is None
    assert [locator.proof for locator in context.peer_locators] == [Proof.ULID, Proof.HBA]
    shown = context_view(context, lambda moment: moment)["peer_locators"]
    assert [row["proof"] for row in shown] == ["ulid", "hba"]
    pair.cut_provider("a", 1)
    arrived = pair.stream(15.0, both=True, interval_s=0.1)
    assert arrived[-1] > pair.clock.now - 0.5
    assert pair.beta.context.route[16:] == other
    assert pair.alpha.context.route[:16] == other
    assert pair.alpha.delivered[-1][1][8:40] == B1 + ulid


def test_we_may_begin_with_it() -> None:
    pair = Pair(probe_unknown=True)
    for _ in range(2):
        pair.host_sends(pair.beta, udp(B1, H1, bytes(1200)))
    (_, _, i1) = find_messages(pair.beta.sent, I1)[-1]
    r1 = R1(i1.initiator_nonce, 5, answer_options())
    assert pair.inject(pair.beta, control(H1, B1, r1)) is CONSUMED
    forged = R2(0xE0E, i1.initiator_nonce, (listed(H1, H2), CgaOption(THIEFS.encode())))
    assert pair.inject(pair.beta, control(H1, B1, forged)) is Reason.UNPROVED_ULID
    assert not pair.beta.context.carries
    r2 = R2(0xE0E, i1.initiator_nonce, (listed(H1, H2), PARAMETERS))
    assert pair.inject(pair.beta, control(H1, B1, r2)) is CONSUMED
    assert pair.beta.context.state is State.ESTABLISHED
    assert proofs(pair) == {H1: Proof.ULID, H2: Proof.HBA}


def answer_options() -> tuple[Option, ...]:
    """What somebody's R1 carries."""
    pair = Pair()
    pair.inject(pair.beta, control(H1, B1, I1(1, 1)))
    ((_, _, r1),) = find_messages(pair.beta.sent, R1)
    return r1.options


def test_from_another_address_of_the_set_its_ulid_is_proved() -> None:
    pair = Pair()
    exchange(pair, H2, listed(H1, H2), PARAMETERS)
    assert pair.beta.context.state is State.ESTABLISHED
    assert proofs(pair) == {H1: Proof.ULID, H2: Proof.HBA}


def test_some_by_hash_and_some_by_name() -> None:
    pair = Pair()
    other = address("2001:db8:c9::1")
    data = NameData("h.example", frozenset({H1, other}))
    pair.data = lambda _: data
    both = LocatorList(1, (METHOD_HBA, METHOD_HBA, METHOD_DNS, METHOD_DNS), (H1, H2, other, EVE))
    exchange(pair, H1, both, PARAMETERS, SenderName(data.name))
    assert proofs(pair) == {
        H1: Proof.ULID,
        H2: Proof.HBA,
        other: Proof.DNS,
        EVE: Proof.NONE,
    }


def test_octets_by_hand_are_proved() -> None:
    message = parse_message(load_vectors("messages.txt")["i2 with hba"])
    assert isinstance(message, I2)
    found = find(message.options, LocatorList)
    assert found is not None
    ulid, other = found.locators
    parameters = peer_parameters(message.options, ulid)
    check_locators(message.options, ulid, Evidence(None, parameters))
    assert prove_ulid(ulid, other, Evidence(None, parameters))


def test_a_recovery_shows_its_parameters_again() -> None:
    """§7.20, after we lost the context that the peer still has."""
    for parameters, verdict in (
        (CgaOption(THIEFS.encode()), UNPROVED_ULID),
        (PARAMETERS, CONSUMED),
    ):
        pair = Pair()
        pair.inject(pair.beta, control(H2, B1, Keepalive(0xABC)))
        ((_, _, r1bis),) = find_messages(pair.beta.sent, R1bis)
        options = (*r1bis.options, UlidPairOption(H1, B1), listed(H1, H2), parameters)
        i2bis = I2bis(0xE0E, 1, r1bis.responder_nonce, r1bis.packet_tag, options)
        assert pair.inject(pair.beta, control(H2, B1, i2bis)) is verdict
    assert pair.beta.context.locators.peer == H2
    assert proofs(pair) == {H1: Proof.ULID, H2: Proof.HBA}


# --- later updates ---------------------------------------------------------------------------


def test_an_update_may_leave_the_parameters_out() -> None:
    pair = with_hba()
    assert update(pair, listed(H1, H2, H3, generation=4)) is CONSUMED
    assert proofs(pair) == {H1: Proof.ULID, H2: Proof.HBA, H3: Proof.HBA}
    assert find_messages(pair.beta.sent, UpdateAck)


def test_an_update_may_bring_the_first_parameters() -> None:
    pair = Pair()
    exchange(pair, H1)
    assert update(pair, listed(H1, H2)) is Reason.BAD_METHOD
    assert proofs(pair) == {H1: Proof.ULID}
    assert update(pair, listed(H1, H2), PARAMETERS) is CONSUMED
    assert proofs(pair) == {H1: Proof.ULID, H2: Proof.HBA}


def test_an_update_with_the_parameters_of_another_is_dropped() -> None:
    pair = with_hba()
    before = pair.beta.context.peer_parameters
    pair.beta.sent.clear()
    assert update(pair, listed(H1), CgaOption(THIEFS.encode())) is Reason.UNPROVED_ULID
    assert update(pair, listed(H1), CgaOption(b"\x00" * 20)) is Reason.BAD_OPTION
    assert pair.beta.context.peer_parameters == before
    assert not pair.beta.sent


def test_peers_without_hashes_keep_nothing() -> None:
    pair = Pair()
    pair.establish()
    assert pair.beta.context.peer_parameters == b""


# --- forgeries -------------------------------------------------------------------------------


def refused_methods(pair: Pair) -> list[tuple[int, int]]:
    """Code of each Error message and which octet of the message it points to."""
    found = find_messages(pair.beta.sent, ErrorMessage)
    assert all(error.code == ErrorCode.METHOD_FAILED for _, _, error in found)
    return [(error.packet[error.pointer], error.pointer) for _, _, error in found]


@pytest.mark.parametrize(
    ("options", "place"),
    [
        ((listed(H1, H2),), 0),
        ((listed(H1, H2, EVE), PARAMETERS), 2),
        ((listed(H1, H2[:15] + bytes([H2[15] ^ 1])), PARAMETERS), 1),
        ((listed(H1, H2, methods=(METHOD_HBA, METHOD_CGA)), PARAMETERS), 1),
        ((listed(H1, EVE, H2, methods=(METHOD_DNS, METHOD_DNS, METHOD_HBA)),), 2),
    ],
)
def test_a_list_that_the_parameters_contradict_is_refused_there(
    options: tuple[Option, ...], place: int
) -> None:
    """§7.2: the message is ignored, and Error 2 points to the method octet."""
    pair = Pair()
    assert exchange(pair, H1, *options) is Reason.BAD_METHOD
    assert not list(pair.beta.engine.contexts())
    ((method, pointer),) = refused_methods(pair)
    listing = options[0]
    assert isinstance(listing, LocatorList)
    # IPv6 header, fixed fields, validator option, list option up to its first method
    assert pointer == 40 + 24 + 24 + 9 + place
    assert method == listing.methods[place]


def test_parameters_of_another_ulid_are_dropped_silently() -> None:
    """§7.13."""
    pair = Pair()
    theirs = CgaOption(THIEFS.encode())
    assert exchange(pair, H1, listed(H1), theirs) is Reason.UNPROVED_ULID
    assert exchange(pair, H1, theirs) is Reason.UNPROVED_ULID
    assert exchange(pair, H1, CgaOption(PARAMETERS.octets[:-1])) is Reason.BAD_OPTION
    assert not list(pair.beta.engine.contexts())
    assert not refused_methods(pair)


@pytest.mark.parametrize(
    ("source", "options", "reason"),
    [
        (
            EVE,
            (listed(H1, EVE, methods=(METHOD_HBA, METHOD_DNS)), PARAMETERS),
            Reason.UNPROVED_ULID,
        ),
        (H2, (listed(H1, H2, methods=(METHOD_DNS, METHOD_DNS)),), Reason.UNPROVED_ULID),
        (
            H2,
            (listed(H1, H2, methods=(METHOD_DNS, METHOD_DNS)), PARAMETERS),
            Reason.UNPROVED_LOCATOR,
        ),
        (H2, (PARAMETERS,), Reason.WRONG_LOCATOR),
    ],
)
def test_a_thief_with_the_parameters_of_another_gets_no_context(
    source: Address, options: tuple[Option, ...], reason: Reason
) -> None:
    """The structure is public: everybody may show it, and it proves only its own addresses."""
    pair = Pair()
    exchange(pair, source, *options)
    assert not list(pair.beta.engine.contexts())
    assert pair.beta.engine.drops == {reason: 1}


def test_a_prefix_of_a_thief_in_a_set_of_its_own_proves_no_ulid_of_another() -> None:
    pair = Pair()
    exchange(pair, EVE, listed(THIEF, EVE), CgaOption(THIEFS.encode()))
    assert pair.beta.engine.drops == {Reason.UNPROVED_ULID: 1}


def test_sets_have_no_more_than_their_prefixes() -> None:
    pair = with_hba()
    assert update(pair, listed(H1, EVE)) is Reason.BAD_METHOD
    assert update(pair, listed(H1, B1_ISP2)) is Reason.BAD_METHOD
    assert proofs(pair) == {H1: Proof.ULID, H2: Proof.HBA}

"""Peers that prove their locators by the signature of their CGA key (RFC 5533 §5.15.5, §7.2)."""

from __future__ import annotations

from dataclasses import replace

import pytest

from m6proxy.daemon.view import context_view
from m6proxy.names import Address, address
from m6proxy.proof.judge import Proof
from m6proxy.reasons import Reason
from m6proxy.shim.core import ShimSettings
from m6proxy.shim.transitions import State
from m6proxy.shim.verdict import CONSUMED
from m6proxy.wire.message import (
    I1,
    R1,
    R2,
    ErrorCode,
    ErrorMessage,
    I2bis,
    Keepalive,
    R1bis,
    UpdateAck,
)
from m6proxy.wire.options import (
    METHOD_CGA,
    METHOD_DNS,
    METHOD_HBA,
    CgaSignature,
    LocatorList,
    Option,
    UlidPairOption,
)
from m6proxy.wire.options import CgaParameters as CgaOption
from tests.harness.cga import become_cga, key, make, public_octets, sign
from tests.harness.packets import control, find_messages, udp
from tests.harness.pair import B1, Pair
from tests.shim.exchange import EVE
from tests.shim.nameless import Nameless, proofs

PREFIX = address("2001:db8:c1:1::")[:8]
H1, MADE = make(public_octets(key()), PREFIX)
H2, H3 = address("2001:db8:c2:1::7"), address("2001:db8:c3:1::7")
PARAMETERS = CgaOption(MADE.encode())
THIEFS = CgaOption(make(public_octets(key(1)), PREFIX)[1].encode())
HOST = Nameless(H1)
exchange, update = HOST.exchange, HOST.update


def listed(*locators: Address, generation: int = 3, methods: tuple[int, ...] = ()) -> LocatorList:
    return LocatorList(generation, methods or (METHOD_CGA,) * len(locators), locators)


def signed(*locators: Address, generation: int = 3, by: int = 0) -> CgaSignature:
    return CgaSignature(sign(key(by), generation, *locators))


OFFER = (listed(H1, H2), PARAMETERS, signed(H1, H2))


def with_cga() -> Pair:
    pair = Pair()
    assert exchange(pair, H1, *OFFER) is CONSUMED
    assert pair.beta.context.state is State.ESTABLISHED
    return pair


def errors(pair: Pair) -> list[tuple[int, int, int]]:
    """Code, pointer and the octet there of each Error message."""
    found = [error for _, _, error in find_messages(pair.beta.sent, ErrorMessage)]
    return [(error.code, error.pointer, error.packet[error.pointer]) for error in found]


# --- what it is for --------------------------------------------------------------------------


def test_a_host_with_a_key_is_a_peer_and_survives_its_provider() -> None:
    """The other end is the same engine with a CGA host behind it, as far as the wire shows."""
    pair = Pair()
    ulid = become_cga(pair.alpha)
    pair.establish()
    context = pair.beta.context
    assert context.peer_name is None
    assert [locator.proof for locator in context.peer_locators] == [Proof.ULID, Proof.CGA]
    shown = context_view(context, lambda moment: moment)["peer_locators"]
    assert [row["proof"] for row in shown] == ["ulid", "cga"]
    pair.cut_provider("a", 1)
    arrived = pair.stream(15.0, both=True, interval_s=0.1)
    assert arrived[-1] > pair.clock.now - 0.5
    assert context.route[16:] != ulid
    assert pair.alpha.delivered[-1][1][8:40] == B1 + ulid


def test_we_may_begin_with_it() -> None:
    pair = Pair(probe_unknown=True)
    for _ in range(2):
        pair.host_sends(pair.beta, udp(B1, H1, bytes(1200)))
    (_, _, i1) = find_messages(pair.beta.sent, I1)[-1]
    pair.inject(pair.alpha, control(H1, pair.alpha.ulid, I1(1, 1)))
    ((_, _, theirs),) = find_messages(pair.alpha.sent, R1)
    r1 = R1(i1.initiator_nonce, 5, theirs.options)
    assert pair.inject(pair.beta, control(H1, B1, r1)) is CONSUMED
    forged = R2(0xE0E, i1.initiator_nonce, (listed(H1, H2), PARAMETERS, signed(H1, H2, by=1)))
    assert pair.inject(pair.beta, control(H1, B1, forged)) is Reason.BAD_SIGNATURE
    assert not pair.beta.context.carries
    r2 = R2(0xE0E, i1.initiator_nonce, OFFER)
    assert pair.inject(pair.beta, control(H1, B1, r2)) is CONSUMED
    assert proofs(pair) == {H1: Proof.ULID, H2: Proof.CGA}


def test_from_a_locator_that_the_key_signs_for_its_ulid_is_proved() -> None:
    pair = Pair()
    exchange(pair, H2, *OFFER)
    assert pair.beta.context.state is State.ESTABLISHED
    assert proofs(pair) == {H1: Proof.ULID, H2: Proof.CGA}


def test_a_recovery_shows_its_signature_again() -> None:
    """§7.20, after we lost the context that the peer still has."""
    for signature, verdict in (
        (signed(H1, H2, generation=4), Reason.BAD_SIGNATURE),
        (signed(H1, H2), CONSUMED),
    ):
        pair = Pair()
        pair.inject(pair.beta, control(H2, B1, Keepalive(0xABC)))
        ((_, _, r1bis),) = find_messages(pair.beta.sent, R1bis)
        options = (*r1bis.options, UlidPairOption(H1, B1), listed(H1, H2), PARAMETERS, signature)
        i2bis = I2bis(0xE0E, 1, r1bis.responder_nonce, r1bis.packet_tag, options)
        assert pair.inject(pair.beta, control(H2, B1, i2bis)) is verdict
    assert pair.beta.context.locators.peer == H2


def test_lists_may_mix_methods_and_only_the_cga_locators_are_signed() -> None:
    pair = Pair()
    mixed = listed(H1, H3, H2, methods=(METHOD_CGA, METHOD_DNS, METHOD_CGA))
    exchange(pair, H1, mixed, PARAMETERS, signed(H1, H2))
    assert proofs(pair) == {H1: Proof.ULID, H3: Proof.NONE, H2: Proof.CGA}


# --- later updates ---------------------------------------------------------------------------


def test_an_update_may_leave_the_parameters_out_but_not_the_signature() -> None:
    pair = with_cga()
    more = listed(H1, H2, H3, generation=4)
    assert update(pair, more) is Reason.BAD_METHOD
    assert update(pair, more, signed(H1, H2)) is Reason.BAD_SIGNATURE
    assert proofs(pair) == {H1: Proof.ULID, H2: Proof.CGA}
    assert not find_messages(pair.beta.sent, UpdateAck)
    assert update(pair, more, signed(H1, H2, H3, generation=4)) is CONSUMED
    assert proofs(pair) == {H1: Proof.ULID, H2: Proof.CGA, H3: Proof.CGA}
    assert find_messages(pair.beta.sent, UpdateAck)


def test_a_signature_of_an_earlier_list_does_not_stand_for_a_later_one() -> None:
    pair = with_cga()
    again = listed(H1, H2, generation=4)
    assert update(pair, again, PARAMETERS, signed(H1, H2)) is Reason.BAD_SIGNATURE
    assert pair.beta.context.peer_generation == 3


def test_an_update_with_the_key_of_another_is_dropped_silently() -> None:
    pair = with_cga()
    pair.beta.sent.clear()
    thief = (listed(H1, EVE, generation=4), signed(H1, EVE, generation=4, by=1))
    assert update(pair, *thief, THIEFS) is Reason.UNPROVED_ULID
    assert not pair.beta.sent
    assert update(pair, *thief) is Reason.BAD_SIGNATURE


# --- forgeries -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "reason", "place"),
    [
        ((listed(H1, H2), PARAMETERS, signed(H1, H2, by=1)), Reason.BAD_SIGNATURE, 0),
        ((listed(H1, H2), PARAMETERS, signed(H2, H1)), Reason.BAD_SIGNATURE, 0),
        ((listed(H1, EVE), PARAMETERS, signed(H1, H2)), Reason.BAD_SIGNATURE, 0),
        ((listed(H1, H2, generation=9), PARAMETERS, signed(H1, H2)), Reason.BAD_SIGNATURE, 0),
        ((listed(H1, H2), PARAMETERS, CgaSignature(b"")), Reason.BAD_SIGNATURE, 0),
        (
            (
                listed(H1, H2, methods=(METHOD_DNS, METHOD_CGA)),
                PARAMETERS,
                CgaSignature(bytes(128)),
            ),
            Reason.BAD_SIGNATURE,
            1,
        ),
        ((listed(H1, H2), PARAMETERS), Reason.BAD_METHOD, 1),
        ((listed(H1, H2), signed(H1, H2)), Reason.BAD_METHOD, 0),
        (
            (listed(H1, H2, methods=(METHOD_HBA, METHOD_CGA)), PARAMETERS, signed(H2)),
            Reason.BAD_METHOD,
            0,
        ),
    ],
)
def test_a_list_that_is_not_signed_for_is_refused_there(
    options: tuple[Option, ...], reason: Reason, place: int
) -> None:
    """§7.2, §10.4: the message is ignored, and Error 2 points to a method octet."""
    pair = Pair()
    assert exchange(pair, H1, *options) is reason
    assert not list(pair.beta.engine.contexts())
    assert pair.beta.engine.drops == {reason: 1}
    listing = options[0]
    assert isinstance(listing, LocatorList)
    # IPv6 header, fixed fields, validator option, list option up to its first method
    at = 40 + 24 + 24 + 9 + place
    assert errors(pair) == [(ErrorCode.METHOD_FAILED, at, listing.methods[place])]


def test_who_shows_the_public_key_of_another_gets_no_context() -> None:
    pair = Pair()
    exchange(pair, EVE, listed(H1, EVE), PARAMETERS, signed(H1, EVE, by=1))
    exchange(pair, EVE, listed(H1, EVE, methods=(METHOD_CGA, METHOD_DNS)), PARAMETERS, signed(H1))
    assert not list(pair.beta.engine.contexts())
    assert pair.beta.engine.drops == {Reason.BAD_SIGNATURE: 1, Reason.UNPROVED_ULID: 1}


def test_nobody_makes_us_verify_faster_than_requests_are_allowed() -> None:
    def slowly(settings: ShimSettings) -> ShimSettings:
        return replace(settings, requests_per_s=5.0)

    pair = Pair(adjust=slowly)
    exchange(pair, H1, *OFFER)
    forged = (listed(H1, H2, generation=4), signed(H1, H2))
    for _ in range(20):
        update(pair, *forged)
    drops = pair.beta.engine.drops
    assert drops[Reason.BAD_SIGNATURE] <= 5
    assert drops[Reason.RATE_LIMITED] >= 15
    assert update(pair) is CONSUMED

"""When a locator is tested before it gets payload, by each policy (mobike-design §3.2)."""

from __future__ import annotations

from dataclasses import replace

import pytest

from m6proxy.names import Address
from m6proxy.proof.judge import Proof
from m6proxy.shim import reap
from m6proxy.shim.locators import PeerLocator
from m6proxy.shim.routability import ReturnRoutability, may_send
from m6proxy.shim.verdict import CONSUMED
from m6proxy.wire.message import Probe, ProbeRecord, ProbeState, UpdateRequest
from m6proxy.wire.options import (
    BROKEN,
    METHOD_DNS,
    LocatorList,
    LocatorPreferences,
    Preference,
)
from tests.harness.packets import control, find_messages, udp
from tests.harness.pair import A1, B1, B1_ISP2, Pair
from tests.shim.exchange import EVE

ALWAYS, FIRST_USE = ReturnRoutability.ALWAYS, ReturnRoutability.FIRST_USE
CHANGED_SOURCE, NEVER = ReturnRoutability.CHANGED_SOURCE, ReturnRoutability.NEVER


def established(
    policy: ReturnRoutability, exempt: frozenset[Proof] = frozenset(), send_timeout_s: float = 3.0
) -> Pair:
    """Both ends have a context; alpha has the policy."""
    pair = Pair(send_timeout_s=send_timeout_s)
    pair.alpha.settings = replace(
        pair.alpha.settings, return_routability=policy, exempt_proofs=exempt
    )
    pair.restart(pair.alpha)
    pair.establish()
    return pair


def says_broken(
    pair: Pair, broken: Address, good: Address, source: Address, generation: int
) -> bool:
    """The peer gives a locator up for another; returns whether alpha's packets go there at once."""
    options = (
        LocatorList(generation, (METHOD_DNS,) * 2, (broken, good)),
        LocatorPreferences(generation, 1, (Preference(BROKEN), Preference(0))),
    )
    request = UpdateRequest(pair.alpha.context.local_tag, generation, options)
    pair.alpha.sent.clear()
    assert pair.inject(pair.alpha, control(source, A1, request)) is CONSUMED
    sent = pair.alpha.engine.handle_outbound(udp(A1, B1), pair.clock.now)
    pair.settle(pair.alpha)
    return (sent if isinstance(sent, bytes) else udp(A1, B1))[24:40] == good


def after_the_test(pair: Pair, good: Address) -> bool:
    """Whether a probe went to a locator and packets go there in the end."""
    pair.stream(1.0, both=True)
    probed = {packet[24:40] for _, packet, _ in find_messages(pair.alpha.sent, Probe)}
    return good in probed and pair.alpha.context.route[16:] == good


@pytest.mark.parametrize(
    ("policy", "source", "at_once"),
    [
        (ALWAYS, B1, (False, False, False)),
        (ALWAYS, B1_ISP2, (False, False, False)),
        (FIRST_USE, B1, (False, False, True)),
        (FIRST_USE, B1_ISP2, (False, False, True)),
        (CHANGED_SOURCE, B1, (False, True, True)),
        (CHANGED_SOURCE, B1_ISP2, (True, False, True)),
        (NEVER, B1, (True, True, True)),
        (NEVER, B1_ISP2, (True, True, True)),
    ],
)
def test_each_policy_over_three_moves(
    policy: ReturnRoutability, source: Address, at_once: tuple[bool, ...]
) -> None:
    """To the second locator, back to the first, and to the second again.

    The ULID too was never tested before the way back: the exchange went through it, no probe.
    """
    pair = established(policy)
    pair.stream(1.0, both=True)
    seen = []
    for number, (broken, good) in enumerate([(B1, B1_ISP2), (B1_ISP2, B1), (B1, B1_ISP2)]):
        seen.append(says_broken(pair, broken, good, source, 50 + number))
        assert after_the_test(pair, good)
        pair.stream(2.0, both=True)
    assert tuple(seen) == at_once


def test_a_proof_may_stand_for_the_test() -> None:
    """The seam for certificates: here the proof by DNS is given that worth."""
    exempt = frozenset({Proof.DNS})
    assert says_broken(established(FIRST_USE, exempt), B1, B1_ISP2, B1, 50)
    assert says_broken(established(CHANGED_SOURCE, exempt), B1, B1_ISP2, B1, 50)
    assert not says_broken(established(ALWAYS, exempt), B1, B1_ISP2, B1, 50)


def test_no_policy_sends_to_a_locator_without_proof() -> None:
    for source in (B1, B1_ISP2):
        pair = established(NEVER)
        assert not says_broken(pair, B1, EVE, source, 50)
        pair.stream(2.0, both=True)
        assert all(packet[24:40] != EVE for _, packet in pair.wire)


def test_a_believed_peer_that_is_not_there_is_found_out() -> None:
    """Going there at once does not spare the test: it fails, and the search finds what works."""
    pair = established(NEVER)
    pair.cut_provider("b", 2)
    assert says_broken(pair, B1, B1_ISP2, B1, 50)
    assert pair.alpha.context.route[16:] == B1_ISP2
    pair.stream(3.0, both=True)
    assert pair.alpha.context.reap_state.name == "OPERATIONAL"
    assert pair.alpha.context.route[16:] == B1


@pytest.mark.parametrize("policy", [ALWAYS, FIRST_USE])
def test_a_test_is_a_probe_of_this_search(policy: ReturnRoutability) -> None:
    """A late report of an earlier search's probe moves nothing: that test was for another use."""
    pair = established(policy)
    pair.cut_provider("b", 1)
    pair.stream(8.0, both=True)
    context = pair.alpha.context
    assert context.route[16:] == B1_ISP2
    assert context.exploration is not None
    old = next(record for record in context.exploration.sent if record.dst == B1)
    reap.suspect(pair.alpha.engine._core, context, pair.clock.now)
    record = ProbeRecord(B1_ISP2, A1, 99)
    probe = Probe(context.local_tag, ProbeState.INBOUND_OK, (record,), (old,))
    for _ in range(2):
        assert pair.inject(pair.alpha, control(B1_ISP2, A1, probe)) is CONSUMED
        assert context.route[16:] == B1_ISP2
        pair.alpha.engine.handle_timer(pair.clock.now)


@pytest.mark.parametrize("policy", list(ReturnRoutability))
@pytest.mark.parametrize("tested", [False, True])
@pytest.mark.parametrize("proof", [Proof.DNS, Proof.HBA])
def test_every_combination(policy: ReturnRoutability, tested: bool, proof: Proof) -> None:
    locator = PeerLocator(B1, proof, tested=tested)
    exempt = frozenset({Proof.HBA})
    known = tested or proof is Proof.HBA
    expected = {
        ALWAYS: (False, False),
        FIRST_USE: (known, known),
        CHANGED_SOURCE: (True, known),
        NEVER: (True, True),
    }[policy]
    assert tuple(may_send(policy, locator, x, exempt) for x in (B1, B1_ISP2)) == expected

"""Validators: made without memory, good for a minute, bound to all that must be repeated."""

from __future__ import annotations

import pytest

from m6proxy.errors import PeerViolation
from m6proxy.names import LocatorPair
from m6proxy.reasons import Reason
from m6proxy.shim.responder import KEY_PERIOD_S, LIFETIME_S, Responder
from m6proxy.shim.timers import VALIDATOR_MIN_LIFETIME_S
from tests.harness.entropy import SeededEntropy
from tests.harness.pair import A1, A1_ISP2, B1, B1_ISP2

ROUTE = LocatorPair(A1, B1)
ULIDS = A1 + B1


def make(seed: int = 1) -> Responder:
    return Responder(SeededEntropy(seed))


@pytest.mark.parametrize("start_s", [0.0, 10.0, KEY_PERIOD_S - 1.0, 4294967290.0, 1e10])
@pytest.mark.parametrize("age_s", [0.0, 1.0, VALIDATOR_MIN_LIFETIME_S, LIFETIME_S])
def test_it_is_accepted_while_it_lives(start_s: float, age_s: float) -> None:
    responder = make()
    nonce = responder.nonce(start_s)
    validator = responder.validator(nonce, 7, ULIDS, ROUTE, 0, start_s)
    responder.check(validator, nonce, 7, ULIDS, ROUTE, 0, start_s + age_s)


@pytest.mark.parametrize("age_s", [LIFETIME_S + 2, 1000.0, 2.0**31, -2.0])
def test_an_old_one_or_one_from_the_future_is_refused(age_s: float) -> None:
    responder = make()
    nonce = responder.nonce(5000.0)
    validator = responder.validator(nonce, 7, ULIDS, ROUTE, 0, 5000.0)
    with pytest.raises(PeerViolation) as caught:
        responder.check(validator, nonce, 7, ULIDS, ROUTE, 0, 5000.0 + age_s)
    assert caught.value.reason is Reason.OLD_VALIDATOR


@pytest.mark.parametrize(
    ("nonce", "tag", "ulids", "route", "fii"),
    [
        (4999, 7, ULIDS, ROUTE, 0),
        (5000, 8, ULIDS, ROUTE, 0),
        (5000, 7, B1 + A1, ROUTE, 0),
        (5000, 7, b"", ROUTE, 0),
        (5000, 7, ULIDS, LocatorPair(A1_ISP2, B1), 0),
        (5000, 7, ULIDS, LocatorPair(A1, B1_ISP2), 0),
        (5000, 7, ULIDS, ROUTE, 1),
    ],
)
def test_it_is_bound_to_every_input(
    nonce: int, tag: int, ulids: bytes, route: LocatorPair, fii: int
) -> None:
    responder = make()
    validator = responder.validator(5000, 7, ULIDS, ROUTE, 0, 5000.0)
    with pytest.raises(PeerViolation) as caught:
        responder.check(validator, nonce, tag, ulids, route, fii, 5001.0)
    assert caught.value.reason is Reason.BAD_VALIDATOR


@pytest.mark.parametrize("forged", [b"", bytes(16), bytes(15), bytes(512)])
def test_a_guess_is_refused(forged: bytes) -> None:
    with pytest.raises(PeerViolation):
        make().check(forged, 5000, 7, ULIDS, ROUTE, 0, 5000.0)


def test_another_daemon_does_not_accept_it() -> None:
    validator = make(1).validator(5000, 7, ULIDS, ROUTE, 0, 5000.0)
    with pytest.raises(PeerViolation):
        make(2).check(validator, 5000, 7, ULIDS, ROUTE, 0, 5000.0)


def test_two_keys_are_all_it_keeps() -> None:
    responder = make()
    for now in range(0, 100_000, 30):
        responder.validator(responder.nonce(now), 7, ULIDS, ROUTE, 0, now)
        assert len(responder._keys) <= 2

"""What proves a locator and a ULID."""

from __future__ import annotations

import pytest

from m6proxy.discovery.capability import NameData
from m6proxy.names import address
from m6proxy.proof.judge import JUDGES, Proof, prove_listed, prove_locators, prove_ulid
from tests.discovery.values import ALPHA

A1 = address("2001:db8:a1:1::10")
A1_OTHER = address("2001:db8:a2:1::10")
LISTED = address("2001:db8:77::1")
VICTIM = address("2001:db8:bad::1")

BY_PREFIX = NameData("a1.alpha.example", frozenset({A1}), ALPHA)
BY_SET = NameData("a1.alpha.example", frozenset({A1, LISTED}))
OWNED = NameData("a1.alpha.example", frozenset({A1}), ALPHA, owns_ulid=True)


def test_address_set_and_prefixes_prove() -> None:
    given = (A1, A1_OTHER, LISTED, VICTIM)
    assert prove_locators(A1, given, BY_PREFIX) == (Proof.ULID, Proof.DNS, Proof.NONE, Proof.NONE)
    assert prove_locators(A1, given, BY_SET) == (Proof.ULID, Proof.NONE, Proof.DNS, Proof.NONE)
    assert prove_locators(A1, given, None) == (Proof.ULID, Proof.NONE, Proof.NONE, Proof.NONE)
    assert prove_locators(A1, (), BY_SET) == ()


def test_a_name_that_does_not_cover_the_ulid_proves_nothing() -> None:
    """Whoever claims the name of another moves no traffic to that other's locators."""
    assert prove_locators(VICTIM, (A1, A1_OTHER), BY_PREFIX) == (Proof.NONE, Proof.NONE)


def test_methods_have_their_judges() -> None:
    locators, methods = (A1, A1_OTHER, A1_OTHER, A1_OTHER), (201, 201, 1, 2)
    assert prove_listed(A1, locators, methods, BY_PREFIX) == (
        Proof.ULID,
        Proof.DNS,
        Proof.NONE,
        Proof.NONE,
    )
    assert set(JUDGES) == {201}
    with pytest.raises(ValueError, match="zip"):
        prove_listed(A1, locators, (201,), BY_PREFIX)


@pytest.mark.parametrize(
    ("source", "data", "proved"),
    [
        (A1, None, True),
        (A1, BY_SET, True),
        (A1_OTHER, None, False),
        (A1_OTHER, BY_PREFIX, False),
        (A1_OTHER, OWNED, True),
        (VICTIM, OWNED, True),  # the ULID is theirs; that locator is judged apart
        (A1_OTHER, NameData("thief.example", frozenset({VICTIM}), owns_ulid=True), False),
    ],
)
def test_ulid(source: bytes, data: NameData | None, proved: bool) -> None:
    assert prove_ulid(A1, source, data) is proved

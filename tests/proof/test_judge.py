"""What proves a locator and a ULID."""

from __future__ import annotations

import pytest

from m6proxy.discovery.capability import NameData
from m6proxy.names import address
from m6proxy.proof.judge import (
    JUDGES,
    Evidence,
    Proof,
    inconsistent,
    made_with,
    prove_listed,
    prove_locators,
    prove_ulid,
)
from tests.discovery.values import ALPHA
from tests.harness.hba import hba_set

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
    assert prove_listed(A1, locators, methods, Evidence(BY_PREFIX)) == (
        Proof.ULID,
        Proof.DNS,
        Proof.NONE,
        Proof.NONE,
    )
    assert set(JUDGES) == {1, 2, 201}
    with pytest.raises(ValueError, match="zip"):
        prove_listed(A1, locators, (201,), Evidence(BY_PREFIX))


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
    assert prove_ulid(A1, source, Evidence(data)) is proved


HBA_PREFIXES = [address("2001:db8:a1:1::")[:8], address("2001:db8:a2:1::")[:8]]
(FIRST, PARAMETERS), (SECOND, _) = hba_set(HBA_PREFIXES)
(OTHER_FIRST, OTHER_PARAMETERS), (OTHER_SECOND, _) = hba_set(HBA_PREFIXES, seed=2)


@pytest.mark.parametrize(
    ("locator", "evidence", "proof"),
    [
        (SECOND, Evidence(None, PARAMETERS), Proof.HBA),
        (SECOND, Evidence(), Proof.NONE),
        (SECOND, Evidence(None, OTHER_PARAMETERS), Proof.NONE),
        (OTHER_SECOND, Evidence(None, PARAMETERS), Proof.NONE),
        (FIRST, Evidence(), Proof.ULID),
    ],
)
def test_a_set_of_hashes_proves_its_own(locator: bytes, evidence: Evidence, proof: Proof) -> None:
    assert prove_listed(FIRST, (locator,), (1,), evidence) == (proof,)


def test_a_method_that_the_parameters_contradict_has_its_place() -> None:
    given, evidence = (FIRST, SECOND, VICTIM), Evidence(None, PARAMETERS)
    assert inconsistent(FIRST, given, (1, 1, 201), evidence) is None
    assert inconsistent(FIRST, given, (1, 1, 1), evidence) == 2
    assert inconsistent(FIRST, given, (201, 1, 201), Evidence()) == 1
    assert inconsistent(OTHER_FIRST, given, (201, 1, 201), evidence) == 1


def test_parameters_belong_to_the_addresses_made_with_them() -> None:
    assert made_with(FIRST, PARAMETERS)
    assert made_with(SECOND, PARAMETERS)
    assert not made_with(FIRST, OTHER_PARAMETERS)
    assert not made_with(VICTIM, PARAMETERS)


def test_a_ulid_is_proved_from_another_address_of_its_set() -> None:
    assert prove_ulid(FIRST, SECOND, Evidence(None, PARAMETERS))
    assert not prove_ulid(FIRST, SECOND, Evidence())
    assert not prove_ulid(FIRST, OTHER_SECOND, Evidence(None, PARAMETERS))
    assert not prove_ulid(FIRST, VICTIM, Evidence(None, OTHER_PARAMETERS))

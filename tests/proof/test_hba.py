"""HBA sets prove each other's addresses, and nothing else."""

from __future__ import annotations

from dataclasses import replace

import pytest

from m6proxy.names import address
from m6proxy.proof import hba
from m6proxy.proof.cga import Extension
from tests.harness.hba import hba_set

PREFIXES = [address("2001:db8:a1:1::")[:8], address("2001:db8:a2:1::")[:8]]


@pytest.mark.parametrize("sec", [0, 1])
def test_each_structure_of_a_set_proves_each_address(sec: int) -> None:
    made = hba_set(PREFIXES, sec=sec)
    for _, parameters in made:
        assert hba.prefixes(parameters) == tuple(PREFIXES)
        for octets, _ in made:
            assert hba.verify(parameters, octets)
    assert hba.same_set(made[0][1], made[0][0], made[1][0])


def test_a_foreign_prefix_is_not_proved() -> None:
    (octets, parameters), _ = hba_set(PREFIXES)
    assert not hba.verify(parameters, address("2001:db8:bad:1::")[:8] + octets[8:])


def test_an_address_of_another_set_is_not_proved() -> None:
    (mine, parameters), _ = hba_set(PREFIXES, seed=1)
    (theirs, _), _ = hba_set(PREFIXES, seed=2)
    assert not hba.verify(parameters, theirs)
    assert not hba.same_set(parameters, mine, theirs)


def test_a_prefix_added_later_is_not_proved() -> None:
    (octets, parameters), _ = hba_set(PREFIXES)
    more = Extension(hba.MULTI_PREFIX, parameters.extensions[0].data + address("2001:db8:3::")[:8])
    assert not hba.verify(replace(parameters, extensions=(more,)), octets)


@pytest.mark.parametrize("data", [b"", bytes(4), bytes(11), bytes(13)])
def test_no_prefixes_without_a_whole_extension(data: bytes) -> None:
    _, parameters = hba_set(PREFIXES)[0]
    broken = replace(parameters, extensions=(Extension(hba.MULTI_PREFIX, data),))
    assert hba.prefixes(broken) == ()
    assert hba.prefixes(replace(parameters, extensions=())) == ()

"""Why a locator belongs to a ULID (RFC 5533 §7.2, the first aspect of locator verification).

One judge for each verification method that a locator list may name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, unique
from types import MappingProxyType
from typing import TypeAlias

from m6proxy.discovery.capability import NameData
from m6proxy.names import Address
from m6proxy.proof import hba
from m6proxy.proof.cga import CgaParameters
from m6proxy.proof.dns import bears_name, covers_both
from m6proxy.wire.options import METHOD_CGA, METHOD_DNS, METHOD_HBA


@unique
class Proof(Enum):
    """What shows that a locator belongs to a ULID; the values are the words of ``contexts``."""

    NONE = "none"
    """Nothing does: the locator is known and never used."""
    ULID = "ulid"
    """It is the ULID itself."""
    DNS = "dns"
    """DNS data of the peer's name covers the ULID and the locator."""
    REMEMBERED = "remembered"
    """It was proved in an earlier context, within the hour."""
    HBA = "hba"
    """ULID and locator are of one set of hash-based addresses."""
    CGA = "cga"
    """The key that the ULID was made with signed for the locator."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is known of a peer when its locators are judged."""

    data: NameData | None = None
    """What DNS says of the name that it claims."""
    parameters: CgaParameters | None = None
    """The structure that its address was made with."""
    signed: tuple[Address, ...] = ()
    """The locators over which a signature by the key in ``parameters`` was verified."""


Judge: TypeAlias = Callable[[Address, Address, Evidence], Proof]
"""ULID, locator and what is known of the peer, to the proof that one method gives."""


def judge_dns(ulid: Address, locator: Address, evidence: Evidence) -> Proof:
    """Judge a locator by the DNS data of the name that its sender claims."""
    return Proof.DNS if covers_both(ulid, locator, evidence.data) else Proof.NONE


def judge_hba(ulid: Address, locator: Address, evidence: Evidence) -> Proof:
    """Judge a locator by the hashes of both addresses (RFC 5535 §7.2)."""
    parameters = evidence.parameters
    if parameters is None or not hba.same_set(parameters, ulid, locator):
        return Proof.NONE
    return Proof.HBA


def judge_cga(ulid: Address, locator: Address, evidence: Evidence) -> Proof:
    """Judge a locator by the signature of the key that the ULID was made with (RFC 3972 §6)."""
    parameters = evidence.parameters
    if parameters is None or not made_with(ulid, parameters):
        return Proof.NONE
    return Proof.CGA if locator == ulid or locator in evidence.signed else Proof.NONE


JUDGES: Mapping[int, Judge] = MappingProxyType(
    {METHOD_HBA: judge_hba, METHOD_CGA: judge_cga, METHOD_DNS: judge_dns}
)
"""Verification method of a locator list (8 bits) to its judge; others prove nothing."""


def prove_listed(
    ulid: Address,
    locators: Sequence[Address],
    methods: Sequence[int],
    evidence: Evidence,
    judges: Mapping[int, Judge] = JUDGES,
) -> tuple[Proof, ...]:
    """Judge each locator of a list by the method that the list names for it.

    Returns one proof for each locator, in their order. Raises ValueError when there is not
    one method for each locator.
    """
    return tuple(
        _judged(judges.get(method), ulid, locator, evidence)
        for locator, method in zip(locators, methods, strict=True)
    )


def prove_locators(
    ulid: Address, locators: Sequence[Address], data: NameData | None
) -> tuple[Proof, ...]:
    """Judge locators by DNS alone: one proof for each, in their order."""
    evidence = Evidence(data)
    return tuple(_judged(judge_dns, ulid, locator, evidence) for locator in locators)


def inconsistent(
    ulid: Address,
    locators: Sequence[Address],
    methods: Sequence[int],
    evidence: Evidence,
) -> int | None:
    """The first place in a list whose method the parameters contradict (RFC 5533 §7.2).

    A list that says HBA of an address outside the set, or CGA of one that is not signed for, is
    refused as a whole: its sender is wrong about its own addresses. Methods that need no
    parameters are not looked at.
    """
    for place, (locator, method) in enumerate(zip(locators, methods, strict=True)):
        judge = {METHOD_HBA: judge_hba, METHOD_CGA: judge_cga}.get(method)
        if judge is not None and judge(ulid, locator, evidence) is Proof.NONE:
            return place
    return None


def made_with(ulid: Address, parameters: CgaParameters) -> bool:
    """Tell whether a ULID was made with parameters, as an HBA or as a CGA (RFC 5533 §7.13)."""
    return hba.verify(parameters, ulid) or parameters.verify(ulid)


def prove_ulid(ulid: Address, source: Address, evidence: Evidence) -> bool:
    """Tell whether the sender of a message showed that the ULID is its own.

    ``source`` is where the message of a completed exchange came from. From the ULID itself,
    the exchange has shown that the sender receives there. So it has from another address of
    the same HBA set, where nobody else's prefix is, or from one that the ULID's key signs for.
    From anywhere else the name must be bound to the ULID by PTR or the configuration, and
    cover it.
    """
    return (
        source == ulid
        or bears_name(ulid, evidence.data)
        or judge_hba(ulid, source, evidence) is Proof.HBA
        or judge_cga(ulid, source, evidence) is Proof.CGA
    )


def _judged(judge: Judge | None, ulid: Address, locator: Address, evidence: Evidence) -> Proof:
    if locator == ulid:
        return Proof.ULID
    return judge(ulid, locator, evidence) if judge is not None else Proof.NONE

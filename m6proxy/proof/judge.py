"""Why a locator belongs to a ULID (RFC 5533 §7.2, the first aspect of locator verification).

One judge for each verification method that a locator list may name. HBA and CGA (methods 1
and 2) are known on the wire and not proved yet: they have no judge, and their locators stay
unproved.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from enum import Enum, unique
from types import MappingProxyType
from typing import TypeAlias

from m6proxy.discovery.capability import NameData
from m6proxy.names import Address
from m6proxy.proof.dns import bears_name, covers_both
from m6proxy.wire.options import METHOD_DNS


@unique
class Proof(Enum):
    """What shows that a locator belongs to a ULID; the values are the words of ``contexts``."""

    NONE = "none"
    """Nothing does: the locator is known and never used."""
    ULID = "ulid"
    """It is the ULID itself."""
    DNS = "dns"
    """DNS data of the peer's name covers the ULID and the locator."""


Judge: TypeAlias = Callable[[Address, Address, NameData | None], Proof]
"""ULID, locator and what is known of the peer's name, to the proof that one method gives."""


def judge_dns(ulid: Address, locator: Address, data: NameData | None) -> Proof:
    """Judge a locator by the DNS data of the name that its sender claims."""
    return Proof.DNS if covers_both(ulid, locator, data) else Proof.NONE


JUDGES: Mapping[int, Judge] = MappingProxyType({METHOD_DNS: judge_dns})
"""Verification method of a locator list (8 bits) to its judge; others prove nothing."""


def prove_listed(
    ulid: Address,
    locators: Sequence[Address],
    methods: Sequence[int],
    data: NameData | None,
    judges: Mapping[int, Judge] = JUDGES,
) -> tuple[Proof, ...]:
    """Judge each locator of a list by the method that the list names for it.

    Returns one proof for each locator, in their order. Raises ValueError when there is not
    one method for each locator.
    """
    return tuple(
        _judged(judges.get(method), ulid, locator, data)
        for locator, method in zip(locators, methods, strict=True)
    )


def prove_locators(
    ulid: Address, locators: Sequence[Address], data: NameData | None
) -> tuple[Proof, ...]:
    """Judge locators by DNS alone: one proof for each, in their order."""
    return tuple(_judged(judge_dns, ulid, locator, data) for locator in locators)


def prove_ulid(ulid: Address, source: Address, data: NameData | None) -> bool:
    """Tell whether the sender of a message showed that the ULID is its own.

    ``source`` is where the message of a completed exchange came from. From the ULID itself,
    the exchange has shown that the sender receives there. From anywhere else the name must
    be bound to the ULID by PTR or the configuration, and cover it.
    """
    return source == ulid or bears_name(ulid, data)


def _judged(judge: Judge | None, ulid: Address, locator: Address, data: NameData | None) -> Proof:
    if locator == ulid:
        return Proof.ULID
    return judge(ulid, locator, data) if judge is not None else Proof.NONE

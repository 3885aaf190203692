"""What to ask DNS next about a peer, and what the answers amount to.

A plan is asked for ``questions``, is given each ``answer`` as it comes, and is read with its
own ``outcome``; who carries the questions out, and in which order answers come, is nothing
to it. An answer that never comes counts as a failure.

Which names an address may have, best first:

1. those that the configuration gives it; then no others are tried;
2. those learned from passing answers (``names_book``), the most recent first;
3. those that PTR of the address gives.

For each: the AAAA set, and the capability record, with up to four AliasMode hops. A name
counts for the address only when its own data covers the address; among those that do, one
that PTR or the configuration confirms (``owns_ulid``) goes before one that only says so
itself.
"""

from __future__ import annotations

import ipaddress
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum, unique
from types import MappingProxyType

from m6proxy.discovery.capability import NameData
from m6proxy.discovery.codec import TYPE_SVCB, Reading, query_name
from m6proxy.names import Address

ALIAS_HOPS_MAX = 4
NAMES_MAX = 4
"""How many names of one source are tried for an address."""
UNANSWERED_S = 30.0
"""How long an outcome holds that lacks an answer."""
NO_ADDRESSES: frozenset[Address] = frozenset()
NOTHING_READ = Reading()
_NOTHING: Mapping[str, frozenset[Address]] = MappingProxyType({})


@unique
class Ask(IntEnum):
    """What can be asked; the values are RR types."""

    PTR = 12
    AAAA = 28
    SVCB = TYPE_SVCB


@dataclass(frozen=True, slots=True)
class Question:
    """One question to DNS."""

    name: str
    """The full name to ask, lower case, without the final dot."""
    ask: Ask


@dataclass(frozen=True, slots=True)
class Answer:
    """What DNS said; only the part that belongs to the question is filled."""

    until_s: float
    """Until when it holds, on the clock of ``now``."""
    failed: bool = False
    """Nobody answered: not even that there is nothing."""
    addresses: tuple[Address, ...] = ()
    names: tuple[str, ...] = ()
    """Of PTR, in lower case."""
    reading: Reading = NOTHING_READ


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the answers amount to."""

    data: NameData | None
    until_s: float
    """Until when it holds, on the clock of ``now``."""
    failed: bool = False
    """Whether an answer that could have changed it is missing."""


def ptr_question(address: Address) -> Question:
    """Return the question for the names of an address (16 octets)."""
    return Question(ipaddress.IPv6Address(address).reverse_pointer, Ask.PTR)


class Plan(ABC):
    """What all plans share: questions out, answers in."""

    def __init__(self) -> None:
        self._fresh: dict[Question, None] = {}
        self._out: set[Question] = set()
        self._answers: dict[Question, Answer] = {}

    @property
    def done(self) -> bool:
        """Whether nothing that may still come can change the outcome."""
        return not self._fresh and not self._out

    def questions(self) -> tuple[Question, ...]:
        """Return what is to be asked now, all at once; each question comes once."""
        fresh = tuple(self._fresh)
        self._out.update(fresh)
        self._fresh.clear()
        return fresh

    def answer(self, question: Question, answer: Answer) -> None:
        """Take an answer in; new questions may follow from it."""
        self._fresh.pop(question, None)
        self._out.discard(question)
        self._answers[question] = answer
        self._advance()

    def give_up(self, now: float) -> None:
        """Count every answer that is missing as failed."""
        missing = Answer(now + UNANSWERED_S, failed=True)
        while left := (*self._out, *self._fresh):
            for question in left:
                self.answer(question, missing)

    @abstractmethod
    def outcome(self) -> Outcome:
        """What the answers that came amount to."""

    @abstractmethod
    def _advance(self) -> None:
        """Look at the answers that are there; want those that are missing."""

    def _want(self, question: Question) -> Answer | None:
        """Return the answer; without one, see to it that the question is asked."""
        answer = self._answers.get(question)
        if answer is None and question not in self._out:
            self._fresh[question] = None
        return answer

    def _data(self, name: str, given: frozenset[Address]) -> _Found | None:
        """What a name holds beside the addresses given; None while an answer is missing."""
        addresses = self._want(Question(name, Ask.AAAA))
        record = self._record(name)
        if addresses is None or record is None:
            return None
        data = NameData(
            name,
            frozenset(addresses.addresses) | given,
            record.reading.capability,
            expires_s=min(addresses.until_s, record.until_s),
        )
        return _Found(data, addresses.failed or record.failed)

    def _record(self, host: str) -> Answer | None:
        """Follow aliases to the capability record; None while an answer is missing."""
        try:
            name = query_name(host)
        except ValueError:  # too long to have a record
            return Answer(until_s=float("inf"))
        until_s = float("inf")
        for _ in range(ALIAS_HOPS_MAX + 1):
            answer = self._want(Question(name, Ask.SVCB))
            if answer is None:
                return None
            until_s = min(until_s, answer.until_s)
            if answer.reading.alias is None:
                return replace(answer, until_s=until_s)
            name = answer.reading.alias
        return Answer(until_s)

    def _outcome(self, data: NameData | None) -> Outcome:
        """Data hold as long as they say; that there are none, as long as all that was heard."""
        heard = self._answers.values()
        until_s = min((answer.until_s for answer in heard), default=0.0)
        failed = any(answer.failed for answer in heard)
        return Outcome(data, data.expires_s if data is not None else until_s, failed)


@dataclass(frozen=True, slots=True)
class _Found:
    data: NameData
    failed: bool

    def owned(self, until_s: float) -> NameData:
        """The data, when what binds the name to the address holds until then."""
        return replace(self.data, owns_ulid=True, expires_s=min(self.data.expires_s, until_s))


class PeerPlan(Plan):
    """Find the name of a peer's address that has a capability, and what it holds."""

    def __init__(
        self,
        address: Address,
        static: Mapping[str, frozenset[Address]] = _NOTHING,
        learned: Sequence[str] = (),
    ) -> None:
        """``static``: each configured name of the address with all addresses it is given."""
        super().__init__()
        self._address = address
        self._static = static
        self._learned = tuple(learned)[:NAMES_MAX]
        self._best: NameData | None = None
        self._advance()

    @property
    def done(self) -> bool:
        """Whether nothing that may still come can change the outcome."""
        return super().done or (self._best is not None and self._best.owns_ulid)

    def outcome(self) -> Outcome:
        """The data of the best name that covers the address and has a capability, or None."""
        return self._outcome(self._best)

    def _advance(self) -> None:
        bound: tuple[str, ...] = tuple(self._static)
        names, until_s = bound, float("inf")
        if not self._static:
            pointed = self._want(ptr_question(self._address))
            if pointed is not None:
                bound, until_s = pointed.names[:NAMES_MAX], pointed.until_s
            names = tuple(dict.fromkeys([*self._learned, *bound]))
        self._best = None
        for name in names:
            found = self._data(name, self._static.get(name, NO_ADDRESSES))
            if found is None or found.data.capability is None:
                continue
            if not found.data.covers(self._address):
                continue
            if name in bound and (self._best is None or not self._best.owns_ulid):
                self._best = found.owned(until_s)
            elif self._best is None:
                self._best = found.data


class NamedPlan(Plan):
    """Find what a claimed name holds, and whether the ULID bears it."""

    def __init__(self, name: str, ulid: Address, given: frozenset[Address] = NO_ADDRESSES) -> None:
        """``given``: the addresses that the configuration gives the name."""
        super().__init__()
        self._name = name
        self._ulid = ulid
        self._given = given
        self._found: NameData | None = None
        self._advance()

    def outcome(self) -> Outcome:
        """The data of the name, or None when there is nothing under it."""
        return self._outcome(self._found)

    def _advance(self) -> None:
        owns, until_s = self._ulid in self._given, float("inf")
        if not owns:
            pointed = self._want(ptr_question(self._ulid))
            if pointed is not None:
                owns, until_s = self._name in pointed.names, pointed.until_s
        found = self._data(self._name, self._given)
        if found is not None and (found.data.addresses or found.data.capability is not None):
            self._found = found.owned(until_s) if owns else found.data


class LocalPlan(Plan):
    """Find the name of a host of our own that others will find too."""

    def __init__(self, ulid: Address) -> None:
        super().__init__()
        self._ulid = ulid
        self._confirmed: NameData | None = None
        self._unchecked: NameData | None = None
        self._advance()

    @property
    def done(self) -> bool:
        """Whether nothing that may still come can change the outcome."""
        return super().done or self._confirmed is not None

    def outcome(self) -> Outcome:
        """The first name of PTR whose data covers the ULID, else one that nobody denied."""
        return self._outcome(self._confirmed or self._unchecked)

    def _advance(self) -> None:
        pointed = self._want(ptr_question(self._ulid))
        if pointed is None:
            return
        for name in pointed.names[:NAMES_MAX]:
            found = self._data(name, NO_ADDRESSES)
            if found is None:
                continue
            data = found.owned(pointed.until_s)
            if data.covers(self._ulid):
                self._confirmed = self._confirmed or data
            elif found.failed:
                self._unchecked = self._unchecked or data

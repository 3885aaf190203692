"""What a successor of ours has to know of a context that the kernel's entries do not say.

The entries hold what packets need. A memo has the rest: who the peer says it is, its whole list
and what is proved of it, and the contexts of a pair that has forks, whose packets the kernel leaves
to us. The daemon keeps memos outside the process (``Remember``); they are written when the peer
told something new and when a context begins or ends, never when a context is re-homed: its
locators of the moment are in the kernel.
"""

from __future__ import annotations

from dataclasses import dataclass

from m6proxy.names import Address, Tag
from m6proxy.proof.judge import Proof
from m6proxy.shim.context import Context
from m6proxy.shim.core import Core
from m6proxy.shim.demux import DemuxMode
from m6proxy.shim.effects import Remember
from m6proxy.shim.locators import PeerLocator
from m6proxy.shim.policy import ForkRule
from m6proxy.shim.transitions import State


@dataclass(frozen=True, slots=True)
class KnownLocator:
    """A locator of the peer."""

    address: Address
    proof: Proof
    flags: int
    """As in ``PeerLocator``."""
    priority: int
    weight: int


@dataclass(frozen=True, slots=True)
class Memo:
    """One context."""

    fii: int
    rule: str
    """The rule of ours that a fork is for, as ``rule_text``; empty when the peer asked for it."""
    local_tag: Tag
    peer_tag: Tag
    route: bytes
    """Lp(local) and Lp(peer), 32 octets, when it was written."""
    label: int
    peer_mode: DemuxMode
    peer_label: int
    peer_features: int
    local_name: str | None
    peer_name: str | None
    peer_generation: int
    peer_order: tuple[Address, ...] | None
    peer_updated: bool
    peer_parameters: bytes
    keepalive_timeout_s: float
    locators: tuple[KnownLocator, ...]


@dataclass(frozen=True, slots=True)
class PairMemo:
    """A ULID pair."""

    key: bytes
    """Local and peer ULID, 32 octets."""
    main: Memo
    forks: tuple[Memo, ...]


def note(core: Core, context: Context) -> None:
    """The context's pair is to be remembered anew, where anything outlives us at all."""
    if core.slots is not None:
        core.effects.append(Remember(context.pair))


def memo_of(core: Core, key: bytes) -> PairMemo | None:
    """What is to be remembered of a pair (32 octets); None: nothing, it has no such context."""
    main = core.contexts.by_pair(key)
    if main is None or not _lasts(main):
        return None
    rules = {fork.local_tag: rule_text(rule) for rule, fork in main.forks}
    others = (one for one in core.contexts.all_of_pair(key) if one is not main and _lasts(one))
    forks = tuple(_memo(one, rules.get(one.local_tag, "")) for one in others)
    return PairMemo(key, _memo(main, ""), forks)


def recall(context: Context, memo: Memo) -> None:
    """Give a context what a memo of it says, its tags, label and route excepted."""
    context.local_name, context.peer_name = memo.local_name, memo.peer_name
    context.peer_generation = memo.peer_generation
    context.peer_order = memo.peer_order
    context.peer_updated = memo.peer_updated
    context.peer_parameters = memo.peer_parameters
    context.keepalive_timeout_s = memo.keepalive_timeout_s
    context.peer_locators = tuple(map(_locator, memo.locators))


def rule_text(rule: ForkRule) -> str:
    """A rule in words that another process with the same configuration finds too."""
    return f"{rule.uplink}: {', '.join(map(str, rule.match))}"


def _lasts(context: Context) -> bool:
    """A parked context ends with us: who is away comes back with a new exchange."""
    return context.state is State.ESTABLISHED and context.parking is None


def _memo(context: Context, rule: str) -> Memo:
    return Memo(
        context.fii,
        rule,
        context.local_tag,
        context.peer_tag,
        context.route,
        context.label,
        context.peer_mode,
        context.peer_label,
        context.peer_features,
        context.local_name,
        context.peer_name,
        context.peer_generation,
        context.peer_order,
        context.peer_updated,
        context.peer_parameters,
        context.keepalive_timeout_s,
        tuple(
            KnownLocator(one.address, one.proof, one.flags, one.priority, one.weight)
            for one in context.peer_locators
        ),
    )


def _locator(known: KnownLocator) -> PeerLocator:
    locator = PeerLocator(known.address, known.proof, priority=known.priority)
    locator.flags, locator.weight = known.flags, known.weight
    return locator

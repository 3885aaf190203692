"""Taking contexts over that a predecessor left in the kernel: a restart that nobody notices.

The kernel's entries hold what packets need: ULIDs, locators, both tags, and where to count. From
that a context is ESTABLISHED again and supervised. What both ends told each other beyond that is
in the predecessor's memo of the pair (``memo``), which counts when its tags are the entry's.
Without one the peer's name and what was not proved are gone, and so is a pair with forks, whose
packets went through the predecessor. Each peer is told our set anew, paced as after an uplink
event. Who lost the context meanwhile answers that with R1bis.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final

from m6proxy.names import Address, LocatorPair, Tag, UlidPair
from m6proxy.proof.judge import Proof
from m6proxy.shim import activity, flows, lifecycle, memo
from m6proxy.shim.context import Context
from m6proxy.shim.core import Core
from m6proxy.shim.demux import DemuxMode
from m6proxy.shim.effects import AskProof
from m6proxy.shim.features import OURS
from m6proxy.shim.locators import LocalSet, PeerLocator
from m6proxy.shim.memo import Memo, PairMemo
from m6proxy.shim.timers import SEND_TIMEOUT_S
from m6proxy.shim.transitions import Input, State
from m6proxy.wire.dstopt import short_tag

NO_MEMOS: Final[Mapping[bytes, PairMemo]] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class LeftContext:
    """What the kernel still knows of a context."""

    ulids: UlidPair
    locators: LocatorPair
    slot: int
    local_tag: Tag
    """0 when the kernel has no inbound entry, because all packets went through the predecessor."""
    label: int
    """That we asked the peer for, or 0."""
    peer_tag: Tag
    peer_mode: DemuxMode
    peer_label: int
    peer_features: int
    peer_locators: tuple[Address, ...]
    """Proved ones."""
    untagged: tuple[bytes, ...] = ()
    """Source and destination, 32 octets each, of packets that may come without a tag."""
    has_header: bool = False
    """Whether its packets go with the payload header, whatever the peer asked for."""


def adopt(
    core: Core,
    left: Iterable[LeftContext],
    now: float,
    memos: Mapping[bytes, PairMemo] = NO_MEMOS,
) -> list[Context]:
    """Make contexts of what is left; those that do not fit the configuration are passed over.

    ``memos`` are by local and peer ULID, 32 octets.
    """
    adopted = []
    for one in left:
        pair = memos.get(one.ulids.local + one.ulids.peer)
        context = _adopt_one(core, one, pair, now)
        if context is not None:
            adopted.append(context)
            if pair is not None and pair.main.local_tag == context.local_tag:
                adopted += _adopt_forks(core, context, pair, now)
    return adopted


def _adopt_one(core: Core, left: LeftContext, pair: PairMemo | None, now: float) -> Context | None:
    if core.slots is None or not core.slots.can_take_over(left.slot):
        return None
    known = pair.main if pair is not None and pair.main.peer_tag == left.peer_tag else None
    if not left.local_tag and known is not None:
        left = replace(left, local_tag=known.local_tag, label=known.label)
    if not left.local_tag:
        return None
    context = _made(core, left)
    if context is None:
        return None
    if known is not None and known.local_tag == left.local_tag:
        _recall(context, left, known)
    core.contexts.add(context)
    _bind(core, context, left.label, left.peer_tag)
    reading = core.slots.read(left.slot)
    context.flow = core.slots.take_over(context, left.slot)
    lifecycle.enter(core, context, State.ESTABLISHED, Input.TAKEN_OVER, now)
    if context.route != context.outbound_key:
        lifecycle.expect_rehomed(core, context, context.locators)
    for addresses in left.untagged if core.settings.asks_for(DemuxMode.IDENTIFIER) else ():
        core.contexts.expect_untagged(context, addresses)
    lifecycle.refresh_path(core, context)
    if left.has_header and context.mode is not DemuxMode.EXTHDR:
        context.unlabelled_route = context.route  # the predecessor saw the path lose the mode
        lifecycle.refresh_path(core, context)
    last_s = max(reading.last_out_s, reading.last_in_s)
    context.last_traffic_s = last_s or now
    if now < last_s + context.send_timeout_s:
        # of the peer's Keepalives nothing is known: what went out counts from now on
        activity.note(core, context, now, inbound=bool(reading.in_since_s))
    # for our host's name, which proves its ULID, and for what became of the peer's locators
    core.effects.append(AskProof(left.ulids, context.peer_name))
    core.rearm(context)
    return context


def _made(core: Core, left: LeftContext) -> Context | None:
    key = left.ulids.local + left.ulids.peer
    local_set = core.local_sets.by_ulid(left.ulids.local)
    taken = left.local_tag in core.contexts.by_tag or left.label in core.contexts.by_label
    short_taken = short_tag(left.local_tag) in core.contexts.by_short_tag
    if (
        len(core.contexts) >= core.max_contexts
        or core.contexts.by_pair(key) is not None
        or taken
        or short_taken
        or left.locators.local not in local_set.locators
        or not core.local_sets.is_local(left.ulids.local)
        or core.local_sets.is_local(left.ulids.peer)
    ):
        return None
    context = _blank(core, key, 0, left.local_tag, local_set)
    context.route = left.locators.local + left.locators.peer
    context.peer_mode, context.peer_label = left.peer_mode, left.peer_label
    context.peer_features = left.peer_features & OURS
    others = dict.fromkeys((left.locators.peer, *left.peer_locators))
    context.peer_locators += tuple(
        PeerLocator(octets, Proof.REMEMBERED) for octets in others if octets != left.ulids.peer
    )
    for locator in context.peer_locators:
        locator.listed = True
        locator.tested = locator.address == left.locators.peer
    return context


def _recall(context: Context, left: LeftContext, known: Memo) -> None:
    """Take the memo in. Of the locators the kernel knows those of the moment: they stay proved."""
    memo.recall(context, known)
    for octets in (left.locators.peer, *left.peer_locators):
        locator = context.peer_locator(octets)
        if locator is None:
            locator = PeerLocator(octets, Proof.REMEMBERED)
            context.peer_locators += (locator,)
        if not locator.proved:
            locator.proof = Proof.REMEMBERED
    current = context.peer_locator(left.locators.peer)
    assert current is not None
    current.tested = True
    if current.stands_in:  # packets go there, and the context is at the ULID
        context.take_route(LocatorPair(left.locators.local, left.ulids.peer))


def _adopt_forks(core: Core, main: Context, pair: PairMemo, now: float) -> list[Context]:
    """Take the forks of a pair over, as far as the configuration still has their rules."""
    rules = {memo.rule_text(rule): rule for rule in core.settings.forks}
    adopted = []
    for known in pair.forks:
        rule = rules.get(known.rule)
        taken = known.local_tag in core.contexts.by_tag
        here = known.route[:16] in main.local_set.locators
        if taken or not here or (known.rule and rule is None):
            continue
        if len(core.contexts) >= core.max_contexts:
            break
        fork = _blank(core, main.outbound_key, known.fii, known.local_tag, main.local_set)
        memo.recall(fork, known)
        fork.take_route(LocatorPair(known.route[:16], known.route[16:]))
        fork.peer_mode, fork.peer_label = known.peer_mode, known.peer_label
        fork.peer_features = known.peer_features & OURS
        core.contexts.add(fork)
        _bind(core, fork, known.label, known.peer_tag)
        if rule is not None:
            main.forks = (*main.forks, (rule, fork))
        lifecycle.enter(core, fork, State.ESTABLISHED, Input.TAKEN_OVER, now)
        fork.last_traffic_s = main.last_traffic_s
        core.rearm(fork)
        adopted.append(fork)
    if main.forks:
        core.contexts.open(main)
        flows.install(core, main)
    return adopted


def _blank(core: Core, key: bytes, fii: int, local_tag: Tag, local_set: LocalSet) -> Context:
    context = Context(key, fii, local_tag, local_set)
    context.send_timeout_s = core.settings.send_timeout_s * core.entropy.uniform(0.9, 1.0)
    context.keepalive_timeout_s = min(SEND_TIMEOUT_S, core.settings.send_timeout_s)
    return context


def _bind(core: Core, context: Context, label: int, peer_tag: Tag) -> None:
    """Let packets find the context."""
    if label and label not in core.contexts.by_label:
        context.label = label
        core.contexts.by_label[label] = context
    if core.settings.asks_for(DemuxMode.DSTOPT):
        core.contexts.take_options(context)
    core.contexts.bind_peer_tag(context, peer_tag)

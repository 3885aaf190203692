"""Taking contexts over that a predecessor left in the kernel: a restart that nobody notices.

The kernel's entries hold what packets need: ULIDs, locators, both tags, and where to count. From
that a context is ESTABLISHED again and supervised. The rest, our name and set as the peer has
them and the peer's list beyond what was proved, is gone: each peer is told our set anew, paced
as after an uplink event. Who lost the context meanwhile answers that with R1bis.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from m6proxy.names import Address, LocatorPair, Tag, UlidPair
from m6proxy.proof.judge import Proof
from m6proxy.shim import activity, lifecycle
from m6proxy.shim.context import Context
from m6proxy.shim.core import Core
from m6proxy.shim.demux import DemuxMode
from m6proxy.shim.effects import AskProof
from m6proxy.shim.features import OURS
from m6proxy.shim.locators import PeerLocator
from m6proxy.shim.timers import SEND_TIMEOUT_S
from m6proxy.shim.transitions import Input, State
from m6proxy.wire.dstopt import short_tag


@dataclass(frozen=True, slots=True)
class LeftContext:
    """What the kernel still knows of a context."""

    ulids: UlidPair
    locators: LocatorPair
    slot: int
    local_tag: Tag
    label: int
    """That we asked the peer for, or 0."""
    peer_tag: Tag
    peer_mode: DemuxMode
    peer_label: int
    peer_features: int
    peer_locators: tuple[Address, ...]
    """Proved ones."""


def adopt(core: Core, left: Iterable[LeftContext], now: float) -> list[Context]:
    """Make contexts of what is left; those that do not fit the configuration are passed over."""
    return [context for one in left if (context := _adopt_one(core, one, now)) is not None]


def _adopt_one(core: Core, left: LeftContext, now: float) -> Context | None:
    if core.slots is None or not core.slots.can_take_over(left.slot):
        return None
    context = _made(core, left)
    if context is None:
        return None
    core.contexts.add(context)
    if left.label:
        context.label = left.label
        core.contexts.by_label[left.label] = context
    if core.settings.asks_for(DemuxMode.DSTOPT):
        core.contexts.take_options(context)
    core.contexts.bind_peer_tag(context, left.peer_tag)
    reading = core.slots.read(left.slot)
    context.flow = core.slots.take_over(context, left.slot)
    lifecycle.enter(core, context, State.ESTABLISHED, Input.TAKEN_OVER, now)
    if context.route != context.outbound_key:
        lifecycle.expect_rehomed(core, context, context.locators)
    last_s = max(reading.last_out_s, reading.last_in_s)
    context.last_traffic_s = last_s or now
    if now < last_s + context.send_timeout_s:
        # of the peer's Keepalives nothing is known: what went out counts from now on
        activity.note(core, context, now, inbound=bool(reading.in_since_s))
    core.effects.append(AskProof(left.ulids, None))  # for our host's name: what proves its ULID
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
    context = Context(key, 0, left.local_tag, local_set)
    context.send_timeout_s = core.settings.send_timeout_s * core.entropy.uniform(0.9, 1.0)
    context.keepalive_timeout_s = min(SEND_TIMEOUT_S, core.settings.send_timeout_s)
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

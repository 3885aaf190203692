"""What a data plane in the kernel is told of a context: everything that its packets need.

Each carrying context is told, also on its ULIDs, so that its packets need not visit us; and
again whenever something of it changes. Forks are not: which packets they take is for us to say,
and so their pair is marked ``slow``; so are contexts whose packets go without any tag. Without
such a data plane ``lifecycle`` tells of re-homed contexts only, and nothing here is called.
"""

from __future__ import annotations

from typing import Final

from m6proxy.proof.judge import Proof
from m6proxy.shim.context import Context
from m6proxy.shim.core import Core
from m6proxy.shim.demux import DemuxMode
from m6proxy.shim.effects import InstallFlow, KernelEntry, RemoveFlow
from m6proxy.shim.slots import KernelFlow
from m6proxy.shim.transitions import State
from m6proxy.wire.dstopt import short_tag

_ESTABLISHED: Final = State.ESTABLISHED
_UNPROVED: Final = Proof.NONE
FIRST_LOOK_S: Final = 0.25
"""After a context got its slot its traffic is looked at without waiting for the kernel's word."""


def install(core: Core, context: Context) -> None:
    """Tell of a carrying context, if it differs from what was told."""
    slots = core.slots
    if slots is None or context.fii:
        return
    flow = context.flow
    if flow is None:
        flow = context.flow = slots.take(context)
        if flow is not None:
            flow.look_due_s = context.last_traffic_s + FIRST_LOOK_S
            core.timers.arm(context, flow.look_due_s)
    if flow is None:
        core.effects.append(InstallFlow(context.pair, context.locators, context.peer_tag))
        return
    told = flow.installed
    entry = _entry(core, context, flow)
    ulids = told.ulids if told is not None else context.pair
    effect = InstallFlow(ulids, context.locators, context.peer_tag, entry)
    if told != effect:
        core.effects.append(effect)
        flow.installed = effect


def watch(core: Core, context: Context, *, wanted: bool) -> None:
    """Let what the host sends come through the engine, or no more."""
    if context.flow is not None and context.flow.doubted != wanted:
        context.flow.doubted = wanted
        install(core, context)


def remove(core: Core, context: Context) -> None:
    """Tell that the context carries no more."""
    if core.slots is None or context.fii:
        return
    flow, context.flow = context.flow, None
    if flow is not None:
        core.slots.give_back(flow)
    core.effects.append(RemoveFlow(context.pair))


def _entry(core: Core, context: Context, flow: KernelFlow) -> KernelEntry:
    """What to tell now. For 100,000 contexts at once: no keywords, and parts that are as they
    were stay the same objects, which whoever compares sees at a glance.
    """
    told = flow.installed.kernel if flow.installed is not None else None
    route, local_set = context.route, context.local_set
    uplink = local_set.uplink_of(route[:16])
    proved = tuple([one.address for one in context.peer_locators if one.proof is not _UNPROVED])
    if proved[:1] != (route[16:],):
        proved = tuple(dict.fromkeys((route[16:], *proved)))
    if told is not None and told.peer_locators == proved:
        proved = told.peer_locators
    slow = context.parking is not None or context.state is not _ESTABLISHED or bool(context.forks)
    return KernelEntry(
        flow.slot,
        context.wire_addresses or context.outbound_key,
        context.mode,
        context.peer_mode,
        max(0, context.peer_label),
        context.peer_features,
        context.mtu,
        uplink.name if uplink is not None else None,
        slow,
        flow.doubted,
        told.tags if told is not None else _tags(core, context),
        core.contexts.untagged(context),
        local_set.locators,
        proved,
    )


def _tags(core: Core, context: Context) -> tuple[tuple[DemuxMode, int], ...]:
    """Ours stay the same for the life of a context."""
    tags: list[tuple[DemuxMode, int]] = [(DemuxMode.EXTHDR, context.local_tag)]
    if context.label:
        tags.append((DemuxMode.FLOWLABEL, context.label))
    if core.settings.asks_for(DemuxMode.DSTOPT):
        tags.append((DemuxMode.DSTOPT, short_tag(context.local_tag)))
    return tuple(tags)

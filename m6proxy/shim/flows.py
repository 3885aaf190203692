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
from m6proxy.shim.transitions import State
from m6proxy.wire.dstopt import short_tag

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
    entry = _entry(core, context, flow.slot) if flow is not None else None
    effect = InstallFlow(context.pair, context.locators, context.peer_tag, entry)
    if flow is None or flow.installed != effect:
        core.effects.append(effect)
        if flow is not None:
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


def _entry(core: Core, context: Context, slot: int) -> KernelEntry:
    tags: list[tuple[DemuxMode, int]] = [(DemuxMode.EXTHDR, context.local_tag)]
    if context.label:
        tags.append((DemuxMode.FLOWLABEL, context.label))
    if core.settings.asks_for(DemuxMode.DSTOPT):
        tags.append((DemuxMode.DSTOPT, short_tag(context.local_tag)))
    uplink = context.local_set.uplink_of(context.route[:16])
    peer = context.route[16:]
    proved = [one.address for one in context.peer_locators if one.proof is not Proof.NONE]
    return KernelEntry(
        slot=slot,
        addresses=context.wire_addresses or context.outbound_key,
        mode=context.mode,
        wanted=context.peer_mode,
        label=max(0, context.peer_label),
        features=context.peer_features,
        mtu=context.mtu,
        uplink=uplink.name if uplink is not None else None,
        slow=bool(context.forks)
        or context.parking is not None
        or context.state is not State.ESTABLISHED,
        watched=context.flow is not None and context.flow.doubted,
        tags=tuple(tags),
        untagged=core.contexts.untagged(context),
        local_locators=context.local_set.locators,
        peer_locators=tuple(dict.fromkeys((peer, *proved))),
    )

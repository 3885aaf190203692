"""What becomes of a host's packet whose context carries: the second half of the outbound walk.

The engine calls this for each packet, and ``reap`` for the segments that it sends once more
after a re-homing.
"""

from __future__ import annotations

from typing import Final

from m6proxy.errors import MalformedMessage
from m6proxy.reasons import Reason
from m6proxy.shim import forward, icmp
from m6proxy.shim.context import Context
from m6proxy.shim.core import Core
from m6proxy.shim.demux import UNTAGGED
from m6proxy.shim.effects import SendPacket
from m6proxy.shim.timers import NEVER
from m6proxy.shim.verdict import Verdict

AGAIN_S: Final = 0.1
"""Where the kernel moves packets, a held segment can overtake the Probe before it: the answer then
takes the old path. A second time it finds the peer re-homed."""
TELL_AGAIN_S: Final = 1.0
"""How long a host has to heed a Packet Too Big before it is told again."""


def rewrite(core: Core, context: Context, packet: bytes, now: float) -> Verdict:
    """Give a packet the context's locators; None when these are the ULIDs."""
    addresses = context.wire_addresses
    if addresses is None:
        return None
    label = context.wire_label
    if label == UNTAGGED and forward.has_shim(packet):
        label = 0  # without a tag it would be taken for a message to the peer's shim
    room = 0 if label else forward.room_octets(packet, context.wire_kind)
    if len(packet) + room > context.mtu:
        refused = _too_big(core, context, packet, room, now)
        if refused is not None:
            return refused
    if label:
        core.rewritten += 1
        if label == UNTAGGED:
            return forward.readdress(packet, addresses)
        return forward.relabel(packet, addresses, label)
    try:
        rewritten = forward.rewrite(packet, addresses, context.shim_tail, context.wire_kind)
    except MalformedMessage as malformed:
        return core.drop(malformed.reason)
    core.rewritten += 1
    if core.contexts.by_sent_label:
        key = (addresses, forward.label_of(rewritten))
        if key in core.contexts.by_sent_label:
            return forward.with_label(rewritten, 0)
    return rewritten


def unmistaken(core: Core, packet: bytes) -> Verdict:
    """See to it that the receiver does not take a plain packet for a re-homed context's.

    Its addresses are those of such a context. A flow label, which the host chose by chance, is
    taken away; where addresses alone tell, the packet is to an address that nobody has.
    """
    if (packet[8:40], UNTAGGED) in core.contexts.by_sent_label:
        return core.drop(Reason.NOBODYS_ADDRESS)
    if (packet[8:40], forward.label_of(packet)) in core.contexts.by_sent_label:
        return forward.with_label(packet, 0)
    return None


def send_held(core: Core, context: Context, now: float) -> None:
    """Send the unanswered segments once more, over the new path."""
    held, context.held = context.held, None
    packets = held.take() if held is not None else ()
    send_again(core, context, packets, now)
    if packets and context.flow is not None:
        context.flow.again, context.flow.again_s = packets, now + AGAIN_S
        core.rearm(context)


def repeat_held(core: Core, context: Context, now: float) -> None:
    """Send them now and keep them: the path is to be tested yet."""
    if context.held is not None:
        send_again(core, context, context.held.packets, now)


def send_again(core: Core, context: Context, packets: tuple[bytes, ...], now: float) -> None:
    """Send packets of the host once more, the way that the context has now."""
    for packet in packets:
        verdict = rewrite(core, context, packet, now)
        sent = packet if verdict is None else verdict
        if isinstance(sent, bytes):
            context.packets_out += 1
            context.octets_out += len(packet)
            core.effects.append(SendPacket(sent))


def _too_big(core: Core, context: Context, packet: bytes, room: int, now: float) -> Reason | None:
    """RFC 5533 §8, DESIGN §5: the host must leave room for our octets, if there are any.

    None: the packet goes on all the same. Connection tracking hands us datagrams that it put
    together from fragments, and only the kernel knows which: once the host was told, it is
    left to the kernel to cut the packet again, or to drop it.
    """
    told_s = context.told_too_big_s
    if told_s == NEVER or now >= told_s + TELL_AGAIN_S:
        source = core.settings.gateway
        if source is not None and core.icmp_limit.allow(packet[8:24], now):
            mtu = context.mtu - room
            core.effects.append(SendPacket(icmp.packet_too_big(packet, source, mtu)))
            context.told_too_big_s = now
    return core.drop(Reason.TOO_BIG) if told_s == NEVER else None

"""Do our packets arrive in the mode in which they go?

A path may change flow labels, or drop packets with options, and let Probes pass, which have
neither. So where packets may come in another mode than EXTHDR each end says in its Probes how
many payload packets of the context arrived (option PayloadCount). When a search finds the pair
in use in order, and nothing of all that was sent over it since an earlier Probe has arrived,
the context has the payload header there, which every path lets pass (docs/decisions/0030).

A search begins when nothing is heard of a peer. One that hears us, and sends Keepalives in which
we hear of it, though its packets are lost, would never be found out: so a Keepalive of an end that
sends in such a mode says how many it has sent, and who misses them begins a test.

Who calls: ``reap`` for each Probe and Keepalive and where a search ends, ``lifecycle`` when the
pair changes.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from m6proxy.shim.context import Context
from m6proxy.shim.demux import DemuxMode
from m6proxy.wire.options import Option, PayloadCount, find

ENOUGH: Final = 3
"""Packets. One or two can get lost in any mode."""


class Arrived(NamedTuple):
    """What the peer said of a pair, and when that was in terms of what we had sent."""

    route: bytes
    """The pair in use then, 32 octets."""
    heard: int
    """The packets that had arrived, modulo 2^32."""
    sent: int
    """Those that had gone out."""


class Promised(NamedTuple):
    """What the peer said that it had sent, and what had arrived then."""

    sent: int
    """Packets, modulo 2^32: fewer than before are a new beginning."""
    arrived: int


def note(context: Context, options: tuple[Option, ...]) -> None:
    """Take in the options of a Probe: only a count that stands still says something."""
    if context.mode is DemuxMode.EXTHDR:
        context.arrived = None
        return
    said = find(options, PayloadCount) if options else None
    if said is None:
        return
    known = context.arrived
    if known is None or known.route != context.route or known.heard != said.packets:
        context.arrived = Arrived(context.route, said.packets, context.packets_out)


def begin(context: Context) -> None:
    """Another pair is in use: what counts is what goes over it."""
    if context.arrived is not None:
        context.arrived = Arrived(context.route, context.arrived.heard, context.packets_out)


def sent(context: Context) -> tuple[PayloadCount, ...]:
    """Give the options of a Keepalive: how many packets went out, where a path could lose them."""
    if context.wire_addresses is None or context.mode is DemuxMode.EXTHDR:
        return ()
    return (PayloadCount.of(context.packets_out),)


def are_missed(context: Context, options: tuple[Option, ...]) -> bool:
    """Take in the options of a Keepalive; tell whether nothing arrived of what it speaks of."""
    said = find(options, PayloadCount) if options else None
    if said is None:
        return False
    known, arrived = context.promised, context.packets_arrived
    if known is None or known.arrived != arrived or said.packets < known.sent:
        context.promised = Promised(said.packets, arrived)
        return False
    return said.packets - known.sent >= ENOUGH


def are_lost(context: Context, sent: int) -> bool:
    """Tell whether nothing arrived of what went out over the pair in use, and was enough.

    ``sent`` packets had gone out when the search began, all before the Probe that was answered.
    """
    known = context.arrived
    if known is None or known.route != context.route or context.wire_addresses is None:
        return False
    return sent - known.sent >= ENOUGH

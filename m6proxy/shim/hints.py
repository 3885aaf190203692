"""Indirect indications that a path may be dead: each starts a test and changes nothing by itself.

mobike-design §2.1: the peer's packets come from another of its locators, or a router says by
ICMPv6 that it could not deliver what the context sent (and, seen by ``reap`` itself, TCP gets
no answer while the peer can be heard). Who forges such a thing gets a Probe over the current
pair and its answers, and not more than one such test of a context in ten seconds; when the
pair answers, nothing has changed.
"""

from __future__ import annotations

from typing import Final

from m6proxy.errors import MalformedMessage
from m6proxy.names import LocatorPair
from m6proxy.shim import forward, reap
from m6proxy.shim.context import Context
from m6proxy.shim.core import Core
from m6proxy.shim.demux import UNTAGGED
from m6proxy.shim.transitions import ReapState
from m6proxy.wire.checksum import icmpv6_checksum
from m6proxy.wire.dstopt import find_tag_option, option_tag
from m6proxy.wire.ipv6 import MIN_MTU, find_shim
from m6proxy.wire.message import ErrorCode, ErrorMessage
from m6proxy.wire.payload import is_payload, parse_payload_header

_UNREACHABLE: Final = 1
_TOO_BIG: Final = 2
_EXCEEDED: Final = 3
_UNREACHABLE_CODES: Final = frozenset({0, 2, 3, 5, 6})
"""No route, beyond scope, address, source address refused, route rejected (RFC 4443 §3.1).

A port that nobody listens on, and a policy of the other side, say that the path works.
"""
_QUOTED_AT: Final = 8


def handle_source(core: Core, context: Context, source: bytes, now: float) -> None:
    """Payload of the context came from this proved locator of the peer; was it another before?"""
    if source != context.last_in_pair[:16]:
        reap.hint(core, context, "another source", now)


def handle_error(core: Core, packet: bytes, offset: int, now: float) -> None:
    """Look at an ICMPv6 error whose ICMPv6 header stands at ``offset``."""
    if not _is_about_the_path(packet, offset):
        return
    context = _sender(core, packet[offset + _QUOTED_AT :])
    if context is None or not reap.may_test(context, now):
        return
    if icmpv6_checksum(packet[8:24], packet[24:40], packet[offset:]) != 0:
        return
    if core.requests_limit.allow(packet[8:24], now):
        reap.hint(core, context, "ICMPv6 error", now)


def handle_plain(core: Core, context: Context, now: float) -> None:
    """Plain payload came; from a peer that had left its ULIDs, and that our tags do not reach?

    It may be back there, or have lost the context: then R1bis answers the Probe of the test.
    """
    if context.last_in_pair != context.inbound_key:
        context.last_in_pair = context.inbound_key
        reap.hint(core, context, "plain packets", now)


def handle_lost(core: Core, message: ErrorMessage, route: LocatorPair, now: float) -> bool:
    """The peer's end says that a packet without a tag met no context: it may have lost its own.

    Returns whether it is about one that we send such packets in, over that pair. The Probe of
    the test has the tag, and R1bis answers it when the context is lost. A search that found
    nobody, for the peer's end was dead, begins anew: somebody is there.
    """
    if message.code != ErrorCode.NO_CONTEXT or message.packet[8:40] != route.local + route.peer:
        return False
    context = core.contexts.by_sent_label.get((message.packet[8:40], UNTAGGED))
    if context is None:
        return False
    if context.reap_state is ReapState.OPERATIONAL:
        reap.hint(core, context, "the peer has no context", now)
    else:
        reap.search_again(core, context, now)
    return True


def _is_about_the_path(packet: bytes, offset: int) -> bool:
    kind, code = packet[offset], packet[offset + 1]
    if kind == _UNREACHABLE:
        return code in _UNREACHABLE_CODES
    if kind == _TOO_BIG:
        mtu = int.from_bytes(packet[offset + 4 : offset + _QUOTED_AT])
        return mtu < MIN_MTU + forward.GROWTH_OCTETS
    return kind == _EXCEEDED and code == 0


def _sender(core: Core, quoted: bytes) -> Context | None:
    """The context that sent the quoted packet over its current pair, whatever its form."""
    addresses = quoted[8:40]
    context = core.contexts.by_outbound.get(addresses)
    if context is None:
        context = core.contexts.by_sent_bare(quoted)
    if context is None:
        try:
            route = LocatorPair(addresses[:16], addresses[16:])
            if core.contexts.by_sent_option and (option := find_tag_option(quoted, whole=False)):
                return core.contexts.by_sent_short(option_tag(quoted, option.offset), route)
            place = find_shim(quoted, whole=False)
            if place is None or not is_payload(quoted, place.offset):
                return None
            _, tag = parse_payload_header(quoted[place.offset :])
        except MalformedMessage:
            return None
        context = core.contexts.by_sent(tag, route)
    if context is None or addresses != (context.wire_addresses or context.route):
        return None
    return context

"""Does the peer have a shim: the ways to find out, in the order that policy gives
(functional decomposition §3.1).

What was seen of the peer before goes first, and a record that says no ends the search. Then:
the configuration; DNS; a message pair of its own (``CapabilityRequest``, ``CapabilityReply``);
the exchange itself, whose I1 is a question too. The last two send something, so that peers
without a record get neither unless policy says so. DNS is asked in any case, before all this:
the proofs of the exchange need its data.

The answering end keeps nothing, sends no more octets than it got and is limited by source.
"""

from __future__ import annotations

from typing import Final

from m6proxy.discovery.capability import NameData
from m6proxy.errors import MalformedMessage, PeerViolation
from m6proxy.names import LocatorPair, UlidPair
from m6proxy.reasons import Reason
from m6proxy.shim import establish
from m6proxy.shim.core import Core
from m6proxy.shim.effects import SendPacket, What
from m6proxy.shim.features import OURS, Feature
from m6proxy.shim.inquiries import WAITING_MAX, Inquiry, Waiting
from m6proxy.shim.policy import Detection
from m6proxy.shim.timers import ICMP_HOLDDOWN_S, NO_R1_HOLDDOWN_S, backoff_s
from m6proxy.wire.ipv6 import find_shim
from m6proxy.wire.message import (
    CapabilityReply,
    CapabilityRequest,
    ErrorCode,
    ErrorMessage,
    Message,
    find,
    parse_message,
)
from m6proxy.wire.options import Features

REQUEST_TIMEOUT_S: Final = 4.0
REQUEST_RETRIES_MAX: Final = 2


def decide(
    core: Core, pair: UlidPair, data: NameData | None, local_name: str | None, now: float
) -> None:
    """DNS has answered: find out whether the peer has a shim, and begin the exchange if so."""
    capability = data.capability if data is not None else None
    waiting = Waiting(data, local_name)
    if capability is not None and not capability.accepts:
        _give_up(core, pair, now)
    elif core.peers.is_capable(pair.peer, now):
        _begin(core, pair, waiting, "seen before", now)
    else:
        _walk(core, pair, waiting, core.settings.detection, now)


def handle_request(core: Core, message: CapabilityRequest, route: LocatorPair, now: float) -> None:
    """Say that we are here; nothing is stored, and nobody gets more octets than he sent."""
    if not core.local_sets.is_local(route.local):
        raise PeerViolation(Reason.NOT_OUR_HOST, "a question to an address outside the site")
    core.limit_requests(route.peer, now)
    asked = find(message.options, Features) is not None
    core.send(CapabilityReply(message.nonce, _features() if asked else ()), route)


def handle_reply(core: Core, message: CapabilityReply, route: LocatorPair, now: float) -> None:
    """The peer is here."""
    inquiry = _by_nonce(core, message.nonce, route)
    if inquiry is None:
        raise PeerViolation(Reason.WRONG_NONCE, "a reply to no question of ours")
    told = find(message.options, Features)
    bits = told.bits & OURS if told is not None else 0
    names = "|".join(feature.name for feature in Feature if bits & feature)
    _found(core, inquiry, f"replied: {names}" if names else "replied", now)


def handle_error(core: Core, message: ErrorMessage, route: LocatorPair, now: float) -> bool:
    """Tell whether an error is about a question of ours: who does not know its type has a shim."""
    if message.code != ErrorCode.UNKNOWN_TYPE:
        return False
    try:
        place = find_shim(message.packet)
        quoted = parse_message(message.packet[place.offset :]) if place is not None else None
    except MalformedMessage:
        return False
    if not isinstance(quoted, CapabilityRequest):
        return False
    inquiry = _by_nonce(core, quoted.nonce, route)
    if inquiry is not None:
        _found(core, inquiry, "has a shim that does not know the question", now)
    return inquiry is not None


def note_unrecognized(core: Core, quoted: Message, route: LocatorPair, now: float) -> None:
    """RFC 5533 §7.8: an ICMPv6 error says for sure that nobody there has a shim."""
    if not isinstance(quoted, CapabilityRequest):
        return
    inquiry = _by_nonce(core, quoted.nonce, route)
    if inquiry is None:
        return
    core.inquiries.remove(inquiry)
    core.peers.refuse(route.peer, now + ICMP_HOLDDOWN_S)
    for key in inquiry.waiting:
        _give_up(core, UlidPair(key[:16], key[16:]), now)


def expire(core: Core, now: float) -> None:
    """Ask again, or go on to the next way when nobody answered."""
    for inquiry in core.inquiries.due(now):
        if inquiry.retries < REQUEST_RETRIES_MAX:
            inquiry.retries += 1
            _send(core, inquiry, now)
            continue
        core.inquiries.remove(inquiry)
        methods = core.settings.detection
        rest = methods[methods.index(Detection.PROBE) + 1 :]
        if Detection.I1 not in rest:
            core.peers.refuse(inquiry.route.peer, now + NO_R1_HOLDDOWN_S)
        for key, waiting in inquiry.waiting.items():
            _walk(core, UlidPair(key[:16], key[16:]), waiting, rest, now)


def _walk(
    core: Core, pair: UlidPair, waiting: Waiting, methods: tuple[Detection, ...], now: float
) -> None:
    recorded = waiting.data is not None and waiting.data.capability is not None
    may_signal = recorded or core.settings.probe_unknown
    for method in methods:
        if method is Detection.CONFIGURATION:
            if any(prefix.contains(pair.peer) for prefix in core.settings.capable):
                return _begin(core, pair, waiting, "configured", now)
        elif method is Detection.DNS:
            if recorded and waiting.data is not None:
                return _begin(core, pair, waiting, waiting.data.name, now)
        elif not may_signal:
            continue
        elif method is Detection.I1:
            return _begin(core, pair, waiting, "probing an unknown peer", now)
        elif _ask(core, pair, waiting, now):
            return None
    return _give_up(core, pair, now)


def _begin(core: Core, pair: UlidPair, waiting: Waiting, detail: str, now: float) -> None:
    core.report(What.CAPABLE, pair.local + pair.peer, detail)
    try:
        establish.initiate(core, pair.local + pair.peer, waiting.data, waiting.local_name, now)
    except PeerViolation as violation:
        core.drop(violation.reason)


def _give_up(core: Core, pair: UlidPair, now: float) -> None:
    core.report(What.NOT_CAPABLE, pair.local + pair.peer)
    core.accounts.silence(pair.local + pair.peer, now + NO_R1_HOLDDOWN_S)
    held = core.first_packets.take(pair.local + pair.peer)
    if held is not None:
        core.effects.append(SendPacket(held))


def _ask(core: Core, pair: UlidPair, waiting: Waiting, now: float) -> bool:
    """Ask the peer, or wait for the answer to a question under way; False when too many are."""
    inquiry = core.inquiries.by_peer(pair.peer)
    if inquiry is None:
        if core.inquiries.full:
            return False
        inquiry = Inquiry(core.entropy.nonce(), LocatorPair(*pair))
        core.inquiries.put(inquiry)
        _send(core, inquiry, now)
    if len(inquiry.waiting) < WAITING_MAX:
        inquiry.waiting[pair.local + pair.peer] = waiting
    return True


def _send(core: Core, inquiry: Inquiry, now: float) -> None:
    core.send(CapabilityRequest(inquiry.nonce, _features()), inquiry.route)
    nominal_s = backoff_s(REQUEST_TIMEOUT_S, inquiry.retries)
    inquiry.due_s = now + nominal_s * core.entropy.uniform(0.5, 1.5)
    core.wake()


def _found(core: Core, inquiry: Inquiry, detail: str, now: float) -> None:
    core.inquiries.remove(inquiry)
    core.peers.note_capable(inquiry.route.peer, now)
    for key, waiting in inquiry.waiting.items():
        _begin(core, UlidPair(key[:16], key[16:]), waiting, detail, now)


def _by_nonce(core: Core, nonce: int, route: LocatorPair) -> Inquiry | None:
    inquiry = core.inquiries.by_peer(route.peer)
    if inquiry is None or inquiry.nonce != nonce or inquiry.route != route:
        return None
    return inquiry


def _features() -> tuple[Features, ...]:
    return (Features(OURS),) if OURS else ()

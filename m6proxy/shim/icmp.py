"""ICMPv6 errors: translated to ULIDs for the host, or made by the gateway itself.

RFC 5533 §8: an error that quotes a rewritten packet reaches the host as if the shim did not
exist, with 8 octets less in a Packet Too Big. The RFC would keep some unreachable errors
from the host; here all are delivered, as §8 allows by option: TCP takes them as soft errors,
and the host learns what a router said. An error that quotes one of our own control messages
is for us.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from m6proxy.errors import MalformedMessage
from m6proxy.names import Address, LocatorPair
from m6proxy.shim import detect, forward, lifecycle
from m6proxy.shim.context import Context
from m6proxy.shim.core import Core
from m6proxy.shim.demux import UNTAGGED
from m6proxy.shim.timers import ICMP_HOLDDOWN_S
from m6proxy.shim.transitions import Input, legal
from m6proxy.shim.verdict import CONSUMED, Verdict
from m6proxy.wire.checksum import icmpv6_checksum
from m6proxy.wire.dstopt import find_tag_option, option_tag
from m6proxy.wire.ipv6 import (
    HEADER_OCTETS,
    MIN_MTU,
    NEXT_ICMPV6,
    Walk,
    build_packet,
    find_shim,
)
from m6proxy.wire.message import I1, I2, I2bis, parse_message
from m6proxy.wire.payload import is_payload, parse_payload_header

PACKET_TOO_BIG: Final = 2
_UNREACHABLE: Final = 1
_ADDRESS_UNREACHABLE: Final = 3
PARAMETER_PROBLEM: Final = 4
_WITH_LENGTH: Final = (1, 3)
"""Types whose header may tell how long the quotation is, in 8 octets (RFC 4884 §4.2)."""
_UNRECOGNIZED_NEXT_HEADER: Final = 1
_ERROR_TYPES: Final = range(1, 128)
_ICMP_OCTETS: Final = 8


def is_error(packet: bytes, offset: int) -> bool:
    """Tell whether an ICMPv6 message at ``offset`` is an error that quotes a packet."""
    return len(packet) >= offset + _ICMP_OCTETS + HEADER_OCTETS and packet[offset] in _ERROR_TYPES


def handle_error(core: Core, packet: bytes, offset: int, now: float) -> Verdict:
    """Decide about an ICMPv6 error whose ICMPv6 header stands at ``offset``."""
    if icmpv6_checksum(packet[8:24], packet[24:40], packet[offset:]) != 0:
        return None
    if core.contexts.by_sent_label:
        translated = _translate_bare(core, packet, offset)
        if translated is not None:
            return translated
    quoted = _Quoted.parse(core, packet[offset + _ICMP_OCTETS :])
    if quoted is None:
        return None
    if quoted.is_payload:
        return _translate(core, packet, offset, quoted)
    kind, code = packet[offset], packet[offset + 1]
    if kind == PARAMETER_PROBLEM and code == _UNRECOGNIZED_NEXT_HEADER:
        _note_no_support(core, quoted, now)
    return CONSUMED if core.local_sets.is_local(quoted.route.local) else None


def packet_too_big(packet: bytes, source: Address, mtu: int) -> bytes:
    """Build the gateway's Packet Too Big about a host's packet (RFC 4443 §3.2).

    ``mtu`` is what the host may send, in octets, before our growth. Quotes as much as fits
    1280 octets.
    """
    room = MIN_MTU - HEADER_OCTETS - _ICMP_OCTETS
    body = bytes([PACKET_TOO_BIG, 0, 0, 0]) + mtu.to_bytes(4) + packet[:room]
    sealed = _sealed(source, packet[8:24], body)
    return build_packet(source, packet[8:24], NEXT_ICMPV6, sealed)


def unreachable(packet: bytes, source: Address) -> bytes:
    """Build the gateway's Destination Unreachable, code 3: a soft error for what is established."""
    room = MIN_MTU - HEADER_OCTETS - _ICMP_OCTETS
    body = bytes([_UNREACHABLE, _ADDRESS_UNREACHABLE, 0, 0]) + bytes(4) + packet[:room]
    sealed = _sealed(source, packet[8:24], body)
    return build_packet(source, packet[8:24], NEXT_ICMPV6, sealed)


@dataclass(frozen=True, slots=True)
class _Quoted:
    """The packet that an error quotes, as far as it is there."""

    octets: bytes
    place: Walk
    route: LocatorPair
    context: Context | None
    """Whose packet it is, when it has a tag in an option."""
    is_payload: bool

    @classmethod
    def parse(cls, core: Core, octets: bytes) -> _Quoted | None:
        """None when it has no whole shim header in sight: then it is none of our business."""
        try:
            route = LocatorPair(octets[8:24], octets[24:40])
            if core.contexts.by_sent_option:
                place = find_tag_option(octets, whole=False)
                if place is not None:
                    tag = option_tag(octets, place.offset)
                    context = core.contexts.by_sent_short(tag, route)
                    return cls(octets, place, route, context, True) if context else None
            place = find_shim(octets, whole=False)
        except MalformedMessage:
            return None
        if place is None:
            return None
        return cls(octets, place, route, None, is_payload(octets, place.offset))


def _translate(core: Core, packet: bytes, offset: int, quoted: _Quoted) -> Verdict:
    """Give the host an error about the packet that it sent (RFC 5533 §8, figure 9)."""
    try:
        context = quoted.context
        if context is None:
            _, tag = parse_payload_header(quoted.octets[quoted.place.offset :])
            context = core.contexts.by_sent(tag, quoted.route)
        if context is None:
            return None
        inner = forward.restore(quoted.octets, quoted.place, context.outbound_key)
    except MalformedMessage as malformed:
        return core.drop(malformed.reason)
    head = packet[offset : offset + _ICMP_OCTETS]
    if head[0] == PACKET_TOO_BIG:
        kind = forward.OPTION if quoted.context is not None else forward.SHIM
        mtu = max(0, int.from_bytes(head[4:8]) - forward.room_octets(inner, kind))
        head = head[:4] + mtu.to_bytes(4)
    elif head[0] in _WITH_LENGTH and head[4]:
        head = head[:4] + bytes([head[4] - 1]) + head[5:]
    elif head[0] == PARAMETER_PROBLEM:
        head = head[:4] + _pointer_before_growth(head, quoted.place).to_bytes(4)
    host = context.outbound_key[:16]
    body = _sealed(packet[8:24], host, head[:2] + b"\x00\x00" + head[4:] + inner)
    length = offset - HEADER_OCTETS + len(body)
    return b"".join((packet[:4], length.to_bytes(2), packet[6:24], host, packet[40:offset], body))


def _translate_bare(core: Core, packet: bytes, offset: int) -> bytes | None:
    """The same about a packet that went out without payload header: no number changes."""
    quoted = packet[offset + _ICMP_OCTETS :]
    context = core.contexts.by_sent_bare(quoted)
    if context is None:
        return None
    untagged = context.wire_label == UNTAGGED
    restored = forward.readdress if untagged else forward.unlabel
    inner = restored(quoted, context.outbound_key)
    host = context.outbound_key[:16]
    head = packet[offset : offset + 2] + b"\x00\x00" + packet[offset + 4 : offset + _ICMP_OCTETS]
    body = _sealed(packet[8:24], host, head + inner)
    return b"".join((packet[:24], host, packet[40:offset], body))


def _pointer_before_growth(head: bytes, place: Walk) -> int:
    """A parameter problem's pointer, as an offset into the packet that the host sent."""
    pointer = int.from_bytes(head[4:8])
    if pointer < place.offset:
        return pointer
    if pointer < place.offset + forward.GROWTH_OCTETS:
        return place.link
    return pointer - forward.GROWTH_OCTETS


def _note_no_support(core: Core, quoted: _Quoted, now: float) -> None:
    """RFC 5533 §7.8: the peer says for sure that it has no shim."""
    try:
        message = parse_message(quoted.octets[quoted.place.offset :])
    except MalformedMessage:
        return
    detect.note_unrecognized(core, message, quoted.route, now)
    if not isinstance(message, I1 | I2 | I2bis):
        return
    context = core.contexts.by_nonce(message.initiator_nonce)
    if context is None or context.handshake is None or context.handshake.route != quoted.route:
        return
    if legal(context.state, Input.UNRECOGNIZED):
        core.peers.refuse(quoted.route.peer, now + ICMP_HOLDDOWN_S)
        lifecycle.refuse(core, context, Input.UNRECOGNIZED, ICMP_HOLDDOWN_S, now)


def _sealed(source: Address, destination: Address, message: bytes) -> bytes:
    """The message, whose checksum field is zero, with its checksum."""
    value = icmpv6_checksum(source, destination, message)
    return message[:2] + value.to_bytes(2) + message[4:]

"""Reads DNS answers that pass through the gateway on their way to a host.

Anybody can send such a packet, and each is read in the loop that also forwards packets. So
this reads no more than it needs, the question and the first answers, and its work is bounded
whatever the octets are: a general parser can be kept busy for half a second by 4 KiB of
records that share one name of 127 labels.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TypeAlias

from m6proxy.discovery.answer import host_addresses
from m6proxy.discovery.hostname import parse_name
from m6proxy.errors import MalformedMessage
from m6proxy.names import ADDRESS_OCTETS, Address
from m6proxy.reasons import Reason

PAYLOAD_OCTETS_MAX = 4096
"""A longer payload is not read: no UDP answer of use is so long."""
ANSWERS_MAX = 32
"""How many records of one answer are looked at."""
CHAIN_MAX = 16
TTL_MAX_S = 86_400

_HEADER = struct.Struct("!HHHHHH")
_QUESTION = struct.Struct("!HH")
_RECORD = struct.Struct("!HHIH")
_NAME_OCTETS_MAX = 255
_QR, _OPCODE, _RCODE = 0x8000, 0x7800, 0x000F
_POINTER = 0xC0
_IN, _CNAME, _AAAA = 1, 5, 28

Labels: TypeAlias = tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Heard:
    """The useful part of one passing answer."""

    names: tuple[str, ...]
    """The name that was asked for, then the owner of the addresses when CNAMEs led there."""
    addresses: tuple[Address, ...]
    ttl_s: float
    """The least TTL of the chain, one day at most."""


def parse_answer(payload: bytes) -> Heard | None:
    """Parse a UDP payload; None unless it is a good answer to one AAAA question.

    Raises MalformedMessage when the octets make no sense. Source: RFC 1035 §4.1.
    """
    if not _HEADER.size <= len(payload) <= PAYLOAD_OCTETS_MAX:
        raise MalformedMessage(Reason.BAD_LENGTH, "no DNS message of use is so long or short")
    _, flags, questions, answers, _, _ = _HEADER.unpack_from(payload)
    if not flags & _QR or flags & (_OPCODE | _RCODE) or questions != 1:
        return None
    asked, at = _parse_labels(payload, _HEADER.size)
    rdtype, rdclass = _unpack(_QUESTION, payload, at)
    if (rdtype, rdclass) != (_AAAA, _IN):
        return None
    at += _QUESTION.size
    aliases: dict[Labels, tuple[Labels, int]] = {}
    found: dict[Labels, list[tuple[Address, int]]] = {}
    for _ in range(min(answers, ANSWERS_MAX)):
        owner, at = _parse_labels(payload, at)
        rdtype, rdclass, ttl_s, length = _unpack(_RECORD, payload, at)
        at += _RECORD.size
        if at + length > len(payload):
            raise MalformedMessage(Reason.BAD_LENGTH, "a record ends past the message", at)
        if (rdtype, rdclass, length) == (_AAAA, _IN, ADDRESS_OCTETS):
            found.setdefault(owner, []).append((payload[at : at + length], ttl_s))
        elif (rdtype, rdclass) == (_CNAME, _IN):
            aliases[owner] = (_parse_labels(payload, at)[0], ttl_s)
        at += length
    return _followed(asked, aliases, found)


def _followed(
    asked: Labels,
    aliases: dict[Labels, tuple[Labels, int]],
    found: dict[Labels, list[tuple[Address, int]]],
) -> Heard | None:
    """Follow the CNAMEs from the name that was asked for to its addresses."""
    owner, ttl_s = asked, TTL_MAX_S
    for _ in range(CHAIN_MAX):
        if owner in found or owner not in aliases:
            break
        owner, alias_ttl_s = aliases[owner]
        ttl_s = min(ttl_s, alias_ttl_s)
    records = found.get(owner, [])
    ttl_s = min([ttl_s, *(record_ttl_s for _, record_ttl_s in records)])
    names = tuple(dict.fromkeys(filter(None, map(_text, (asked, owner)))))
    addresses = host_addresses([address for address, _ in records])
    return Heard(names, addresses, float(ttl_s)) if names and addresses else None


def _parse_labels(payload: bytes, at: int) -> tuple[Labels, int]:
    """Parse a name, in lower case, and where it ends; pointers lead backwards only."""
    labels: list[bytes] = []
    octets = 0
    end: int | None = None
    earliest = at
    while True:
        if at >= len(payload):
            raise MalformedMessage(Reason.TRUNCATED, "the message ends in a name", at)
        length = payload[at]
        if length == 0:
            return tuple(labels), at + 1 if end is None else end
        if length >= _POINTER:
            if at + 2 > len(payload):
                raise MalformedMessage(Reason.TRUNCATED, "the message ends in a name", at)
            end = at + 2 if end is None else end
            target = int.from_bytes(payload[at : at + 2]) & 0x3FFF
            if target >= earliest:
                raise MalformedMessage(Reason.BAD_FIELD, "a name that points forward", at)
            earliest = at = target
            continue
        octets += 1 + length
        if length > 63 or octets >= _NAME_OCTETS_MAX or at + 1 + length > len(payload):
            raise MalformedMessage(Reason.BAD_LENGTH, "a label of a name", at)
        labels.append(payload[at + 1 : at + 1 + length].lower())
        at += 1 + length


def _unpack(layout: struct.Struct, payload: bytes, at: int) -> tuple[int, ...]:
    if at + layout.size > len(payload):
        raise MalformedMessage(Reason.TRUNCATED, "the message ends in a record", at)
    return layout.unpack_from(payload, at)


def _text(labels: Labels) -> str | None:
    """A name as text; None when it is not a host name."""
    if any(b"." in label for label in labels):
        return None
    try:
        return parse_name(b".".join(labels).decode("ascii"))
    except ValueError:
        return None

"""The capability record on its way between a zone and its value.

A codec knows one RR type; SVCB is the only one yet, and TXT and a private type join by being
put into ``CODECS``. All codecs share the text form, because that is what people type::

    v=1+f=a+s=alpha.example+p=2001:db8:a1::/48@1+p=2001:db8:a2::/48@2

Fields are joined by ``+``. No character of it means anything to zone files, JSON, YAML, a
shell or the lists of SVCB, so it can be typed with quotes or without and never needs an
escape. ``v`` comes first; ``f`` holds one letter for each thing that the site does (``a``:
accepts I1; the default); ``s`` is the site's name; each ``p`` is a prefix and its preference
(0 when left out); ``m=nsquare@48`` says that locators have marks, and where, ``m=neutral``
that they keep the sum of their ULID (``addressing``).
Later fields, letters, mappings and SvcParams are ignored; another version, or a fault, is no
capability. Why so: docs/decisions/0003-capability-record.md.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol

import dns.rdata

from m6proxy.discovery.addressing import MapKind
from m6proxy.discovery.capability import VERSION, Capability, PrefixLocator
from m6proxy.discovery.hostname import NAME_OCTETS_MAX, parse_name
from m6proxy.errors import MalformedMessage
from m6proxy.names import Prefix
from m6proxy.reasons import Reason

LABEL = "_m6proxy"
"""Where below a host the record stands."""
KEY = 65310
"""The SvcParamKey of the text form, from the range for private use (RFC 9460 §14.3.2)."""
TYPE_SVCB = 64
ACCEPTS = "a"

TEXT_OCTETS_MAX = 1024
FIELDS_MAX = 64
RECORDS_MAX = 16
"""How many records of one answer are looked at."""
PREFIXES_MAX = 16
PREFIX_BITS_MIN = 20
"""A shorter prefix is nobody's site; ``::/0`` would claim every address there is."""
_NOBODYS = tuple(Prefix.parse(text) for text in ("::/8", "fe80::/10", "ff00::/8"))

_ONCE = frozenset("fsm")
"""Fields that may stand in a record once."""
_MANDATORY = 0
_PRIORITY = struct.Struct("!H")
_PARAM = struct.Struct("!HH")


@dataclass(frozen=True, slots=True)
class Reading:
    """What the records of one answer say."""

    capability: Capability | None = None
    alias: str | None = None
    """The name where to ask instead, lower case; only without a capability."""
    malformed: int = 0
    """How many records had a fault and were passed over."""


class Codec(Protocol):
    """One RR type that can carry the record."""

    @property
    def rdtype(self) -> int:
        """The number of the RR type."""

    def query_name(self, host: str) -> str:
        """Return the name to ask about a host. Raises ValueError when it would be too long."""

    def read(self, rdatas: Iterable[bytes]) -> Reading:
        """Parse the RDATA of all records at one name, uncompressed. Never raises."""

    def zone_line(self, host: str, capability: Capability, ttl: int) -> str:
        """Return the line for a zone file; ``ttl`` in seconds. Raises ValueError."""


class SvcbCodec:
    """SVCB records at ``_m6proxy.HOST`` (RFC 9460)."""

    __slots__ = ()

    rdtype: int = TYPE_SVCB

    def query_name(self, host: str) -> str:
        """Return the name to ask about a host. Raises ValueError when it would be too long."""
        name = f"{LABEL}.{parse_name(host)}"
        if len(name) > NAME_OCTETS_MAX:
            raise ValueError(f"{host!r} leaves no place for {LABEL}")
        return name

    def read(self, rdatas: Iterable[bytes]) -> Reading:
        """Parse the RDATA of all records at one name, uncompressed. Never raises.

        The record with the lowest SvcPriority that says something wins: an AliasMode record
        (priority 0) its target, another its capability (RFC 9460 §2.4.1).
        """
        malformed = 0
        best: tuple[int, Reading] | None = None
        for _, rdata in zip(range(RECORDS_MAX), rdatas, strict=False):
            try:
                priority, found = _parse_rdata(rdata)
            except MalformedMessage:
                malformed += 1
                continue
            if found is not None and (best is None or priority < best[0]):
                best = (priority, found)
        if best is None:
            return Reading(malformed=malformed)
        return Reading(best[1].capability, best[1].alias, malformed)

    def zone_line(self, host: str, capability: Capability, ttl: int) -> str:
        """Return the line for a zone file; ``ttl`` in seconds. Raises ValueError."""
        owner = self.query_name(host)
        if not 0 <= ttl < 1 << 31:
            raise ValueError("a TTL is 0 to 2147483647 seconds")
        return f'{owner}. {ttl} IN SVCB 1 . key{KEY}="{encode_text(capability)}"'


CODECS: Mapping[int, Codec] = MappingProxyType({TYPE_SVCB: SvcbCodec()})
"""RR type to its codec; all of them are asked, and the first in this order wins."""
_SVCB = CODECS[TYPE_SVCB]


def query_name(host: str) -> str:
    """Return where the SVCB record of a host stands. Raises ValueError for a bad host name."""
    return _SVCB.query_name(host)


def svcb_zone_line(host: str, capability: Capability, ttl: int) -> str:
    """Return the zone-file line that publishes a host's capability; ``ttl`` in seconds.

    Raises ValueError when host, TTL or capability cannot be published.
    """
    return _SVCB.zone_line(host, capability, ttl)


def parse_svcb(rdatas: Iterable[bytes | dns.rdata.Rdata]) -> Reading:
    """Parse the SVCB records of one answer: dnspython's values, or RDATA octets."""
    return _SVCB.read(rdata_octets(rdatas))


def rdata_octets(rdatas: Iterable[bytes | dns.rdata.Rdata]) -> Iterable[bytes]:
    """Turn dnspython's record values into RDATA octets; octets stay what they are."""
    for rdata in rdatas:
        octets = rdata if isinstance(rdata, bytes) else rdata.to_wire()
        if octets is not None:
            yield octets


def encode_text(capability: Capability) -> str:
    """Return the text form. Raises ValueError for what ``parse_text`` would not take back."""
    fields = [f"v={capability.version}", f"f={ACCEPTS if capability.accepts else ''}"]
    if capability.site is not None:
        fields.append(f"s={parse_name(capability.site)}")
    fields += [f"p={p.prefix}@{p.preference}" for p in capability.prefixes]
    if capability.mark_at is not None:
        fields.append(f"m={MapKind.NSQUARE.value}@{capability.mark_at}")
    elif capability.neutral:
        fields.append(f"m={MapKind.NEUTRAL.value}")
    text = "+".join(fields)
    try:
        if parse_text(text.encode("ascii")) is None:
            raise ValueError(f"version {capability.version} is not one that we write")
    except MalformedMessage as error:
        raise ValueError(f"the capability cannot be published: {error}") from None
    return text


def parse_text(octets: bytes) -> Capability | None:
    """Parse the text form; None when it is of another version. Raises MalformedMessage."""
    if len(octets) > TEXT_OCTETS_MAX:
        raise MalformedMessage(Reason.BAD_LENGTH, f"more than {TEXT_OCTETS_MAX} octets")
    if not octets.isascii():
        raise MalformedMessage(Reason.BAD_FIELD, "not ASCII")
    fields = octets.decode("ascii").split("+")
    if not _version_is_ours(fields[0]):
        return None
    if len(fields) > FIELDS_MAX:
        raise MalformedMessage(Reason.BAD_FIELD, f"more than {FIELDS_MAX} fields")
    letters: str | None = None
    site: str | None = None
    prefixes: list[PrefixLocator] = []
    mark_at: int | None = None
    neutral = False
    seen: set[str] = set()
    at = len(fields[0])
    for field in fields[1:]:
        at += 1
        key, equals, value = field.partition("=")
        if not equals or not key or (key == "v"):
            raise MalformedMessage(Reason.BAD_FIELD, f"{field!r} is not a field", at)
        if key in seen:
            raise MalformedMessage(Reason.BAD_FIELD, f"field {key} twice", at)
        seen |= {key} & _ONCE
        try:
            if key == "f":
                letters = value
            elif key == "s":
                site = parse_name(value)
            elif key == "p":
                prefixes.append(_parse_prefix(value))
            elif key == "m":
                mark_at = _parse_mark(value)
                neutral = value == MapKind.NEUTRAL.value
        except ValueError as error:
            raise MalformedMessage(Reason.BAD_FIELD, str(error), at) from None
        at += len(field)
    if len(prefixes) > PREFIXES_MAX:
        raise MalformedMessage(Reason.BAD_FIELD, f"more than {PREFIXES_MAX} prefixes", at)
    accepts = letters is None or ACCEPTS in letters
    try:
        return Capability(VERSION, accepts, site, tuple(prefixes), mark_at, neutral)
    except ValueError as error:
        raise MalformedMessage(Reason.BAD_FIELD, str(error), at) from None


def _version_is_ours(field: str) -> bool:
    key, _, value = field.partition("=")
    if key != "v" or not value.isdigit() or value.startswith("0"):
        raise MalformedMessage(Reason.BAD_FIELD, "the version does not come first")
    return value == str(VERSION)


def _parse_prefix(text: str) -> PrefixLocator:
    network, at, preference = text.partition("@")
    if "%" in network or "/" not in network:
        raise ValueError(f"{network!r} is not a prefix")
    prefix = Prefix.parse(network)
    if prefix.length < PREFIX_BITS_MIN or any(nobodys.overlaps(prefix) for nobodys in _NOBODYS):
        raise ValueError(f"{prefix} is no site's")
    if not at:
        return PrefixLocator(prefix, 0)
    if not preference.isdigit() or len(preference) > 3 or int(preference) > 255:
        raise ValueError(f"preference {preference!r} is not from 0 to 255")
    return PrefixLocator(prefix, int(preference))


def _parse_mark(text: str) -> int | None:
    """Where the mark of n-square addresses stands; None for mappings that later versions have."""
    kind, _, bits = text.partition("@")
    if kind != MapKind.NSQUARE.value:
        return None
    if not bits.isdigit() or len(bits) > 3:
        raise ValueError(f"{bits!r} is no number of bits")
    return int(bits)


def _parse_rdata(rdata: bytes) -> tuple[int, Reading | None]:
    """Parse one SVCB record: priority, and what it says or None. Raises MalformedMessage."""
    if len(rdata) < _PRIORITY.size:
        raise MalformedMessage(Reason.TRUNCATED, "an SVCB record without priority")
    (priority,) = _PRIORITY.unpack_from(rdata)
    labels, at = _parse_labels(rdata, _PRIORITY.size)
    if priority == 0:  # AliasMode; the root says that there is nothing (RFC 9460 §2.5.1)
        return 0, Reading(alias=_alias(labels, at))
    params = _parse_params(rdata, at)
    mandatory = params.get(_MANDATORY, KEY.to_bytes(2))
    if KEY not in params or mandatory != KEY.to_bytes(2):  # RFC 9460 §8
        return priority, None
    capability = parse_text(params[KEY])
    return priority, Reading(capability) if capability is not None else None


def _alias(labels: list[bytes], at: int) -> str | None:
    if not labels:
        return None
    if any(b"." in label for label in labels):
        raise MalformedMessage(Reason.BAD_FIELD, "the alias is not a name", at)
    try:
        return parse_name(b".".join(labels).decode("ascii"))
    except ValueError:
        raise MalformedMessage(Reason.BAD_FIELD, "the alias is not a name", at) from None


def _parse_labels(rdata: bytes, at: int) -> tuple[list[bytes], int]:
    """Parse an uncompressed name (RFC 9460 §2.2): its labels and the octet after it."""
    labels: list[bytes] = []
    while True:
        if at >= len(rdata):
            raise MalformedMessage(Reason.TRUNCATED, "an SVCB record ends in its target", at)
        length = rdata[at]
        at += 1
        if length == 0:
            return labels, at
        if length > 63 or at + length > len(rdata):
            raise MalformedMessage(Reason.BAD_LENGTH, "a label of the SVCB target", at - 1)
        labels.append(rdata[at : at + length])
        at += length


def _parse_params(rdata: bytes, at: int) -> dict[int, bytes]:
    """Parse SvcParams: keys strictly ascending, lengths exact (RFC 9460 §2.2)."""
    params: dict[int, bytes] = {}
    last = -1
    while at < len(rdata):
        if at + _PARAM.size > len(rdata):
            raise MalformedMessage(Reason.TRUNCATED, "an SvcParam without length", at)
        key, length = _PARAM.unpack_from(rdata, at)
        if key <= last:
            raise MalformedMessage(Reason.BAD_FIELD, "SvcParams out of order", at)
        at += _PARAM.size
        if at + length > len(rdata):
            raise MalformedMessage(Reason.BAD_LENGTH, "an SvcParam ends past the record", at)
        params[key] = rdata[at : at + length]
        last = key
        at += length
    return params

"""What a DNS message says: the chain of CNAMEs, the records at its end, and their TTL."""

from __future__ import annotations

from dataclasses import dataclass

import dns.message
import dns.name
import dns.rdataclass
import dns.rdatatype
import dns.rrset

from m6proxy.discovery.codec import parse_svcb, rdata_octets
from m6proxy.discovery.hostname import parse_name
from m6proxy.discovery.plan import Answer, Ask
from m6proxy.names import ADDRESS_OCTETS, Address, is_multicast

CHAIN_MAX = 16
RECORDS_MAX = 64
"""How many records of one answer are looked at."""
_TTL_MAX_S = 86_400


@dataclass(frozen=True, slots=True)
class Chain:
    """Where the CNAMEs of an answer lead."""

    owner: dns.name.Name
    """The last name."""
    records: dns.rrset.RRset | None
    """What stands there of the type that was asked for."""
    ttl_s: int
    """The least TTL on the way, one day at most."""


def follow(message: dns.message.Message, name: dns.name.Name, rdtype: int) -> Chain:
    """Follow the CNAMEs in an answer from a name to the records of a type."""
    ttl_s = _TTL_MAX_S
    wanted = dns.rdatatype.RdataType.make(rdtype)
    for _ in range(CHAIN_MAX):
        records = _rrset(message, name, wanted)
        if records is not None:
            return Chain(name, records, min(ttl_s, records.ttl))
        alias = _rrset(message, name, dns.rdatatype.CNAME)
        if alias is None:
            break
        ttl_s = min(ttl_s, alias.ttl)
        name = alias[0].target
    return Chain(name, None, ttl_s)


def read_records(ask: Ask, records: dns.rrset.RRset, until_s: float = 0.0) -> Answer:
    """Turn the records of an answer into what a plan takes."""
    octets = list(rdata_octets(records))[:RECORDS_MAX]
    match ask:
        case Ask.AAAA:
            return Answer(until_s, addresses=host_addresses(octets))
        case Ask.PTR:
            names = (name_text(record.target) for record in list(records)[:RECORDS_MAX])
            return Answer(until_s, names=tuple(dict.fromkeys(filter(None, names))))
        case Ask.SVCB:
            return Answer(until_s, reading=parse_svcb(octets))


def denial_ttl_s(message: dns.message.Message) -> float | None:
    """Return how long a denial holds: the lesser of TTL and minimum of the SOA (RFC 2308 §5)."""
    for records in message.authority:
        if records.rdtype == dns.rdatatype.SOA and records:
            return float(min(records.ttl, records[0].minimum))
    return None


def host_addresses(octets: list[bytes]) -> tuple[Address, ...]:
    """Return those AAAA contents that can be a host's address, each once."""
    return tuple(dict.fromkeys(address for address in octets if _is_host(address)))


def name_text(name: dns.name.Name) -> str | None:
    """Return a name as text, None when it is not a host name."""
    if any(b"." in label for label in name.labels):
        return None
    try:
        return parse_name(name.to_text())
    except ValueError:
        return None


def _rrset(
    message: dns.message.Message, name: dns.name.Name, rdtype: dns.rdatatype.RdataType
) -> dns.rrset.RRset | None:
    return message.get_rrset(message.answer, name, dns.rdataclass.IN, rdtype)


def _is_host(octets: bytes) -> bool:
    """Not multicast, not link-local, not in ``::/8`` (loopback, IPv4 in disguise)."""
    if len(octets) != ADDRESS_OCTETS or octets[0] == 0 or is_multicast(octets):
        return False
    return not (octets[0] == 0xFE and octets[1] & 0xC0 == 0x80)

"""The configuration file as its author writes it: keys, what each may hold, and examples.

These models check one key at a time. What concerns several keys at once, and the values
that the rest of the project uses, are in ``config``.
"""

from __future__ import annotations

import difflib
import ipaddress
import re
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal, TypeAlias, get_args, get_origin

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo

from m6proxy.daemon.yamlpos import Document, KeyPath
from m6proxy.discovery.hostname import parse_name
from m6proxy.names import Prefix, address
from m6proxy.shim.demux import DemuxMode
from m6proxy.shim.policy import DETECTION, Selector

SITE_OCTETS_MAX = 200
"""So that it fits the comment of every rule (ip6tables allows 255 octets)."""

_UPLINK_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,30}")
_INTERFACE = re.compile(r"[A-Za-z0-9_.@:-]{1,15}")


def domain_name(text: str) -> str:
    """Normalise a domain name: lower case, no final dot. Raises ValueError."""
    try:
        return parse_name(text)
    except ValueError:
        raise ValueError(
            f"{text!r} is not a domain name; write for example a1.alpha.example"
        ) from None


def _site(text: str) -> str:
    name = domain_name(text)
    if len(name) > SITE_OCTETS_MAX:
        raise ValueError(
            f"a site's name has at most {SITE_OCTETS_MAX} characters; use a shorter one"
        )
    return name


def _interface(text: str) -> str:
    if not _INTERFACE.fullmatch(text) or text in {".", ".."}:
        raise ValueError(f"{text!r} is not an interface name; `ip link` lists them")
    return text


def _ipv6(text: str) -> str:
    try:
        address(text)
    except ValueError:
        raise ValueError(
            f"{text!r} is not an IPv6 address; write for example '2001:db8:f1::1'"
        ) from None
    return text


def _unicast(text: str) -> str:
    parsed = ipaddress.IPv6Address(_ipv6(text))
    if parsed.is_multicast or parsed.is_unspecified or parsed.is_loopback:
        raise ValueError(f"{text} is not the address of one machine; write its unicast address")
    return text


def _ip(text: str) -> str:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        raise ValueError(
            f"{text!r} is not an IP address; write for example '2001:db8:ff::53'"
        ) from None
    return text


def _prefix(text: str) -> str:
    try:
        loose = ipaddress.IPv6Network(text, strict=False)
    except ValueError:
        raise ValueError(
            f"{text!r} is not an IPv6 prefix; write for example '2001:db8:a1::/48'"
        ) from None
    if not 1 <= loose.prefixlen <= 64:
        raise ValueError(
            f"{text}: wrong prefix length {loose.prefixlen}; write the prefix that the provider "
            "delegated, from /1 to /64"
        )
    if str(loose.network_address) != str(ipaddress.IPv6Address(text.partition("/")[0])):
        raise ValueError(f"{text} has host bits set; write {loose}")
    if loose.is_multicast or loose.is_link_local:
        raise ValueError(f"{text} is not a unicast prefix; write the one the provider delegated")
    return str(Prefix.parse(text))


def _selector(text: str) -> str:
    try:
        Selector.parse(text)
    except ValueError as error:
        raise ValueError(
            f"{error}; write a prefix, a protocol, or protocol/port such as 'udp/53'"
        ) from None
    return text


def _control(text: str) -> str:
    octets = len(text.encode())
    if not text.startswith("/"):
        raise ValueError(f"{text!r} is not an absolute path; begin it with /")
    if octets > 107 or "\0" in text:
        raise ValueError(
            f"a socket's path has at most 107 octets and this one {octets}; shorten it"
        )
    return text


def _demux(text: str) -> str:
    modes = [mode.name.lower() for mode in DemuxMode]
    if text not in modes:
        raise ValueError(f"{text!r} is no demux mode; the modes are {', '.join(modes)}")
    return text


def _uplink_name(text: str) -> str:
    if not _UPLINK_NAME.fullmatch(text):
        raise ValueError(
            f"{text!r} is not a name for an uplink; use letters, digits, - and _, at most 31"
        )
    return text


def _name_or_prefix(text: str) -> str:
    if ":" not in text:
        return domain_name(text)
    try:
        return str(Prefix.parse(text))
    except ValueError:
        raise ValueError(
            f"{text!r} is neither a prefix nor a name; write for example '2001:db8:b1::/48'"
        ) from None


SiteName: TypeAlias = Annotated[str, AfterValidator(_site)]
DomainName: TypeAlias = Annotated[str, AfterValidator(domain_name)]
Interface: TypeAlias = Annotated[str, AfterValidator(_interface)]
Ipv6: TypeAlias = Annotated[str, AfterValidator(_unicast)]
Ip: TypeAlias = Annotated[str, AfterValidator(_ip)]
PrefixText: TypeAlias = Annotated[str, AfterValidator(_prefix)]
NameOrPrefix: TypeAlias = Annotated[str, AfterValidator(_name_or_prefix)]
SelectorText: TypeAlias = Annotated[str, AfterValidator(_selector)]
SocketPath: TypeAlias = Annotated[str, AfterValidator(_control)]
_Off: Final = BeforeValidator(lambda value: "off" if value is False else value)
"""YAML reads the word off as false."""
FastPath: TypeAlias = Annotated[Literal["auto", "bpf", "off"], _Off]
Express: TypeAlias = Annotated[Literal["auto", "off"], _Off]
DemuxText: TypeAlias = Annotated[str, AfterValidator(_demux)]
UplinkName: TypeAlias = Annotated[str, AfterValidator(_uplink_name)]


class Section(BaseModel):
    """A mapping of the file: nothing but the keys that it names, and no silent conversion."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class UplinkSection(Section):
    """``uplinks.NAME``: one provider attachment."""

    interface: Interface = Field(examples=["wan1"])
    prefix: PrefixText = Field(examples=['"2001:db8:a1::/48"'])
    gateway: Ipv6 = Field(examples=['"2001:db8:f1::1"'])
    preference: int = Field(
        ge=0, le=255, description="a whole number from 0 to 255, lower is better", examples=["1"]
    )
    weight: int = Field(
        default=0, ge=0, le=255, description="a whole number from 0 to 255", examples=["2"]
    )
    temporary: bool = Field(default=False, description="true or false", examples=["false"])


class DnsSection(Section):
    """``dns``: where and how m6proxy asks."""

    servers: list[Ip] = Field(
        min_length=1,
        description="a list of at least one address",
        examples=['["2001:db8:ff::53"]'],
    )
    port: int = Field(
        default=53, ge=1, le=65535, description="a port from 1 to 65535", examples=["53"]
    )
    timeout_s: float = Field(
        default=2.0, ge=0.1, le=60, description="seconds from 0.1 to 60", examples=["2"]
    )


class EstablishSection(Section):
    """``policy.establish``: when a pair deserves a context."""

    after_octets: int | None = Field(
        default=2048, ge=1, description="a number of octets from 1, or null", examples=["2048"]
    )
    after_packets: int | None = Field(
        default=None, ge=1, description="a number of packets from 1, or null", examples=["10"]
    )
    after_s: float | None = Field(
        default=10.0,
        ge=0,
        allow_inf_nan=False,
        description="a number of seconds, or null",
        examples=["10"],
    )
    always: list[SelectorText] = Field(
        default_factory=list, description="a list of selectors", examples=["[tcp/22]"]
    )
    never: list[SelectorText] = Field(
        default_factory=list, description="a list of selectors", examples=["[udp/53]"]
    )


class ForkSection(Section):
    """One of ``policy.forks``: which traffic goes by a fork, and over which uplink."""

    match: list[SelectorText] = Field(
        min_length=1, description="a list of at least one selector", examples=["[tcp/873]"]
    )
    uplink: UplinkName = Field(examples=["isp2"])


class PolicySection(Section):
    """``policy``: what the engine may do, and its patience."""

    establish: EstablishSection = Field(
        default_factory=EstablishSection,
        examples=["{after_octets: 2048, after_s: 10}"],
    )
    unknown_peers: Literal["ignore", "probe"] = Field(
        default="ignore", description="one of `ignore` and `probe`", examples=["ignore"]
    )
    detection: list[Literal["configuration", "dns", "probe", "i1"]] = Field(
        default_factory=lambda: [method.value for method in DETECTION],
        description="a list of `configuration`, `dns`, `probe` and `i1`",
        examples=["[configuration, dns, i1]"],
    )
    capable: list[NameOrPrefix] = Field(
        default_factory=list,
        description="a list of prefixes, and of names that stand in `peers`",
        examples=['["2001:db8:b1::/48"]'],
    )
    demux: list[DemuxText] = Field(
        default_factory=lambda: ["exthdr", "dstopt"],
        min_length=1,
        description="a list of `dstopt`, `exthdr`, `flowlabel` and `identifier`",
        examples=["[dstopt, exthdr]"],
    )
    forks: list[ForkSection] = Field(
        default_factory=list,
        description="a list of mappings with `match` and `uplink`",
        examples=["[{match: [tcp/873], uplink: isp2}]"],
    )
    hold_first_packet_s: float = Field(
        default=0.0, ge=0, le=10, description="seconds from 0 to 10", examples=["2"]
    )
    return_routability: Literal["always", "first_use", "changed_source", "never"] = Field(
        default="first_use",
        description="one of `always`, `first_use`, `changed_source` and `never`",
        examples=["first_use"],
    )
    send_timeout_s: float = Field(
        default=15.0, ge=1, le=100, description="seconds from 1 to 100", examples=["15"]
    )
    idle_s: float = Field(
        default=300.0, ge=60, le=86_400, description="seconds from 60 to 86400", examples=["300"]
    )
    park_max_s: int = Field(
        default=3600, ge=0, le=604_800, description="seconds from 0 to 604800", examples=["3600"]
    )
    failback: Literal["never", "soft", "hard"] = Field(
        default="soft", description="one of `never`, `soft` and `hard`", examples=["soft"]
    )
    failback_hold_s: float = Field(
        default=60.0, ge=10, le=86_400, description="seconds from 10 to 86400", examples=["60"]
    )
    probes_per_s: float = Field(
        default=2000.0,
        ge=10,
        le=100_000,
        description="a rate from 10 to 100000",
        examples=["2000"],
    )
    locators_max: int = Field(
        default=64, ge=1, le=255, description="a whole number from 1 to 255", examples=["64"]
    )
    max_contexts: int = Field(
        default=200_000,
        ge=1,
        le=10_000_000,
        description="a whole number from 1 to 10000000",
        examples=["200000"],
    )


class LocatorsSection(Section):
    """``locators``: which addresses a host has in each uplink's prefix."""

    map: Literal["neutral", "prefix", "nsquare", "preagreed"] | None = Field(
        default=None,
        description="one of `neutral`, `prefix`, `nsquare` and `preagreed`",
        examples=["nsquare"],
    )
    mark_at: int | None = Field(
        default=None, ge=1, le=127, description="a number of bits from 1 to 127", examples=["48"]
    )
    identifier: UplinkName | None = Field(default=None, examples=["isp1"])


class QueuesSection(Section):
    """``queues``: NFQUEUE numbers."""

    outbound: int = Field(
        default=140, ge=0, le=65535, description="a queue number from 0 to 65535", examples=["140"]
    )
    inbound: int = Field(
        default=141, ge=0, le=65535, description="a queue number from 0 to 65535", examples=["141"]
    )


class RoutingSection(Section):
    """``routing``: where source-prefix routing is put."""

    table_base: int = Field(
        default=14_000,
        ge=256,
        le=4_294_900_000,
        description="a routing table number from 256",
        examples=["14000"],
    )
    rule_priority: int = Field(
        default=14_000,
        ge=1,
        le=32_700,
        description="a rule priority from 1 to 32700",
        examples=["14000"],
    )
    manage: bool = Field(default=True, description="true or false", examples=["true"])
    mark_shift: int = Field(
        default=24,
        ge=0,
        le=24,
        description="a bit number from 0 to 24",
        examples=["24"],
    )


class ConfigFile(Section):
    """The whole file."""

    site: SiteName = Field(examples=["alpha.example"])
    lan: list[Interface] = Field(
        min_length=1, description="a list of at least one interface", examples=["[lan0]"]
    )
    uplinks: dict[UplinkName, UplinkSection] = Field(
        min_length=1,
        description="a mapping of at least one name to an uplink",
        examples=[
            '{isp1: {interface: wan1, prefix: "2001:db8:a1::/48", '
            'gateway: "2001:db8:f1::1", preference: 1}}'
        ],
    )
    dns: DnsSection = Field(examples=['{servers: ["2001:db8:ff::53"]}'])
    policy: PolicySection = Field(
        default_factory=PolicySection,
        examples=["{unknown_peers: ignore}"],
    )
    locators: LocatorsSection = Field(default_factory=LocatorsSection, examples=["{map: prefix}"])
    hosts: dict[DomainName, Ipv6] = Field(
        default_factory=dict,
        description="a mapping of names to addresses",
        examples=['{a1.alpha.example: "2001:db8:a1::11"}'],
    )
    peers: dict[DomainName, list[Ipv6]] = Field(
        default_factory=dict,
        description="a mapping of names to lists of addresses",
        examples=['{b1.beta.example: ["2001:db8:b1::11"]}'],
    )
    fast_path: FastPath = Field(
        default="auto",
        description="auto, bpf or off",
        examples=["auto"],
    )
    express: Express = Field(default="auto", description="auto or off", examples=["auto"])
    queues: QueuesSection = Field(
        default_factory=QueuesSection,
        examples=["{outbound: 140, inbound: 141}"],
    )
    routing: RoutingSection = Field(default_factory=RoutingSection, examples=["{manage: true}"])
    control: SocketPath | None = Field(default=None, examples=["/run/m6proxy/alpha.sock"])


def check_keys(document: Document) -> ConfigFile | None:
    """Check each key by itself; faults go to ``document``, and then the answer is None."""
    if document.value is None and not document.faults:
        document.add((), "the file is empty; conf/alpha.yaml is an example to begin with")
        return None
    if not isinstance(document.value, dict):
        if not document.faults:
            document.add((), "the file is not a mapping; write lines of `key: value`")
        return None
    try:
        return ConfigFile.model_validate(document.value)
    except ValidationError as error:
        for problem in error.errors(include_url=False):
            path = tuple(part for part in problem["loc"] if part != "[key]")
            document.add(path, _what(problem, path))
        return None


def _what(problem: Mapping[str, Any], path: KeyPath) -> str:
    """Say in the project's words what pydantic found."""
    kind, value = problem["type"], problem["input"]
    fields, info = _field_at(path)
    example = info.examples[0] if info is not None and info.examples else None
    if kind == "extra_forbidden":
        return _unknown(str(path[-1]), _field_at(path[:-1])[0])
    if kind == "missing":
        return f"is missing; add `{path[-1]}: {example}`"
    if kind == "value_error":
        return str(problem["ctx"]["error"])
    if fields:
        return f"{_shown(value)} is not a mapping; the keys here are {', '.join(fields)}"
    if value is None:
        return f"holds nothing; write for example `{example}`"
    if kind == "string_type":
        if isinstance(value, list | dict):
            return f"{_shown(value)} is not text; write one value"
        return f"{_shown(value)} is not text; put it in quotes"
    expected = info.description if info is not None else None
    return f"{_shown(value)} is not {expected}; write for example `{example}`"


def _unknown(key: str, fields: Mapping[str, FieldInfo]) -> str:
    near = difflib.get_close_matches(key, fields, n=1, cutoff=0.5)
    if near:
        return f"unknown key; did you mean `{near[0]}`?"
    return f"unknown key; the keys here are {', '.join(fields)}"


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is None:
        return "nothing"
    text = str(value) if isinstance(value, int | float) else repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _field_at(path: KeyPath) -> tuple[Mapping[str, FieldInfo], FieldInfo | None]:
    """The keys that may stand inside ``path``, and the field that ``path`` belongs to."""
    fields: Mapping[str, FieldInfo] = ConfigFile.model_fields
    info: FieldInfo | None = None
    free_key = False
    for part in path:
        if isinstance(part, int):
            continue
        if free_key:
            free_key = False
            continue
        if part not in fields:
            return fields, None
        info = fields[part]
        annotation = info.annotation
        free_key = get_origin(annotation) is dict
        inner = get_args(annotation)[1] if free_key else annotation
        if isinstance(inner, type) and issubclass(inner, Section):
            fields = inner.model_fields
        else:
            fields = {}
    return fields, info

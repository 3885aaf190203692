"""The configuration: one YAML file, read once, checked whole, then frozen.

``load_config`` finds every problem in one pass: ``yamlpos`` those of the YAML, ``document``
those of single keys, and this module those that lie between keys. Each is one line,
``FILE:LINE: key: what is wrong; how to mend it``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Literal, TypeAlias

from m6proxy.daemon.document import ConfigFile, check_keys
from m6proxy.daemon.yamlpos import Document, KeyPath, parse_yaml
from m6proxy.discovery.addressing import (
    NEUTRAL_BITS,
    PLAIN,
    SUBNET_BITS,
    LocatorMap,
    MapKind,
    NeutralMap,
    NsquareMap,
    PreagreedMap,
)
from m6proxy.discovery.capability import Capability, PrefixLocator
from m6proxy.errors import SetupError
from m6proxy.names import Address, Prefix, address, address_text
from m6proxy.shim.demux import DemuxMode
from m6proxy.shim.locators import UPLINKS_MAX
from m6proxy.shim.policy import (
    DETECTION,
    Detection,
    EstablishPolicy,
    FailbackMode,
    ForkRule,
    Selector,
)
from m6proxy.shim.routability import ReturnRoutability
from m6proxy.steering.settings import SteeringSettings, UplinkSettings

RUN_DIRECTORY = Path("/run/m6proxy")
"""Where control sockets are, unless the configuration says otherwise."""


class ConfigError(SetupError):
    """The configuration cannot be used; ``problems`` has one line for each thing to mend."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


Uplink: TypeAlias = UplinkSettings
"""One provider attachment: name, interface, prefix, gateway, preference (0 to 255)."""


@dataclass(frozen=True, slots=True)
class DnsSettings:
    """Where and how m6proxy asks."""

    servers: tuple[str, ...]
    """IPv6 or IPv4 addresses in text form, at least one."""
    port: int = 53
    timeout_s: float = 2.0


@dataclass(frozen=True, slots=True)
class LocatorSettings:
    """Which addresses a host has in each uplink's prefix; ``addressing`` says what they mean."""

    kind: MapKind = MapKind.PREFIX
    mark_at: int = 0
    """N-square addresses: how many bits stand before the mark."""
    identifier: Prefix | None = None
    """Pre-agreed identifiers: the prefix that hosts have addresses from."""

    def over(self, prefixes: Iterable[Prefix]) -> LocatorMap:
        """The mapping between these prefixes."""
        if self.kind is MapKind.NEUTRAL:
            return NeutralMap(prefixes)
        if self.kind is MapKind.NSQUARE:
            return NsquareMap(prefixes, self.mark_at)
        if self.identifier is not None:
            return PreagreedMap(prefixes, self.identifier)
        return PLAIN


@dataclass(frozen=True, slots=True)
class Config:
    """Everything that one gateway is told; valid by construction in ``load_config``."""

    site: str
    """The site's domain, lower case, without the final dot."""
    lan: tuple[str, ...]
    """Interfaces that hosts are behind."""
    uplinks: tuple[Uplink, ...]
    """The best preference first; equal ones in the order of the file."""
    dns: DnsSettings
    control: Path
    """The control socket, absolute, at most 107 octets."""
    establish: EstablishPolicy = field(default_factory=EstablishPolicy)
    unknown_peers: Literal["ignore", "probe"] = "ignore"
    detection: tuple[Detection, ...] = DETECTION
    """How to find out whether a peer has a shim, in this order."""
    capable: tuple[Prefix, ...] = ()
    """Peers that have one by word of the operator; a name's addresses are /128."""
    demux: tuple[DemuxMode, ...] = (DemuxMode.EXTHDR, DemuxMode.DSTOPT)
    """How re-homed packets may find their context; the first is the one asked of peers."""
    forks: tuple[ForkRule, ...] = ()
    """Which traffic goes by forks of its pair's context."""
    hold_first_packet_s: float = 0.0
    """How long a packet whose addresses do not work may wait for a context; 0: not at all."""
    return_routability: ReturnRoutability = ReturnRoutability.FIRST_USE
    """When a peer's locator is tested before it gets payload."""
    send_timeout_s: float = 15.0
    """RFC 5534 Send Timeout: how long an answer may be due before exploration starts."""
    idle_s: float = 300.0
    """After how long without packets a context is removed."""
    park_max_s: float = 3600.0
    """How long contexts wait for a peer that says that it goes away; 0: not at all."""
    failback: FailbackMode = FailbackMode.SOFT
    """Whether contexts go back to a better pair."""
    failback_hold_s: float = 60.0
    """How long a better pair must answer before a context goes back to it."""
    probes_per_s: float = 2000.0
    """At most so many probes of searches, all contexts together."""
    max_contexts: int = 200_000
    locators: LocatorSettings = LocatorSettings()
    """How the locators of a host follow from its ULID."""
    locators_max: int = 64
    """How many locators of a peer are kept."""
    hosts: tuple[tuple[str, Address], ...] = ()
    """Names of local hosts with their address; overrides PTR."""
    peers: tuple[tuple[str, Address], ...] = ()
    """Names of peers with each of their addresses; overrides discovery."""
    queue_outbound: int = 140
    queue_inbound: int = 141
    table_base: int = 14_000
    """The first of as many routing tables as there are uplinks."""
    rule_priority: int = 14_000
    manage_routes: bool = True
    fast_path: Literal["auto", "bpf", "off"] = "auto"
    """Whether programs in the kernel move packets: where they can, always, never."""
    express: Literal["auto", "off"] = "auto"
    """Whether they send packets past the gateway's IPv6 stack, where nobody else would see them."""
    mark_shift: int = 24
    """Where our 8 bits of a packet's mark begin, when they do."""

    @property
    def bpf_folder(self) -> Path:
        """Where maps and programs are pinned, one folder for each site on a machine."""
        return self.control.parent / "bpf" / self.control.stem

    @property
    def memos(self) -> Path:
        """What a successor has to know of contexts, beside what is pinned."""
        return self.control.with_suffix(".contexts")

    @property
    def locator_map(self) -> LocatorMap:
        """How the locators of a host follow from its ULID."""
        return self.locators.over(uplink.prefix for uplink in self.uplinks)

    @property
    def capability(self) -> Capability:
        """What the site publishes of each of its hosts."""
        prefixes = tuple(PrefixLocator(u.prefix, u.preference) for u in self.uplinks)
        marked = self.locators.kind is MapKind.NSQUARE
        mark_at = self.locators.mark_at if marked else None
        neutral = self.locators.kind is MapKind.NEUTRAL
        return Capability(site=self.site, prefixes=prefixes, mark_at=mark_at, neutral=neutral)

    @property
    def steering(self) -> SteeringSettings:
        """What rules and routes are rendered from."""
        return SteeringSettings(
            site=self.site,
            lan=self.lan,
            uplinks=self.uplinks,
            queue_outbound=self.queue_outbound,
            queue_inbound=self.queue_inbound,
            table_base=self.table_base,
            rule_priority=self.rule_priority,
            locator_only=self.locator_map.patterns(),
        )


def load_config(path: Path) -> Config:
    """Read and check a configuration file. Raises ConfigError with all problems found."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            [f"{path}: cannot be read: {error.strerror}; give the right file with -c"]
        ) from None
    except UnicodeDecodeError:
        raise ConfigError([f"{path}: this is not UTF-8 text; save it as UTF-8"]) from None
    return parse_config(text, str(path))


def parse_config(text: str, source: str) -> Config:
    """Check the text of a configuration; ``source`` is its name in messages.

    Raises ConfigError with all problems found.
    """
    document = parse_yaml(text)
    file = check_keys(document)
    _check_between_keys(document)
    if document.faults or file is None:
        faults = sorted(document.faults, key=lambda fault: fault.line)
        raise ConfigError(
            [
                f"{source}:{fault.line}: " + (f"{fault.key}: " if fault.key else "") + fault.what
                for fault in faults
            ]
        )
    return _freeze(file)


def _freeze(file: ConfigFile) -> Config:
    uplinks = [
        Uplink(
            name=name,
            interface=section.interface,
            prefix=Prefix.parse(section.prefix),
            gateway=address(section.gateway),
            preference=section.preference,
            weight=section.weight,
            temporary=section.temporary,
        )
        for name, section in file.uplinks.items()
    ]
    establish, policy = file.policy.establish, file.policy
    default_control = RUN_DIRECTORY / f"{file.site.partition('.')[0]}.sock"
    return Config(
        site=file.site,
        lan=tuple(file.lan),
        uplinks=tuple(sorted(uplinks, key=lambda uplink: uplink.preference)),
        dns=DnsSettings(tuple(file.dns.servers), file.dns.port, file.dns.timeout_s),
        control=Path(file.control) if file.control else default_control,
        establish=EstablishPolicy(
            after_octets=establish.after_octets,
            after_packets=establish.after_packets,
            after_s=establish.after_s,
            always=tuple(Selector.parse(text) for text in establish.always),
            never=tuple(Selector.parse(text) for text in establish.never),
        ),
        unknown_peers=policy.unknown_peers,
        detection=tuple(Detection(method) for method in policy.detection),
        capable=tuple(_capable(file)),
        demux=tuple(DemuxMode[name.upper()] for name in policy.demux),
        forks=tuple(
            ForkRule(tuple(Selector.parse(text) for text in fork.match), fork.uplink)
            for fork in policy.forks
        ),
        hold_first_packet_s=policy.hold_first_packet_s,
        return_routability=ReturnRoutability(policy.return_routability),
        send_timeout_s=policy.send_timeout_s,
        idle_s=policy.idle_s,
        park_max_s=float(policy.park_max_s),
        failback=FailbackMode(policy.failback),
        failback_hold_s=policy.failback_hold_s,
        probes_per_s=policy.probes_per_s,
        max_contexts=policy.max_contexts,
        locators=_locators(file),
        locators_max=policy.locators_max,
        hosts=tuple((name, address(text)) for name, text in file.hosts.items()),
        peers=tuple((name, address(text)) for name, texts in file.peers.items() for text in texts),
        queue_outbound=file.queues.outbound,
        queue_inbound=file.queues.inbound,
        table_base=file.routing.table_base,
        rule_priority=file.routing.rule_priority,
        manage_routes=file.routing.manage,
        fast_path=file.fast_path,
        express=file.express,
        mark_shift=file.routing.mark_shift,
    )


def _locators(file: ConfigFile) -> LocatorSettings:
    """``mark_at`` is by default where the prefixes end, ``identifier`` the best uplink."""
    uplinks = sorted(file.uplinks.items(), key=lambda named: named[1].preference)
    if file.locators.map is None:
        longest = max(Prefix.parse(uplink.prefix).length for _, uplink in uplinks)
        return LocatorSettings(MapKind.NEUTRAL if longest <= NEUTRAL_BITS else MapKind.PREFIX)
    kind = MapKind(file.locators.map)
    if kind is MapKind.NSQUARE:
        first = Prefix.parse(uplinks[0][1].prefix)
        return LocatorSettings(kind, file.locators.mark_at or first.length)
    if kind is MapKind.PREAGREED:
        name = file.locators.identifier or uplinks[0][0]
        return LocatorSettings(kind, identifier=Prefix.parse(file.uplinks[name].prefix))
    return LocatorSettings(kind)


def _capable(file: ConfigFile) -> Iterator[Prefix]:
    for text in file.policy.capable:
        if ":" in text:
            yield Prefix.parse(text)
        else:
            yield from (Prefix(address(one), 128) for one in file.peers[text])


# What lies between keys. These look at the raw values, whatever of them can be understood,
# so that a fault in one key does not hide another.


def _check_between_keys(document: Document) -> None:
    count = len(list(_uplinks(document)))
    if count > UPLINKS_MAX:
        document.add(
            ("uplinks",),
            f"{count} uplinks, and one message to a peer takes {UPLINKS_MAX} at most; "
            "leave the least useful ones out",
        )
    _check_interfaces(document)
    prefixes = _check_prefixes(document)
    _check_hosts(document, prefixes)
    _check_locators(document, prefixes)
    _check_detection(document)
    _check_forks(document)
    outbound = _at(document.value, "queues", "outbound")
    inbound = _at(document.value, "queues", "inbound")
    if (140 if outbound is None else outbound) == (141 if inbound is None else inbound):
        key = "outbound" if inbound is None else "inbound"
        document.add(("queues", key), "both directions have the same queue; use two numbers")
    _check_demux(document)
    send_timeout_s = _at(document.value, "policy", "send_timeout_s")
    idle_s = _at(document.value, "policy", "idle_s")
    if (
        isinstance(send_timeout_s, int | float)
        and isinstance(idle_s, int | float)
        and 60 <= idle_s <= send_timeout_s <= 100
    ):
        document.add(
            ("policy", "idle_s"),
            f"{idle_s} is not longer than send_timeout_s: a context would be removed before "
            "its path can be found dead; make idle_s longer",
        )


def _check_demux(document: Document) -> None:
    modes = _at(document.value, "policy", "demux")
    if not isinstance(modes, list) or not modes:
        return
    if len(set(map(str, modes))) < len(modes):
        document.add(("policy", "demux"), "a mode stands there twice; write each once")
    elif "exthdr" not in modes:
        document.add(
            ("policy", "demux"),
            "exthdr is missing: it is what every peer understands; add it at the end",
        )
    elif "identifier" in modes[: modes.index("exthdr")] and _at(
        document.value, "locators", "map"
    ) in (None, "prefix", "neutral"):
        document.add(
            ("policy", "demux"),
            "identifier is asked of peers, and there are no locator-only addresses; "
            "add `locators: {map: nsquare}`, or put it behind exthdr",
        )


def _check_locators(document: Document, prefixes: list[Prefix]) -> None:
    kind = _at(document.value, "locators", "map") or "prefix"
    mark_at = _at(document.value, "locators", "mark_at")
    identifier = _at(document.value, "locators", "identifier")
    names = [name for name, _ in _uplinks(document)]
    for key, value, owner in (
        ("mark_at", mark_at, "nsquare"),
        ("identifier", identifier, "preagreed"),
    ):
        if value is not None and kind != owner:
            document.add(("locators", key), f"means nothing without `map: {owner}`; leave it out")
    if kind == "preagreed" and isinstance(identifier, str) and identifier not in names:
        document.add(
            ("locators", "identifier"),
            f"{identifier!r} is no uplink; the uplinks here are {', '.join(names)}",
        )
    if not prefixes or len({prefix.length for prefix in prefixes}) > 1:
        return
    length = prefixes[0].length
    if kind == "neutral" and length > SUBNET_BITS:
        document.add(
            ("locators", "map"),
            f"behind /{length} no 16 bits are left that keep the sum; use `map: prefix`",
        )
    if kind == "nsquare":
        bits = len(prefixes).bit_length()
        if mark_at is None and length + bits > SUBNET_BITS:
            document.add(
                ("locators", "map"),
                f"the mark of {bits} bits finds no room between /{length} and the interface "
                f"identifier; write `mark_at`: the first of {bits} bits that are 0 in the address "
                "of every host, or use `map: preagreed`",
            )
            return
        if isinstance(mark_at, int) and not length <= mark_at <= 128 - bits:
            document.add(
                ("locators", "mark_at"),
                f"{bits} bits at {mark_at} are not behind the prefix; "
                f"write a number from {length} to {128 - bits}",
            )
            return
    _check_identifiers(document, _raw_map(document, str(kind), prefixes))


def _raw_map(document: Document, kind: str, prefixes: list[Prefix]) -> LocatorMap:
    """The mapping, as far as the raw values have one."""
    mark_at = _at(document.value, "locators", "mark_at")
    if kind == "nsquare":
        return NsquareMap(prefixes, mark_at if isinstance(mark_at, int) else prefixes[0].length)
    sections = dict(_uplinks(document))
    named = _at(document.value, "locators", "identifier")
    if kind != "preagreed" or (named is not None and named not in sections):
        return PLAIN
    best = min(sections.values(), key=lambda section: str(section.get("preference")).zfill(3))
    home = sections[str(named)] if named is not None else best
    try:
        return PreagreedMap(prefixes, Prefix.parse(str(home.get("prefix"))))
    except ValueError:
        return PLAIN


def _check_identifiers(document: Document, locator_map: LocatorMap) -> None:
    hosts = _at(document.value, "hosts")
    for name, text in hosts.items() if isinstance(hosts, dict) else ():
        try:
            host = address(str(text))
        except ValueError:
            continue
        if locator_map.is_locator_only(host):
            document.add(
                ("hosts", name),
                f"{address_text(host)} is a locator-only address by `locators`: no host may have "
                "it; give the host another address, or the mapping another place",
            )


def _check_interfaces(document: Document) -> None:
    seen: dict[str, KeyPath] = {}
    lan = _at(document.value, "lan")
    named: list[tuple[KeyPath, object]] = (
        [(("lan", i), name) for i, name in enumerate(lan)] if isinstance(lan, list) else []
    )
    named += [
        (("uplinks", name, "interface"), section.get("interface"))
        for name, section in _uplinks(document)
    ]
    for path, interface in named:
        if not isinstance(interface, str):
            continue
        if interface in seen:
            where = document.line_of(seen[interface])
            document.add(
                path,
                f"interface {interface} has a part already (line {where}); "
                "give each LAN and uplink its own",
            )
        seen.setdefault(interface, path)


def _check_prefixes(document: Document) -> list[Prefix]:
    known: list[tuple[str, Prefix]] = []
    for name, section in _uplinks(document):
        try:
            prefix = Prefix.parse(str(section.get("prefix")))
        except ValueError:
            continue
        if 1 <= prefix.length <= 64:
            known.append((name, prefix))
    for (earlier_name, earlier), (later_name, later) in combinations(known, 2):
        if earlier.overlaps(later):
            document.add(
                ("uplinks", later_name, "prefix"),
                f"{later} overlaps {earlier} of {earlier_name}; give each uplink its own prefix",
            )
    for name, prefix in known[1:]:
        first_name, first = known[0]
        if prefix.length != first.length:
            document.add(
                ("uplinks", name, "prefix"),
                f"wrong prefix length /{prefix.length}: {first_name} has /{first.length}, and a "
                "locator is a host's address with one prefix in place of the other; "
                "use the same length for all uplinks",
            )
    return [prefix for _, prefix in known]


def _check_hosts(document: Document, prefixes: list[Prefix]) -> None:
    hosts = _at(document.value, "hosts")
    seen: dict[Address, str] = {}
    for name, text in hosts.items() if isinstance(hosts, dict) else ():
        try:
            host = address(str(text))
        except ValueError:
            continue
        if prefixes and not any(prefix.contains(host) for prefix in prefixes):
            document.add(
                ("hosts", name),
                f"{address_text(host)} is in none of the uplinks' prefixes; "
                "write an address that the host has from one of them",
            )
        if host in seen:
            document.add(
                ("hosts", name),
                f"{address_text(host)} is {seen[host]} already; give each host one name",
            )
        seen.setdefault(host, name)


def _check_detection(document: Document) -> None:
    methods = _at(document.value, "policy", "detection")
    if isinstance(methods, list) and len(set(map(str, methods))) < len(methods):
        document.add(("policy", "detection"), "names a way twice; write each at most once")
    peers = _at(document.value, "peers")
    known = {str(name).rstrip(".").lower() for name in peers} if isinstance(peers, dict) else set()
    capable = _at(document.value, "policy", "capable")
    for place, text in enumerate(capable if isinstance(capable, list) else ()):
        if isinstance(text, str) and ":" not in text and text.rstrip(".").lower() not in known:
            document.add(
                ("policy", "capable", place),
                f"{text!r} has no address in `peers`; add it there, or write a prefix",
            )


def _check_forks(document: Document) -> None:
    known = [name for name, _ in _uplinks(document)]
    forks = _at(document.value, "policy", "forks")
    for place, fork in enumerate(forks if isinstance(forks, list) else ()):
        uplink = _at(fork, "uplink")
        if isinstance(uplink, str) and uplink not in known:
            document.add(
                ("policy", "forks", place, "uplink"),
                f"{uplink!r} is no uplink; the uplinks here are {', '.join(known)}",
            )


def _uplinks(document: Document) -> Iterator[tuple[str, dict[str, object]]]:
    uplinks = _at(document.value, "uplinks")
    for name, section in uplinks.items() if isinstance(uplinks, dict) else ():
        if isinstance(section, dict):
            yield name, section


def _at(value: object, *path: str) -> object:
    """The raw value at a path, or None."""
    for key in path:
        if not isinstance(value, dict):
            return None
        value = value.get(key)
    return value

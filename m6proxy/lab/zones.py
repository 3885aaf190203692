"""The name server's files as text: knotd's configuration and the zones of the lab. Pure.

A host has one AAAA, its one address. A host of a capable site has a capability record
beside it that says which prefixes are its site's.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from pathlib import Path

from m6proxy.discovery.capability import Capability, PrefixLocator
from m6proxy.lab.topology import NAMESERVER, SITES, Host, Site, Uplink, fqdn
from m6proxy.names import Prefix

TTL_S = 3600
NEGATIVE_TTL_S = 60

CapabilityLine = Callable[[str, Capability, int], str]
"""Host name, capability and TTL in seconds to the lines of a zone file."""


def capability(site: Site) -> Capability:
    """Return what a capable site publishes about each of its hosts."""
    return Capability(
        site=site.zone,
        prefixes=tuple(
            PrefixLocator(Prefix.parse(uplink.prefix), uplink.preference) for uplink in site.uplinks
        ),
        neutral=True,
    )


def forward_zone(site: Site, capability_line: CapabilityLine) -> str:
    """Return the zone file of a site's names."""
    lines = _head(site.zone)
    for host in site.hosts:
        name = fqdn(site, host)
        lines.append(f"{name}. {TTL_S} IN AAAA {host.address}")
        if site.capable:
            lines.append(capability_line(name, capability(site), TTL_S).rstrip("\n"))
    return "\n".join(lines) + "\n"


def reverse_zone(site: Site, uplink: Uplink) -> str:
    """Return the zone file of one delegated /48 below ip6.arpa."""
    lines = _head(reverse_name(uplink.prefix))
    lines += [
        f"{_pointer(site, uplink, host)}. {TTL_S} IN PTR {fqdn(site, host)}." for host in site.hosts
    ]
    return "\n".join(lines) + "\n"


def reverse_name(prefix: str) -> str:
    """Return the ip6.arpa zone of a prefix whose length is a multiple of 4, no final dot."""
    network = ipaddress.IPv6Network(prefix)
    nibbles = network.network_address.exploded.replace(":", "")[: network.prefixlen // 4]
    return ".".join([*reversed(nibbles), "ip6", "arpa"])


def zone_files(capability_line: CapabilityLine) -> dict[str, str]:
    """Return every zone of the lab: its name to the text of its file."""
    zones = {site.zone: forward_zone(site, capability_line) for site in SITES}
    for site in SITES:
        for uplink in site.uplinks:
            zones[reverse_name(uplink.prefix)] = reverse_zone(site, uplink)
    return zones


def knot_config(directory: Path, zone_names: list[str]) -> str:
    """Return knotd's configuration; everything that knotd writes stays in ``directory``."""
    lines = [
        "server:",
        f"    listen: {NAMESERVER}@53",
        f"    rundir: {directory}",
        "    udp-workers: 1",
        "    tcp-workers: 1",
        "    background-workers: 1",
        "database:",
        f"    storage: {directory}/db",
        "log:",
        "  - target: stderr",
        "    any: info",
        "template:",
        "  - id: default",
        f"    storage: {directory}",
        '    file: "%s.zone"',
        "    zonefile-sync: -1",
        "    journal-content: none",
        "zone:",
        *(f"  - domain: {name}" for name in zone_names),
    ]
    return "\n".join(lines) + "\n"


def _head(zone: str) -> list[str]:
    return [
        f"$ORIGIN {zone}.",
        f"@ {TTL_S} IN SOA ns hostmaster 1 3600 900 604800 {NEGATIVE_TTL_S}",
        f"@ {TTL_S} IN NS ns",
        f"ns {TTL_S} IN AAAA {NAMESERVER}",
    ]


def _pointer(site: Site, uplink: Uplink, host: Host) -> str:
    return ipaddress.IPv6Address(site.locator(host, uplink)).reverse_pointer

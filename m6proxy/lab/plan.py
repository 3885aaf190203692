"""The topology in the words of the kernel's tools: batches for ``ip``, rules, sysctl lines.

Pure: text out, nothing applied. ``build`` and ``faults`` feed it to the tools.
"""

from __future__ import annotations

from m6proxy.lab.topology import (
    CORE,
    CORE_ON_NS_NET,
    NAMESERVER,
    NODES,
    NS,
    PROVIDERS,
    SITES,
    Site,
    Uplink,
)

BCP38_CHAIN = "lab-bcp38"
FAULT_CHAIN = "lab-fault"
CUSTOMER = "cust"
"""The provider's interface towards its site."""
BRIDGE_FILTER = "/proc/sys/net/bridge/bridge-nf-call-ip6tables"
"""Filtering of bridged frames. It is off on gateways, whose LAN is a bridge only to join two
hosts: with it a packet can meet PREROUTING twice, and be rewritten twice."""
SOURCE_TABLE = 200
"""Kernel routing table of a site's first uplink in the control run; the next ones follow."""


def namespace(lab: str, node: str) -> str:
    """Return the name of a node's network namespace."""
    return f"{lab}-{node}"


def links(lab: str) -> str:
    """Return the ``ip -batch`` text that creates every veth pair and bridge, run outside."""
    lines = []

    def veth(node: str, interface: str, peer: str, peer_interface: str) -> None:
        lines.append(
            f"link add {interface} netns {namespace(lab, node)} type veth "
            f"peer name {peer_interface} netns {namespace(lab, peer)}"
        )

    veth(CORE, "ns", NS, "eth0")
    for provider, (site, uplink) in PROVIDERS.items():
        veth(CORE, provider, provider, "core")
        veth(provider, CUSTOMER, site.gateway or site.hosts[0].node, uplink.interface)
    for site in SITES:
        if site.gateway:
            for host in site.hosts:
                veth(site.gateway, f"to-{host.node}", host.node, "eth0")
    return _text(lines)


def interior(node: str) -> str:
    """Return the ``ip -6 -batch`` text that a node runs inside: links up, addresses, routes."""
    lines = ["link set lo up"]
    if node == CORE:
        lines += _address(CORE_ON_NS_NET, "ns")
        for provider, (_, uplink) in PROVIDERS.items():
            lines += _address(uplink.core_address, provider)
            lines += [
                f"route replace {net} via {uplink.provider_core_address} dev {provider}"
                for net in (uplink.prefix, uplink.net)
            ]
    elif node == NS:
        lines += _address(NAMESERVER, "eth0")
        lines.append(f"route replace default via {CORE_ON_NS_NET} dev eth0")
    elif node in PROVIDERS:
        _, uplink = PROVIDERS[node]
        lines += _address(uplink.provider_core_address, "core")
        lines.append(f"route replace default via {uplink.core_address} dev core")
        lines += customer_side(node)
    else:
        lines += _site_node(node)
    return _text(lines)


def customer_side(provider: str) -> list[str]:
    """Return the batch lines of a provider's interface to its site; may be applied again."""
    _, uplink = PROVIDERS[provider]
    return [
        *_address(uplink.provider_address, CUSTOMER),
        f"route replace {uplink.prefix} via {uplink.site_address} dev {CUSTOMER}",
    ]


def _site_node(node: str) -> list[str]:
    for site in SITES:
        if node == site.gateway:
            return _gateway(site)
        for host in site.hosts:
            if node == host.node and site.gateway:
                return [
                    *_address(host.address, "eth0"),
                    f"route replace default via {host.router} dev eth0",
                ]
            if node == host.node:
                return _attached_host(site.uplinks[0], host.address)
    raise KeyError(f"no node {node!r}; the lab has {', '.join(NODES)}")


def _attached_host(uplink: Uplink, address: str) -> list[str]:
    """A host without a gateway: its one address stands behind its end of the uplink net."""
    return [
        *_address(uplink.site_address, uplink.interface),
        f"address replace {address}/128 dev lo nodad",
        f"route replace default via {uplink.provider_address} dev {uplink.interface} src {address}",
    ]


def _gateway(site: Site) -> list[str]:
    lines = ["link add lan0 type bridge mcast_snooping 0"]
    for host in site.hosts:
        lines += [f"link set to-{host.node} master lan0", f"link set to-{host.node} up"]
    lines += _address(site.lan_address, "lan0")
    for uplink in site.uplinks:
        lines += _address(uplink.site_address, uplink.interface)
        # What was delegated and is not on a LAN goes nowhere, or it would come back for ever.
        lines.append(f"route replace unreachable {uplink.prefix} metric 4096")
    first = site.uplinks[0]
    lines.append(f"route replace default via {first.provider_address} dev {first.interface}")
    return lines


def source_routing(site: Site) -> str:
    """Return the ``ip -6 -batch`` text that gives a gateway routes by source prefix.

    Only the control run needs it: m6proxy installs its own.
    """
    lines = []
    for number, uplink in enumerate(site.uplinks):
        table = SOURCE_TABLE + number
        lines.append(
            f"route replace default via {uplink.provider_address} "
            f"dev {uplink.interface} table {table}"
        )
        for net in (uplink.prefix, uplink.net):
            lines.append(f"rule add from {net} lookup main suppress_prefixlength 0 pref {table}")
            lines.append(f"rule add from {net} lookup {table} pref {table}")
    return _text(lines)


def sysctl(node: str) -> str:
    """Return the shell lines that set the node's sysctls; they go before its links exist."""
    values = {
        "all/accept_dad": 0,
        "default/accept_dad": 0,
        "default/accept_ra": 0,
        "default/autoconf": 0,
        "default/router_solicitations": 0,
        "default/keep_addr_on_down": 1,
        "all/keep_addr_on_down": 1,
    }
    if node == CORE or node in PROVIDERS or any(node == site.gateway for site in SITES):
        values |= {"all/forwarding": 1, "default/forwarding": 1}
    lines = [f"echo {v} > /proc/sys/net/ipv6/conf/{key}\n" for key, v in values.items()]
    if any(node == site.gateway for site in SITES):
        lines.append(f"if [ -e {BRIDGE_FILTER} ]; then echo 0 > {BRIDGE_FILTER}; fi\n")
    return "".join(lines)


def provider_filter(provider: str) -> str:
    """Return the ip6tables-restore text of a provider: BCP 38, and room for faults."""
    _, uplink = PROVIDERS[provider]
    return _text(
        [
            "*filter",
            f":{FAULT_CHAIN} - [0:0]",
            f":{BCP38_CHAIN} - [0:0]",
            f"-A FORWARD -j {FAULT_CHAIN}",
            f"-A FORWARD -i {CUSTOMER} -j {BCP38_CHAIN}",
            f"-A {BCP38_CHAIN} -s {uplink.prefix} -j RETURN",
            f"-A {BCP38_CHAIN} -s {uplink.net} -j RETURN",
            f"-A {BCP38_CHAIN} -j DROP",
            "COMMIT",
        ]
    )


def fault(rules: list[str]) -> str:
    """Return the ip6tables-restore text that makes these the only rules of the fault chain."""
    return _text(
        [
            "*filter",
            f":{FAULT_CHAIN} - [0:0]",
            *(f"-A {FAULT_CHAIN} {rule}" for rule in rules),
            "COMMIT",
        ]
    )


def _address(address: str, interface: str) -> list[str]:
    return [
        f"address replace {address}/64 dev {interface} nodad",
        f"link set {interface} up",
    ]


def _text(lines: list[str]) -> str:
    return "".join(f"{line}\n" for line in lines)

"""What the lab consists of, as data: sites, providers, hosts, links and addresses (DESIGN §7).

::

    a1 a2                                                b1 b2
      |  lan0            core                 lan0         |
     agw --wan1-- p1 ---+    +--- p3 --wan1-- bgw ---------+
         --wan2-- p2 ---|core|--- p4 --wan2--
                        |    |--- p5 -- c1 (gamma: no m6proxy)
                        +----+--- ns (Knot DNS, 2001:db8:ff::53)

Hosts have one address and a default route, and nothing else.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from m6proxy.discovery.addressing import NeutralMap
from m6proxy.names import Prefix, address, address_text

DEFAULT_LAB = "m6lab"
NAMESERVER = "2001:db8:ff::53"
CORE_ON_NS_NET = "2001:db8:ff::1"
CORE = "core"
NS = "ns"


@dataclass(frozen=True, slots=True)
class Host:
    """An ordinary IPv6 host: one address, one default route."""

    node: str
    """The namespace's name without the lab's."""
    address: str
    """Text form, in the first prefix of its site."""
    router: str
    """The next hop of its default route."""


@dataclass(frozen=True, slots=True)
class Uplink:
    """One provider attachment of a site."""

    name: str
    """As in the configuration of m6proxy: ``isp1``."""
    provider: str
    """The node of the provider."""
    prefix: str
    """Delegated to the site, a /48."""
    net: str
    """The link between provider and site, a /64: the provider is ::1, the gateway ::2."""
    core_net: str
    """The link between core and provider, a /64: the core is ::1, the provider ::2."""
    interface: str
    """On the site's side of the link."""
    preference: int
    """1 is the best."""

    @property
    def provider_address(self) -> str:
        """The provider's address on the link to the site."""
        return _in(self.net, 1)

    @property
    def site_address(self) -> str:
        """The site's address on the link to the provider."""
        return _in(self.net, 2)

    @property
    def core_address(self) -> str:
        """The core's address on the link to the provider."""
        return _in(self.core_net, 1)

    @property
    def provider_core_address(self) -> str:
        """The provider's address on the link to the core."""
        return _in(self.core_net, 2)

    def subnet(self, subnet_id: int) -> str:
        """Return the /64 of the delegated prefix with this subnet id, in text form."""
        base = int(ipaddress.IPv6Network(self.prefix).network_address)
        return str(ipaddress.IPv6Network((base | subnet_id << 64, 64)))


@dataclass(frozen=True, slots=True)
class Site:
    """A site: hosts behind a gateway with one or more uplinks."""

    name: str
    """``alpha``; its zone is ``alpha.example``."""
    gateway: str | None
    """The gateway's node; None when the only host is attached to the provider directly."""
    hosts: tuple[Host, ...]
    uplinks: tuple[Uplink, ...]
    capable: bool
    """Whether m6proxy may run on its gateway, and its hosts have a capability record."""

    @property
    def zone(self) -> str:
        """The site's DNS zone, without the final dot."""
        return f"{self.name}.example"

    @property
    def lan(self) -> str:
        """The LAN's /64, in the first prefix."""
        return self.uplinks[0].subnet(1)

    @property
    def lan_address(self) -> str:
        """The gateway's address on the LAN."""
        return _in(self.lan, 1)

    def locator(self, host: Host, uplink: Uplink) -> str:
        """Return the host's locator over an uplink as m6proxy has it by default, in text form."""
        by_prefix = NeutralMap(Prefix.parse(one.prefix) for one in self.uplinks)
        locator = by_prefix.locator(address(host.address), Prefix.parse(uplink.prefix))
        return address_text(locator)


def _in(net: str, number: int) -> str:
    return str(ipaddress.IPv6Network(net)[number])


def _uplink(name: str, provider: int, prefix: str, interface: str, preference: int) -> Uplink:
    return Uplink(
        name=name,
        provider=f"p{provider}",
        prefix=f"2001:db8:{prefix}::/48",
        net=f"2001:db8:f{provider}::/64",
        core_net=f"2001:db8:e{provider}::/64",
        interface=interface,
        preference=preference,
    )


def _multihomed(name: str, letter: str, first_provider: int) -> Site:
    router = f"2001:db8:{letter}1:1::1"
    return Site(
        name=name,
        gateway=f"{letter}gw",
        hosts=tuple(Host(f"{letter}{n}", f"2001:db8:{letter}1:1::{n}0", router) for n in (1, 2)),
        uplinks=tuple(
            _uplink(f"isp{n}", first_provider + n - 1, f"{letter}{n}", f"wan{n}", n) for n in (1, 2)
        ),
        capable=True,
    )


ALPHA = _multihomed("alpha", "a", 1)
BETA = _multihomed("beta", "b", 3)
GAMMA = Site(
    name="gamma",
    gateway=None,
    hosts=(Host("c1", "2001:db8:c1:1::10", "2001:db8:f5::1"),),
    uplinks=(_uplink("isp1", 5, "c1", "eth0", 1),),
    capable=False,
)
SITES = (ALPHA, BETA, GAMMA)

PROVIDERS: dict[str, tuple[Site, Uplink]] = {
    uplink.provider: (site, uplink) for site in SITES for uplink in site.uplinks
}
"""Each provider's node with the site and uplink that it serves."""

NODES: tuple[str, ...] = (
    CORE,
    NS,
    *PROVIDERS,
    *(site.gateway for site in SITES if site.gateway),
    *(host.node for site in SITES for host in site.hosts),
)
"""All nodes; the namespace of one is ``<lab>-<node>``."""


def site_by_name(name: str) -> Site:
    """Return a site. Raises KeyError with one line for an unknown name."""
    for site in SITES:
        if site.name == name:
            return site
    raise KeyError(f"no site {name!r}; the lab has {', '.join(s.name for s in SITES)}")


def provider_by_target(target: str) -> str:
    """Return the provider meant by ``p1`` or ``alpha.isp1``. Raises KeyError with one line."""
    if target in PROVIDERS:
        return target
    for node, (site, uplink) in PROVIDERS.items():
        if target == f"{site.name}.{uplink.name}":
            return node
    known = ", ".join(f"{s.name}.{u.name} ({node})" for node, (s, u) in PROVIDERS.items())
    raise KeyError(f"no provider {target!r}; there are {known}")


def fqdn(site: Site, host: Host) -> str:
    """Return the host's name in DNS, without the final dot."""
    return f"{host.node}.{site.zone}"


def short_names() -> dict[str, str]:
    """Return each host's addresses in text form with a word for people.

    The host's own address is ``a1``; a locator in another prefix of its site is ``a1@isp2``.
    """
    words: dict[str, str] = {}
    for site in SITES:
        for host in site.hosts:
            for uplink in site.uplinks[1:]:
                words[site.locator(host, uplink)] = f"{host.node}@{uplink.name}"
            words[host.address] = host.node
    return words

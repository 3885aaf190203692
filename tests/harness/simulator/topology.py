"""Addresses of the simulated internet: 2001:db8:SSUU::/48 is uplink UU of site SS.

The hosts of most sites have the same low bits under each prefix. Those of a hashed site have
a set of hash-based addresses each (RFC 5535), as ordinary hosts with Shim6 would.
"""

from __future__ import annotations

from functools import cache

from m6proxy.discovery.addressing import PLAIN, LocatorMap, NsquareMap
from m6proxy.names import Address, Prefix
from m6proxy.proof.cga import CgaParameters
from m6proxy.shim.demux import DemuxMode
from tests.harness.hba import hba_set
from tests.harness.simulator.schedule import SiteShape

PREFIX_OCTETS = 6
MARK_AT = 48
"""Where n-square addresses have their mark."""


@cache
def prefix_of(site: int, uplink: int) -> Prefix:
    """The prefix that a provider delegated to a site."""
    return Prefix.parse(f"2001:db8:{site + 1:x}{uplink + 1:02x}::/48")


def host_ulid(site: int, shape: SiteShape, host: int) -> Address:
    """The one address that a host of a site has, from its first provider."""
    if shape.hashed:
        return hashed_set(site, shape.uplinks, host)[0][0]
    return _usual_ulid(site, host)


def locator_map(site: int, shape: SiteShape) -> LocatorMap:
    """How the locators of a site's hosts follow from their ULIDs."""
    if shape.demux is not DemuxMode.IDENTIFIER:
        return PLAIN
    return NsquareMap((prefix_of(site, uplink) for uplink in range(shape.uplinks)), MARK_AT)


def router_of(site: int, uplink: int) -> Address:
    """The provider's router before a site, where ICMPv6 errors come from."""
    return prefix_of(site, uplink).graft(Prefix.parse("::fe/128").network)


@cache
def hashed_set(site: int, uplinks: int, host: int) -> list[tuple[Address, CgaParameters]]:
    """The addresses of a host of a hashed site, with their parameters."""
    prefixes = [prefix_of(site, uplink).network[:8] for uplink in range(uplinks)]
    return hba_set(prefixes, seed=site * 100 + host)


@cache
def _usual_ulid(site: int, host: int) -> Address:
    return prefix_of(site, 0).graft(Prefix.parse(f"::{host + 0x10:x}/128").network)

"""Addresses of the simulated internet: 2001:db8:SSUU::/48 is uplink UU of site SS."""

from __future__ import annotations

from functools import cache

from m6proxy.names import Address, Prefix

PREFIX_OCTETS = 6


@cache
def prefix_of(site: int, uplink: int) -> Prefix:
    """The prefix that a provider delegated to a site."""
    return Prefix.parse(f"2001:db8:{site + 1:x}{uplink + 1:02x}::/48")


@cache
def host_ulid(site: int, host: int) -> Address:
    """The one address that a host of a site has, from its first provider."""
    return prefix_of(site, 0).graft(Prefix.parse(f"::{host + 0x10:x}/128").network)

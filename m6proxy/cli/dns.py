"""``m6proxy dns``: what to publish."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from m6proxy.cli.options import config_option
from m6proxy.errors import SetupError
from m6proxy.names import Address, address, address_text

if TYPE_CHECKING:
    from m6proxy.daemon.config import Config


@click.group()
def dns() -> None:
    """Records to publish in DNS."""


@dns.command()
@config_option
@click.option("--host", required=True, metavar="NAME", help="The host's domain name.")
@click.option(
    "--address",
    "address_option",
    metavar="ADDR",
    help="The host's address; prints its AAAA and PTR records as well. "
    "Without it, the one in `hosts`.",
)
@click.option(
    "--ttl",
    type=click.IntRange(1, 604_800),
    default=3600,
    show_default=True,
    help="Seconds that resolvers may keep the records.",
)
def record(config_path: Path, host: str, address_option: str | None, ttl: int) -> None:
    """Print the zone-file lines that publish a host's capability."""
    from m6proxy.daemon.config import load_config

    config = load_config(config_path)
    name = _local_name(config, host)
    octets = _local_address(config, name, address_option)
    for line in _zone_lines(config, name, octets, ttl):
        click.echo(line)


def _local_name(config: Config, host: str) -> str:
    from m6proxy.discovery.hostname import parse_name

    try:
        name = parse_name(host)
    except ValueError as error:
        raise SetupError(f"--host: {error}; write for example a1.{config.site}") from None
    if name in dict(config.hosts) or name == config.site or name.endswith(f".{config.site}"):
        return name
    raise SetupError(
        f"--host: {name} is neither in the site's domain {config.site} nor under `hosts`; "
        "publish only this site's hosts, or add it to `hosts` in the configuration"
    )


def _local_address(config: Config, name: str, given: str | None) -> Address | None:
    if given is None:
        return dict(config.hosts).get(name)
    try:
        octets = address(given)
    except ValueError:
        raise SetupError(f"--address: {given!r} is not an IPv6 address") from None
    if not any(uplink.prefix.contains(octets) for uplink in config.uplinks):
        raise SetupError(
            f"--address: {given} is in none of the uplinks' prefixes; "
            "write an address that the host has from one of them"
        )
    if config.locator_map.is_locator_only(octets):
        raise SetupError(
            f"--address: {given} is a locator-only address: no host may have it; "
            "write the one that the host has"
        )
    return octets


def _zone_lines(config: Config, name: str, octets: Address | None, ttl: int) -> Iterator[str]:
    from m6proxy.discovery.codec import svcb_zone_line

    yield f"; Put this into the zone that holds {name}: its site has a shim, and these prefixes."
    yield svcb_zone_line(name, config.capability, ttl)
    if octets is None:
        yield f"; The AAAA records of {name} stay as they are."
        return
    by_uplink = (uplink.prefix.graft(octets) for uplink in config.uplinks)
    own = [one for one in by_uplink if not config.locator_map.is_locator_only(one)]
    yield f"; The address of {name} by each uplink, the best first. Keep those that are there."
    for one in own:
        yield f"{name}. {ttl} IN AAAA {address_text(one)}"
    yield "; Put these into the reverse zones, so that a peer who knows only the address finds it."
    for one in own:
        reverse = ipaddress.IPv6Address(one).reverse_pointer
        yield f"{reverse}. {ttl} IN PTR {name}."

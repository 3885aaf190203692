"""``m6proxy plan``: address plans of a site, before anything is configured."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from m6proxy.cli.options import json_option
from m6proxy.errors import SetupError
from m6proxy.names import Address, Prefix, address, address_text

if TYPE_CHECKING:
    from m6proxy.discovery.addressing import NsquareMap
    from m6proxy.discovery.capability import Capability


@click.group()
def plan() -> None:
    """Address plans to think about beforehand."""


@plan.command()
@click.option(
    "-c",
    "--config",
    "config_path",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="A configuration file, whose site, prefixes and hosts are taken.",
)
@click.option("--site", metavar="NAME", help="The site's domain, without a file.")
@click.option(
    "--prefix", "prefixes", multiple=True, metavar="PREFIX", help="A prefix; the best first."
)
@click.option(
    "--host", "hosts", multiple=True, metavar="NAME=ADDR", help="A host and an address of it."
)
@click.option(
    "--mark-at",
    type=click.IntRange(1, 127),
    metavar="BITS",
    help="How many bits of an address stand before the mark; by default those of the prefixes.",
)
@click.option(
    "--ttl",
    type=click.IntRange(1, 604_800),
    default=3600,
    show_default=True,
    help="Seconds that resolvers may keep the records.",
)
@json_option
def nsquare(
    config_path: Path | None,
    site: str | None,
    prefixes: tuple[str, ...],
    hosts: tuple[str, ...],
    mark_at: int | None,
    ttl: int,
    as_json: bool,
) -> None:
    """Print n-square addresses of hosts, and what DNS has to say of them.

    Each host has one address from each prefix, which may be the ULID of a session; each of
    those has locators of its own in the other prefixes, which are no host's address. The
    output is part of the site's zone file: all that is not a record stands in comments.
    """
    from m6proxy.discovery.addressing import SUBNET_BITS, NsquareMap

    wanted = _from_file(config_path) if config_path is not None else _Wanted()
    wanted = wanted.changed(site, prefixes, hosts, mark_at)
    if len(wanted.prefixes) < 2:
        raise SetupError("--prefix: n-square addresses need two prefixes or more; write each one")
    if not wanted.hosts:
        raise SetupError("--host: no host to plan for; write for example --host a1=2001:db8:a1::11")
    length, bits = wanted.prefixes[0].length, len(wanted.prefixes).bit_length()
    if wanted.mark_at is None and length + bits > SUBNET_BITS:
        raise SetupError(
            f"--mark-at: the mark of {bits} bits finds no room between /{length} and the interface "
            "identifier; write where all hosts' addresses have zeros, or pre-agree on identifiers"
        )
    try:
        planned = _Plan(wanted, NsquareMap(wanted.prefixes, wanted.mark_at or length), ttl)
    except ValueError as error:
        raise SetupError(f"{error}; write another address, or another place for the mark") from None
    if as_json:
        click.echo(json.dumps(planned.value(), indent=2))
        return
    for line in planned.lines():
        click.echo(line)


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What the plan is about."""

    site: str | None = None
    prefixes: tuple[Prefix, ...] = ()
    preferences: tuple[int, ...] = ()
    hosts: tuple[tuple[str, Address], ...] = ()
    mark_at: int | None = None

    def changed(
        self,
        site: str | None,
        prefixes: tuple[str, ...],
        hosts: tuple[str, ...],
        mark_at: int | None,
    ) -> _Wanted:
        """The same with what the command line says."""
        given = tuple(_prefix(text) for text in prefixes)
        named = tuple(_host(text) for text in hosts)
        preferences = tuple(range(1, len(given) + 1))
        return _Wanted(
            site if site is not None else self.site,
            given or self.prefixes,
            preferences or self.preferences,
            named or self.hosts,
            mark_at if mark_at is not None else self.mark_at,
        )


def _from_file(path: Path) -> _Wanted:
    from m6proxy.daemon.config import load_config

    config = load_config(path)
    return _Wanted(
        config.site,
        tuple(uplink.prefix for uplink in config.uplinks),
        tuple(uplink.preference for uplink in config.uplinks),
        config.hosts,
        config.locators.mark_at or None,
    )


def _prefix(text: str) -> Prefix:
    try:
        return Prefix.parse(text)
    except ValueError:
        raise SetupError(
            f"--prefix: {text!r} is not a prefix; write for example 2001:db8:a1::/48"
        ) from None


def _host(text: str) -> tuple[str, Address]:
    from m6proxy.discovery.hostname import parse_name

    name, _, given = text.partition("=")
    try:
        return parse_name(name), address(given)
    except ValueError:
        raise SetupError(
            f"--host: {text!r} is not a name and an address; "
            "write for example a1.alpha.example=2001:db8:a1::11"
        ) from None


class _Plan:
    """The sets of each host, and the records."""

    def __init__(self, wanted: _Wanted, found: NsquareMap, ttl: int) -> None:
        """Raises ValueError when the mark and the prefixes, or a host, do not go together."""
        from m6proxy.discovery.capability import Capability, PrefixLocator

        self._wanted, self._map, self._ttl = wanted, found, ttl
        self._numbered = found.prefixes
        self._capability: Capability = Capability(
            site=wanted.site,
            prefixes=tuple(map(PrefixLocator, wanted.prefixes, wanted.preferences)),
            mark_at=found.mark_at,
        )
        self._sets = [(name, self._sets_of(octets)) for name, octets in wanted.hosts]

    def value(self) -> dict[str, Any]:
        """The plan for programs."""
        return {
            "site": self._wanted.site,
            "mark": {"at": self._map.mark_at, "bits": self._map.width},
            "prefixes": [
                {"number": number, "prefix": str(prefix)}
                for number, prefix in enumerate(self._numbered, start=1)
            ],
            "hosts": [
                {
                    "name": name,
                    "sets": [
                        {
                            "ulid": address_text(ulid),
                            "locators": {
                                str(prefix): address_text(octets)
                                for prefix, octets in self._others(ulid)
                            },
                            "stand_in": address_text(self._map.stand_in(ulid)),
                        }
                        for ulid in sets
                    ],
                }
                for name, sets in self._sets
            ],
            "records": list(self._records()),
        }

    def lines(self) -> Iterator[str]:
        """The plan for people, as part of a zone file."""
        bits, at = self._map.width, self._map.mark_at
        yield f"; N-square addresses. Bits {at} to {at + bits - 1} of an address are its mark: 0 in"
        yield "; every address that a host has, else the number of the prefix of its ULID:"
        for number, prefix in enumerate(self._numbered, start=1):
            yield f";   {number}  {prefix}"
        for name, sets in self._sets:
            yield f"; {name}:"
            for ulid in sets:
                yield f";   ULID {address_text(ulid)}, locator-only"
                for prefix, octets in self._others(ulid):
                    yield f";     {address_text(octets)} in {prefix}"
                yield f";     {address_text(self._map.stand_in(ulid))} in its own prefix"
        yield "; No machine may have a locator-only address, and none of them is an AAAA record."
        yield from self._records()

    def _sets_of(self, octets: Address) -> tuple[Address, ...]:
        if not any(prefix.contains(octets) for prefix in self._numbered):
            raise ValueError(f"{address_text(octets)} is in none of the prefixes")
        if self._map.is_locator_only(octets):
            raise ValueError(f"the host's address {address_text(octets)} has a mark there")
        return tuple(prefix.graft(octets) for prefix in self._wanted.prefixes)

    def _others(self, ulid: Address) -> Iterator[tuple[Prefix, Address]]:
        for prefix in self._wanted.prefixes:
            if not prefix.contains(ulid):
                yield prefix, self._map.locator(ulid, prefix)

    def _records(self) -> Iterator[str]:
        from m6proxy.discovery.codec import svcb_zone_line

        for name, sets in self._sets:
            for ulid in sets:
                yield f"{name}. {self._ttl} IN AAAA {address_text(ulid)}"
            yield svcb_zone_line(name, self._capability, self._ttl)

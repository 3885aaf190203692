"""The command ``m6proxy``: names its subcommands, and imports one only when it is called."""

from __future__ import annotations

import importlib
import sys
from typing import NamedTuple

import click

from m6proxy import __version__
from m6proxy.errors import SetupError


class _Entry(NamedTuple):
    module: str
    attribute: str
    summary: str


_COMMANDS = {
    "check": _Entry("m6proxy.cli.check", "check", "Is this machine ready for this configuration?"),
    "run": _Entry("m6proxy.cli.run", "run", "Run the gateway daemon in the foreground."),
    "status": _Entry("m6proxy.cli.status", "status", "The daemon at a glance."),
    "contexts": _Entry("m6proxy.cli.contexts", "contexts", "The host-pair contexts."),
    "peers": _Entry("m6proxy.cli.peers", "peers", "What is known about peers."),
    "uplinks": _Entry("m6proxy.cli.uplinks", "uplinks", "The site's uplinks and how they are."),
    "drops": _Entry("m6proxy.cli.drops", "drops", "Dropped packets by reason."),
    "events": _Entry("m6proxy.cli.events", "events", "What happened lately."),
    "flows": _Entry("m6proxy.cli.flows", "flows", "The kernel's entries, with rates."),
    "explain": _Entry("m6proxy.cli.explain", "explain", "What would happen to a packet?"),
    "park": _Entry("m6proxy.cli.park", "park", "The site goes away for a while: say so."),
    "unpark": _Entry("m6proxy.cli.park", "unpark", "The site is back."),
    "dns": _Entry("m6proxy.cli.dns", "dns", "Records to publish in DNS."),
    "plan": _Entry("m6proxy.cli.plan", "plan", "Address plans to think about beforehand."),
    "lab": _Entry("m6proxy.lab.cli", "lab", "Sites and providers in network namespaces."),
    "demo": _Entry("m6proxy.lab.cli", "demo", "Watch sessions survive the death of a provider."),
}


class _LazyGroup(click.Group):
    """A group whose help needs no subcommand's code."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        entry = _COMMANDS.get(cmd_name)
        if entry is None:
            return None
        command = getattr(importlib.import_module(entry.module), entry.attribute)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.summary) for name, entry in _COMMANDS.items()])


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="m6proxy")
def m6proxy() -> None:
    """Keep the sessions of ordinary IPv6 hosts alive when their site loses a provider."""


def main() -> None:
    """The entry point: what the operator must mend is one line and exit code 2."""
    try:
        m6proxy.main(prog_name="m6proxy")
    except SetupError as error:
        click.echo(str(error), err=True)
        sys.exit(2)

"""The commands ``m6proxy lab`` and ``m6proxy demo``."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ParamSpec, TypeVar

import click
from rich.console import Console

from m6proxy.errors import SetupError
from m6proxy.lab import build, faults
from m6proxy.lab.build import Lab
from m6proxy.lab.demo import DemoResult, tell
from m6proxy.lab.nameserver import start_nameserver
from m6proxy.lab.plot import draw
from m6proxy.lab.story import MEBI_OCTETS, Script
from m6proxy.lab.timeline import LiveTimeline, PlainTimeline, Timeline, results_table
from m6proxy.lab.topology import DEFAULT_LAB, NODES, PROVIDERS, site_by_name

PLAIN_WIDTH = 120
_P = ParamSpec("_P")
_R = TypeVar("_R")


class _SetupFailure(click.ClickException):
    """A SetupError on the way out: one line, exit code 2."""

    exit_code = 2


def _one_line(command: Callable[_P, _R]) -> Callable[_P, _R]:
    @functools.wraps(command)
    def wrapped(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        try:
            return command(*args, **kwargs)
        except SetupError as error:
            raise _SetupFailure(str(error)) from error

    return wrapped


def _capability_line() -> Callable[..., str]:
    from m6proxy.discovery.codec import svcb_zone_line

    return svcb_zone_line


_name = click.option(
    "--name", default=DEFAULT_LAB, show_default=True, help="The lab; several may be up at once."
)


@click.group()
def lab() -> None:
    """Two sites with two providers each, in network namespaces.

    Nodes: a1 a2 agw (alpha), b1 b2 bgw (beta), c1 (gamma, legacy), p1 to p5 (providers),
    core, ns. UPLINK is a provider's node or SITE.UPLINK, such as alpha.isp1.
    """


@lab.command()
@_name
@click.option("--source-routing", is_flag=True, help="Gateways route by source, without m6proxy.")
@_one_line
def up(name: str, source_routing: bool) -> None:
    """Build the lab and start its name server."""
    the_lab = Lab(name)
    build.up(the_lab, source_routing=source_routing)
    try:
        start_nameserver(the_lab, _capability_line())
    except BaseException:
        build.down(the_lab)
        raise
    click.echo(f"lab {name} is up: {len(NODES)} nodes, configurations in {the_lab.state_dir}")


@lab.command()
@_name
@_one_line
def down(name: str) -> None:
    """Stop what runs inside the lab and remove it, leftovers of a crash included."""
    build.down(Lab(name))
    click.echo(f"lab {name} is down")


@lab.command()
@_name
@click.argument("uplink")
@_one_line
def cut(name: str, uplink: str) -> None:
    """Drop silently everything that a provider forwards; its link stays up."""
    faults.cut(Lab(name), uplink)


@lab.command()
@_name
@click.argument("uplink")
@_one_line
def restore(name: str, uplink: str) -> None:
    """End every fault of a provider."""
    faults.restore(Lab(name), uplink)


@lab.command()
@_name
@click.argument("uplink")
@click.argument("direction", type=click.Choice(faults.DIRECTIONS))
@_one_line
def blackhole(name: str, uplink: str, direction: str) -> None:
    """Drop silently one way: "in" to the site, "out" from it."""
    faults.blackhole(Lab(name), uplink, direction)


@lab.command()
@_name
@click.argument("uplink")
@click.argument("percent", type=float)
@_one_line
def loss(name: str, uplink: str, percent: float) -> None:
    """Drop a share of a provider's packets at random."""
    faults.loss(Lab(name), uplink, percent)


@lab.command()
@_name
@click.argument("uplink")
@click.argument("state", type=click.Choice(["up", "down"]))
@_one_line
def link(name: str, uplink: str, state: str) -> None:
    """Take the carrier from a site's uplink, or give it back."""
    faults.link(Lab(name), uplink, is_up=state == "up")


@lab.command(name="exec", context_settings={"ignore_unknown_options": True})
@_name
@click.argument("node")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@_one_line
def execute(name: str, node: str, command: tuple[str, ...]) -> None:
    """Run a command inside a node: exec NODE -- CMD..."""
    the_lab = Lab(name)
    the_lab.require_up()
    arguments = the_lab.inside(node, command)
    os.execvp(arguments[0], arguments)  # noqa: S606  the command line is the user's own


@lab.command()
@_name
@click.option("--json", "as_json", is_flag=True, help="As a JSON document.")
@_one_line
def status(name: str, as_json: bool) -> None:
    """Show whether the lab is up, its name server, and the providers' faults."""
    the_lab = Lab(name)
    is_up = len(the_lab.namespaces()) == len(NODES)
    broken = {
        f"{site.name}.{uplink.name}": rules
        for node, (site, uplink) in PROVIDERS.items()
        if is_up and (rules := faults.fault_rules(the_lab, node))
    }
    document = {
        "name": name,
        "up": is_up,
        "nodes": the_lab.namespaces(),
        "nameserver_pid": build.nameserver_pid(the_lab),
        "faults": broken,
    }
    if as_json:
        click.echo(json.dumps(document, indent=2))
        return
    click.echo(f"lab {name}: {'up' if is_up else 'down'}")
    if is_up:
        click.echo(f"name server: process {document['nameserver_pid'] or 'not running'}")
        for target, rules in broken.items():
            click.echo(f"{target}: {'; '.join(rules)}")


@lab.command()
@_name
@click.argument("site")
@_one_line
def config(name: str, site: str) -> None:
    """Print the m6proxy configuration of a site's gateway."""
    try:
        found = site_by_name(site)
    except KeyError as error:
        raise SetupError(str(error.args[0])) from error
    click.echo(build.gateway_config(Lab(name), found), nl=False)


@click.command()
@click.option(
    "--json",
    "json_path",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write the results here.",
)
@click.option(
    "--plot",
    "plot_path",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Draw throughput over time here, SVG.",
)
@click.option("--size-mib", default=256, show_default=True, type=click.IntRange(1, 65536))
@click.option("--rate-mib-s", default=8.0, show_default=True, type=click.FloatRange(0.01, 1024))
@click.option("--first-cut-s", default=8.0, show_default=True, help="When alpha.isp1 dies.")
@click.option("--second-cut-s", default=20.0, show_default=True, help="When beta.isp1 dies.")
@click.option(
    "--give-up-s",
    default=20.0,
    show_default=True,
    help="A session without progress for this long is lost, in both runs.",
)
@click.option(
    "--logs",
    type=click.Path(path_type=Path, file_okay=False),
    help="Keep the logs of all programs in this folder.",
)
@_one_line
def demo(
    json_path: Path | None, plot_path: Path | None, size_mib: int, rate_mib_s: float,
    first_cut_s: float, second_cut_s: float, give_up_s: float, logs: Path | None,
) -> None:  # fmt: skip
    """Watch sessions outlive two providers, and the same sessions die without m6proxy.

    Exit code 0 when all survived with right sums and the control broke, 1 otherwise, 2 when
    the machine lacks something.
    """
    script = Script(
        size_octets=size_mib * MEBI_OCTETS,
        rate_octets_s=int(rate_mib_s * MEBI_OCTETS),
        first_cut_s=first_cut_s,
        second_cut_s=second_cut_s,
        give_up_s=give_up_s,
    )
    console = Console()
    if not console.is_terminal:
        console.width = PLAIN_WIDTH
    timeline: Timeline = LiveTimeline(console) if console.is_terminal else PlainTimeline(console)
    try:
        result = asyncio.run(_told(script, timeline, logs))
    except (KeyboardInterrupt, asyncio.CancelledError):
        raise click.Abort from None
    console.print(results_table(result.with_it.sessions, result.control.sessions))
    if json_path is not None:
        json_path.write_text(json.dumps(result.to_json(), indent=2) + "\n")
    if plot_path is not None:
        plot_path.write_text(draw(result.with_it, result.control))
    sys.exit(0 if result.ok else 1)


async def _told(script: Script, timeline: Timeline, logs: Path | None) -> DemoResult:
    with _ended_by(signal.SIGTERM, signal.SIGHUP):
        return await tell(script, timeline, _capability_line(), logs=logs)


@contextlib.contextmanager
def _ended_by(*signals: signal.Signals) -> Iterator[None]:
    """Let these signals end the demo as Ctrl-C does: everything is taken down first."""
    loop = asyncio.get_running_loop()
    task = asyncio.current_task()
    assert task is not None
    for number in signals:
        loop.add_signal_handler(number, task.cancel)
    try:
        yield
    finally:
        for number in signals:
            loop.remove_signal_handler(number)

"""``m6proxy park`` and ``m6proxy unpark``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import click

from m6proxy.cli.control import tell
from m6proxy.cli.options import control_option, json_option

ANSWER_TIMEOUT_S = 30.0
"""The daemon waits for its peers before it answers."""
_UNIT_S = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400}


class _Duration(click.ParamType[float]):
    name = "duration"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        found = re.fullmatch(r"(\d{1,6})([smhd]?)", str(value))
        if found is None or not int(found[1]):
            self.fail(f"{value!r} is no duration; write for example 90s, 10m, 2h or 3d", param, ctx)
        return float(int(found[1]) * _UNIT_S[found[2]])


@click.command()
@click.option(
    "--for",
    "for_s",
    required=True,
    type=_Duration(),
    metavar="TIME",
    help="For how long, at most: 90s, 10m, 2h, 3d.",
)
@control_option
@json_option
def park(for_s: float, control: Path | None, as_json: bool) -> None:
    """The site goes away for a while: ask the peers to keep its contexts.

    Until then, or `m6proxy unpark`, packets of hosts whose contexts are parked are dropped.
    """
    from m6proxy.cli.screen import duration, show_json

    answer = tell(control, "/v1/park", {"for_s": for_s}, ANSWER_TIMEOUT_S)
    if as_json:
        show_json(answer)
        return
    if answer is None:
        click.echo("The site is back already.")
        return
    shortest_s = answer["shortest_s"]
    waits = f" (at least {duration(shortest_s)})" if shortest_s else ""
    click.echo(
        f"{answer['granted']} contexts wait at their peers{waits}, {answer['refused']} are "
        f"refused, {answer['unanswered']} unanswered, {answer['not_parked']} not parked: their "
        "peers do not know how."
    )


@click.command()
@control_option
@json_option
def unpark(control: Path | None, as_json: bool) -> None:
    """The site is back: tell the peers, and let packets go."""
    from m6proxy.cli.screen import show_json

    answer = tell(control, "/v1/unpark", {})
    if as_json:
        show_json(answer)
        return
    click.echo("The site is back." if answer["was_away"] else "The site was not away.")

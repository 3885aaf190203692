"""``m6proxy drops``."""

from __future__ import annotations

from pathlib import Path

import click

from m6proxy.cli.control import ask
from m6proxy.cli.options import control_option, json_option


@click.command()
@click.option("--all", "show_all", is_flag=True, help="Also the reasons that never happened.")
@control_option
@json_option
def drops(show_all: bool, control: Path | None, as_json: bool) -> None:
    """Dropped packets by reason."""
    from m6proxy.cli.screen import show_json, show_table

    answer = ask(control, "/v1/drops?all=1" if show_all else "/v1/drops")
    if as_json:
        show_json(answer)
        return
    show_table(
        [">count", ">number", "reason", "what it means"],
        [(drop["count"], drop["number"], drop["reason"], drop["text"]) for drop in answer],
        empty="No packet was dropped.",
    )

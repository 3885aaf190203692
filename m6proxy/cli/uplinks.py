"""``m6proxy uplinks``."""

from __future__ import annotations

from pathlib import Path

import click

from m6proxy.cli.control import ask
from m6proxy.cli.options import control_option, json_option


@click.command()
@control_option
@json_option
def uplinks(control: Path | None, as_json: bool) -> None:
    """The site's uplinks and how they are."""
    from m6proxy.cli.screen import show_json, show_table

    answer = ask(control, "/v1/uplinks")
    if as_json:
        show_json(answer)
        return
    show_table(
        ["uplink", "interface", "prefix", "gateway", ">pref", ">MTU", ">contexts", "state"],
        [
            (
                uplink["name"],
                uplink["interface"],
                uplink["prefix"],
                uplink["gateway"],
                uplink["preference"],
                uplink["mtu"],
                uplink["contexts"],
                "up" if uplink["up"] else f"down: {uplink['why']}",
            )
            for uplink in answer
        ],
        empty="No uplink.",
    )

"""``m6proxy peers``."""

from __future__ import annotations

from pathlib import Path

import click

from m6proxy.cli.control import ask
from m6proxy.cli.options import control_option, json_option


@click.command()
@control_option
@json_option
def peers(control: Path | None, as_json: bool) -> None:
    """What is known about peers: name, capability, prefixes."""
    from m6proxy.cli.screen import duration, show_json, show_table

    answer = ask(control, "/v1/peers")
    if as_json:
        show_json(answer)
        return
    show_table(
        ["address", "name", "capable", "site", "prefixes", ">contexts", "valid for"],
        [
            (
                peer["address"],
                peer["name"],
                peer["capability"],
                peer["site"],
                " ".join(peer["prefixes"]) or None,
                peer["contexts"],
                duration(peer["expires_in_s"]),
            )
            for peer in answer
        ],
        empty="No peer is known yet: one is looked up when its traffic crosses the threshold.",
    )

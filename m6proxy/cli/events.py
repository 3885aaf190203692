"""``m6proxy events``."""

from __future__ import annotations

from pathlib import Path

import click

from m6proxy.cli.control import ask
from m6proxy.cli.options import control_option, json_option


@click.command()
@click.option(
    "--after",
    type=click.IntRange(min=0),
    default=0,
    metavar="N",
    help="Only events with a greater number.",
)
@control_option
@json_option
def events(after: int, control: Path | None, as_json: bool) -> None:
    """What happened lately, the oldest first."""
    from m6proxy.cli.screen import age, show_json, show_table

    answer = ask(control, f"/v1/events?after={after}")
    if as_json:
        show_json(answer)
        return
    show_table(
        [">number", ">when", "what", "host", "peer", "detail"],
        [
            (
                event["seq"],
                age(event["time"]),
                event["what"],
                event["local_ulid"],
                event["peer_ulid"],
                event["detail"],
            )
            for event in answer
        ],
        empty="Nothing happened." if not after else f"Nothing happened after event {after}.",
    )

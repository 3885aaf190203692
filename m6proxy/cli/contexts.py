"""``m6proxy contexts``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from m6proxy.cli.control import ask
from m6proxy.cli.options import control_option, json_option


@click.command()
@control_option
@json_option
def contexts(control: Path | None, as_json: bool) -> None:
    """The host-pair contexts: which pair, in which state, on which locators."""
    from m6proxy.cli.screen import age, show_json, show_table

    answer = ask(control, "/v1/contexts")
    if as_json:
        show_json(answer)
        return
    show_table(
        ["host", "peer", "state", "path", "locators", ">in", ">out", "re-homed"],
        [
            (
                context["local_ulid"],
                context["peer_ulid"],
                context["state"],
                _path(context),
                _locators(context),
                context["packets_in"],
                context["packets_out"],
                _rehomed(context, age(context["rehomed_at"])),
            )
            for context in answer
        ],
        empty="No context: no pair with a capable peer has crossed the policy's threshold.",
    )


def _path(context: dict[str, Any]) -> str | None:
    parked = context.get("parked")
    state: str | None = context["reap_state"] if parked is None else f"parked ({parked} away)"
    return state


def _locators(context: dict[str, Any]) -> str:
    local, peer = context["local_locator"], context["peer_locator"]
    if (local, peer) == (context["local_ulid"], context["peer_ulid"]):
        return "the ULIDs"
    return f"{local} {peer}"


def _rehomed(context: dict[str, Any], when: str) -> str:
    times = context["rehomings"]
    if not times:
        return "-"
    return when if times == 1 else f"{times} times, {when}"

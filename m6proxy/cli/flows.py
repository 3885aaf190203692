"""``m6proxy flows``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from m6proxy.cli.control import ask
from m6proxy.cli.options import control_option, json_option

_PATH = "/v1/flows"
_COUNTED = ("packets_out", "octets_out", "packets_in", "octets_in")


@click.command()
@click.option("--watch", is_flag=True, help="Show rates, again and again until Ctrl-C.")
@click.option(
    "--interval",
    "interval_s",
    type=click.FloatRange(0.1, 60.0),
    default=1.0,
    show_default=True,
    help="Seconds that rates are taken over.",
)
@control_option
@json_option
def flows(watch: bool, interval_s: float, control: Path | None, as_json: bool) -> None:
    """What the kernel has of each context: its way, its mode, what it moved and how fast."""
    from m6proxy.cli.screen import show_json

    before, before_s = ask(control, _PATH), time.monotonic()
    while True:
        time.sleep(interval_s)
        now, now_s = ask(control, _PATH), time.monotonic()
        rated = with_rates(before, now, now_s - before_s)
        if as_json:
            show_json(rated)
        else:
            _show(rated)
        if not watch:
            return
        click.echo()
        before, before_s = now, now_s


def with_rates(
    before: list[dict[str, Any]], now: list[dict[str, Any]], seconds: float
) -> list[dict[str, Any]]:
    """Add to each flow its counts per second; those of a slot with another pair count from 0."""
    known = {(flow["slot"], flow["local_ulid"], flow["peer_ulid"]): flow for flow in before}
    rated = []
    for flow in now:
        old = known.get((flow["slot"], flow["local_ulid"], flow["peer_ulid"]), flow)
        rates = {f"{name}_per_s": (flow[name] - old[name]) / seconds for name in _COUNTED}
        rated.append({**flow, **rates})
    return rated


def _show(rated: list[dict[str, Any]]) -> None:
    from m6proxy.cli.screen import age, show_table

    show_table(
        ["host", "peer", "by", "locators", "uplink", ">out/s", ">bit/s", ">in/s", ">bit/s", "last"],
        [
            (
                flow["local_ulid"],
                flow["peer_ulid"],
                flow["path"],
                _way(flow),
                flow["uplink"],
                round(flow["packets_out_per_s"]),
                round(flow["octets_out_per_s"] * 8),
                round(flow["packets_in_per_s"]),
                round(flow["octets_in_per_s"] * 8),
                age(max(flow["last_out_at"] or 0, flow["last_in_at"] or 0) or None),
            )
            for flow in rated
        ],
        empty="No flow: the kernel has no context.",
    )


def _way(flow: dict[str, Any]) -> str:
    if flow["mode"] is None:
        return "the ULIDs"
    return f"{flow['local_locator']} {flow['peer_locator']}, {flow['mode']}"

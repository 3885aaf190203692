"""``m6proxy status``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from m6proxy.cli.control import ask
from m6proxy.cli.options import control_option, json_option

_KERNEL = "kernel_"


@click.command()
@control_option
@json_option
def status(control: Path | None, as_json: bool) -> None:
    """The daemon at a glance."""
    from m6proxy.cli.screen import age, show_json, show_lines

    answer = ask(control, "/v1/status")
    if as_json:
        show_json(answer)
        return
    states = ", ".join(f"{count} {state}" for state, count in answer["contexts"].items() if count)
    packets, in_kernel = _packets(answer["packets"])
    losses = ", ".join(f"{count} {name}" for name, count in answer["losses"].items() if count)
    show_lines(
        [
            ("site", answer["site"]),
            ("daemon", f"m6proxy {answer['version']}, pid {answer['pid']}"),
            ("started", age(answer["started_at"])),
            ("data plane", f"{answer['dataplane']}: {answer['dataplane_why']}"),
            ("express", express_line(answer["express"])),
            ("uplinks", f"{answer['uplinks_up']} of {answer['uplinks']} up"),
            *_away(answer.get("away")),
            ("contexts", states or "none"),
            ("peers", answer["peers"] or "none"),
            ("packets", packets),
            *([("in kernel", in_kernel)] if answer["dataplane"] == "bpf" else []),
            ("lost", losses or "none"),
            ("dropped", answer["drops"] or "none"),
        ]
    )


def _packets(counts: dict[str, int]) -> tuple[str, str]:
    """What Python did, and of what the programs in the kernel did all that occurred."""
    ours = [f"{count} {name}" for name, count in counts.items() if not name.startswith(_KERNEL)]
    theirs = [
        f"{count} {name.removeprefix(_KERNEL).replace('_', ' ')}"
        for name, count in counts.items()
        if name.startswith(_KERNEL) and count
    ]
    return ", ".join(ours), ", ".join(theirs) or "nothing yet"


def express_line(express: dict[str, Any]) -> str:
    """Whether packets go past the IPv6 stack, and who is in the way if not."""
    if express["on"]:
        return "on: nobody else would see packets in the IPv6 stack, so they go past it"
    return f"off: {'; '.join(express['in_the_way'])}; packets go the ordinary way"


def _away(away: dict[str, Any] | None) -> list[tuple[str, str]]:
    if away is None:
        return []
    left_s = max(0.0, away["until"] - time.time())
    return [("away", f"for {left_s:.0f} s more, {away['granted']} contexts wait at their peers")]

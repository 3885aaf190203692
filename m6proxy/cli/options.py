"""The options that several commands share."""

from __future__ import annotations

from pathlib import Path

import click

config_option = click.option(
    "-c",
    "--config",
    "config_path",
    required=True,
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="The configuration file (YAML).",
)

control_option = click.option(
    "--control",
    type=click.Path(path_type=Path),
    metavar="SOCK",
    help="The daemon's control socket; needed when several run here.",
)

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")

"""``m6proxy run``."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from m6proxy.cli.options import config_option


@click.command()
@config_option
def run(config_path: Path) -> None:
    """Run the gateway daemon in the foreground.

    It says READY to the service manager, and removes its rules and routes on SIGTERM.
    """
    from m6proxy.daemon.config import load_config

    config = load_config(config_path)
    from m6proxy.daemon.main import run as run_daemon

    sys.exit(run_daemon(config))

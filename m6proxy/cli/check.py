"""``m6proxy check``."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from m6proxy.cli.options import config_option


@click.command()
@config_option
def check(config_path: Path) -> None:
    """Is this machine ready for this configuration?

    Looks at the configuration, privileges, kernel, interfaces, routes and name servers, and
    changes nothing. Exit code 1 when anything fails, 2 when the configuration itself does.
    """
    from m6proxy.daemon.checks import check_dns, check_system
    from m6proxy.daemon.config import load_config
    from m6proxy.daemon.fastchecks import check_fast_path
    from m6proxy.steering.checks import Level

    config = load_config(config_path)
    click.echo(f"ok    configuration: {config_path}, site {config.site}")
    findings = [*check_system(config), *check_fast_path(config), *check_dns(config)]
    for finding in findings:
        click.echo(f"{finding.level.value:<4}  {finding}")
    failed = sum(finding.level is Level.FAILURE for finding in findings)
    if failed:
        click.echo(f"{failed} of {len(findings) + 1} checks failed.")
        sys.exit(1)

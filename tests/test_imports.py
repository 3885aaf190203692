"""The imports point one way; the contracts are in pyproject.toml under [tool.importlinter]."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_import_contracts_are_kept() -> None:
    result = subprocess.run(
        [str(Path(sys.executable).parent / "lint-imports"), "--no-cache", "--no-logo"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr


def test_the_command_starts_without_the_code_of_its_subcommands() -> None:
    """`m6proxy status` is typed often and by scripts: it loads no validation, netlink or DNS."""
    heavy = ("aiohttp", "dns", "netfilterqueue", "pydantic", "pyroute2", "rich", "scapy")
    program = (
        "import sys, m6proxy.cli.main, m6proxy.cli.status; "
        f"print(*[name for name in {heavy} if name in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == ""

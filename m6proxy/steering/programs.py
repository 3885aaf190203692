"""Run the system's network programs and turn their complaints into one line."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence

from m6proxy.errors import SetupError

_TIMEOUT_S = 30.0
_PACKAGES = {"ip": "iproute2"}


def run_program(argv: Sequence[str], *, text: str | None = None) -> str:
    """Run a program with ``text`` on its standard input and return its standard output.

    Raises SetupError with one line when it is missing, fails or takes longer than 30 s.
    Blocks: call it before the loop starts, after it ended, or in a thread.
    """
    try:
        done = subprocess.run(
            argv, input=text, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
        )
    except FileNotFoundError:
        package = _PACKAGES.get(argv[0], "iptables")
        raise SetupError(f"{argv[0]} is not installed (Debian package {package})") from None
    except subprocess.TimeoutExpired:
        raise SetupError(f"{' '.join(argv)}: no answer within {_TIMEOUT_S:.0f} s") from None
    if done.returncode:
        raise SetupError(f"{' '.join(argv)}: {_complaint(done.stderr, done.returncode)}")
    return done.stdout


def _complaint(stderr: str, code: int) -> str:
    lines = [
        line.strip()
        for line in stderr.splitlines()
        if line.strip() and not line.startswith(("# Warning", "Try `", "libkmod"))
    ]
    return "; ".join(lines[:2]) if lines else f"exit code {code}"

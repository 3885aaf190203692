"""No test runs an eBPF object that is older than its source."""

from __future__ import annotations

from hatch_build import compile_stale


def pytest_configure() -> None:
    """Compile it when it is."""
    compile_stale()

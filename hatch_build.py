"""Compile the eBPF programs into the package: the wheel carries the object, no user a compiler.

The build of the package runs this, in place for an editable install; `make bpf` and the tests
do so by ``compile_stale``. Without clang the package is built without the object, and m6proxy
then moves all packets through NFQUEUE.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

ROOT = Path(__file__).parent
PACKAGE = Path("m6proxy/dataplane/bpf")


def compile_bpf(source: Path, target: Path) -> None:
    """Compile one program file; the target is replaced whole or not at all.

    -mcpu=v3 is what kernels from 5.1 execute; -g writes the BTF that defines the maps.
    """
    partial = target.with_name(f".{target.name}.{os.getpid()}")
    headers = f"/usr/include/{platform.machine()}-linux-gnu"
    try:
        subprocess.run(
            [
                "clang", "-O2", "-g", "-target", "bpf", "-mcpu=v3", "-Wall", "-Werror",
                f"-fdebug-prefix-map={source.parent.resolve()}=.", f"-I{headers}",
                "-c", str(source), "-o", str(partial),
            ],
            check=True,
        )  # fmt: skip
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def compile_stale(root: Path = ROOT) -> list[Path]:
    """Compile what is older than anything that it is made of; return all objects that are there.

    Without clang an old object is removed: it is not what the source says.
    """
    folder = root / PACKAGE
    newest = max(
        path.stat().st_mtime_ns for path in (Path(__file__), *(folder / "src").glob("*.[ch]"))
    )
    objects = []
    for source in sorted((folder / "src").glob("*.bpf.c")):
        target = folder / f"{source.stem}.o"
        if not target.exists() or target.stat().st_mtime_ns <= newest:
            if shutil.which("clang") is None:
                target.unlink(missing_ok=True)
                sys.stderr.write(f"no clang: {target.name} is not built\n")
                continue
            compile_bpf(source, target)
        objects.append(target)
    return objects


class CustomBuildHook(BuildHookInterface[Any]):
    """What the build of a wheel and an editable install call."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Put the objects in; git ignores them, and so would the build."""
        root = Path(self.root)
        for target in compile_stale(root):
            build_data["artifacts"].append(str(target.relative_to(root)))


if __name__ == "__main__":
    compile_stale()

"""The object gets into the wheel, and never lags behind its source."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from hatch_build import PACKAGE, compile_stale
from tests.dataplane.bpf.trial import SOURCE

ROOT = Path(__file__).parents[3]
NAMES = ("pyproject.toml", "hatch_build.py", "README.md", ".gitignore", "m6proxy", "rules")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A fresh clone's worth of the project, with one program of the tests in it."""
    for name in NAMES:
        if (ROOT / name).is_dir():
            ignored = shutil.ignore_patterns("__pycache__", "*.bpf.o")
            shutil.copytree(ROOT / name, tmp_path / name, ignore=ignored)
        else:
            shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / PACKAGE / "src").mkdir(exist_ok=True)
    shutil.copy(SOURCE, tmp_path / PACKAGE / "src")
    return tmp_path


def build_wheel(tree: Path, **environment: str) -> list[str]:
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel"],
        cwd=tree,
        env={**os.environ, **environment},
        check=True,
        capture_output=True,
    )
    (wheel,) = (tree / "dist").glob("*.whl")
    return zipfile.ZipFile(wheel).namelist()


def test_the_wheel_carries_the_object(tree: Path) -> None:
    assert f"{PACKAGE}/trial.bpf.o" in build_wheel(tree)


def test_without_a_compiler_there_is_a_wheel_without_the_object(tree: Path) -> None:
    (tree / PACKAGE / "trial.bpf.o").write_bytes(b"an old one")
    os.utime(tree / PACKAGE / "trial.bpf.o", (0, 0))
    names = build_wheel(tree, PATH="/nowhere")
    assert f"{PACKAGE}/load.py" in names
    assert not [name for name in names if name.endswith(".o")]


def test_a_changed_header_makes_a_new_object(tree: Path) -> None:
    """A test that ran the object of yesterday's source would prove nothing."""
    objects = compile_stale(tree)
    times = [path.stat().st_mtime_ns for path in objects]
    assert compile_stale(tree) == objects
    assert [path.stat().st_mtime_ns for path in objects] == times
    (tree / PACKAGE / "src" / "new.h").write_text("/* nothing */\n")
    assert compile_stale(tree) == objects
    assert all(path.stat().st_mtime_ns > time for path, time in zip(objects, times, strict=True))

"""Rules for the files themselves: what they may not name, and how long they may grow."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SKIPPED_DIRECTORIES = {".git", ".venv", "__pycache__", "dist"}
MODULE_LINES_MAX = 600
VAGUE_NAMES = {"utils", "util", "common", "helpers", "helper", "manager", "base", "misc"}

# Put together here, so that this file does not name them either.
INDEX_HOSTS = [
    ".".join(parts)
    for parts in (
        ("pypi", "org"),
        ("pythonhosted", "org"),
        ("pypi", "python", "org"),
        ("deb", "debian", "org"),
        ("security", "debian", "org"),
        ("npmjs", "org"),
        ("proxy", "golang", "org"),
    )
]
INDEX_OPTIONS = re.compile(
    r"^\s*(-i|--index-url|--extra-index-url|-f|--find-links)\b", re.MULTILINE
)


def project_files() -> Iterator[Path]:
    for directory, names, files in os.walk(ROOT):
        names[:] = [
            name
            for name in names
            if name not in SKIPPED_DIRECTORIES
            and not name.endswith((".egg-info", "_cache"))
            and name != ".hypothesis"
        ]
        for name in files:
            yield Path(directory) / name


def python_modules() -> Iterator[Path]:
    for path in project_files():
        if path.suffix == ".py":
            yield path


def test_no_file_names_a_package_index() -> None:
    found = [
        f"{path.relative_to(ROOT)} names {host}"
        for path in project_files()
        for host in INDEX_HOSTS
        if host.encode() in path.read_bytes()
    ]
    assert found == []


def test_requirements_are_pinned_with_hashes_and_name_no_index() -> None:
    compiled = [path for path in (ROOT / "requirements").glob("*.txt") if path.stem != "debian"]
    assert {path.stem for path in compiled} == {"build", "dev", "run"}
    for path in compiled:
        text = path.read_text()
        assert not INDEX_OPTIONS.search(text), path
        assert "://" not in text, path
        for entry in re.split(r"\n(?=[a-z0-9])", text.strip()):
            assert re.match(r"[a-z0-9.-]+==\S+", entry), f"{path.name}: {entry[:60]!r}"
            assert "--hash=sha256:" in entry, f"{path.name}: {entry[:60]!r}"


def test_what_runs_is_pinned_alike_everywhere() -> None:
    def pins(name: str) -> dict[str, str]:
        text = (ROOT / "requirements" / name).read_text()
        return dict(re.findall(r"^([a-z0-9.-]+)==(\S+)", text, re.MULTILINE))

    dev = pins("dev.txt")
    assert pins("run.txt").items() <= dev.items()
    build = pins("build.txt")
    assert {name: build[name] for name in build.keys() & dev.keys()}.items() <= dev.items()


def test_there_is_no_lock_file_with_addresses() -> None:
    assert not (ROOT / "uv.lock").exists()


def test_modules_are_short() -> None:
    long = {
        str(path.relative_to(ROOT)): lines
        for path in python_modules()
        if (lines := path.read_text().count("\n")) > MODULE_LINES_MAX
    }
    assert long == {}


def test_no_module_has_a_name_that_says_nothing() -> None:
    vague = [path for path in python_modules() if path.stem in VAGUE_NAMES]
    assert vague == []


def test_every_module_says_what_it_is_for() -> None:
    mute = [
        str(path.relative_to(ROOT))
        for path in (ROOT / "m6proxy").rglob("*.py")
        if path.stat().st_size and not path.read_text().lstrip().startswith(('"""', 'r"""'))
    ]
    assert mute == []


@pytest.mark.parametrize("in_ci", [True, False])
def test_a_skip_fails_in_ci_and_only_there(in_ci: bool, tmp_path: Path) -> None:
    """A test that skips itself for want of a program must not leave CI green."""
    (tmp_path / "conftest.py").write_text((ROOT / "tests" / "conftest.py").read_text())
    (tmp_path / "test_in_body.py").write_text(
        "import pytest\ndef test_it() -> None:\n    pytest.skip('no such program')\n"
    )
    (tmp_path / "test_whole.py").write_text(
        "import pytest\npytest.skip('no such module', allow_module_level=True)\n"
    )
    (tmp_path / "pytest.ini").write_text(
        "[pytest]\naddopts = -ra --continue-on-collection-errors\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "CI"}
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", str(tmp_path)],
        cwd=tmp_path,
        env=environment | ({"CI": "true"} if in_ci else {}),
        capture_output=True,
        text=True,
        check=False,
    )
    assert "no such program" in result.stdout
    assert "no such module" in result.stdout
    assert ("which CI does not accept" in result.stdout) is in_ci
    assert (result.returncode != 0) is in_ci

"""The service's privileges are enough for the programs, and one less is said by name."""

from __future__ import annotations

import configparser
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from m6proxy.dataplane.bpf.programs import missing_capabilities
from tests.steering.namespaces import Namespaces, run

pytestmark = pytest.mark.netns

ROOT = Path(__file__).parents[3]
UNIT = ROOT / "conf" / "m6proxy.service"
INSTALL = """
import sys, pathlib
from m6proxy.dataplane.bpf.links import Side
from m6proxy.dataplane.bpf.load import read_object
from m6proxy.dataplane.bpf.takeover import install
from m6proxy.errors import SetupError
from m6proxy.steering.bystanders import look_once
try:
    installed = install(read_object(), pathlib.Path(sys.argv[1]))
    installed.attach("lan_in", 1, Side.INGRESS)
    installed.settle()
    others = [installed.behind(1, Side.INGRESS), look_once(["lo"])]
    installed.remove()
    print("done", installed.is_lasting, others)
except SetupError as refused:
    print(refused)
"""


@pytest.fixture
def service() -> configparser.SectionProxy:
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read_string(UNIT.read_text())
    return unit["Service"]


@pytest.fixture
def namespace() -> Iterator[str]:
    with Namespaces() as namespaces:
        yield namespaces.add("p")


def outcome(namespace: str, folder: Path, capabilities: list[str]) -> str:
    """Install the package's programs with no other capabilities than these."""
    names = ",".join(f"+{each.removeprefix('CAP_').lower()}" for each in capabilities)
    return run(
        *("nsenter", f"--net=/run/netns/{namespace}"),
        *("setpriv", f"--bounding-set=-all,{names}", "--inh-caps=-all"),
        *(sys.executable, "-c", INSTALL, str(folder)),
    )


def test_the_service_installs_the_programs_where_its_unit_mounted_and_sees_who_else_is_there(
    service: configparser.SectionProxy, namespace: str, tmp_path: Path
) -> None:
    """Its ExecStartPre runs with all privileges; the daemon has those of the unit."""
    before = service["ExecStartPre"].removeprefix("+").replace("/run/m6proxy", str(tmp_path))
    try:
        for _ in ("start", "restart"):
            subprocess.run(shlex.split(before), check=True)
            capabilities = service["CapabilityBoundingSet"].split()
            said = outcome(namespace, tmp_path / "bpf" / "alpha", capabilities)
            assert said == "done True [0, []]\n"
        assert not (tmp_path / "bpf" / "alpha").exists()
    finally:
        run("umount", str(tmp_path / "bpf"))


def test_without_cap_perfmon_the_refusal_names_it(namespace: str, tmp_path: Path) -> None:
    (tmp_path / "bpf").mkdir()
    run("mount", "-t", "bpf", "m6proxy", str(tmp_path / "bpf"))
    try:
        said = outcome(namespace, tmp_path / "bpf" / "alpha", ["CAP_NET_ADMIN", "CAP_BPF"])
    finally:
        run("umount", str(tmp_path / "bpf"))
    assert "the kernel refuses it without CAP_PERFMON; give m6proxy these" in said


@pytest.mark.parametrize(
    ("effective", "missing"),
    [
        ("000001ffffffffff", []),
        ("0000000000201000", []),
        ("0000000000200000", ["CAP_NET_ADMIN"]),
        ("0000008000003000", ["CAP_PERFMON"]),
        ("0000000000003000", ["CAP_PERFMON", "CAP_BPF"]),
    ],
)
def test_capabilities_are_read_from_the_kernels_mask(
    effective: str, missing: list[str], tmp_path: Path
) -> None:
    status = tmp_path / "status"
    status.write_text(f"Name:\tx\nCapEff:\t{effective}\n")
    assert missing_capabilities(status) == missing

"""The lab's name server: a real knotd in the node ``ns``, with everything it has in one folder."""

from __future__ import annotations

import shutil
import subprocess
import time
from pathlib import Path

from m6proxy.errors import SetupError
from m6proxy.lab.build import Lab
from m6proxy.lab.topology import ALPHA, NAMESERVER, NS
from m6proxy.lab.zones import CapabilityLine, knot_config, zone_files

START_DEADLINE_S = 10.0
STARTED = "server started"
"""In knotd's log once it listens; a question before that would wait for a second."""


def start_nameserver(lab: Lab, capability_line: CapabilityLine) -> int:
    """Start knotd inside the lab and return its process id once it answers.

    It runs until ``build.down``. Raises SetupError when knot is missing or does not start.
    """
    knotd = shutil.which("knotd") or shutil.which("knotd", path="/usr/sbin")
    if knotd is None or shutil.which("kdig") is None:
        raise SetupError("knotd or kdig is missing: apt-get install knot knot-dnsutils")
    directory = lab.state_dir / "knot"
    write_zones(directory, capability_line)
    log_path = directory / "knot.log"
    with log_path.open("w") as log:
        child = subprocess.Popen(
            lab.inside(NS, [knotd, "-c", str(directory / "knot.conf")]),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    deadline = time.monotonic() + START_DEADLINE_S
    while not (STARTED in log_path.read_text() and _answers(lab)):
        if child.poll() is not None or time.monotonic() > deadline:
            raise SetupError(f"knotd does not answer: {_last_line(log_path)}")
        time.sleep(0.05)
    return child.pid


def write_zones(directory: Path, capability_line: CapabilityLine) -> None:
    """Write knotd's configuration and zone files into a new folder."""
    zones = zone_files(capability_line)
    (directory / "db").mkdir(parents=True)
    for name, text in zones.items():
        (directory / f"{name}.zone").write_text(text)
    (directory / "knot.conf").write_text(knot_config(directory, list(zones)))


def _answers(lab: Lab) -> bool:
    question = ["kdig", "+short", "+time=1", "+retry=0", f"@{NAMESERVER}", ALPHA.zone, "SOA"]
    done = subprocess.run(lab.inside(NS, question), capture_output=True, text=True)
    return done.returncode == 0 and "hostmaster" in done.stdout


def _last_line(path: Path) -> str:
    lines = path.read_text().splitlines()
    return lines[-1] if lines else "it wrote nothing"

"""A site says that it goes away, all its providers die, and a session goes on when it is back."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from m6proxy.lab import faults
from m6proxy.lab.build import Lab
from tests.harness.gateway import A1, B1, QUICK, both, established, listening, ping, program
from tests.harness.netns import eventually
from tests.harness.netns import lab as lab

pytestmark = pytest.mark.netns

PORT = 7007
AWAY_S = 16.0
ECHO = """
import socket
server = socket.create_server(("::", 7007), family=socket.AF_INET6)
connection, _ = server.accept()
while octets := connection.recv(4096):
    connection.sendall(octets)
"""
TALK = """
import socket, sys, time
connection = socket.create_connection((sys.argv[1], 7007), 10)
connection.settimeout(120)
number = 0
while True:
    line = b"%08d\\n" % number
    connection.sendall(line)
    got = b""
    while len(got) < len(line):
        octets = connection.recv(4096)
        if not octets:
            sys.exit("closed")
        got += octets
    assert got == line, got
    print(number, time.monotonic(), flush=True)
    number += 1
    time.sleep(0.1)
"""


def answers(output: Path) -> list[float]:
    """When the answers came, in order and none left out."""
    whole, _, _ = output.read_text().rpartition("\n")
    rows = [line.split() for line in whole.splitlines()]
    assert [int(row[0]) for row in rows] == list(range(len(rows)))
    return [float(row[1]) for row in rows]


def test_a_tcp_session_survives_a_park_without_any_provider(lab: Lab, tmp_path: Path) -> None:
    output = tmp_path / "talk"
    with both(lab, QUICK) as (alpha, beta), program(lab, "b1", sys.executable, "-c", ECHO):
        established(lab, alpha, beta)
        listening(lab, "b1", PORT)
        talk = (sys.executable, "-c", TALK, B1)
        with program(lab, "a1", *talk, output=output) as child:
            eventually(lambda: len(answers(output)) > 10, deadline_s=10, what="the session runs")
            assert "1 contexts wait at their peers (at least 2 min)" in alpha.cli(
                "park", "--for", "2m"
            )
            for provider in ("isp1", "isp2"):
                faults.cut(lab, f"alpha.{provider}")
            assert "parked (local away)" in " ".join(alpha.cli("contexts").split())
            away_since_s = time.monotonic()
            last_s = answers(output)[-1]
            probes = [len(gateway.events("probe sent")) for gateway in (alpha, beta)]
            assert not ping(lab, "b1", A1, "-w", "2")
            time.sleep(max(0.0, AWAY_S - (time.monotonic() - away_since_s)))
            assert [len(gateway.events("probe sent")) for gateway in (alpha, beta)] == probes
            parked = beta.context(B1, A1)
            assert parked is not None and parked["parked"] == "peer"
            assert alpha.drops()["PARKED"] and beta.drops()["PARKED"]
            for provider in ("isp1", "isp2"):
                faults.restore(lab, f"alpha.{provider}")
            before = len(answers(output))
            back_s = time.monotonic()
            assert alpha.cli("unpark") == "The site is back.\n"
            eventually(lambda: len(answers(output)) > before + 10, deadline_s=10, what="it goes on")
            first_s = answers(output)[before]
            assert first_s - last_s > AWAY_S - 2.0, "nothing came through meanwhile"
            assert first_s - back_s < 3.0, "no TCP timer had to run out"
            assert child.poll() is None
        assert beta.context(B1, A1) is not None
        assert not beta.events("context removed")

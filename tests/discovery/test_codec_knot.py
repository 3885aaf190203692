"""The line that we print, in the zone of a real knotd, read back by the resolver."""

from __future__ import annotations

import asyncio
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest
from click.testing import CliRunner

from m6proxy.cli.main import m6proxy
from m6proxy.daemon.resolver import Resolver
from m6proxy.discovery.capability import Capability, PrefixLocator
from m6proxy.discovery.codec import svcb_zone_line
from m6proxy.discovery.names_book import NameBook
from m6proxy.names import Prefix, address
from tests.discovery.values import ALPHA

KNOTD = shutil.which("knotd") or shutil.which("knotd", path="/usr/sbin")
DEADLINE_S = 10.0
A1 = address("2001:db8:a1:1::10")

FULL = Capability(
    accepts=False,
    site="alpha.example",
    prefixes=tuple(
        PrefixLocator(Prefix.parse(f"2001:db8:{0xA000 + n:x}:ffff:ffff:ffff::/96"), 255)
        for n in range(16)
    ),
)
MARKED = replace(ALPHA, mark_at=52)
_PLAN = ["plan", "nsquare", "--site", "alpha.example", "--mark-at", "52", "--ttl", "60"]
_PLAN += [f"--prefix={locator.prefix}" for locator in ALPHA.prefixes]
_PLAN += ["--host=marked.alpha.example=2001:db8:a1:1::50"]
ZONE = f"""$ORIGIN alpha.example.
@ 60 IN SOA ns hostmaster 1 3600 900 604800 60
@ 60 IN NS ns
ns 60 IN AAAA ::1
a1 60 IN AAAA 2001:db8:a1:1::10
{svcb_zone_line("a1.alpha.example", ALPHA, 60)}
a2 60 IN AAAA 2001:db8:a1:1::20
{svcb_zone_line("a2.alpha.example", ALPHA, 60).replace('"', "")}
full 60 IN AAAA 2001:db8:a1:1::30
{svcb_zone_line("full.alpha.example", FULL, 60)}
alias 60 IN AAAA 2001:db8:a1:1::40
_m6proxy.alias 60 IN SVCB 0 _m6proxy.a1
{CliRunner().invoke(m6proxy, _PLAN, catch_exceptions=False).output}
"""


@pytest.fixture(scope="module")
def knot_port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    if KNOTD is None:
        pytest.skip("knotd is not installed (apt-get install knot)")
    folder = tmp_path_factory.mktemp("knot")
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as free:
        free.bind(("::1", 0))
        port = int(free.getsockname()[1])
    (folder / "alpha.example.zone").write_text(ZONE)
    (folder / "knot.conf").write_text(
        f"server:\n    listen: ::1@{port}\n    rundir: {folder}\n"
        "    udp-workers: 1\n    tcp-workers: 1\n    background-workers: 1\n"
        f"database:\n    storage: {folder}/db\n"
        f"zone:\n  - domain: alpha.example\n    storage: {folder}\n"
        "    zonefile-sync: -1\n    journal-content: none\n"
    )
    (folder / "db").mkdir()
    with (folder / "knot.log").open("w") as log:
        child = subprocess.Popen([KNOTD, "-c", str(folder / "knot.conf")], stdout=log, stderr=log)
    try:
        yield port
    finally:
        child.terminate()
        child.wait(DEADLINE_S)


@pytest.mark.parametrize(
    ("host", "expected"),
    [("a1", ALPHA), ("a2", ALPHA), ("full", FULL), ("alias", ALPHA), ("marked", MARKED)],
)
def test_knot_serves_what_we_print(knot_port: int, host: str, expected: Capability) -> None:
    async def ask() -> Capability | None:
        resolver = Resolver(
            ("::1",),
            port=knot_port,
            timeout_s=0.5,
            clock=time.monotonic,
            book=NameBook(),
            hosts={},
            peers={A1: (f"{host}.alpha.example",)},  # configured: no PTR is needed
        )
        data = await resolver.named(f"{host}.alpha.example", A1)
        await resolver.close()
        return data.capability if data is not None else None

    deadline = time.monotonic() + DEADLINE_S
    found = None
    while found is None and time.monotonic() < deadline:  # knotd takes a moment to start
        found = asyncio.run(ask())
    assert found == expected

"""Other ways to the same packets: clsact filters in the place of tcx links, and an uplink without
a link-layer header. Re-homed traffic of real daemons, both ways, in the modes that differ most.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from m6proxy.dataplane.offloads import CHECKSUM, GSO, TSO
from m6proxy.lab.build import Lab
from m6proxy.lab.sessions import python_environment
from m6proxy.lab.topology import ALPHA
from tests.harness.fastpath import offload, programs
from tests.harness.gateway import (
    A1,
    B1,
    Gateway,
    mac_of,
    ping,
    program,
)
from tests.harness.netns import eventually, run_in
from tests.harness.netns import lab as lab
from tests.netns.rehomed_pair import on_isp2
from tests.netns.test_bpf_path import iperf

pytestmark = pytest.mark.netns

NO_TCX = """
import m6proxy.dataplane.bpf.takeover as takeover
takeover.tcx_works = lambda: False
"""
"""Run by every Python that has it on its path; what a kernel before 6.6 says."""


def packets(gateway: Gateway) -> dict[str, int]:
    """The counters of a gateway."""
    found: dict[str, int] = gateway.ask("/v1/status")["packets"]
    return found


def carries_both_ways(lab: Lab, alpha: Gateway, beta: Gateway) -> None:
    """Pings and TCP in either direction, without Python but for what is unusual."""
    before = [packets(gateway) for gateway in (alpha, beta)]
    for node, peer in (("a1", B1), ("b1", A1)):
        assert ping(lab, node, peer, "-c", "20", "-i", "0.02", "-W", "2")
    rates = [iperf(lab, *words, meanwhile=lambda: None) for words in ((), ("-R",))]
    assert min(rate["bits_per_second"] for rate in rates) > 2e6
    for gateway, earlier in zip((alpha, beta), before, strict=True):
        later = packets(gateway)
        gained = {key: later[key] - earlier[key] for key in later}
        assert gained["kernel_rewritten"] > 200 < gained["kernel_restored"], gained


@pytest.fixture
def without_tcx(tmp_path: Path) -> dict[str, str]:
    """The environment of a daemon whose kernel has no tcx."""
    (tmp_path / "sitecustomize.py").write_text(NO_TCX)
    path = python_environment()["PYTHONPATH"]
    return {"PYTHONPATH": f"{tmp_path}:{path}"}


@pytest.mark.parametrize("mode", ["exthdr", "dstopt"])
def test_filters_do_what_links_do(lab: Lab, mode: str, without_tcx: dict[str, str]) -> None:
    with on_isp2(lab, mode, fast=True, environment=without_tcx) as (alpha, beta):
        for node in ("agw", "bgw"):
            assert programs(lab, node) == [], "these are tcx links"
            shown = run_in(lab, node, "tc", "filter", "show", "dev", "wan2", "egress")
            assert "uplink_out" in shown
        carries_both_ways(lab, alpha, beta)
    for node in ("agw", "bgw"):
        assert "clsact" not in run_in(lab, node, "tc", "qdisc", "show")


PUMP = """
import fcntl, os, select, socket, struct, sys
name, wire, mac = sys.argv[1], sys.argv[2], bytes.fromhex(sys.argv[3])
tun = os.open("/dev/net/tun", os.O_RDWR)
fcntl.ioctl(tun, 0x400454CA, struct.pack("16sH22x", name.encode(), 0x1001))
link = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x86DD))
link.setsockopt(socket.SOL_SOCKET, 33, 1 << 24)
link.bind((wire, 0x86DD))
print("ready", flush=True)
while True:
    ready, _, _ = select.select([tun, link], [], [])
    if tun in ready:
        link.sendto(os.read(tun, 65536), (wire, 0x86DD, 0, 0, mac))
    if link in ready:
        packet, (_, _, kind, *_) = link.recvfrom(65536)
        if kind == socket.PACKET_HOST:
            os.write(tun, packet)
"""
"""A tun interface (IFF_TUN, IFF_NO_PI) whose packets go over an Ethernet wire."""


@contextmanager
def without_link_layer(lab: Lab, log: Path) -> Iterator[None]:
    """Alpha's second uplink as a tun interface, the provider none the wiser."""
    uplink = ALPHA.uplinks[1]
    offload(lab, "p2", "cust", *CHECKSUM, *TSO, GSO, on=False)
    run_in(lab, "agw", "ip", "link", "set", "wan2", "down")
    run_in(lab, "agw", "ip", "link", "set", "wan2", "name", "wire2")
    run_in(lab, "agw", "sysctl", "-qw", "net.ipv6.conf.wire2.disable_ipv6=1")
    run_in(lab, "agw", "ip", "link", "set", "wire2", "up")
    ours, theirs = mac_of(lab, "agw", "wire2"), mac_of(lab, "p2", "cust")
    words = ["neigh", "replace", uplink.site_address, "lladdr", ours.hex(":"), "dev", "cust"]
    run_in(lab, "p2", "ip", "-6", *words, "nud", "permanent")
    pump = [sys.executable, "-c", PUMP, "wan2", "wire2", theirs.hex()]
    with program(lab, "agw", *pump, output=log):
        eventually(lambda: "ready" in log.read_text(), deadline_s=10, what="the tun interface")
        run_in(lab, "agw", "ip", "link", "set", "wan2", "up")
        address = f"{uplink.site_address}/64"
        run_in(lab, "agw", "ip", "-6", "addr", "add", address, "dev", "wan2", "nodad")
        assert "link/none" in run_in(lab, "agw", "ip", "link", "show", "wan2")
        yield


@pytest.mark.parametrize("mode", ["exthdr", "identifier"])
def test_an_uplink_without_a_link_layer_header(lab: Lab, tmp_path: Path, mode: str) -> None:
    with without_link_layer(lab, tmp_path / "pump"), on_isp2(lab, mode, fast=True) as (alpha, beta):
        carries_both_ways(lab, alpha, beta)

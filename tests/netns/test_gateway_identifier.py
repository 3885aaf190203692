"""Locator-only addresses with real packets: one end that moved, errors, a daemon that dies, DNS."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from m6proxy.lab import build, faults
from m6proxy.lab.build import Lab
from m6proxy.lab.topology import ALPHA, BETA, NAMESERVER, Site, fqdn
from m6proxy.names import address, address_text
from m6proxy.wire.ipv6 import NEXT_ICMPV6, build_packet
from tests.harness.gateway import (
    A1,
    B1,
    Capture,
    Gateway,
    both,
    established,
    m6proxy,
    ping,
    rehomed,
    running,
    write_config,
)
from tests.harness.netns import eventually, run_in
from tests.harness.netns import lab as lab
from tests.harness.upper import UNKNOWN, upper_layers
from tests.netns.rehomed_pair import MODES, ON_ISP2, crosses, on_isp2, raw
from tests.steering.namespaces import inside

pytestmark = pytest.mark.netns

IDENTIFIER = MODES["identifier"]
A1_AT_2, B1_AT_2 = ON_ISP2["identifier"]


@contextmanager
def alpha_moved(lab: Lab) -> Iterator[tuple[Gateway, Gateway]]:
    """The pair a1, b1 after the death of alpha's first provider."""
    with both(lab, IDENTIFIER) as (alpha, beta):
        established(lab, alpha, beta)
        faults.cut(lab, "alpha.isp1")
        rehomed(lab, alpha, (A1_AT_2, B1))
        eventually(lambda: ping(lab, "a1", B1), deadline_s=10, what="answers again")
        yield alpha, beta


def test_a_full_packet_passes_when_one_end_moved(lab: Lab) -> None:
    """What stands in for the other end's ULID takes it; that end answers bare as well."""
    with alpha_moved(lab) as (alpha, beta), raw(lab) as (sender, receiver):
        packet = build_packet(address(A1), address(B1), UNKNOWN, bytes(range(250)) * 5 + bytes(210))
        assert len(packet) == 1500
        arrived = crosses(sender, receiver, packet)
        assert arrived is not None and arrived[8:] == packet[8:]
        assert ping(lab, "a1", B1, "-s", "1452", "-M", "do")
        assert "TOO_BIG" not in {**alpha.drops(), **beta.drops()}
        for gateway, pair in ((alpha, (A1, B1)), (beta, (B1, A1))):
            found = gateway.context(*pair)
            assert found is not None and found["demux"] == "identifier"


def test_a_router_on_the_way_is_heard_in_the_hosts_own_words(lab: Lab) -> None:
    """Time exceeded beyond the gateway: the host sees the packet that it sent."""
    with on_isp2(lab, "identifier"), raw(lab) as (sender, _):
        packet = build_packet(address(A1), address(B1), UNKNOWN, b"far" * 20, hop_limit=3)
        with Capture(lab, "a1", "eth0") as capture:

            def errors() -> list[bytes]:
                heard = capture.packets()
                return [got for got in heard if got[6] == NEXT_ICMPV6 and got[40] == 3]

            sender.sendto(packet, (B1, 0))
            eventually(lambda: bool(errors()), deadline_s=5, what="time exceeded")
            (error,) = errors()
        assert address_text(error[24:40]) == A1
        quoted = error[48:]
        assert quoted[8:40] == packet[8:40] and quoted[40:] == packet[40:]


def test_nothing_goes_astray_while_a_daemon_is_dead_or_forgetful(lab: Lab) -> None:
    """ESP from user space: no packet has other addresses at the host, and it goes on by R1bis."""
    with alpha_moved(lab) as (_, beta), raw(lab) as (sender, receiver):
        protocol, octets = upper_layers(address(A1), address(B1))["esp"]
        packet = build_packet(address(A1), address(B1), protocol, octets)
        assert crosses(sender, receiver, packet) is not None
        beta.kill()
        with Capture(lab, "b1", "eth0") as capture:

            def arrived() -> list[bytes]:
                sender.sendto(packet, (B1, 0))
                return [got for got in capture.packets() if got[40:] == octets]

            for _ in range(20):
                assert arrived() == []
            again = Gateway(lab, BETA, beta.config)
            try:
                again.wait_ready()
                eventually(lambda: bool(arrived()), deadline_s=15, what="ESP packets again")
                assert {got[8:40] for got in arrived()} == {packet[8:40]}
            finally:
                again.close()


def test_the_plan_in_dns_lets_a_session_begin_on_a_dead_path(lab: Lab) -> None:
    """The zone is what ``plan nsquare`` prints; the record says which locators b1 has."""
    with planned(lab, BETA), running(lab, ALPHA, BETA, changes=IDENTIFIER) as (alpha, _):
        faults.cut(lab, "beta.isp1")
        with inside(lab.namespace("a1")), socket.socket(socket.AF_INET6) as session:
            session.setblocking(False)
            session.connect_ex((B1, 4711))  # nobody listens there, but the segment arrives

            def begun() -> bool:
                found = alpha.context(A1, B1)
                return found is not None and found["state"] == "ESTABLISHED"

            eventually(begun, deadline_s=25, what="a context over locator-only addresses")
        found = alpha.context(A1, B1)
        assert found is not None and found["peer_locator"] == B1_AT_2
        (locator,) = (one for one in found["peer_locators"] if one["address"] == B1_AT_2)
        assert locator["proof"] == "dns"


@contextmanager
def planned(lab: Lab, site: Site) -> Iterator[None]:
    """The lab's name server has the records that ``plan nsquare`` prints for a site's hosts."""
    path = lab.state_dir / "knot" / f"{site.zone}.zone"
    before = path.read_text()
    config = write_config(lab, site, IDENTIFIER)
    hosts = [f"--host={fqdn(site, host)}={host.address}" for host in site.hosts]
    printed = m6proxy(lab, str(site.gateway), "plan", "nsquare", "-c", str(config), *hosts).stdout
    plan = [line for line in printed.splitlines() if " SVCB " in line]
    assert plan
    kept = [line for line in before.splitlines() if " SVCB " not in line]
    reload_zone(
        lab, site, path, "\n".join([*kept, *plan, ""]).replace("hostmaster 1 ", "hostmaster 2 ")
    )
    try:
        yield
    finally:
        reload_zone(lab, site, path, before.replace("hostmaster 1 ", "hostmaster 3 "))


def reload_zone(lab: Lab, site: Site, path: Path, text: str) -> None:
    """Give the name server another zone file, and wait until it answers from it."""
    path.write_text(text)
    server = build.nameserver_pid(lab)
    assert server is not None
    run_in(lab, "ns", "kill", "-HUP", str(server))
    serial = text.partition("hostmaster ")[2].split()[0]
    question = ("kdig", "+short", "+time=1", "+retry=0", f"@{NAMESERVER}", site.zone, "SOA")
    eventually(
        lambda: serial in run_in(lab, "ns", *question).split(), deadline_s=10, what="a new zone"
    )

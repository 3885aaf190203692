"""Packets that do not fit, fragments, and what routers in the middle say of them."""

from __future__ import annotations

import hashlib
import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from m6proxy.lab import faults, servers
from m6proxy.lab.build import Lab, configure
from tests.harness.gateway import (
    A1,
    A1_ISP2,
    B1,
    PLANES,
    Gateway,
    both,
    established,
    listening,
    ping,
    program,
    rehomed,
    restore_rules,
)
from tests.harness.netns import eventually, run_in
from tests.harness.netns import lab as lab
from tests.netns.rehomed_pair import on_isp2 as moved
from tests.steering.namespaces import inside

pytestmark = pytest.mark.netns
on_either_plane = pytest.mark.parametrize("plane", PLANES)

_IPV6_MTU_DISCOVER, _DO, _WANT = 23, 2, 1
FETCHED_OCTETS = 2 << 20


@contextmanager
def on_isp2(lab: Lab, plane: str = "nfqueue") -> Iterator[tuple[Gateway, Gateway]]:
    """Both gateways, with the pair a1, b1 moved to isp2 of alpha."""
    with both(lab, PLANES[plane]) as (alpha, beta):
        established(lab, alpha, beta)
        faults.cut(lab, "alpha.isp1")
        rehomed(lab, alpha, (A1_ISP2, B1))
        eventually(lambda: ping(lab, "a1", B1), deadline_s=10, what="answers again")
        yield alpha, beta


def _path_mtu(lab: Lab, node: str, target: str) -> int:
    """Return what the host believes of the path, octets; its link's 1500 without an exception."""
    words = run_in(lab, node, "ip", "-6", "route", "get", target).split()
    return int(words[words.index("mtu") + 1]) if "mtu" in words else 1500


def _fetch(lab: Lab, folder: Path) -> None:
    """Fetch a file from b1 to a1 and compare the sum."""
    content = os.urandom(FETCHED_OCTETS)
    (folder / servers.FILE_NAME).write_bytes(content)
    config = folder / "nginx.conf"
    config.write_text(servers.nginx_config(folder, B1, FETCHED_OCTETS))
    nginx, fetched = servers.program("nginx"), folder / "fetched"
    assert nginx is not None
    with program(lab, "b1", nginx, "-c", str(config), "-p", str(folder)):
        listening(lab, "b1", 80)
        url = f"http://[{B1}]/{servers.FILE_NAME}"
        words = ["curl", "-sS", "--fail", "--max-time", "30", "-o", str(fetched), url]
        run_in(lab, "a1", *words, deadline_s=40)
    assert hashlib.sha256(fetched.read_bytes()).digest() == hashlib.sha256(content).digest()


@contextmanager
def datagrams(lab: Lab) -> Iterator[tuple[socket.socket, socket.socket]]:
    """A UDP socket on a1, connected to one on b1."""
    with inside(lab.namespace("b1")):
        receiver = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        receiver.bind((B1, 4000))
    with inside(lab.namespace("a1")):
        sender = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        sender.connect((B1, 4000))
    receiver.settimeout(1)
    with sender, receiver:
        yield sender, receiver


def _passes(sender: socket.socket, receiver: socket.socket, octets: int) -> bool:
    """Tell whether a datagram with this much payload arrives whole; errors of the path are no."""
    body = os.urandom(octets)
    try:
        sender.send(body)
        while True:
            got = receiver.recv(65_535)
            if got == body:
                return True
    except (TimeoutError, OSError):
        return False


@on_either_plane
def test_a_full_packet_is_answered_with_packet_too_big(
    lab: Lab, tmp_path: Path, plane: str
) -> None:
    with on_isp2(lab, plane) as (alpha, beta):
        _fetch(lab, tmp_path)
        assert _path_mtu(lab, "b1", A1) == 1492, "the host that sends is told"
        assert _path_mtu(lab, "a1", B1) == 1500, "the other has not sent much"
        done = subprocess.run(
            lab.inside("a1", ["ping", "-n", "-c", "2", "-W", "1", "-M", "do", "-s", "1452", B1]),
            capture_output=True,
            text=True,
        )
        assert "mtu=1492" in done.stdout or "mtu: 1492" in done.stdout + done.stderr, done
        assert "From 2001:db8:a1:1::1 " in done.stdout, "the gateway says it, from its own address"
        assert _path_mtu(lab, "a1", B1) == 1492
        assert ping(lab, "a1", B1, "-M", "do", "-s", "1444")
        assert alpha.drops().keys() >= {"TOO_BIG"} and beta.drops().keys() >= {"TOO_BIG"}


@on_either_plane
def test_a_udp_program_that_asks_is_told(lab: Lab, plane: str) -> None:
    """A program that forbids fragments gets EMSGSIZE after the first, and 1444 octets pass."""
    with on_isp2(lab, plane), datagrams(lab) as (sender, receiver):
        sender.setsockopt(socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER, _DO)
        assert not _passes(sender, receiver, 1452)
        eventually(lambda: _path_mtu(lab, "a1", B1) == 1492, deadline_s=5, what="the host was told")
        with pytest.raises(OSError, match="too long"):
            sender.send(bytes(1452))
        eventually(lambda: _passes(sender, receiver, 1444), deadline_s=5, what="what fits passes")


def test_an_error_from_the_middle_reaches_the_host_in_its_own_terms(
    lab: Lab, tmp_path: Path
) -> None:
    """A link of 1400 octets behind isp2: the router quotes locators, the host learns 1392."""
    with on_isp2(lab):
        configure(lab, "p2", "link set core mtu 1400\n")
        configure(lab, "core", "link set p2 mtu 1400\n")
        _fetch(lab, tmp_path)
        assert _path_mtu(lab, "b1", A1) == 1392
        ping(lab, "a1", B1, "-M", "do", "-s", "1400")
        eventually(lambda: _path_mtu(lab, "a1", B1) == 1392, deadline_s=5, what="the host was told")
        assert ping(lab, "a1", B1, "-M", "do", "-s", "1344")


ROOM = {"exthdr": 8, "dstopt": 40, "flowlabel": 0, "identifier": 0}
"""Octets that TCP has to leave, by mode (decision 21 for dstopt)."""


@pytest.mark.parametrize("mode", ROOM)
def test_tcp_finds_the_largest_packets_of_a_path_in_each_mode(
    lab: Lab, tmp_path: Path, mode: str
) -> None:
    """In the kernel: first over 1500 octets, then over a link of 1400 in the middle."""
    with moved(lab, mode, fast=True):
        for link_octets in (1500, 1400):
            configure(lab, "p2", f"link set core mtu {link_octets}\n")
            configure(lab, "core", f"link set p2 mtu {link_octets}\n")
            _fetch(lab, tmp_path)
            assert _path_mtu(lab, "b1", A1) == link_octets - ROOM[mode]


@on_either_plane
def test_an_unreachable_host_is_told_in_ulids(lab: Lab, plane: str) -> None:
    """The far gateway's kernel refuses a port: b1's own error, restored, names ULIDs."""
    with on_isp2(lab, plane), datagrams(lab) as (sender, receiver):
        receiver.close()
        sender.settimeout(3)
        sender.send(b"anybody?")
        with pytest.raises(ConnectionRefusedError):
            sender.recv(100)


STATEFUL = """\
*filter
:FORWARD DROP
-A FORWARD -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT
-A FORWARD -i lan0 -m conntrack --ctstate NEW -j ACCEPT
-A FORWARD -p ipv6-icmp -m conntrack --ctstate NEW -j ACCEPT
-A FORWARD -p udp -m conntrack --ctstate NEW -j ACCEPT
COMMIT
"""


@on_either_plane
@pytest.mark.parametrize("firewalls", [(), ("agw", "bgw")], ids=["stateless", "stateful"])
def test_fragments_of_a_re_homed_pair_arrive(
    lab: Lab, firewalls: tuple[str, ...], plane: str
) -> None:
    """Connection tracking hands us datagrams that it put together; they must go on as fragments.

    A datagram of 1,453 to 1,460 octets is the hard case: it fits the host's link, but not
    with our 8 octets, and put together it looks like one packet.
    """
    for node in firewalls:
        restore_rules(lab, node, STATEFUL)
    with on_isp2(lab, plane) as (alpha, beta), datagrams(lab) as (sender, receiver):
        for octets in (1452, 1450, 2000, 3000, 3700):
            eventually(
                partial(_passes, sender, receiver, octets),
                deadline_s=6,
                what=f"a datagram of {octets} octets: {alpha.drops()} {beta.drops()}",
            )
            eventually(
                partial(ping, lab, "a1", B1, "-s", str(octets)),
                deadline_s=6,
                what=f"a ping of {octets} octets: {alpha.drops()} {beta.drops()}",
            )


@on_either_plane
def test_fragments_of_any_size_arrive_where_nothing_puts_them_together(
    lab: Lab, plane: str
) -> None:
    with on_isp2(lab, plane), datagrams(lab) as (sender, receiver):
        for octets in (4000, 9000, 60_000):
            eventually(
                partial(_passes, sender, receiver, octets),
                deadline_s=6,
                what=f"a datagram of {octets} octets",
            )

"""Namespaces for the tests of steering and of the NFQUEUE data plane.

``TwoSites``: host a - gateway a = gateway b - host b, the gateways joined by two links.
The far gateway is the provider of the near one, on both links; nothing is filtered.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from m6proxy.names import Prefix, address
from m6proxy.steering.settings import SteeringSettings, UplinkSettings

_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)
_numbers = itertools.count()

HOST_A, HOST_B = "2001:db8:a1:1::10", "2001:db8:b1:1::10"


def run(*argv: str, text: str | None = None) -> str:
    """Run a program in the namespace of this thread; its failure is the test's."""
    done = subprocess.run(argv, input=text, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, f"{argv}: {done.stderr}"
    return done.stdout


def run_line(line: str) -> str:
    """Run a program whose words have no spaces in them."""
    return run(*line.split())


def until(holds: Callable[[], bool], what: str, *, within_s: float = 5.0) -> None:
    """Wait until something holds; fail with ``what`` when it does not in time."""
    deadline = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < deadline, f"not within {within_s} s: {what}"
        time.sleep(0.01)


@contextmanager
def inside(namespace: str) -> Iterator[None]:
    """Move this thread into a namespace; sockets opened there stay there."""
    here = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    there = os.open(f"/run/netns/{namespace}", os.O_RDONLY)
    try:
        _enter(there)
        try:
            yield
        finally:
            _enter(here)
    finally:
        os.close(here)
        os.close(there)


def _enter(descriptor: int) -> None:
    if _libc.setns(descriptor, _CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")


class Namespaces:
    """Namespaces with unique names, removed at the end whatever happens."""

    def __init__(self) -> None:
        self._names: list[str] = []

    def __enter__(self) -> Namespaces:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for name in self._names:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)

    def add(self, role: str) -> str:
        """Make a namespace with its loopback up and no duplicate address detection."""
        name = f"m6t-{os.getpid()}-s{next(_numbers)}-{role}"
        run("ip", "netns", "add", name)
        self._names.append(name)
        with inside(name):
            run("ip", "link", "set", "lo", "up")
            conf = Path("/proc/sys/net/ipv6/conf")
            for which in ("default", "all"):
                (conf / which / "accept_dad").write_text("0")
        return name

    def link(self, near: tuple[str, str], far: tuple[str, str]) -> None:
        """Join two namespaces: (name, interface) each."""
        run(
            *("ip", "-n", near[0], "link", "add", near[1], "type", "veth"),
            *("peer", "name", far[1], "netns", far[0]),
        )
        for name, interface in (near, far):
            run("ip", "-n", name, "link", "set", interface, "up")


def settings_of(side: str) -> SteeringSettings:
    """Return the settings of gateway ``a`` or ``b``."""
    far = "b" if side == "a" else "a"
    uplinks = tuple(
        UplinkSettings(
            f"isp{n}",
            f"wan{n}",
            Prefix.parse(f"2001:db8:{side}{n}::/48"),
            address(f"2001:db8:f{n}::{far}"),
            n,
        )
        for n in (1, 2)
    )
    site = {"a": "alpha.example", "b": "beta.example"}[side]
    return SteeringSettings(site, ("lan0",), uplinks)


class TwoSites(Namespaces):
    """The topology; main's default of each gateway leads over the first link."""

    def __init__(self) -> None:
        super().__init__()
        self.host: dict[str, str] = {}
        self.gateway: dict[str, str] = {}

    def __enter__(self) -> TwoSites:
        try:
            self._build()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def _build(self) -> None:
        for side in "ab":
            self.host[side], self.gateway[side] = self.add(f"h{side}"), self.add(f"g{side}")
            with inside(self.gateway[side]):
                Path("/proc/sys/net/ipv6/conf/all/forwarding").write_text("1")
            self.link((self.host[side], "eth0"), (self.gateway[side], "lan0"))
        for n in (1, 2):
            self.link((self.gateway["a"], f"wan{n}"), (self.gateway["b"], f"wan{n}"))
        for side in "ab":
            self._number(side, "b" if side == "a" else "a")

    def _number(self, side: str, far: str) -> None:
        with inside(self.gateway[side]):
            run("ip", "addr", "add", f"2001:db8:{side}1:1::1/64", "dev", "lan0", "nodad")
            run("ip", "-6", "route", "add", f"2001:db8:{side}2::/48", "dev", "lan0")
            for n in (1, 2):
                run("ip", "addr", "add", f"2001:db8:f{n}::{side}/64", "dev", f"wan{n}", "nodad")
            run("ip", "-6", "route", "add", "default", "via", f"2001:db8:f1::{far}")
        with inside(self.host[side]):
            run("ip", "addr", "add", f"2001:db8:{side}1:1::10/64", "dev", "eth0", "nodad")
            run("ip", "-6", "route", "add", "default", "via", f"2001:db8:{side}1:1::1")


def udp(namespace: str, bound: tuple[str, int], peer: tuple[str, int]) -> socket.socket:
    """Open a connected UDP socket in a namespace, with a time-out of two seconds."""
    with inside(namespace):
        opened = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        opened.bind(bound)
        opened.connect(peer)
        opened.settimeout(2)
        return opened


def sniffer(namespace: str, interface: str) -> socket.socket:
    """Open a non-blocking socket that receives the IPv6 packets of an interface, both ways."""
    with inside(namespace):
        opened = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0003))
        opened.bind((interface, 0x0003))
        opened.setblocking(False)
        return opened


def heard(sniffing: socket.socket) -> list[bytes]:
    """Return what a sniffer received so far: IPv6 packets, oldest first."""
    packets: list[bytes] = []
    while True:
        try:
            packet = sniffing.recv(65_535)
        except BlockingIOError:
            return packets
        if packet[0] >> 4 == 6:
            packets.append(packet)

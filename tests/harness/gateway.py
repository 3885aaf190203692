"""Daemons of m6proxy on the gateways of a lab, and what the tests of the whole system ask.

    with running(lab, ALPHA) as alpha, running(lab, BETA) as beta:
        alpha.ask("/v1/contexts") ...

Programs run inside namespaces; a socket that is opened ``inside`` one stays there.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

from m6proxy.cli.control import ask
from m6proxy.errors import SetupError
from m6proxy.lab import build, faults
from m6proxy.lab.build import Lab
from m6proxy.lab.sessions import python_environment
from m6proxy.lab.topology import ALPHA, BETA, PROVIDERS, Site
from tests.harness.netns import eventually
from tests.steering.namespaces import inside

A1, A1_ISP2 = "2001:db8:a1:1::10", "2001:db8:a2::10"
B1, B1_ISP2 = "2001:db8:b1:1::10", "2001:db8:b2::10"
C1 = "2001:db8:c1:1::10"
_SO_RCVBUFFORCE = 33
"""asm-generic/socket.h; Python's socket module does not name it."""
READY_S = 40.0
STOP_S = 15.0
QUICK = {
    "after_octets: 2048, after_s: 10": "after_packets: 2",
    "send_timeout_s: 3": "send_timeout_s: 1",
}
"""Changes of the lab's configuration: a context after two packets, silence noticed in a second."""

EXTHDR = {**QUICK, "send_timeout_s: 3": "send_timeout_s: 1\n  demux: [exthdr]"}
IN_KERNEL = {"control:": "fast_path: bpf\ncontrol:"}
PLANES = {"nfqueue": EXTHDR, "bpf": {**EXTHDR, **IN_KERNEL}}
"""Python moves every packet, or the kernel's programs do, with the same header."""

Json = dict[str, Any]


class Gateway:
    """``m6proxy run`` in a gateway's namespace, with a log of its own."""

    def __init__(
        self, lab: Lab, site: Site, config: Path, environment: dict[str, str] | None = None
    ) -> None:
        assert site.gateway is not None
        self.lab, self.site, self.node = lab, site, site.gateway
        self.config = config
        self.control = build.control_path(lab, site)
        self.log = config.with_suffix(".log")
        self.log.unlink(missing_ok=True)
        with self.log.open("ab") as log:
            self.child = subprocess.Popen(
                lab.inside(self.node, [sys.executable, "-m", "m6proxy", "run", "-c", str(config)]),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**python_environment(), **(environment or {})},
            )

    def wait_ready(self) -> None:
        """Wait until it says that it is ready; fail the test when it does not."""
        eventually(
            lambda: '"event": "ready"' in self.words() or self.child.poll() is not None,
            deadline_s=READY_S,
            what=f"{self.node} is ready",
        )
        assert self.child.poll() is None, self.words()

    def words(self) -> str:
        """Return its log."""
        return self.log.read_text(errors="replace")

    def ask(self, path: str) -> Any:
        """Ask its control socket."""
        return ask(self.control, path)

    def cli(self, *words: str) -> str:
        """Run a command of m6proxy against it and return its output."""
        return m6proxy(self.lab, self.node, *words, "--control", str(self.control)).stdout

    def contexts(self) -> list[Json]:
        """Return its contexts."""
        found = self.ask("/v1/contexts")
        assert isinstance(found, list)
        return found

    def context(self, local: str, peer: str) -> Json | None:
        """Return the context of a pair, if it has one."""
        for context in self.contexts():
            if (context["local_ulid"], context["peer_ulid"]) == (local, peer):
                return context
        return None

    def locators(self, local: str, peer: str) -> tuple[str, str] | None:
        """Return the pair of locators that a pair's packets use now."""
        found = self.context(local, peer)
        return None if found is None else (found["local_locator"], found["peer_locator"])

    def events(self, what: str) -> list[Json]:
        """Return its events of one kind."""
        return [event for event in self.ask("/v1/events") if event["what"] == what]

    def drops(self) -> dict[str, int]:
        """Return its drops by the name of the reason."""
        return {row["reason"]: row["count"] for row in self.ask("/v1/drops")}

    def stop(self) -> int:
        """End it with SIGTERM and return its exit code."""
        if self.child.poll() is None:
            self.child.send_signal(signal.SIGTERM)
        return self.child.wait(timeout=STOP_S)

    def kill(self) -> None:
        """End it with SIGKILL."""
        self.child.kill()
        self.child.wait(timeout=STOP_S)

    def close(self) -> None:
        """End it however it is, and fail the test when it complained of itself."""
        try:
            code = self.stop()
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"{self.node} does not stop: {self.words()[-2000:]}") from None
        words = self.words()
        assert "Traceback" not in words and "exception" not in words, words[-4000:]
        assert code in (0, -signal.SIGKILL), words[-2000:]


@contextmanager
def running(
    lab: Lab,
    *sites: Site,
    changes: dict[str, str] | None = None,
    environment: dict[str, str] | None = None,
) -> Iterator[tuple[Gateway, ...]]:
    """Run daemons on the gateways of these sites; heal the lab's providers afterwards.

    ``changes``: old text to new text, in each site's configuration as the lab writes it.
    """
    gateways: list[Gateway] = []
    try:
        for site in sites:
            path = write_config(lab, site, changes or {})
            gateways.append(Gateway(lab, site, path, environment))
        for gateway in gateways:
            gateway.wait_ready()
        yield tuple(gateways)
    finally:
        try:
            for gateway in gateways:
                gateway.close()
        finally:
            for gateway in gateways:
                if gateway.child.poll() is None:
                    gateway.kill()
            for provider in PROVIDERS:
                faults.restore(lab, provider)


@contextmanager
def both(lab: Lab, changes: dict[str, str] | None = None) -> Iterator[tuple[Gateway, Gateway]]:
    """Run daemons on alpha and beta."""
    with running(lab, ALPHA, BETA, changes=changes) as (alpha, beta):
        yield alpha, beta


def write_config(lab: Lab, site: Site, changes: dict[str, str]) -> Path:
    """Write a site's configuration with changes beside the lab's own; return its path.

    All packets come through the daemon, unless a change says otherwise.
    """
    text = build.gateway_config(lab, site)
    for old, new in changes.items():
        assert old in text, f"{old!r} is not in the lab's configuration"
        text = text.replace(old, new)
    if "fast_path" not in text:
        text += "fast_path: off\n"
    path = lab.state_dir / f"{site.name}-test.yaml"
    path.write_text(text)
    return path


def m6proxy(
    lab: Lab, node: str, *words: str, deadline_s: float = 30.0
) -> subprocess.CompletedProcess[str]:
    """Run a command of m6proxy in a node to its end."""
    return subprocess.run(
        lab.inside(node, [sys.executable, "-m", "m6proxy", *words]),
        capture_output=True,
        text=True,
        timeout=deadline_s,
        env=python_environment(),
        check=False,
    )


# --- what hosts do ---------------------------------------------------------------------------


def ping(lab: Lab, node: str, target: str, *options: str, deadline_s: float = 10.0) -> bool:
    """Tell whether a ping is answered within a second, ``-W`` and ``-c`` overridable."""
    done = subprocess.run(
        lab.inside(node, ["ping", "-n", "-c", "1", "-W", "1", *options, target]),
        capture_output=True,
        timeout=deadline_s,
        check=False,
    )
    return done.returncode == 0


def established(lab: Lab, alpha: Gateway, beta: Gateway, peer: str = B1, node: str = "a1") -> None:
    """Ping from a host of alpha until both gateways carry a context for the pair."""
    local = {"a1": A1, "a2": "2001:db8:a1:1::20"}[node]

    def carries() -> bool:
        ping(lab, node, peer)
        contexts = (alpha.context(local, peer), beta.context(peer, local))
        return all(found is not None and found["state"] == "ESTABLISHED" for found in contexts)

    eventually(carries, deadline_s=20.0, what=f"a context for {local} and {peer}")


def rehomed(
    lab: Lab, gateway: Gateway, locators: tuple[str, str], *, deadline_s: float = 20.0
) -> None:
    """Ping on from a1 until the pair a1, b1 uses these locators of alpha and beta."""

    def moved() -> bool:
        ping(lab, "a1", B1, "-i", "0.2")
        return gateway.locators(A1, B1) == locators

    eventually(moved, deadline_s=deadline_s, what=f"{gateway.node} uses {locators}")


@contextmanager
def program(
    lab: Lab, node: str, *words: str, output: Path | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program in a node for the length of the block; end it by its own id."""
    with (output or Path(os.devnull)).open("wb") as sink:
        child = subprocess.Popen(
            lab.inside(node, words),
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=sink,
            env=python_environment(),
        )
    try:
        yield child
    finally:
        child.terminate()
        try:
            child.wait(timeout=5)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def listening(lab: Lab, node: str, port: int) -> None:
    """Wait until something listens on a TCP port of a node."""
    ending = f":{port:04X}"

    def open_there() -> bool:
        table = subprocess.run(
            lab.inside(node, ["cat", "/proc/net/tcp6"]), capture_output=True, text=True, check=True
        ).stdout
        rows = [line.split() for line in table.splitlines()[1:]]
        return any(row[1].endswith(ending) and row[3] == "0A" for row in rows)

    eventually(open_there, deadline_s=15.0, what=f"{node} listens on {port}")


# --- what stands in the middle ----------------------------------------------------------------


def raw_socket(lab: Lab, node: str) -> socket.socket:
    """Open a socket that sends whole IPv6 packets from a node, routed by their destination."""
    with inside(lab.namespace(node)):
        return socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_RAW)


def send_raw(sock: socket.socket, packet: bytes) -> None:
    """Send a whole IPv6 packet."""
    sock.sendto(packet, (socket.inet_ntop(socket.AF_INET6, packet[24:40]), 0))


def link_sender(lab: Lab, node: str, interface: str) -> socket.socket:
    """Open a socket that puts IPv6 packets on a link as they are (``put_on_link``)."""
    with inside(lab.namespace(node)):
        opened = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x86DD))
        opened.bind((interface, 0x86DD))
        return opened


def put_on_link(sock: socket.socket, packet: bytes, mac: bytes) -> None:
    """Send octets as an IPv6 frame to a link-layer address, whatever they are."""
    interface = sock.getsockname()[0]
    sock.sendto(packet, (interface, 0x86DD, 0, 0, mac))


def mac_of(lab: Lab, node: str, interface: str) -> bytes:
    """Return the link-layer address of an interface."""
    text = subprocess.run(
        lab.inside(node, ["cat", f"/sys/class/net/{interface}/address"]),
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    found = bytes.fromhex(text.strip().replace(":", ""))
    if len(found) == 6 and any(found):
        return found
    words = subprocess.run(
        ["ip", "-n", lab.namespace(node), "-o", "link", "show", "dev", interface],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    match = re.search(r"link/ether ([0-9a-f:]+)", words)
    assert match is not None, words
    return bytes.fromhex(match[1].replace(":", ""))


class Capture:
    """Collects the IPv6 packets of one interface, both ways, until closed."""

    def __init__(self, lab: Lab, node: str, interface: str) -> None:
        with inside(lab.namespace(node)):
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0003))
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 16 << 20)
            self._socket.bind((interface, 0x0003))
        self._socket.setblocking(False)
        self._heard: list[bytes] = []

    def packets(self) -> list[bytes]:
        """Return all IPv6 packets since the start, oldest first."""
        with suppress(BlockingIOError):
            while True:
                packet = self._socket.recv(65_535)
                if packet and packet[0] >> 4 == 6:
                    self._heard.append(packet)
        return self._heard

    def __enter__(self) -> Capture:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()


# --- the kernel's own words --------------------------------------------------------------------


def kernel_state(lab: Lab, node: str) -> dict[str, str]:
    """Return rules and routes of a node as the kernel's tools print them, counters zeroed."""
    commands: dict[str, Sequence[str]] = {
        "ip6tables": ["ip6tables-save"],
        "rules": ["ip", "-6", "rule"],
        "routes": ["ip", "-6", "route", "show", "table", "all"],
    }
    state: dict[str, str] = {}
    for name, command in commands.items():
        done = subprocess.run(
            lab.inside(node, command), capture_output=True, text=True, check=True, timeout=10
        )
        lines = [line for line in done.stdout.splitlines() if not line.startswith("#")]
        text = re.sub(r"\[\d+:\d+\]", "[0:0]", "\n".join(lines))
        state[name] = re.sub(r" expires \d+sec", "", text)
    return state


def settled_state(lab: Lab, node: str) -> dict[str, str]:
    """Return ``kernel_state`` once the kernel has nothing more to add by itself.

    Link-local routes come some time after a link, and a table is listed from the first time
    that anybody uses it: ip6tables makes it then, and nothing can take it away.
    """
    for table in ("raw", "mangle", "filter"):
        chain = "FORWARD" if table == "filter" else "PREROUTING"
        restore_rules(lab, node, f"*{table}\n:{chain} ACCEPT\nCOMMIT\n")
    same, state = 0, kernel_state(lab, node)

    def is_same() -> bool:
        nonlocal same, state
        now = kernel_state(lab, node)
        same, state = (same + 1 if now == state else 0), now
        return same >= 20

    eventually(is_same, deadline_s=20, what=f"{node} is quiet")
    return state


def restore_rules(lab: Lab, node: str, text: str) -> None:
    """Give a node's kernel rules beside those that are there."""
    build.feed(lab.inside(node, ["ip6tables-restore", "--noflush"]), text)


def refused(lab: Lab, node: str, config: Path) -> str:
    """Run a daemon that must refuse to start: exit code 2 and one line, which is returned."""
    done = m6proxy(lab, node, "run", "-c", str(config))
    assert done.returncode == 2, (done.returncode, done.stdout, done.stderr)
    lines = (done.stdout + done.stderr).strip().splitlines()
    assert len(lines) == 1, lines
    return lines[0]


def not_answering(gateway: Gateway) -> bool:
    """Tell whether nobody answers on a gateway's control socket."""
    try:
        gateway.ask("/v1/status")
    except SetupError:
        return True
    return False


def longest_gap_s(times_s: Sequence[float]) -> float:
    """Return the longest time between two neighbours, seconds."""
    return max((after - before for before, after in pairwise(times_s)), default=0.0)


def now_s() -> float:
    """Return the monotonic clock, the same in all namespaces."""
    return time.monotonic()

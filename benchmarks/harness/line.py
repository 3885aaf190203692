"""One host, two gateways and one host in a row, with two links between the gateways.

    a [lan0] ---- [lan0] ga [wan1] ==== [wan1] gb [lan0] ---- [lan0] b
                            [wan2] ==== [wan2]
                            [net0] ---- [net0]            name server, in gb

Each link between the gateways is one provider of either site. What forwards is the
kernel's own path (``Plain``), its prefix translation (``Translated``) or a daemon of
m6proxy on both gateways (``Proxied``), whose context is moved from the first link to the
second. A line stands until it is closed, so that several can take turns.
"""

from __future__ import annotations

import contextlib
import hashlib
import ipaddress
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

from benchmarks.harness.namespaces import run
from m6proxy.cli.control import ask
from m6proxy.dataplane.bpf import layout
from m6proxy.dataplane.bpf.maps import Map
from m6proxy.dataplane.bpf.syscall import obj_get
from m6proxy.discovery.capability import Capability, PrefixLocator
from m6proxy.discovery.codec import svcb_zone_line
from m6proxy.errors import SetupError
from m6proxy.lab.topology import CORE_ON_NS_NET, NAMESERVER
from m6proxy.lab.zones import knot_config, reverse_name
from m6proxy.names import Prefix

NODES = ("a", "ga", "gb", "b")
SITES = {"alpha": ("a", "ga"), "beta": ("b", "gb")}
PREFIXES = {
    "alpha": ("2001:db8:a1::/48", "2001:db8:a2::/48"),
    "beta": ("2001:db8:b1::/48", "2001:db8:b2::/48"),
}
HOSTS = {"alpha": "2001:db8:a1:1::10", "beta": "2001:db8:b1:1::10"}
ROUTERS = {"alpha": "2001:db8:a1:1::1", "beta": "2001:db8:b1:1::1"}
ENDS = {"ga": 1, "gb": 2}
MACS = {"a": "02:00:00:00:0a:01", "ga": "02:00:00:00:0a:02"}
READY_DEADLINE_S = 30.0
STOP_DEADLINE_S = 10.0
DISCARD_PORT = 9
BATCH = 50_000
_KNOTD = ("knotd", "/usr/sbin/knotd")


class Line:
    """The namespaces and links; plain forwarding over the first link. A context manager."""

    def __init__(self, name: str) -> None:
        if os.geteuid() != 0:
            raise SetupError("network namespaces need root")
        self.name = name
        self._prefix = f"m6b-{os.getpid()}-{name}"
        self._children: list[subprocess.Popen[bytes]] = []
        self.folder = Path()

    def __enter__(self) -> Self:
        self.folder = Path(tempfile.mkdtemp(prefix="m6b-"))
        try:
            self._build()
            self.prepare()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        while self._children:
            _end(self._children.pop())
        for node in NODES:
            if Path("/run/netns", self.namespace(node)).exists():
                subprocess.run(["ip", "netns", "delete", self.namespace(node)], check=False)
        shutil.rmtree(self.folder, ignore_errors=True)

    def prepare(self) -> None:
        """Set up what forwards; the kernel needs nothing more."""

    def namespace(self, node: str) -> str:
        """Return the name of a node's namespace."""
        return f"{self._prefix}-{node}"

    def inside(self, node: str, *words: str) -> list[str]:
        """Return the words that run a program in a node, under its own process id."""
        return ["ip", "netns", "exec", self.namespace(node), *words]

    def run(self, node: str, *words: str, text: str | None = None) -> str:
        """Run a tool in a node and return its output. Raises SetupError with its words."""
        return run(*self.inside(node, *words), text=text)

    def start(self, node: str, *words: str) -> subprocess.Popen[bytes]:
        """Start a program that runs until the line is closed, its words in a log."""
        with (self.folder / f"{node}-{Path(words[0]).name}.log").open("ab") as log:
            child = subprocess.Popen(
                self.inside(node, *words),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._children.append(child)
        return child

    def arrived(self) -> int:
        """Packets that b has received on its LAN."""
        table = self.run("b", "cat", "/proc/net/dev")
        row = next(line for line in table.splitlines() if line.strip().startswith("lan0:"))
        return int(row.partition(":")[2].split()[1])

    def _build(self) -> None:
        names = {node: self.namespace(node) for node in NODES}
        lines = [f"netns add {name}" for name in names.values()]
        lines += [
            f"link add lan0 netns {names['a']} address {MACS['a']} "
            f"type veth peer name lan0 netns {names['ga']} address {MACS['ga']}",
            f"link add lan0 netns {names['b']} type veth peer name lan0 netns {names['gb']}",
        ]
        lines += [
            f"link add {link} netns {names['ga']} type veth peer name {link} netns {names['gb']}"
            for link in ("wan1", "wan2", "net0")
        ]
        run("ip", "-batch", "-", text="".join(f"{line}\n" for line in lines))
        quiet = ("net.ipv6.conf.all.accept_dad=0", "net.ipv6.conf.default.accept_dad=0")
        for node in NODES:
            forwarding = ("net.ipv6.conf.all.forwarding=1",) if node in ENDS else ()
            self.run(node, "sysctl", "-qw", *quiet, *forwarding)
        for site, (host, gateway) in SITES.items():
            self._batch(host, ["link set lo up", "link set lan0 up",
                               f"addr add {HOSTS[site]}/64 dev lan0",
                               f"route add default via {ROUTERS[site]}"])  # fmt: skip
            end, other = ENDS[gateway], 3 - ENDS[gateway]
            self._batch(gateway, [
                "link set lo up", "link set lan0 up", f"addr add {ROUTERS[site]}/64 dev lan0",
                *(f"link set {link} up" for link in ("wan1", "wan2", "net0")),
                *(f"addr add 2001:db8:f{n}::{end}/64 dev wan{n}" for n in (1, 2)),
                f"addr add {NAMESERVER if gateway == 'gb' else CORE_ON_NS_NET}/64 dev net0",
                f"route add default via 2001:db8:f1::{other}",
            ])  # fmt: skip
        drop = f"*raw\n-A PREROUTING -p udp --dport {DISCARD_PORT} -j DROP\nCOMMIT\n"
        self.run("b", "ip6tables-restore", text=drop)

    def _batch(self, node: str, lines: Sequence[str]) -> None:
        words = ("ip", "-n", self.namespace(node), "-6", "-batch", "-")
        run(*words, text="".join(f"{line}\n" for line in lines))


class Routed(Line):
    """Plain forwarding of a gateway that routes by source, as one with two providers has to."""

    def prepare(self) -> None:
        """Install what m6proxy would (docs/decisions/0006), by hand."""
        for site, (_, gateway) in SITES.items():
            other = 3 - ENDS[gateway]
            lines = []
            for n, prefix in enumerate(PREFIXES[site], 1):
                lines += [
                    f"route add default via 2001:db8:f{n}::{other} dev wan{n} table {100 + n}",
                    f"rule add from {prefix} lookup main suppress_prefixlength 0 priority 100",
                    f"rule add from {prefix} lookup {100 + n} priority 101",
                ]
            self._batch(gateway, lines)


class Translated(Line):
    """The kernel's NPTv6 on both gateways: each translates its site's first prefix."""

    def prepare(self) -> None:
        """Install the translation, for hosts of the other site reached by its second prefix."""
        for site, (_, gateway) in SITES.items():
            inner, outer = PREFIXES[site]
            rules = (
                "*mangle\n-A POSTROUTING -o wan1 -s "
                f"{inner} -j SNPT --src-pfx {inner} --dst-pfx {outer}\n"
                f"-A PREROUTING -i wan1 -d {outer} -j DNPT --src-pfx {outer} --dst-pfx {inner}\n"
                "COMMIT\n"
            )
            self.run(gateway, "ip6tables-restore", "--noflush", text=rules)


class Proxied(Line):
    """m6proxy on both gateways. ``settings``: further lines of the configuration."""

    def __init__(self, name: str, *, policy: str, settings: str = "", moved: bool = True) -> None:
        super().__init__(name)
        self._policy, self._settings, self._moved = policy, settings, moved
        self.daemons: dict[str, subprocess.Popen[bytes]] = {}

    def prepare(self) -> None:
        """Start name server and daemons; have a context, and move it to the second link."""
        self._serve_names()
        for site, (_, gateway) in SITES.items():
            self.daemons[site] = self.start_daemon(site, gateway)
        self._until("the daemons are ready", lambda: all(map(self.is_ready, SITES)))
        if not self._moved:
            return
        self._keep_apart()
        self._until("both ends have a context", self._established)
        self.run("ga", "ip", "link", "set", "wan1", "down")
        self._until("both ends use the second link", self._rehomed)

    def _keep_apart(self) -> None:
        """The first prefixes are reached over the first link alone, as providers have it: what is
        moved has both its locators in the second prefixes."""
        for site, (_, gateway) in SITES.items():
            other = next(prefixes[0] for name, prefixes in PREFIXES.items() if name != site)
            via = f"2001:db8:f1::{3 - ENDS[gateway]}"
            self._batch(gateway, [f"route add {other} via {via} dev wan1",
                                  f"route add unreachable {other} metric 4096"])  # fmt: skip

    def fill(self, flows: int) -> None:
        """Give the kernel so many flows more on either gateway, which no packet belongs to."""
        for site in SITES:
            folder = self.folder / "bpf" / self.control(site).stem
            for name in (layout.OUT, layout.TAG):
                with contextlib.closing(
                    Map.opened(obj_get(str(folder / f"map_{name}")), name)
                ) as one:
                    _fill(one, flows)

    def went_express(self) -> bool:
        """Whether packets went past the IPv6 stacks of both gateways."""
        statuses = [ask(self.control(site), "/v1/status") for site in SITES]
        return all(status["packets"].get("kernel_express", 0) for status in statuses)

    def start_daemon(self, site: str, gateway: str) -> subprocess.Popen[bytes]:
        """Start the daemon of one site."""
        config = self.folder / f"{site}.yaml"
        other = 3 - ENDS[gateway]
        uplinks = "".join(
            f'  isp{n}: {{interface: wan{n}, prefix: "{prefix}", '
            f'gateway: "2001:db8:f{n}::{other}", preference: {n}}}\n'
            for n, prefix in enumerate(PREFIXES[site], 1)
        )
        config.write_text(
            f"site: {site}.example\nlan: [lan0]\nuplinks:\n{uplinks}"
            f'dns: {{servers: ["{NAMESERVER}"]}}\n'
            f"policy: {{unknown_peers: ignore, send_timeout_s: 3, {self._policy}}}\n"
            f"control: {self.control(site)}\n{self._settings}"
        )
        words = (sys.executable, "-m", "m6proxy", "run", "-c", str(config))
        return self.start(gateway, *words)

    def control(self, site: str) -> Path:
        """Return the control socket of a site's daemon."""
        return self.folder / f"{site}.sock"

    def contexts(self, site: str) -> list[dict[str, Any]]:
        """Return the contexts of a site's daemon."""
        found: list[dict[str, Any]] = ask(self.control(site), "/v1/contexts")
        return found

    def is_ready(self, site: str) -> bool:
        """Whether a daemon answers questions. Raises SetupError when it ended."""
        if self.daemons[site].poll() is not None:
            log = next(self.folder.glob(f"{SITES[site][1]}-python*.log"))
            raise SetupError(f"the daemon of {site} ended: {log.read_text()[-400:]}")
        try:
            self.contexts(site)
        except SetupError:
            return False
        return True

    def _ping(self) -> None:
        words = ("ping", "-n", "-c", "3", "-i", "0.1", "-W", "1", HOSTS["beta"])
        subprocess.run(self.inside("a", *words), capture_output=True, check=False)

    def _established(self) -> bool:
        self._ping()
        return all(
            any(context["state"] == "ESTABLISHED" for context in self.contexts(site))
            for site in SITES
        )

    def _rehomed(self) -> bool:
        self._ping()
        return all(
            any(context["local_locator"] != HOSTS[site] for context in self.contexts(site))
            for site in SITES
        )

    def _until(self, what: str, is_so: Callable[[], bool]) -> None:
        end_s = time.monotonic() + READY_DEADLINE_S
        while not is_so():
            if time.monotonic() > end_s:
                raise SetupError(f"line {self.name}: not within {READY_DEADLINE_S:g} s: {what}")
            time.sleep(0.05)

    def _serve_names(self) -> None:
        knotd = next(filter(None, map(shutil.which, _KNOTD)), None)
        if knotd is None:
            raise SetupError("knotd is missing: apt-get install knot")
        zones = self._zones()
        for zone, text in zones.items():
            (self.folder / f"{zone}.zone").write_text(text)
        (self.folder / "db").mkdir()
        path = self.folder / "knot.conf"
        path.write_text(knot_config(self.folder, list(zones)))
        self.start("gb", knotd, "-c", str(path))

    def _zones(self) -> dict[str, str]:
        soa = "3600 IN SOA ns.invalid. h.invalid. 1 3600 600 86400 60\n@ 3600 IN NS ns.invalid."
        zones: dict[str, str] = {}
        for site, (host, _) in SITES.items():
            prefixes = tuple(
                PrefixLocator(Prefix.parse(text), n) for n, text in enumerate(PREFIXES[site], 1)
            )
            capability = Capability(site=f"{site}.example", prefixes=prefixes)
            name = f"{host}.{site}.example"
            record = svcb_zone_line(name, capability, 3600)
            zones[f"{site}.example"] = (
                f"{site}.example. {soa}\n{name}. 3600 IN AAAA {HOSTS[site]}\n{record}\n"
            )
            reverse = reverse_name(PREFIXES[site][0])
            pointer = ipaddress.IPv6Address(HOSTS[site]).reverse_pointer
            zones[reverse] = f"{reverse}. {soa}\n{pointer}. 3600 IN PTR {name}.\n"
        return zones


def _fill(one: Map, flows: int) -> None:
    value, size = bytes(one.spec.value_size), one.spec.key_size
    for first in range(0, flows, BATCH):
        numbers = range(first, min(first + BATCH, flows))
        keys = [hashlib.blake2s(n.to_bytes(8), digest_size=size).digest() for n in numbers]
        left = one.update_batch(keys, [value] * len(keys))
        if left:
            raise SetupError(f"the map {one.spec.name} has no room for {flows:,} flows")


def _end(child: subprocess.Popen[bytes]) -> None:
    child.terminate()
    try:
        child.wait(STOP_DEADLINE_S)
    except subprocess.TimeoutExpired:
        child.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(STOP_DEADLINE_S)

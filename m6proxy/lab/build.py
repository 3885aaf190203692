"""Bring the lab up in network namespaces and take it down again without a trace.

What it touches on the machine: namespaces ``<lab>-<node>``, ``/etc/netns/<lab>-<node>``
(the hosts' resolver) and ``/run/m6proxy-lab/<lab>``. ``down`` works from these names alone,
so that it also clears what a crash left behind.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from m6proxy.errors import SetupError
from m6proxy.lab import plan
from m6proxy.lab.topology import DEFAULT_LAB, NAMESERVER, NODES, NS, PROVIDERS, SITES, Site

RUN_DIR = Path("/run/m6proxy-lab")
NETNS_DIR = Path("/run/netns")
RESOLVER_DIR = Path("/etc/netns")
COMMAND_DEADLINE_S = 20.0
STOP_DEADLINE_S = 3.0
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,31}")


@dataclass(frozen=True, slots=True)
class Lab:
    """A lab by its name; whether it is up is asked of the machine."""

    name: str = DEFAULT_LAB

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise SetupError(
                f"lab name {self.name!r}: 1 to 32 small letters, digits and '-' are allowed"
            )

    @property
    def state_dir(self) -> Path:
        """Where the lab's configurations, logs and control sockets are."""
        return RUN_DIR / self.name

    def namespace(self, node: str) -> str:
        """Return the namespace of a node. Raises SetupError for a node that does not exist."""
        if node not in NODES:
            raise SetupError(f"no node {node!r}; the lab has {', '.join(NODES)}")
        return plan.namespace(self.name, node)

    def inside(self, node: str, command: Sequence[str]) -> list[str]:
        """Return the argument list that runs a command in a node; it keeps its process id."""
        return ["ip", "netns", "exec", self.namespace(node), *command]

    def namespaces(self) -> list[str]:
        """Return those of the lab's namespaces that exist now."""
        return [n for n in map(self.namespace, NODES) if (NETNS_DIR / n).exists()]

    def require_up(self) -> None:
        """Raise SetupError unless every namespace of the lab exists."""
        if len(self.namespaces()) != len(NODES):
            raise SetupError(f"lab {self.name!r} is not up: `m6proxy lab up --name {self.name}`")


def up(lab: Lab, *, source_routing: bool = False) -> None:
    """Build all nodes, links, addresses, routes and filters.

    ``source_routing``: let the lab give the gateways routes by source prefix, for a run
    without m6proxy. Raises SetupError when the lab is up, root is missing, or a tool fails;
    nothing is left then.
    """
    if os.geteuid() != 0:
        raise SetupError("the lab needs root: it makes network namespaces")
    for tool in ("ip", "ip6tables-restore"):
        if shutil.which(tool) is None:
            raise SetupError(f"{tool} is missing: apt-get install iproute2 iptables")
    _claim(lab)
    try:
        _build(lab, source_routing=source_routing)
    except BaseException:
        down(lab)
        raise


def _claim(lab: Lab) -> None:
    taken = bool(lab.namespaces())
    RUN_DIR.mkdir(parents=True, exist_ok=True)
    try:
        if not taken:
            lab.state_dir.mkdir()
    except FileExistsError:
        taken = True
    if taken:
        raise SetupError(
            f"lab {lab.name!r} is up already or a crash left parts of it: "
            f"`m6proxy lab down --name {lab.name}` removes it"
        )


def _build(lab: Lab, *, source_routing: bool) -> None:
    _mount_pins(pins_path(lab))
    feed(["ip", "-batch", "-"], "".join(f"netns add {lab.namespace(n)}\n" for n in NODES))
    for node in NODES:
        feed(lab.inside(node, ["sh", "-es"]), plan.sysctl(node))
    feed(["ip", "-batch", "-"], plan.links(lab.name))
    for node in NODES:
        configure(lab, node, plan.interior(node))
    for provider in PROVIDERS:
        feed(lab.inside(provider, ["ip6tables-restore"]), plan.provider_filter(provider))
    for site in SITES:
        if source_routing and site.gateway and site.capable:
            configure(lab, site.gateway, plan.source_routing(site))
        for host in site.hosts:
            _give_resolver(lab, host.node)
        if site.gateway and site.capable:
            _give_resolver(lab, site.gateway)
            config_path(lab, site).write_text(gateway_config(lab, site))


def configure(lab: Lab, node: str, batch: str) -> None:
    """Apply ``ip -6 -batch`` text inside a node. Raises SetupError when it is refused."""
    feed(["ip", "-n", lab.namespace(node), "-6", "-batch", "-"], batch)


def feed(command: Sequence[str], text: str) -> str:
    """Run a tool with ``text`` as its input and return its output.

    Raises SetupError with the tool's own words when it fails or takes longer than 20 s.
    """
    try:
        done = subprocess.run(
            command, input=text, capture_output=True, text=True, timeout=COMMAND_DEADLINE_S
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SetupError(f"{' '.join(command)}: {error}") from error
    if done.returncode != 0:
        words = " ".join(done.stderr.split()) or f"exit code {done.returncode}"
        raise SetupError(f"{' '.join(command)}: {words}")
    return done.stdout


def _give_resolver(lab: Lab, node: str) -> None:
    directory = RESOLVER_DIR / lab.namespace(node)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "resolv.conf").write_text(
        f"nameserver {NAMESERVER}\noptions timeout:1 attempts:5\n"
    )


def config_path(lab: Lab, site: Site) -> Path:
    """Return where the configuration of a site's gateway lies."""
    return lab.state_dir / f"{site.name}.yaml"


def pins_path(lab: Lab) -> Path:
    """Return where the gateways' daemons keep what outlives them in the kernel."""
    return lab.state_dir / "bpf"


def control_path(lab: Lab, site: Site) -> Path:
    """Return the control socket of a site's gateway."""
    return lab.state_dir / f"{site.name}.sock"


def gateway_config(lab: Lab, site: Site) -> str:
    """Return the m6proxy configuration of a site's gateway, YAML. Raises SetupError without one."""
    if site.gateway is None or not site.capable:
        raise SetupError(f"{site.name} is a legacy site: m6proxy does not run there")
    uplinks = "".join(
        f'  {u.name}: {{interface: {u.interface}, prefix: "{u.prefix}", '
        f'gateway: "{u.provider_address}", preference: {u.preference}}}\n'
        for u in site.uplinks
    )
    return (
        f"site: {site.zone}\n"
        "lan: [lan0]\n"
        f"uplinks:\n{uplinks}"
        f'dns: {{servers: ["{NAMESERVER}"]}}\n'
        "policy:\n"
        "  establish: {after_octets: 2048, after_s: 10}\n"
        "  unknown_peers: ignore\n"
        "  send_timeout_s: 3\n"
        f"control: {control_path(lab, site)}\n"
    )


def down(lab: Lab) -> None:
    """Stop every process inside the lab's namespaces and remove all that the lab made.

    A lab that is not there is no error: the end is the same.
    """
    _stop_inside(lab)
    for name in lab.namespaces():
        feed(["ip", "netns", "delete", name], "")
    for node in NODES:
        shutil.rmtree(RESOLVER_DIR / lab.namespace(node), ignore_errors=True)
    _unmount_below(lab.state_dir)
    shutil.rmtree(lab.state_dir, ignore_errors=True)
    for shared in (RESOLVER_DIR, RUN_DIR):
        _remove_if_empty(shared)


def _mount_pins(folder: Path) -> None:
    """Mount a bpffs: what a daemon mounts under ``ip netns exec`` is gone with it.

    A kernel that refuses is no fault of the lab: the daemon says what it does without.
    """
    folder.mkdir()
    words = ["mount", "-t", "bpf", "m6proxy-lab", str(folder)]
    subprocess.run(words, check=False, capture_output=True)


def _unmount_below(directory: Path) -> None:
    """Take away the bpffs, and what a daemon mounted itself and did not live to end."""
    places = [Path(line.split()[1]) for line in Path("/proc/self/mounts").read_text().splitlines()]
    for place in reversed(places):
        if directory in place.parents:
            subprocess.run(["umount", "--lazy", str(place)], check=False, capture_output=True)


def _remove_if_empty(directory: Path) -> None:
    with contextlib.suppress(OSError):
        directory.rmdir()


def processes(lab: Lab) -> dict[int, str]:
    """Return the processes inside the lab's namespaces, ourselves apart: id to node.

    A process that ended and was not collected yet has no namespace and does not count.
    """
    places: dict[tuple[int, int], str] = {}
    for node in NODES:
        path = NETNS_DIR / lab.namespace(node)
        if path.exists():
            found = path.stat()
            places[found.st_dev, found.st_ino] = node
    inside: dict[int, str] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and int(entry.name) != os.getpid():
            try:
                found = (entry / "ns" / "net").stat()
            except OSError:
                continue
            node_here = places.get((found.st_dev, found.st_ino))
            if node_here is not None:
                inside[int(entry.name)] = node_here
    return inside


def _stop_inside(lab: Lab) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        for pid in processes(lab):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        deadline = time.monotonic() + STOP_DEADLINE_S
        while processes(lab) and time.monotonic() < deadline:
            time.sleep(0.02)


def nameserver_pid(lab: Lab) -> int | None:
    """Return the process id of the lab's knotd, or None when it does not run."""
    for pid, node in processes(lab).items():
        if node == NS:
            return pid
    return None

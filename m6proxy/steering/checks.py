"""Probes: is this machine fit to be a gateway of m6proxy? Each looks and leaves nothing behind.

A probe answers with a Finding, one line for people. ``m6proxy check`` shows them all;
``m6proxy run`` refuses to start on a failed one that is essential.
"""

from __future__ import annotations

import errno
import shutil
import socket
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from pyroute2 import IPRoute, NetlinkError

from m6proxy.names import Address, Prefix, address_text
from m6proxy.steering.uplinks import CARRIES

CAP_NET_ADMIN = 12
CAP_NET_RAW = 13
RULES_TIMEOUT_S = 10.0

_CHAIN = "m6proxy-check"
_FEATURES = {
    "raw": {
        "NFQUEUE target": "-j NFQUEUE --queue-num 141 --queue-bypass",
        "addrtype match": "-m addrtype --dst-type LOCAL",
        "comment match": "-m comment --comment m6proxy",
    },
    "mangle": {"NFQUEUE target": "-j NFQUEUE --queue-num 140 --queue-bypass"},
}
"""What the rule bundles stand on, by table."""

_NOT_SUPPRESSED = 0xFFFF_FFFF
"""The kernel's word for a rule that passes over no route."""


class Level(Enum):
    """How a probe ended; the values are the words on the screen."""

    OK = "ok"
    WARNING = "warn"
    FAILURE = "FAIL"


@dataclass(frozen=True, slots=True)
class Finding:
    """What one probe found."""

    what: str
    """The thing that was looked at."""
    level: Level
    detail: str
    """How it is, or why it does not do."""
    remedy: str = ""
    """How to mend it; empty when there is nothing to mend."""
    essential: bool = False
    """Whether m6proxy cannot start without it."""

    def __str__(self) -> str:
        return f"{self.what}: {self.detail}" + (f"; {self.remedy}" if self.remedy else "")


def check_privileges(status: Path = Path("/proc/self/status")) -> Finding:
    """Look for CAP_NET_ADMIN and CAP_NET_RAW among the effective capabilities."""
    what = "privileges"
    effective = 0
    for line in status.read_text().splitlines():
        if line.startswith("CapEff:"):
            effective = int(line.split()[1], 16)
    wanted = {"CAP_NET_ADMIN": CAP_NET_ADMIN, "CAP_NET_RAW": CAP_NET_RAW}
    missing = [name for name, bit in wanted.items() if not effective >> bit & 1]
    if missing:
        return Finding(
            what,
            Level.FAILURE,
            f"without {' and '.join(missing)}",
            "run it as root, or give the service these capabilities",
            essential=True,
        )
    return Finding(what, Level.OK, "CAP_NET_ADMIN and CAP_NET_RAW")


def check_rules_features() -> list[Finding]:
    """Try the tables, matches and targets that the rule bundles use.

    A chain of our own is made, filled and removed in one transaction: nobody ever sees it.
    """
    if shutil.which("ip6tables-restore") is None:
        return [
            Finding(
                "ip6tables",
                Level.FAILURE,
                "there is no ip6tables-restore",
                "apt-get install iptables",
                essential=True,
            )
        ]
    findings = []
    for table, features in _FEATURES.items():
        complaint = _refused(table, list(features.values()))
        if complaint is None:
            findings.append(Finding(f"ip6tables {table} table", Level.OK, ", ".join(features)))
            continue
        findings.extend(_one_by_one(table, features))
    return findings


def _one_by_one(table: str, features: dict[str, str]) -> Iterator[Finding]:
    remedy = "use a kernel with this part of netfilter (Debian's has it)"
    complaint = _refused(table, [])
    if complaint is not None:
        yield Finding(f"ip6tables {table} table", Level.FAILURE, complaint, remedy, essential=True)
        return
    for name, rule in features.items():
        complaint = _refused(table, [rule])
        what = f"ip6tables {name} in the {table} table"
        if complaint is None:
            yield Finding(what, Level.OK, "usable")
        else:
            yield Finding(what, Level.FAILURE, complaint, remedy, essential=True)


def _refused(table: str, rules: list[str]) -> str | None:
    """Why the kernel refuses these rules, or None."""
    lines = [f"*{table}", f":{_CHAIN} - [0:0]", *(f"-A {_CHAIN} {rule}" for rule in rules)]
    lines += [f"-F {_CHAIN}", f"-X {_CHAIN}", "COMMIT", ""]
    try:
        result = subprocess.run(
            ["ip6tables-restore", "--noflush", "--wait", "5"],
            input="\n".join(lines),
            capture_output=True,
            text=True,
            timeout=RULES_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"no answer within {RULES_TIMEOUT_S:g} s"
    if result.returncode == 0:
        return None
    said = [line.strip() for line in result.stderr.splitlines() if line.strip()]
    return said[0] if said else f"ip6tables-restore ended with {result.returncode}"


class Kernel:
    """Looks at links, routes and rules through one netlink socket; close it after use."""

    def __init__(self) -> None:
        self._route = IPRoute()
        self._links: dict[str, tuple[int, bool]] = {}
        for link in self._route.get_links():
            is_up = link.get_attr("IFLA_OPERSTATE") in {"UP", "UNKNOWN"}
            has_carrier = link["flags"] & CARRIES == CARRIES
            self._links[link.get_attr("IFLA_IFNAME")] = (link["index"], is_up and has_carrier)

    def close(self) -> None:
        """Close the socket."""
        self._route.close()

    def check_interface(self, interface: str) -> Finding:
        """Look whether the interface exists and is up."""
        what = f"interface {interface}"
        if interface not in self._links:
            return Finding(
                what,
                Level.FAILURE,
                "there is no such interface",
                "write the right name in the configuration; `ip link` lists them",
                essential=True,
            )
        if not self._links[interface][1]:
            return Finding(
                what,
                Level.FAILURE,
                "it is down or has no carrier",
                f"ip link set {interface} up, or look at the cable",
            )
        return Finding(what, Level.OK, "up")

    def check_gateway(self, interface: str, gateway: Address) -> Finding:
        """Ask for the route to a provider's router: it must be on the link of ``interface``."""
        text = address_text(gateway)
        what = f"gateway {text}"
        if interface not in self._links:
            return Finding(what, Level.FAILURE, f"its interface {interface} is missing")
        index = self._links[interface][0]
        remedy = f"give {interface} an address of the network that {text} is on"
        try:
            routes = self._route.route("get", family=socket.AF_INET6, dst=text, oif=index)
        except NetlinkError as error:
            why = "no route" if error.code == errno.ENETUNREACH else str(error)
            return Finding(what, Level.FAILURE, f"{why} to it on {interface}", remedy)
        for route in routes:
            if route.get_attr("RTA_OIF") == index and route.get_attr("RTA_GATEWAY") is None:
                return Finding(what, Level.OK, f"on the link of {interface}")
        return Finding(what, Level.FAILURE, f"not on the link of {interface}", remedy)

    def check_source_route(self, prefix: Prefix, interface: str, *, managed: bool) -> Finding:
        """Look for the rule and the route that send packets from ``prefix`` out of its uplink.

        ``managed`` says that m6proxy installs them itself: then their absence is no fault.
        """
        what = f"route for packets from {prefix}"
        try:
            tables = self._tables_of(prefix)
            leads_out = any(self._leads_out(table, interface) for table in tables)
        except NetlinkError as error:
            return Finding(
                what,
                Level.FAILURE,
                f"the kernel has no policy routing for IPv6 ({error})",
                "use a kernel with IPV6_MULTIPLE_TABLES",
                essential=True,
            )
        if leads_out:
            return Finding(what, Level.OK, f"leads to {interface}")
        if managed and not tables:
            return Finding(what, Level.OK, "not there yet, m6proxy run installs it")
        why = f"there is a rule, but no default route to {interface} in its table"
        if managed:
            remedy = "m6proxy run installs it; see m6proxy uplinks when it runs"
        else:
            why = why if tables else "there is no rule"
            remedy = (
                f"ip -6 rule add from {prefix} table N, with a default route in table N; "
                "or set routing.manage to true"
            )
        return Finding(what, Level.FAILURE, why, remedy)

    def _tables_of(self, prefix: Prefix) -> list[int]:
        source = address_text(prefix.network)
        return [
            rule.get_attr("FRA_TABLE") or rule["table"]
            for rule in self._route.get_rules(family=socket.AF_INET6)
            if rule.get_attr("FRA_SRC") == source
            and rule["src_len"] == prefix.length
            and rule.get_attr("FRA_SUPPRESS_PREFIXLEN") in {None, _NOT_SUPPRESSED}
        ]

    def _leads_out(self, table: int, interface: str) -> bool:
        index = self._links.get(interface, (None, False))[0]
        routes = self._route.get_routes(family=socket.AF_INET6, table=table)
        return any(route["dst_len"] == 0 and route.get_attr("RTA_OIF") == index for route in routes)


def check_forwarding(switch: Path = Path("/proc/sys/net/ipv6/conf/all/forwarding")) -> Finding:
    """Look whether the kernel forwards IPv6 at all."""
    what = "IPv6 forwarding"
    try:
        state = switch.read_text().strip()
    except OSError:
        return Finding(
            what,
            Level.FAILURE,
            "this kernel has no IPv6",
            "boot without ipv6.disable=1",
            essential=True,
        )
    if state == "0":
        return Finding(what, Level.FAILURE, "it is off", "sysctl -w net.ipv6.conf.all.forwarding=1")
    return Finding(what, Level.OK, "on")


def check_bridge_filter(
    interfaces: Iterable[str],
    network: Path = Path("/sys/class/net"),
    switch: Path = Path("/proc/sys/net/bridge/bridge-nf-call-ip6tables"),
) -> list[Finding]:
    """Look whether bridged packets would meet our rules twice; only bridges are reported."""
    findings = []
    for interface in interfaces:
        if not (network / interface / "bridge").exists():
            continue
        what = f"bridge {interface}"
        try:
            twice = switch.read_text().strip() == "1"
        except OSError:
            twice = False
        if twice:
            findings.append(
                Finding(
                    what,
                    Level.WARNING,
                    "its packets meet ip6tables on the bridge and again when they are routed",
                    "sysctl -w net.bridge.bridge-nf-call-ip6tables=0",
                )
            )
        else:
            findings.append(Finding(what, Level.OK, "its packets meet ip6tables once"))
    return findings

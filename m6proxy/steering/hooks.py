"""Who stands at the kernel's netfilter hooks beside nftables.

nfnetlink_hook (Linux 5.14) lists everybody by the name of a function: connection tracking, BPF
programs, whatever a module registers. Many kernels are built without it, Debian's too. So what else
is known to register there is asked in places of its own, on every kernel.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from m6proxy.netlink import Asking, Message, attribute, attributes, text_of

# linux/netfilter/nfnetlink_hook.h; all numbers are in network order
_GET: Final = 12 << 8
_HEADER_OCTETS: Final = 4
_HOOK_NUMBER, _DEVICE, _FUNCTION, _MODULE, _CHAIN_INFO = 1, 3, 4, 5, 6
_INFO_TYPE, _TYPE_NFTABLES = 2, 1
_NETDEV, _IPV6 = 5, 10
_PASSED: Final = {"prerouting": 0, "forward": 2, "postrouting": 4}
"""Hooks of IPv6 that a forwarded packet passes."""
_INGRESS: Final = 0

_IDLE: Final = frozenset({"apparmor_ip_postroute", "ip_sabotage_in"})
"""The first lets all packets pass that no socket of this machine sent, the second all that no
bridge has filtered already."""
_TRACKING: Final = frozenset({"ipv6_conntrack_in", "nf_confirm", "ipv6_confirm"})
_LEGACY_TABLES: Final = Path("/proc/thread-self/net/ip6_tables_names")
_IPVS: Final = Path("/proc/thread-self/net/ip_vs")
_SELINUX: Final = Path("/sys/fs/selinux/enforce")
_ILA: Final = Path("/sys/module/ila")
_IPVS_HEAD_LINES: Final = 3


def registered(asking: Asking, interfaces: Iterable[str]) -> list[str]:
    """Say in a line each who is in the kernel's list; nobody, if it has none. Raises OSError."""
    lines: list[str] = []
    try:
        for name, number in _PASSED.items():
            lines += occupants(asking.dump(_GET, _question(_IPV6, number)), name)
    except OSError as refused:
        if refused.errno in (errno.EINVAL, errno.EOPNOTSUPP):
            return []  # a kernel without the list
        raise
    for interface in interfaces:
        device = attribute(_DEVICE, interface.encode() + b"\0")
        try:
            listed = asking.dump(_GET, _question(_NETDEV, _INGRESS) + device)
        except OSError as refused:
            if refused.errno in (errno.ENODEV, errno.EOPNOTSUPP):
                continue  # not there now, or a kernel without ingress hooks
            raise
        lines += occupants(listed, f"ingress of {interface}")
    return lines


def occupants(listed: Iterable[Message], where: str) -> Iterator[str]:
    """Name who is at one hook, but for nftables' chains, which are looked at by themselves."""
    for each in listed:
        found = dict(attributes(each.payload[_HEADER_OCTETS:]))
        info = dict(attributes(found.get(_CHAIN_INFO, b"")))
        if int.from_bytes(info.get(_INFO_TYPE, b"")) == _TYPE_NFTABLES:
            continue
        function = text_of(found.get(_FUNCTION, b"")).partition(" ")[0] or "a function"
        module = text_of(found.get(_MODULE, b""))
        if function in _IDLE:
            continue
        who = "connection tracking" if function in _TRACKING else "a hook of the kernel"
        yield f"{who}: {function}{f' of {module}' if module else ''} ({where})"


def legacy_tables(names: Path = _LEGACY_TABLES) -> list[str]:
    """Say which tables iptables-legacy has: it tells nobody when their rules change."""
    try:
        found = names.read_text().split()
    except OSError:
        return []
    return [f"iptables-legacy: table {name}, whose changes nobody is told of" for name in found]


def others(ipvs: Path = _IPVS, selinux: Path = _SELINUX, ila: Path = _ILA) -> list[str]:
    """Ask for those that are neither rules nor brought by rules, by what else shows of them."""
    lines = []
    try:
        if len(ipvs.read_text().splitlines()) > _IPVS_HEAD_LINES:
            lines.append("IPVS: it has services")
    except OSError:
        pass  # there is no IPVS
    if selinux.exists():
        lines.append("SELinux: it may look at what is forwarded")
    if ila.exists():
        lines.append("ILA: it may translate addresses")
    return lines


def _question(family: int, number: int) -> bytes:
    return bytes([family, 0, 0, 0]) + attribute(_HOOK_NUMBER, number.to_bytes(4))

"""Who on this gateway would not see packets any more that went past its IPv6 stack.

Programs in the kernel can send a packet from one interface to the other without a visit to that
stack (docs/decisions/0027). They may while nobody else has business there: no rules, no connection
tracking, no IPsec, no VRF. Each of these is a line for people; no line means that nobody is there.
Routes and policy rules are nobody: the first packet of each flow meets them, and shows the way.
"""

from __future__ import annotations

import errno
import struct
import sys
from collections.abc import Iterable
from typing import Final

from m6proxy.netlink import NETFILTER, ROUTE, XFRM, Asking, attribute, attributes, text_of
from m6proxy.steering import hooks, nftables

LINES_MAX: Final = 8
"""Whoever has a hundred chains needs not read them all."""
_ATTEMPTS: Final = 3

# linux/xfrm.h
_GET_POLICIES_INFO, _POLICIES_INFO, _GET_DEFAULT = 0x25, 1, 0x28
_POLICY_COUNTS = struct.Struct("=6I")
_BLOCK: Final = 1

# linux/rtnetlink.h
_GET_LINK: Final = 18
_LINK_HEADER = struct.Struct("=BxHiII")
_IFLA_IFNAME, _IFLA_MASTER = 3, 10
_ORDER: Final = sys.byteorder


class Bystanders:
    """Looks at the network namespace of the thread that makes it, from any thread.

    A look costs 0.2 ms of CPU while nftables has not changed.
    """

    def __init__(self, interfaces: Iterable[str]) -> None:
        self._interfaces = tuple(dict.fromkeys(interfaces))
        self._netfilter = Asking(NETFILTER)
        self._route = Asking(ROUTE)
        self._xfrm = _asking_xfrm()
        self._generation: int | None = None
        self._chains: list[str] = []

    def close(self) -> None:
        """Close the sockets; safe to call twice."""
        for each in (self._netfilter, self._route, self._xfrm):
            if each is not None:
                each.close()

    def look(self) -> list[str]:
        """Name everybody who is there, in a line each. Raises OSError: then nobody knows."""
        lines = self._read_chains()
        lines += [*hooks.legacy_tables(), *hooks.others()]
        lines += hooks.registered(self._netfilter, self._interfaces)
        lines += _policies(self._xfrm) if self._xfrm is not None else []
        for interface in self._interfaces:
            lines += _master(self._route, interface)
        if len(lines) <= LINES_MAX:
            return lines
        return [*lines[: LINES_MAX - 1], f"and {len(lines) - LINES_MAX + 1} more"]

    def _read_chains(self) -> list[str]:
        """Read them anew when their number of generation is another."""
        now = nftables.generation(self._netfilter)
        for _ in range(_ATTEMPTS):
            if now == self._generation:
                return list(self._chains)
            self._generation = None
            self._chains = nftables.skipped_chains(self._netfilter, self._interfaces)
            before, now = now, nftables.generation(self._netfilter)
            if before == now:
                self._generation = now
        if self._generation is None:
            return ["nftables: its rules change all the time"]
        return list(self._chains)


def look_once(interfaces: Iterable[str]) -> list[str]:
    """Name everybody who is there now, but for tc. Raises OSError."""
    bystanders = Bystanders(interfaces)
    try:
        return bystanders.look()
    finally:
        bystanders.close()


def _asking_xfrm() -> Asking | None:
    try:
        return Asking(XFRM)
    except OSError as refused:
        if refused.errno == errno.EPROTONOSUPPORT:
            return None  # a kernel without IPsec
        raise


def _policies(asking: Asking) -> list[str]:
    """Policies of IPsec, and the one for packets that no policy is for."""
    answer = asking.ask(_GET_POLICIES_INFO, bytes(4))
    counts = dict(attributes(answer.payload[4:])).get(_POLICIES_INFO, b"")
    number = sum(_POLICY_COUNTS.unpack(counts)[:3]) if len(counts) == _POLICY_COUNTS.size else 0
    lines = [f"IPsec: {number} polic{'y' if number == 1 else 'ies'}"] if number else []
    try:
        defaults = asking.ask(_GET_DEFAULT, bytes(3)).payload
    except OSError as refused:
        if refused.errno != errno.EINVAL:  # before Linux 5.15
            raise
        return lines
    if _BLOCK in defaults[:3]:
        lines.append("IPsec: what no policy allows is dropped")
    return lines


def _master(asking: Asking, interface: str) -> list[str]:
    index = _link(asking, attribute(_IFLA_IFNAME, interface.encode() + b"\0"), 0)
    master = index.get(_IFLA_MASTER)
    if not master:
        return []
    number = int.from_bytes(master, _ORDER)
    name = text_of(_link(asking, b"", number).get(_IFLA_IFNAME, b"")) or f"interface {number}"
    return [f"{interface}: it belongs to {name}"]


def _link(asking: Asking, name: bytes, index: int) -> dict[int, bytes]:
    try:
        answer = asking.ask(_GET_LINK, _LINK_HEADER.pack(0, 0, index, 0, 0) + name)
    except OSError as refused:
        if refused.errno != errno.ENODEV:
            raise
        return {}
    return dict(attributes(answer.payload[_LINK_HEADER.size :]))

"""A veth pair of ours, where the kernel's offloads meet the shim header (mode exthdr).

The kernel cannot segment a packet with a shim header, nor put segments with one together. So
large packets go into one end, whose peer gets them segmented (``split_in``); and restored TCP
packets go into the other end, whose peer gets them aggregated (``regroup_in``). Nothing else
ever uses the pair: it has no addresses, and IPv6 is switched off on it.
"""

from __future__ import annotations

import ctypes
import fcntl
import socket
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pyroute2 import IPRoute, NetlinkError

from m6proxy.errors import SetupError

NAMES: Final = ("m6p-split", "m6p-regroup")
_SIOCETHTOOL: Final = 0x8946
_SET_TSO, _SET_GSO, _SET_GRO = 0x1F, 0x24, 0x2C
_SETTINGS: Final = Path("/proc/sys/net/ipv6/conf")


@dataclass(frozen=True, slots=True)
class Auxiliary:
    """The pair, by the interface index of either end."""

    split: int
    """Packets sent here come out of the other end segmented; here runs ``regroup_in``."""
    regroup: int
    """TCP packets sent here come out of the other end aggregated; here runs ``split_in``."""


def ensure() -> Auxiliary:
    """Make the pair in this namespace, or take over a predecessor's. Raises SetupError."""
    try:
        with IPRoute() as route:
            if not all(route.link_lookup(ifname=name) for name in NAMES):
                _remove(route)
                route.link("add", ifname=NAMES[0], kind="veth", peer={"ifname": NAMES[1]})
            split, regroup = (route.link_lookup(ifname=name)[0] for name in NAMES)
            for name, aggregates in zip(NAMES, (1, 0), strict=True):
                (_SETTINGS / name / "disable_ipv6").write_text("1")
                _set(name, _SET_TSO, 0)
                _set(name, _SET_GSO, 0)
                _set(name, _SET_GRO, aggregates)
            for index in (split, regroup):
                route.link("set", index=index, state="up")
    except (NetlinkError, OSError) as refused:
        raise SetupError(
            f"the veth pair {' and '.join(NAMES)} cannot be set up: {refused}; "
            "run as root, with the kernel's veth driver"
        ) from None
    return Auxiliary(split, regroup)


def remove() -> None:
    """Take the pair away; no fault when there is none."""
    with IPRoute() as route:
        _remove(route)


def _remove(route: IPRoute) -> None:
    for name in NAMES:
        for index in route.link_lookup(ifname=name):
            route.link("del", index=index)


def _set(interface: str, command: int, value: int) -> None:
    """Switch an offload (struct ethtool_value); raises OSError."""
    setting = ctypes.create_string_buffer(struct.pack("=II", command, value))
    request = struct.pack("=16sQ16x", interface.encode(), ctypes.addressof(setting))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        fcntl.ioctl(asking, _SIOCETHTOOL, request)

"""A veth pair of ours, where the kernel's offloads meet the shim header (mode exthdr).

The kernel cannot segment a packet with a shim header, nor put segments with one together. So
large packets go into one end, whose peer gets them segmented (``split_in``); and restored TCP
packets go into the other end, whose peer gets them aggregated (``regroup_in``). Nothing else
ever uses the pair: it has no addresses, and IPv6 is switched off on it. Without it large
packets in that mode go through Python.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pyroute2 import IPRoute, NetlinkError

from m6proxy.dataplane.offloads import GRO, GSO, TSO, switch_offloads
from m6proxy.errors import SetupError

NAMES: Final = ("m6p-split", "m6p-regroup")
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
            pair = _found(route)
            if pair is None:
                route.link("add", ifname=NAMES[0], kind="veth", peer={"ifname": NAMES[1]})
                pair = _found(route)
            assert pair is not None
            for name, aggregates in zip(NAMES, (True, False), strict=True):
                (_SETTINGS / name / "disable_ipv6").write_text("1")
                switch_offloads(name, {**dict.fromkeys((*TSO, GSO), False), GRO: aggregates})
            for index in (pair.split, pair.regroup):
                route.link("set", index=index, state="up")
    except (NetlinkError, OSError) as refused:
        raise SetupError(
            f"the veth pair {' and '.join(NAMES)} cannot be set up: {refused}; "
            "run as root, with the kernel's veth driver"
        ) from None
    return pair


def obstacle() -> str:
    """Why the pair could not be made in this namespace, as far as its names tell, or ""."""
    try:
        with IPRoute() as route:
            _found(route)
    except SetupError as taken:
        return str(taken)
    return ""


def remove() -> None:
    """Take the pair away; no fault when there is none, or somebody else has the names."""
    with contextlib.suppress(SetupError), IPRoute() as route:
        pair = _found(route)
        if pair is not None:
            route.link("del", index=pair.split)


def _found(route: IPRoute) -> Auxiliary | None:
    """The pair, or None. Raises SetupError when one of the names is somebody else's."""
    found = [next(iter(route.link_lookup(ifname=name)), 0) for name in NAMES]
    if not any(found):
        return None
    for index, other in zip(found, reversed(found), strict=True):
        if not index or not _is_veth(route, index, other):
            raise SetupError(
                f"an interface that is not ours has the name {' or '.join(NAMES)}; rename it"
            )
    return Auxiliary(*found)


def _is_veth(route: IPRoute, index: int, peer: int) -> bool:
    (link,) = route.get_links(index)
    kind = (link.get_attr("IFLA_LINKINFO") or {}).get("attrs", ())
    return ("IFLA_INFO_KIND", "veth") in [tuple(each) for each in kind] and (
        link.get_attr("IFLA_LINK") == peer
    )

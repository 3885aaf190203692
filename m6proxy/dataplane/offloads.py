"""Which offload settings of an interface do harm to re-homed packets, and why.

The checksum of a re-homed packet counts the ULIDs while its header has the locators. The
kernel can live with that: it carries an open checksum as a seed that was made over the ULIDs.
Who makes the seed anew from the header destroys it:

- GRO does, when it merges packets that came over a virtual link with their checksum still
  open. The programs in the kernel put it right again; NFQUEUE gets packets where it is too late.
- A network card may, that computes the checksums of TCP and UDP by itself
  (``tx-checksum-ipv6``), or its driver for segmentation in the card (``tso``).

The card cannot see TCP behind a shim header; there the harm is another one: before Linux 6.12
the kernel left those checksums to cards which only know TCP right behind the IPv6 header.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pyroute2 import Ethtool

from m6proxy.shim.demux import DemuxMode

TSO: Final = (
    "tx-tcp6-segmentation",
    "tx-tcp-segmentation",
    "tx-tcp-ecn-segmentation",
    "tx-tcp-accecn-segmentation",
    "tx-tcp-mangleid-segmentation",
)
GSO: Final = "tx-generic-segmentation"
GRO: Final = "rx-gro"
LRO: Final = "rx-lro"
CHECKSUM: Final = ("tx-checksum-ipv6", "tx-checksum-ip-generic")
"""Offloads by the kernel's names, as ``ethtool -k`` knows them."""

_NETWORK = Path("/sys/class/net")
_EXTENSIONS_RESPECTED = (6, 12)


@dataclass(frozen=True, slots=True)
class Offloads:
    """What an interface does with packets on its own; True where it is switched on."""

    interface: str
    is_card: bool
    """A network card, as against veth, bridges, tunnels and virtio."""
    gro: bool = False
    lro: bool = False
    tso: bool = False
    """Segmentation of TCP over IPv6."""
    checksum_ipv6: bool = False
    """Checksums by a card that knows TCP and UDP; a generic one takes any seed as it is."""


@dataclass(frozen=True, slots=True)
class Harm:
    """A setting that is wrong, what it does, and the command that mends it."""

    setting: str
    detail: str
    remedy: str


def read_offloads(interface: str, network: Path = _NETWORK) -> Offloads | None:
    """Ask the kernel; None if there is no such interface or it cannot say."""
    try:
        with Ethtool() as ethtool:
            features = ethtool.get_features(interface).features
    except OSError:
        return None
    on = {name for name, feature in features.items() if feature.enable}
    return Offloads(
        interface,
        _is_card(network / interface / "device"),
        gro=GRO in on,
        lro=LRO in on,
        tso=TSO[0] in on,
        checksum_ipv6=CHECKSUM[0] in on,
    )


def switch_offloads(interface: str, wanted: Mapping[str, bool]) -> None:
    """Switch offloads by name, and leave out those that the interface does not have.

    Raises OSError or NetlinkError. Not in a thread with a running event loop.
    """
    with Ethtool() as ethtool:
        features = ethtool.get_features(interface)
        for name, enable in wanted.items():
            if name in features.features:
                features.features[name].enable = enable
        ethtool.set_features(interface, features)


def harms(
    offloads: Offloads,
    modes: Collection[DemuxMode],
    *,
    is_in_kernel: bool,
    are_neutral: bool = False,
    linux: tuple[int, int] | None = None,
) -> Iterator[Harm]:
    """Judge the settings of an uplink for these demux modes.

    ``is_in_kernel``: programs in the kernel do the rewriting, and not NFQUEUE. ``are_neutral``:
    both ends' locators sum up like their ULIDs, and it does not matter over which a seed is
    made. ``linux`` is the kernel's version, this machine's if None.
    """
    off = f"ethtool -K {offloads.interface}"
    summed = [] if are_neutral else [mode for mode in modes if mode is not DemuxMode.EXTHDR]
    visible = [mode.name.lower() for mode in summed]
    extended = {DemuxMode.EXTHDR, DemuxMode.DSTOPT} & set(modes)
    names = " and ".join(visible)
    if offloads.lro:
        yield Harm("LRO", "it merges packets so that they cannot be forwarded", f"{off} lro off")
    if offloads.gro and visible and not offloads.is_card and not is_in_kernel:
        yield Harm(
            "GRO",
            f"on a virtual link it spoils the checksums of packets in mode {names} for NFQUEUE",
            f"{off} gro off",
        )
    if not offloads.is_card:
        return
    if offloads.checksum_ipv6 and (
        DemuxMode.FLOWLABEL in summed
        or (extended and (linux or linux_version()) < _EXTENSIONS_RESPECTED)
    ):
        yield Harm(
            "tx-checksum-ipv6",
            "the card may compute checksums over the locators, or not find TCP at all",
            f"{off} tx-checksum-ipv6 off",
        )
    if offloads.tso and visible:
        yield Harm(
            "TSO",
            f"the card may compute the checksums of packets in mode {names} over the locators",
            f"{off} tso off",
        )


def linux_version(release: str | None = None) -> tuple[int, int]:
    """Return the first two numbers of a kernel release, this machine's if None."""
    found = re.match(r"(\d+)\.(\d+)", release or os.uname().release)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def _is_card(device: Path) -> bool:
    """A card has a device behind it; a virtio device's packets stay in the host's memory."""
    try:
        return (device / "subsystem").resolve(strict=True).name != "virtio"
    except OSError:
        return False

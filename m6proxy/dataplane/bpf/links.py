"""Where programs meet packets: tcx links, and clsact filters on kernels that have no tcx.

A link that is pinned stays when we die. To take it over, another program is put into it in
place: every packet meets the old one or the new one. A clsact filter stays by itself and is
replaced in place as well. Nobody else's filters, links and qdiscs are touched.
"""

from __future__ import annotations

import contextlib
import errno
import os
import struct
from enum import Enum
from typing import Protocol

from pyroute2 import IPRoute, NetlinkError

from m6proxy import netlink
from m6proxy.dataplane.bpf import syscall
from m6proxy.dataplane.bpf.pins import PinFolder
from m6proxy.dataplane.bpf.programs import Program
from m6proxy.errors import SetupError


class Side(Enum):
    """Which packets of an interface: received or sent. The values stand in pin names."""

    INGRESS = "in"
    EGRESS = "out"


_ATTACH_TYPES = {Side.INGRESS: 46, Side.EGRESS: 47}
_LINK_INFO = struct.Struct("=IIIxxxxII")
_LINK_INFO_OCTETS = 64
_LINK_TCX = 11
LOOPBACK_INDEX = 1

_FILTER_PARENTS = {Side.INGRESS: 0xFFFF_FFF2, Side.EGRESS: 0xFFFF_FFF3}
FILTER_PRIORITY = 140
FILTER_HANDLE = 0x6D36
"""By these two and the program's name we know a filter of ours again."""
_ETH_P_ALL = 3
_NEW_FILTER, _GET_FILTERS = 44, 46
_TCMSG = struct.Struct("=BxxxiIII")
"""linux/rtnetlink.h: family, interface, handle, parent, info."""


class Attachments(Protocol):
    """One way of attaching programs. Errors are SetupError with the interface in them."""

    def attach(self, program: Program, interface_index: int, side: Side) -> bool:
        """Attach, or replace what a predecessor attached; tell whether it was a replacement."""

    def detach(self, interface_index: int, side: Side) -> None:
        """Take our program off; no fault if there is none, or no interface."""

    def behind(self, interface_index: int, side: Side) -> int:
        """How many programs and filters of others see a packet after ours. Raises OSError."""

    def detach_rest(self) -> None:
        """Take off what a predecessor attached and we have not replaced."""

    def detach_all(self) -> None:
        """Take off everything of ours."""


def tcx_works() -> bool:
    """Ask the kernel whether it knows tcx (6.6). Changes nothing."""
    try:
        syscall.link_ids(LOOPBACK_INDEX, _ATTACH_TYPES[Side.INGRESS])
    except OSError:
        return False
    return True


class TcxLinks:
    """tcx links, pinned by interface and side."""

    def __init__(self, folder: PinFolder) -> None:
        self._folder = folder
        self._kept: set[str] = set()
        self._numbers: dict[tuple[int, Side], int] = {}

    def attach(self, program: Program, interface_index: int, side: Side) -> bool:
        """See Attachments."""
        name = f"link_{interface_index}_{side.value}"
        attach_type = _ATTACH_TYPES[side]
        try:
            link = self._living(name, interface_index, attach_type)
            is_taken_over = link is not None
            if link is None:
                link = syscall.link_create(program.descriptor, interface_index, attach_type)
            try:
                if is_taken_over:
                    syscall.link_update(link, program.descriptor)
                else:
                    self._folder.pin(name, link)
                self._numbers[interface_index, side] = _kind_and_number(link)[1]
            finally:
                os.close(link)
        except OSError as refused:
            raise _refusal(program, interface_index, side, refused) from None
        self._kept.add(name)
        return is_taken_over

    def detach(self, interface_index: int, side: Side) -> None:
        """See Attachments."""
        self._take_off(f"link_{interface_index}_{side.value}")
        self._numbers.pop((interface_index, side), None)

    def behind(self, interface_index: int, side: Side) -> int:
        """See Attachments. Filters come after all programs."""
        links = syscall.attached(interface_index, _ATTACH_TYPES[side])
        ours = self._numbers.get((interface_index, side))
        programs = len(links) - 1 - links.index(ours) if ours in links else len(links)
        return programs + len(_listed_filters(interface_index, side))

    def detach_rest(self) -> None:
        """See Attachments."""
        for name in self._folder.names():
            if name.startswith("link_") and name not in self._kept:
                self._take_off(name)

    def detach_all(self) -> None:
        """See Attachments."""
        self._kept.clear()
        self.detach_rest()

    def _take_off(self, name: str) -> None:
        """Detach first: somebody else might hold the link, and then unpinning ends nothing."""
        link = self._folder.get(name)
        if link is not None:
            with contextlib.suppress(OSError):  # its interface is gone
                syscall.link_detach(link)
            os.close(link)
        self._folder.unpin(name)
        self._kept.discard(name)

    def _living(self, name: str, interface_index: int, attach_type: int) -> int | None:
        """Return a predecessor's link if it is on this very interface.

        An interface index means nothing outside its namespace, and a link whose interface
        went is dead: so the interface is asked for the links that it has.
        """
        link = self._folder.get(name)
        if link is None:
            return None
        kind, number = _kind_and_number(link)
        if kind == _LINK_TCX and number in syscall.link_ids(interface_index, attach_type):
            return link
        os.close(link)
        self._take_off(name)
        return None


def _kind_and_number(link: int) -> tuple[int, int]:
    found = _LINK_INFO.unpack_from(syscall.obj_info(link, _LINK_INFO_OCTETS))
    return found[0], found[1]


class ClsactFilters:
    """Filters in direct action mode at a clsact qdisc; a note says where the qdisc is ours."""

    def __init__(self, folder: PinFolder) -> None:
        self._folder = folder
        self._kept: set[str] = set()

    def attach(self, program: Program, interface_index: int, side: Side) -> bool:
        """See Attachments."""
        name = f"filter_{interface_index}_{side.value}"
        is_taken_over = name in self._folder.names()
        try:
            with IPRoute() as route:
                if ensure_clsact(route, interface_index):
                    self._folder.note(f"qdisc_{interface_index}")
                is_taken_over &= bool(_our_filters(route, interface_index, side))
                self._folder.note(name)
                add_filter(route, program.descriptor, program.name, interface_index, side)
        except (NetlinkError, OSError) as refused:
            raise _refusal(program, interface_index, side, refused) from None
        self._kept.add(name)
        return is_taken_over

    def detach(self, interface_index: int, side: Side) -> None:
        """See Attachments."""
        name = f"filter_{interface_index}_{side.value}"
        if name not in self._folder.names():
            return
        with contextlib.suppress(NetlinkError, OSError), IPRoute() as route:
            if _our_filters(route, interface_index, side):
                route.tc(
                    "del-filter",
                    kind="bpf",
                    index=interface_index,
                    handle=FILTER_HANDLE,
                    parent=_FILTER_PARENTS[side],
                    prio=FILTER_PRIORITY,
                    protocol=_ETH_P_ALL,
                )
        self._folder.unpin(name)
        self._kept.discard(name)
        self._drop_qdisc(interface_index)

    def behind(self, interface_index: int, side: Side) -> int:
        """See Attachments."""
        ours = (FILTER_PRIORITY, FILTER_HANDLE)
        found = _listed_filters(interface_index, side)
        return sum(each != ours and each[0] >= FILTER_PRIORITY for each in found)

    def detach_rest(self) -> None:
        """See Attachments."""
        for name in self._folder.names():
            if name.startswith("filter_") and name not in self._kept:
                _, index, side = name.split("_")
                self.detach(int(index), Side(side))

    def detach_all(self) -> None:
        """See Attachments."""
        self._kept.clear()
        self.detach_rest()

    def _drop_qdisc(self, interface_index: int) -> None:
        """The qdisc goes if we made it and nobody, nor we on the other side, has a filter there."""
        note = f"qdisc_{interface_index}"
        if note not in self._folder.names():
            return
        with contextlib.suppress(NetlinkError, OSError), IPRoute() as route:
            if any(_filters(route, interface_index, side) for side in Side):
                return
            route.tc("del", kind="clsact", index=interface_index)
        self._folder.unpin(note)


def ensure_clsact(route: IPRoute, interface_index: int) -> bool:
    """Give the interface a clsact qdisc; tell whether it had none. Raises NetlinkError."""
    try:
        route.tc("add", kind="clsact", index=interface_index)
    except NetlinkError as refused:
        if refused.code != errno.EEXIST:
            raise
        return False
    return True


def add_filter(route: IPRoute, program: int, name: str, interface_index: int, side: Side) -> None:
    """Attach a program by its descriptor, or replace ours in place. Raises NetlinkError."""
    route.tc(
        "replace-filter",
        kind="bpf",
        index=interface_index,
        handle=FILTER_HANDLE,
        parent=_FILTER_PARENTS[side],
        prio=FILTER_PRIORITY,
        protocol=_ETH_P_ALL,
        fd=program,
        name=name,
        direct_action=True,
    )


def _filters(route: IPRoute, interface_index: int, side: Side) -> list[tuple[int, int]]:
    """Return priority and handle of all filters there."""
    found = route.get_filters(index=interface_index, parent=_FILTER_PARENTS[side])
    return [(each["info"] >> 16, each["handle"]) for each in found if each["handle"]]


def _listed_filters(interface_index: int, side: Side) -> list[tuple[int, int]]:
    """The same, without pyroute2: some 20 us, and beside a running loop."""
    question = _TCMSG.pack(0, interface_index, 0, _FILTER_PARENTS[side], 0)
    with netlink.Asking(netlink.ROUTE) as asking:
        listed = asking.dump(_GET_FILTERS, question)
    found = (_TCMSG.unpack_from(each.payload) for each in listed if each.kind == _NEW_FILTER)
    return [(info >> 16, handle) for _, _, handle, _, info in found if handle]


def _our_filters(route: IPRoute, interface_index: int, side: Side) -> list[tuple[int, int]]:
    ours = (FILTER_PRIORITY, FILTER_HANDLE)
    return [each for each in _filters(route, interface_index, side) if each == ours]


def _refusal(
    program: Program, interface_index: int, side: Side, refused: NetlinkError | OSError
) -> SetupError:
    why = refused.strerror if isinstance(refused, OSError) else str(refused)
    return SetupError(
        f"BPF program {program.name} cannot be attached to interface {interface_index} "
        f"({side.name.lower()}): {why}; look whether the interface is there, or set fast_path: off"
    )

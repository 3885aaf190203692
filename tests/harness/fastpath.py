"""The programs on a gateway of the lab without a daemon: the test writes the maps by hand.

Nothing listens on a queue there: what the programs leave to Python goes on as it is.
"""

from __future__ import annotations

import os
import socket
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Final

from pyroute2 import IPRoute

from m6proxy.dataplane.bpf import auxiliary, layout, syscall
from m6proxy.dataplane.bpf.layout import (
    Counter,
    InFlag,
    InFlow,
    Mode,
    OutFlow,
    PairFlow,
    Settings,
    SettingsFlag,
    SitePrefix,
)
from m6proxy.dataplane.bpf.links import Side, add_filter, ensure_clsact, tcx_works
from m6proxy.dataplane.bpf.load import Loaded, load, read_object
from m6proxy.dataplane.bpf.syscall import link_ids
from m6proxy.dataplane.offloads import switch_offloads
from m6proxy.lab.build import Lab
from m6proxy.lab.plan import SOURCE_TABLE
from m6proxy.lab.topology import Site
from m6proxy.names import LocatorPair, Prefix, UlidPair
from m6proxy.wire.dstopt import option_tail, short_tag
from m6proxy.wire.payload import payload_header
from tests.steering.namespaces import inside

SHIFT: Final = 24
_TCX_INGRESS, _TCX_EGRESS = 46, 47
LAN: Final = "lan0"
MTU: Final = 1500
INGRESS, EGRESS = 46, 47
_SIDES = {INGRESS: Side.INGRESS, EGRESS: Side.EGRESS}
LABEL_MASK: Final = 0xFFFFF


class FastGateway:
    """The programs on the LAN and both uplinks of a site's gateway."""

    def __init__(self, lab: Lab, site: Site, *, with_auxiliary: bool) -> None:
        assert site.gateway is not None
        self.lab, self.site, self.node = lab, site, site.gateway
        self.namespace = lab.namespace(self.node)
        self.loaded: Loaded = load(read_object())
        self._links: list[int] = []
        self._with_clsact: list[int] = []
        """Interfaces that got it from us: kernels before 6.6 have no tcx links."""
        with inside(self.namespace):
            self.uplinks = tuple(socket.if_nametoindex(each.interface) for each in site.uplinks)
            pair = auxiliary.ensure() if with_auxiliary else None
            self._attach("lan_in", socket.if_nametoindex(LAN), INGRESS)
            self._attach("lan_out", socket.if_nametoindex(LAN), EGRESS)
            for index in self.uplinks:
                self._attach("uplink_out", index, EGRESS)
                self._attach("uplink_in", index, INGRESS)
            if pair is not None:
                self._attach("regroup_in", pair.split, INGRESS)
                self._attach("split_in", pair.regroup, INGRESS)
        self.settings = Settings(
            tuple(SitePrefix(Prefix.parse(each.prefix)) for each in site.uplinks),
            self.uplinks,
            SettingsFlag.LABELS | SettingsFlag.SENT_LABELS,
            SHIFT,
            split_ifindex=pair.split if pair else 0,
            regroup_ifindex=pair.regroup if pair else 0,
        )
        self.configure()
        for number in range(1, len(self.uplinks) + 1):
            mark = layout.mark_of(number, SHIFT)
            table = SOURCE_TABLE + number - 1
            self.ip("rule", "add", "fwmark", f"{mark:#x}/0xff000000", "lookup", str(table),
                    "pref", "100")  # fmt: skip

    def _attach(self, program: str, index: int, side: int) -> None:
        descriptor = self.loaded.programs[program].descriptor
        if tcx_works():
            self._links.append(syscall.link_create(descriptor, index, side))
            return
        with IPRoute() as route:
            if ensure_clsact(route, index):
                self._with_clsact.append(index)
            add_filter(route, descriptor, program, index, _SIDES[side])

    def ip(self, *words: str) -> None:
        """Run ``ip -6`` in the gateway."""
        subprocess.run(["ip", "-n", self.namespace, "-6", *words], check=True, capture_output=True)

    def configure(self, **changes: Any) -> None:
        """Write the settings, some of them changed."""
        self.settings = replace(self.settings, **changes)
        self.loaded.maps[layout.SETTINGS].update(bytes(4), self.settings.pack())

    def rehome(
        self,
        ulids: UlidPair,
        locators: LocatorPair,
        mode: Mode,
        *,
        uplink: int,
        local_tag: int,
        peer_tag: int,
    ) -> None:
        """Let a context's packets use these locators, both ways."""
        out_key, in_key = ulids.local + ulids.peer, ulids.peer + ulids.local
        wire_in = locators.peer + locators.local
        maps = self.loaded.maps
        found = InFlow(
            in_key, 1, (locators.peer, ulids.peer), (locators.local, ulids.local), InFlag.COMPLETE
        ).pack()
        maps[layout.PAIR].update(in_key, PairFlow(in_key, 1, Mode.ULIDS).pack())
        tags = {
            Mode.EXTHDR: local_tag,
            Mode.DSTOPT: short_tag(local_tag),
            Mode.FLOWLABEL: local_tag & LABEL_MASK,
        }
        if mode in tags:
            maps[layout.TAG].update(layout.tag_key(mode, tags[mode]), found)
        else:
            maps[layout.PAIR].update(wire_in, PairFlow(in_key, 1, Mode.IDENTIFIER).pack())
        tails = {Mode.EXTHDR: payload_header(0, peer_tag)[1:], Mode.DSTOPT: option_tail(peer_tag)}
        label = peer_tag & LABEL_MASK if mode is Mode.FLOWLABEL else 0
        route = locators.local + locators.peer
        out = OutFlow(route, mode, 1, uplink, MTU, tails.get(mode, bytes(7)), label)
        maps[layout.OUT].update(out_key, out.pack())

    def count(self, counter: Counter) -> int:
        """How often something happened."""
        values = self.loaded.maps[layout.COUNT].lookup_per_cpu(struct.pack("=I", counter))
        return sum(struct.unpack("=Q", value)[0] for value in values)

    def counts(self) -> dict[str, int]:
        """All counters that are not 0."""
        return {each.name: count for each in Counter if (count := self.count(each))}

    def close(self) -> None:
        """Take the programs off; the interfaces end with the lab."""
        for link in self._links:
            os.close(link)
        with inside(self.namespace), IPRoute() as route:
            for index in self._with_clsact:
                route.tc("del", kind="clsact", index=index)
        self.loaded.close()


@contextmanager
def fast(lab: Lab, *sites: Site, with_auxiliary: bool = True) -> Iterator[tuple[FastGateway, ...]]:
    """Programs on the gateways of these sites for the length of the block."""
    gateways: list[FastGateway] = []
    try:
        for site in sites:
            gateways.append(FastGateway(lab, site, with_auxiliary=with_auxiliary))
        yield tuple(gateways)
    finally:
        for gateway in gateways:
            gateway.close()


def offload(lab: Lab, node: str, interface: str, *names: str, on: bool) -> None:
    """Switch offloads of an interface."""
    with inside(lab.namespace(node)):
        switch_offloads(interface, dict.fromkeys(names, on))


def programs(lab: Lab, node: str) -> list[str]:
    """What is at the interfaces of a node by tcx links; nothing where the kernel knows none."""
    if not tcx_works():
        return []
    with inside(lab.namespace(node)):
        return [
            f"{name} {kind}"
            for index, name in socket.if_nameindex()
            for kind in (_TCX_INGRESS, _TCX_EGRESS)
            if link_ids(index, kind)
        ]

"""Which programs a site loads and attaches, and what it does where it cannot have all."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from m6proxy.dataplane.bpf import auxiliary
from m6proxy.dataplane.bpf.layout import SettingsFlag
from m6proxy.dataplane.bpf.links import tcx_works
from m6proxy.dataplane.bpf.site import BpfSettings, BpfSite, BpfUplink
from m6proxy.dataplane.bpf.syscall import link_ids
from m6proxy.dataplane.offloads import GRO, GSO, TSO, read_offloads
from m6proxy.errors import SetupError
from m6proxy.names import Prefix
from m6proxy.shim.policy import EstablishPolicy
from tests.steering.namespaces import Namespaces, inside, run_line

pytestmark = pytest.mark.netns

UPLINKS = tuple(
    BpfUplink(f"isp{n}", f"wan{n}", Prefix.parse(f"2001:db8:a{n}::/48")) for n in (1, 2)
)
SETTINGS = BpfSettings(("lan0",), UPLINKS, EstablishPolicy(), 24, 16)
TCX_INGRESS = 46


@pytest.fixture
def namespace() -> Iterator[str]:
    """A gateway with a LAN and two uplinks; the thread is in it."""
    with Namespaces() as namespaces:
        name, other = namespaces.add("gateway"), namespaces.add("other")
        for interface in ("lan0", "wan1"):
            namespaces.link((name, interface), (other, interface))
        run_line(f"ip -n {name} tuntap add wan2 mode tun")
        with inside(name):
            yield name


def split_index(site: BpfSite) -> int:
    """Where the programs send large packets in mode exthdr."""
    site.write_settings(site.settings)
    assert site._written is not None
    return site._written.split_ifindex


def names() -> list[str]:
    return [name for _, name in socket.if_nameindex()]


def test_only_what_the_interfaces_need_is_loaded(namespace: str, tmp_path: Path) -> None:
    site = BpfSite(SETTINGS, tmp_path / "bpf" / "site")
    try:
        installation = site._installation
        ethernet = {"lan_in", "lan_out", "uplink_in", "uplink_out", "split_in", "regroup_in"}
        assert set(installation._programs) == ethernet | {"uplink_in_l3", "uplink_out_l3"}
        assert set(site.attach()) == {
            "m6p-split and m6p-regroup", "lan0 (in)", "lan0 (out)", "wan1 (in)",
            "wan1 (out)", "wan2 (in)", "wan2 (out)",
        }  # fmt: skip
        assert site.attach() == []
        split_index(site)
        assert site._written is not None
        assert site._written.flags == SettingsFlag.BARE_UPLINK << 2
    finally:
        site.remove()


def test_what_comes_later_without_a_link_layer_gets_its_program_then(
    namespace: str, tmp_path: Path
) -> None:
    run_line(f"ip -n {namespace} link del wan2")
    site = BpfSite(SETTINGS, tmp_path / "bpf" / "site")
    try:
        assert not [name for name in site._installation._programs if name.endswith("_l3")]
        site.attach()
        run_line(f"ip -n {namespace} tuntap add wan2 mode tun")
        assert site.attach() == ["wan2 (out)", "wan2 (in)"]
        if tcx_works():
            assert link_ids(socket.if_nametoindex("wan2"), TCX_INGRESS)
        else:
            filters = run_line(f"tc -n {namespace} filter show dev wan2 ingress")
            assert "uplink_in_l3" in filters
    finally:
        site.remove()


def test_the_pair_segments_on_one_way_and_aggregates_on_the_other(namespace: str) -> None:
    pair = auxiliary.ensure()
    assert auxiliary.ensure() == pair, "a predecessor's is taken over"
    split, regroup = (read_offloads(name) for name in auxiliary.NAMES)
    assert split is not None and regroup is not None
    assert (split.tso, regroup.tso, split.gro, regroup.gro) == (False, False, True, False)
    assert (GSO, GRO) == ("tx-generic-segmentation", "rx-gro") and "tx-tcp6-segmentation" in TSO
    auxiliary.remove()
    assert not set(auxiliary.NAMES) & set(names())
    auxiliary.remove()


@pytest.mark.parametrize(
    "somebodys",
    [
        ["link add m6p-split type bridge"],
        ["link add m6p-regroup type veth peer name other"],
        [
            "link add m6p-split type veth peer name x0",
            "link add m6p-regroup type veth peer name x1",
        ],
    ],
)
def test_somebody_elses_interface_of_that_name_is_left_alone(
    namespace: str, tmp_path: Path, somebodys: list[str]
) -> None:
    """Large packets in mode exthdr go through Python until the name is free; all else works."""
    for line in somebodys:
        run_line(f"ip -n {namespace} {line}")
    before = names()
    site = BpfSite(SETTINGS, tmp_path / "bpf" / "site")
    try:
        with capture_logs() as logs:
            assert "wan1 (in)" in site.attach()
            assert site.attach() == []
        (line_of_log,) = logs
        assert line_of_log["event"] == "large packets in mode exthdr go through Python"
        assert "not ours" in line_of_log["why"]
        assert not split_index(site)
        with pytest.raises(SetupError):
            auxiliary.ensure()
        auxiliary.remove()
        assert names() == before
        for line in somebodys:
            run_line(f"ip -n {namespace} link del {line.split()[2]}")
        assert site.attach() == ["m6p-split and m6p-regroup"]
        assert split_index(site) == socket.if_nametoindex("m6p-split")
    finally:
        site.remove()
    assert not set(auxiliary.NAMES) & set(names())


def test_a_pair_that_somebody_took_away_is_made_again(namespace: str, tmp_path: Path) -> None:
    """Large packets in mode exthdr were sent to an interface that was not there any more."""
    site = BpfSite(SETTINGS, tmp_path / "bpf" / "site")
    try:
        site.attach()
        assert split_index(site) == socket.if_nametoindex("m6p-split")
        run_line(f"ip -n {namespace} link del m6p-split")
        assert not split_index(site), "they go through Python meanwhile"
        assert site.attach() == ["m6p-split and m6p-regroup"]
        assert split_index(site) == socket.if_nametoindex("m6p-split")
    finally:
        site.remove()

"""What `m6proxy check` says about the fast path on good and on poor kernels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from pyroute2 import Ethtool

from m6proxy.daemon.config import Config, LocatorSettings, parse_config
from m6proxy.daemon.fastchecks import check_fast_path
from m6proxy.daemon.fastpath import open_fast_path
from m6proxy.dataplane.bpf.features import Offer, probe
from m6proxy.dataplane.bpf.load import BpfObject, read_object
from m6proxy.dataplane.offloads import Offloads, harms, linux_version, read_offloads
from m6proxy.discovery.addressing import MapKind
from m6proxy.shim.demux import DemuxMode
from tests.steering.namespaces import Namespaces, inside, run_line

ALL = Offer("", True, True, True, True, True, True, True, True)
MODES = (DemuxMode.FLOWLABEL, DemuxMode.EXTHDR)
TEXT = """\
site: alpha.example
lan: [lan0]
uplinks:
  isp1: {interface: wan1, prefix: "2001:db8:a1::/48", gateway: "2001:db8:f1::b", preference: 1}
  isp2: {interface: wan2, prefix: "2001:db8:a2::/48", gateway: "2001:db8:f2::b", preference: 2}
dns: {servers: ["::1"], timeout_s: 0.2}
"""


@pytest.fixture
def config() -> Config:
    return parse_config(TEXT + "locators: {map: prefix}\n", "f.yaml")


def said(config: Config, offer: Offer, read: Callable[[], BpfObject] = read_object) -> list[str]:
    findings = check_fast_path(config, offer, read)
    return [f"{finding.level.value} {finding}" for finding in findings]


@pytest.mark.netns
def test_this_kernel_takes_our_programs(config: Config) -> None:
    lines = said(config, probe())
    assert lines[0].startswith("ok eBPF in the kernel: tcx, clsact, XDP")
    assert lines[1].startswith("ok eBPF programs: the kernel takes all ")


@pytest.mark.netns
@pytest.mark.parametrize(
    ("keys", "line"),
    [
        ("", "ok data plane: bpf for usual packets, NFQUEUE for the others"),
        ("fast_path: off\n", "ok data plane: NFQUEUE, because fast_path is off"),
        ("routing: {manage: false}\n", "warn data plane: NFQUEUE, because bpf routes by marks"),
        ("fast_path: bpf\nrouting: {manage: false}\n", "FAIL data plane: NFQUEUE, because"),
    ],
)
def test_the_data_plane_that_will_be_used_is_named(keys: str, line: str) -> None:
    assert said(parse_config(TEXT + keys, "f.yaml"), ALL)[2].startswith(line)


@pytest.mark.netns
def test_more_uplinks_than_marks_are_no_reason_to_die(tmp_path: Path) -> None:
    """A fifteenth uplink ended the start with a traceback; all other parts take sixteen."""
    more = "".join(
        f'  more{n}: {{interface: wan{n}, prefix: "2001:db8:c{n:x}::/48", gateway: "fe80::1", '
        f"preference: {n}}}\n"
        for n in range(3, 16)
    )
    text = TEXT.replace("dns:", f"{more}dns:") + f"control: {tmp_path}/alpha.sock\n"
    config = parse_config(text, "f.yaml")
    site, why = open_fast_path(config)
    assert (site, why) == (None, "the fast path has marks for 14 uplinks, and there are 15")
    assert said(config, ALL)[2].startswith(f"warn data plane: NFQUEUE, because {why}")


@pytest.mark.netns
def test_who_is_in_the_way_of_express_is_named_and_no_fault(config: Config) -> None:
    with Namespaces() as namespaces, inside(namespaces.add("g")):
        assert said(config, ALL)[3].startswith("ok express: nobody else would see packets")
        run_line("ip6tables -A FORWARD -j ACCEPT")
        (line,) = (line for line in said(config, ALL) if " express: " in line)
        assert line == (
            "ok express: off, packets go the ordinary way, because of "
            "nftables: table ip6 filter, chain FORWARD (forward): 1 rule"
        )
        run_line("ip6tables -F")
        chosen = parse_config(TEXT + "express: off\n", "f.yaml")
        assert "ok express: off, as the configuration says" in said(chosen, ALL)


@pytest.mark.netns
def test_who_insists_on_bpf_and_cannot_have_it_is_refused(tmp_path: Path) -> None:
    insisting = parse_config(TEXT + "fast_path: bpf\n", "f.yaml")
    assert said(insisting, ALL, lambda: read_object(tmp_path / "none.o"))[1].startswith("FAIL")


@pytest.mark.netns
def test_without_an_object_nfqueue_is_named(config: Config, tmp_path: Path) -> None:
    def absent() -> BpfObject:
        return read_object(tmp_path / "none.o")

    (_, line) = said(config, ALL, absent)
    assert line.startswith("warn eBPF programs: ")
    assert "make bpf" in line
    assert line.endswith("all packets go through NFQUEUE")


def test_a_forbidden_system_call_is_said_with_its_remedy(config: Config) -> None:
    (line,) = said(config, Offer("Operation not permitted"))
    assert line.startswith("warn eBPF in the kernel: bpf(2): Operation not permitted, all packets")
    assert "CAP_BPF" in line


@pytest.mark.netns
def test_an_older_kernel_does_with_clsact(config: Config) -> None:
    assert said(config, replace(ALL, tcx=False))[0].endswith("; without tcx")


def test_what_cannot_be_missed_is_named(config: Config) -> None:
    (line,) = said(config, replace(ALL, tcx=False, clsact=False, ring_buffer=False))
    assert "no tcx or clsact, no ring buffer, all packets go through NFQUEUE" in line


@pytest.mark.netns
def test_an_interpreter_is_slow(config: Config) -> None:
    assert "bpf_jit_enable=1" in said(config, replace(ALL, jit=False))[4]


@pytest.mark.netns
def test_offloads_of_the_uplinks_are_read_from_the_kernel(config: Config) -> None:
    """GRO on a virtual link is wrong only where packets go through NFQUEUE by flow label."""
    config = replace(config, demux=MODES)
    with Namespaces() as namespaces:
        name = namespaces.add("g")
        namespaces.link((name, "wan1"), (name, "peer1"))
        with inside(name):
            set_gro("wan1", on=True)
            assert read_offloads("wan1") == Offloads("wan1", False, gro=True, tso=True)
            by_queue = said(config, Offer("Operation not permitted"))
            assert by_queue[1].startswith("warn GRO of wan1: on a virtual link it spoils")
            assert by_queue[1].endswith("; ethtool -K wan1 gro off")
            assert said(config, probe())[4] == "ok offloads of wan1: right for flowlabel, exthdr"
            neutral = replace(config, locators=LocatorSettings(MapKind.NEUTRAL))
            assert said(neutral, Offer("Operation not permitted"))[1] == (
                "ok offloads of wan1: right for flowlabel, exthdr, "
                "with peers whose locators are neutral too"
            )
            set_gro("wan1", on=False)
            by_queue = said(config, Offer("Operation not permitted"))
            assert by_queue[1] == "ok offloads of wan1: right for flowlabel, exthdr"


def set_gro(interface: str, *, on: bool) -> None:
    with Ethtool() as ethtool:
        features = ethtool.get_features(interface)
        features.features["rx-gro"].enable = on
        ethtool.set_features(interface, features)


@pytest.mark.parametrize(
    ("offloads", "modes", "linux", "settings"),
    [
        (Offloads("e", True, gro=True, tso=True), [DemuxMode.EXTHDR], (6, 18), []),
        (Offloads("e", True, gro=True, tso=True), MODES, (6, 18), ["TSO"]),
        (Offloads("e", True, checksum_ipv6=True), [DemuxMode.EXTHDR], (6, 18), []),
        (Offloads("e", True, checksum_ipv6=True), [DemuxMode.EXTHDR], (6, 1), ["tx-checksum-ipv6"]),
        (Offloads("e", True, checksum_ipv6=True), MODES, (6, 18), ["tx-checksum-ipv6"]),
        (Offloads("e", True, lro=True), [DemuxMode.EXTHDR], (6, 18), ["LRO"]),
        (Offloads("v", False, gro=True, tso=True, checksum_ipv6=True), MODES, (6, 1), []),
    ],
)
def test_what_does_harm_to_which_mode(
    offloads: Offloads, modes: list[DemuxMode], linux: tuple[int, int], settings: list[str]
) -> None:
    found = harms(offloads, modes, is_in_kernel=True, linux=linux)
    assert [harm.setting for harm in found] == settings


def test_a_kernels_release_is_two_numbers_and_more() -> None:
    assert linux_version("6.12-rc1") == (6, 12)
    assert linux_version("6.1.0-18-amd64") == (6, 1)
    assert linux_version("strange") == (0, 0)


def test_an_interface_that_is_not_there_has_no_offloads() -> None:
    assert read_offloads("nowhere0") is None


@pytest.mark.netns
def test_the_probes_leave_nothing() -> None:
    with Namespaces() as namespaces, inside(namespaces.add("p")):
        assert probe() == probe()
        assert "clsact" not in run_line("tc qdisc show dev lo")


@pytest.mark.netns
def test_without_a_veth_pair_large_packets_in_mode_exthdr_are_slow(config: Config) -> None:
    assert not [line for line in said(config, ALL) if "large packets" in line]
    lines = said(config, replace(ALL, veth=False))
    (line,) = [line for line in lines if "large packets" in line]
    assert line.startswith("warn large packets: those in mode exthdr go through Python: ")
    assert line.endswith("modprobe veth")
    assert "without veth" in lines[0]
    with Namespaces() as namespaces:
        name = namespaces.add("taken")
        run_line(f"ip -n {name} link add m6p-split type bridge")
        with inside(name):
            (line,) = [line for line in said(config, ALL) if "large packets" in line]
    assert "an interface that is not ours has the name m6p-split" in line


@pytest.mark.netns
def test_rules_that_write_our_bits_of_the_mark_are_named(config: Config) -> None:
    """As the usual recipes for two providers do: the decision of the programs would be lost."""
    rules = {
        "PREROUTING -j CONNMARK --restore-mark": True,
        "PREROUTING -j CONNMARK --restore-mark --nfmask 0xffff --ctmask 0xffff": False,
        "FORWARD -j MARK --set-mark 1": True,
        "FORWARD -j MARK --set-mark 1/0xff": False,
        "POSTROUTING -j MARK --or-mark 0x1000000": True,
        "OUTPUT -j MARK --set-mark 1": False,
    }
    with Namespaces() as namespaces, inside(namespaces.add("g")):
        for rule in rules:
            run_line(f"ip6tables -t mangle -A {rule}")
        lines = [line for line in said(config, probe()) if line.startswith("warn packet marks: ")]
    assert len(lines) == sum(rules.values())
    assert "our bits of it, 0xff000000" in lines[0]
    assert [line.split("-A ")[1].split()[0] for line in lines] == [
        rule.split()[0] for rule, is_named in rules.items() if is_named
    ]

"""Is this machine fit? The probes in real namespaces, and what `check` and `run` make of them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from m6proxy.daemon.checks import check_system, require_system
from m6proxy.daemon.config import Config, parse_config
from m6proxy.errors import SetupError
from m6proxy.steering import checks
from m6proxy.steering.checks import (
    Finding,
    Level,
    check_bridge_filter,
    check_forwarding,
    check_privileges,
)
from tests.steering.namespaces import TwoSites, inside, run

TEXT = """\
site: alpha.example
lan: [lan0]
uplinks:
  isp1: {interface: wan1, prefix: "2001:db8:a1::/48", gateway: "2001:db8:f1::b", preference: 1}
  isp2: {interface: wan2, prefix: "2001:db8:a2::/48", gateway: "2001:db8:f2::b", preference: 2}
dns: {servers: ["::1"], timeout_s: 0.2}
control: /run/m6proxy/none.sock
"""


@pytest.fixture(scope="module")
def gateway() -> Iterator[str]:
    """A namespace that is fit to be alpha's gateway."""
    with TwoSites() as sites:
        yield sites.gateway["a"]


def config_of(text: str = TEXT) -> Config:
    return parse_config(text, "f.yaml")


def failures(findings: list[Finding]) -> list[str]:
    return [str(finding) for finding in findings if finding.level is Level.FAILURE]


def m6proxy(
    namespace: str, command: str, text: str, tmp_path: Path, *before: str
) -> subprocess.CompletedProcess[str]:
    """Run a command of m6proxy in a namespace, behind the words ``before``."""
    path = tmp_path / "c.yaml"
    path.write_text(text)
    program = "from m6proxy.cli.main import main; main()"
    m6proxy = [sys.executable, "-c", program, command, "-c", str(path)]
    return subprocess.run(
        ["ip", "netns", "exec", namespace, *before, *m6proxy],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.netns
def test_a_fit_gateway_passes_and_nothing_is_left_behind(gateway: str, tmp_path: Path) -> None:
    result = m6proxy(gateway, "check", TEXT, tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    assert [line.split(None, 1)[0] for line in result.stdout.splitlines()] == ["ok"] * 18 + ["warn"]
    assert "name server ::1" in result.stdout.splitlines()[-1]
    with inside(gateway):
        assert "m6proxy" not in run("ip6tables-save")
        assert "140" not in run("ip", "-6", "rule", "show")


@pytest.mark.netns
def test_each_fault_is_a_line_with_its_remedy(gateway: str, tmp_path: Path) -> None:
    with inside(gateway):
        forwarding = Path("/proc/sys/net/ipv6/conf/all/forwarding")
        forwarding.write_text("0")
        run("ip", "link", "set", "wan2", "down")
        try:
            result = m6proxy(gateway, "check", TEXT.replace("f1::b", "f9::b"), tmp_path)
        finally:
            forwarding.write_text("1")
            run("ip", "link", "set", "wan2", "up")
            run("ip", "addr", "replace", "2001:db8:f2::a/64", "dev", "wan2", "nodad")
    assert result.returncode == 1
    assert [line for line in result.stdout.splitlines() if line.startswith("FAIL")] == [
        "FAIL  IPv6 forwarding: it is off; sysctl -w net.ipv6.conf.all.forwarding=1",
        "FAIL  gateway 2001:db8:f9::b: not on the link of wan1; "
        "give wan1 an address of the network that 2001:db8:f9::b is on",
        "FAIL  interface wan2: it is down or has no carrier; "
        "ip link set wan2 up, or look at the cable",
    ]
    assert result.stdout.splitlines()[-1] == "3 of 17 checks failed."


@pytest.mark.netns
def test_source_routes(gateway: str) -> None:
    ours = config_of()
    own_routing = config_of(TEXT + "routing: {manage: false}\n")
    with inside(gateway):
        assert failures(check_system(ours)) == []
        assert failures(check_system(own_routing)) == [
            f"route for packets from 2001:db8:a{n}::/48: there is no rule; "
            f"ip -6 rule add from 2001:db8:a{n}::/48 table N, with a default route in table N; "
            "or set routing.manage to true"
            for n in (1, 2)
        ]
        for n in (1, 2):
            run("ip", "-6", "rule", "add", "from", f"2001:db8:a{n}::/48", "table", f"70{n}")
        try:
            (first, second) = failures(check_system(ours))
            assert "there is a rule, but no default route to wan1 in its table" in first
            assert "m6proxy run installs it" in second
            for n in (1, 2):
                via = ("via", f"2001:db8:f{n}::b", "dev", f"wan{n}")
                run("ip", "-6", "route", "add", "default", *via, "table", f"70{n}")
            assert failures(check_system(own_routing)) == []
        finally:
            for n in (1, 2):
                run("ip", "-6", "rule", "del", "from", f"2001:db8:a{n}::/48", "table", f"70{n}")


@pytest.mark.netns
def test_run_refuses_without_an_interface(gateway: str, tmp_path: Path) -> None:
    result = m6proxy(gateway, "run", TEXT.replace("wan2", "wan7"), tmp_path)
    assert result.returncode == 2
    assert result.stderr == (
        "interface wan7: there is no such interface; "
        "write the right name in the configuration; `ip link` lists them\n"
    )


@pytest.mark.netns
def test_run_refuses_without_privileges(gateway: str, tmp_path: Path) -> None:
    result = m6proxy(
        *(gateway, "run", TEXT, tmp_path),
        *("setpriv", "--inh-caps=-net_raw", "--bounding-set=-net_raw"),
    )
    assert result.returncode == 2
    assert result.stderr == (
        "privileges: without CAP_NET_RAW; run it as root, or give the service these capabilities\n"
    )


@pytest.mark.netns
def test_run_refuses_without_a_kernel_feature(
    gateway: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    features = {"raw": {"NFQUEUE target": "-j NFQUEUE", "sun match": "-m sun --shines"}}
    monkeypatch.setattr(checks, "_FEATURES", features)
    with inside(gateway), pytest.raises(SetupError) as refused:
        require_system(config_of())
    line = str(refused.value)
    assert line.startswith("ip6tables sun match in the raw table: ")
    assert "\n" not in line
    assert line.endswith("use a kernel with this part of netfilter (Debian's has it)")


def test_a_machine_without_ip6tables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    (finding,) = checks.check_rules_features()
    assert str(finding) == ("ip6tables: there is no ip6tables-restore; apt-get install iptables")
    assert finding.essential


def test_capabilities_are_read_from_the_kernel(tmp_path: Path) -> None:
    status = tmp_path / "status"
    status.write_text("Name:\tm6proxy\nCapEff:\t0000000000003000\n")
    assert check_privileges(status).level is Level.OK
    status.write_text("Name:\tm6proxy\nCapEff:\t0000000000000000\n")
    finding = check_privileges(status)
    assert finding.essential
    assert "without CAP_NET_ADMIN and CAP_NET_RAW" in str(finding)


def test_a_kernel_without_ipv6(tmp_path: Path) -> None:
    finding = check_forwarding(tmp_path / "missing")
    assert finding.essential
    assert "this kernel has no IPv6" in str(finding)


def test_bridged_lan_whose_packets_meet_the_rules_twice_is_a_warning(tmp_path: Path) -> None:
    (tmp_path / "net" / "lan0" / "bridge").mkdir(parents=True)
    (tmp_path / "net" / "wan1").mkdir()
    switch = tmp_path / "switch"
    for setting, level in (("1", Level.WARNING), ("0", Level.OK)):
        switch.write_text(setting)
        (finding,) = check_bridge_filter(["lan0", "wan1"], tmp_path / "net", switch)
        assert (finding.what, finding.level) == ("bridge lan0", level)
    switch.unlink()
    (finding,) = check_bridge_filter(["lan0"], tmp_path / "net", switch)
    assert finding.level is Level.OK

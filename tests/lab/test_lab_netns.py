"""The lab on the machine: it comes up, carries packets, breaks as told, and leaves nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from m6proxy.errors import SetupError
from m6proxy.lab import build, faults
from m6proxy.lab.build import Lab
from m6proxy.lab.cli import lab as lab_command
from m6proxy.lab.topology import ALPHA, NODES
from tests.harness.netns import eventually, reaches, run_in, unique_lab
from tests.harness.netns import lab as lab
from tests.harness.netns import plain_lab as plain_lab

pytestmark = pytest.mark.netns

B1 = "2001:db8:b1:1::10"
C1 = "2001:db8:c1:1::10"
A1 = "2001:db8:a1:1::10"
AGW_ON_ISP2 = "2001:db8:f2::2"


def test_hosts_reach_each_other_across_the_core(plain_lab: Lab) -> None:
    assert reaches(plain_lab, "a1", B1)
    assert reaches(plain_lab, "a2", C1)
    assert reaches(plain_lab, "c1", "2001:db8:b1:1::20")
    assert reaches(plain_lab, "a1", "2001:db8:a1:1::20")


def test_a_host_has_one_global_address_and_one_default_route(plain_lab: Lab) -> None:
    addresses = run_in(plain_lab, "a1", "ip", "-6", "-br", "addr", "show", "scope", "global")
    assert addresses.split()[2:] == ["2001:db8:a1:1::10/64"]
    routes = run_in(plain_lab, "a1", "ip", "-6", "route", "show", "default")
    assert routes.split()[:3] == ["default", "via", "2001:db8:a1:1::1"]


def test_providers_drop_the_sources_of_others(lab: Lab) -> None:
    """BCP 38: without source routing, what has isp2's address leaves by isp1 and dies there."""
    assert not reaches(lab, "agw", B1, source=AGW_ON_ISP2)
    assert reaches(lab, "agw", B1, source="2001:db8:f1::2")
    build.configure(lab, "agw", "route replace default via 2001:db8:f2::1 dev wan2\n")
    assert reaches(lab, "agw", B1, source=AGW_ON_ISP2)


def test_source_routing_of_the_control_run(plain_lab: Lab) -> None:
    assert reaches(plain_lab, "agw", B1, source=AGW_ON_ISP2)


def test_cut_is_silent_and_restore_ends_it(plain_lab: Lab) -> None:
    faults.cut(plain_lab, "alpha.isp1")
    assert not reaches(plain_lab, "a1", B1)
    assert reaches(plain_lab, "agw", "2001:db8:f1::1"), "the provider's link must stay up"
    assert reaches(plain_lab, "agw", B1, source=AGW_ON_ISP2)
    faults.restore(plain_lab, "p1")
    assert reaches(plain_lab, "a1", B1)
    assert faults.fault_rules(plain_lab, "p1") == []


@pytest.mark.parametrize(("direction", "came"), [("in", True), ("out", False)])
def test_blackhole_is_one_way(plain_lab: Lab, direction: str, came: bool) -> None:
    """A datagram from a1 arrives although none can come back; the other way round it does not."""
    faults.blackhole(plain_lab, "alpha.isp1", direction)
    assert not reaches(plain_lab, "a1", B1)
    counters = run_in(plain_lab, "b1", "cat", "/proc/net/snmp6")
    echoes = next(int(line.split()[1]) for line in counters.splitlines() if "Icmp6InEchos" in line)
    assert (echoes > 0) is came


def test_loss_drops_a_share(plain_lab: Lab) -> None:
    faults.loss(plain_lab, "alpha.isp1", 50)
    out = subprocess.run(
        plain_lab.inside("a1", ["ping", "-n", "-q", "-f", "-c", "200", "-W", "1", B1]),
        capture_output=True,
        text=True,
    ).stdout
    came = int(out.split(" received")[0].split()[-1])
    assert 10 < came < 100, "a quarter of 200 is expected: half lost each way"


def test_a_link_goes_down_and_comes_back(plain_lab: Lab) -> None:
    faults.link(plain_lab, "alpha.isp1", is_up=False)
    eventually(
        lambda: "NO-CARRIER" in run_in(plain_lab, "agw", "ip", "link", "show", "wan1"),
        deadline_s=3.0,
        what="the gateway sees its carrier gone",
    )
    faults.restore(plain_lab, "alpha.isp1")
    eventually(lambda: reaches(plain_lab, "a1", B1), deadline_s=5.0, what="the link carries again")


def test_the_name_server_answers_for_hosts_and_capabilities(lab: Lab) -> None:
    def answer(*question: str) -> str:
        return run_in(lab, "a1", "kdig", "+short", "@2001:db8:ff::53", *question).strip()

    assert answer("b1.beta.example", "AAAA") == B1
    assert answer("_m6proxy.b1.beta.example", "SVCB").startswith("1 . key65310=")
    assert answer("_m6proxy.c1.gamma.example", "SVCB") == ""
    assert answer("-x", "2001:db8:a2::10") == "a1.alpha.example."
    assert run_in(lab, "a1", "getent", "ahostsv6", "b1.beta.example").startswith(B1)


def test_a_second_up_is_one_line_and_exit_2(plain_lab: Lab) -> None:
    result = CliRunner().invoke(lab_command, ["up", "--name", plain_lab.name])
    assert result.exit_code == 2
    assert result.output.count("\n") == 1
    assert "m6proxy lab down" in result.output
    assert reaches(plain_lab, "a1", B1), "the lab that is up must not be touched"


def test_two_labs_live_at_once(plain_lab: Lab) -> None:
    other = unique_lab()
    build.up(other)
    try:
        faults.cut(other, "alpha.isp1")
        assert reaches(plain_lab, "a1", B1)
        assert not reaches(other, "a1", B1)
    finally:
        build.down(other)


def test_down_leaves_nothing_even_of_a_crash() -> None:
    """A process runs inside, a daemon's pins are there, one namespace is gone: down clears it."""
    the_lab = unique_lab()
    build.up(the_lab)
    sleeper = subprocess.Popen(
        the_lab.inside("b1", [sys.executable, "-c", "input()"]), stdin=subprocess.PIPE
    )
    try:
        eventually(
            lambda: sleeper.pid in build.processes(the_lab), deadline_s=5.0, what="it runs inside"
        )
        build.feed(["ip", "netns", "delete", the_lab.namespace("p2")], "")
        pins = the_lab.state_dir / "bpf" / "alpha"
        pins.mkdir(parents=True)
        build.feed(["mount", "-t", "bpf", "m6proxy", str(pins)], "")
    finally:
        build.down(the_lab)
    assert sleeper.wait(timeout=5) != 0
    assert the_lab.namespaces() == []
    assert not the_lab.state_dir.exists()
    assert not any((Path("/etc/netns") / the_lab.namespace(node)).exists() for node in NODES)
    build.down(the_lab)


def test_what_needs_the_lab_says_so_when_it_is_down() -> None:
    the_lab = unique_lab()
    with pytest.raises(SetupError, match="is not up"):
        faults.cut(the_lab, "alpha.isp1")
    result = CliRunner().invoke(lab_command, ["exec", "--name", the_lab.name, "a1", "--", "true"])
    assert result.exit_code == 2


def test_status_shows_faults(plain_lab: Lab) -> None:
    faults.cut(plain_lab, "beta.isp2")
    result = CliRunner().invoke(lab_command, ["status", "--name", plain_lab.name])
    assert result.exit_code == 0
    assert "up" in result.output
    assert "beta.isp2: -j DROP" in result.output


def test_the_printed_configuration_is_the_written_one(plain_lab: Lab) -> None:
    result = CliRunner().invoke(lab_command, ["config", "--name", plain_lab.name, "alpha"])
    assert result.output == build.config_path(plain_lab, ALPHA).read_text()

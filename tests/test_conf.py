"""Every example in conf/ is loaded, so that none of them can rot."""

from __future__ import annotations

import configparser
import shlex
from pathlib import Path

import click
import dns.rdatatype
import dns.zone
import pytest
from click.testing import CliRunner

from m6proxy.cli.main import m6proxy
from m6proxy.daemon.config import Config, load_config
from m6proxy.daemon.document import (
    ConfigFile,
    DnsSection,
    EstablishSection,
    LocatorsSection,
    PolicySection,
    QueuesSection,
    RoutingSection,
    UplinkSection,
)
from m6proxy.daemon.yamlpos import parse_yaml
from m6proxy.names import Prefix, address

CONF = Path(__file__).parent.parent / "conf"


@pytest.mark.parametrize("path", sorted(CONF.glob("*.yaml")), ids=lambda path: path.name)
def test_every_example_loads(path: Path) -> None:
    config = load_config(path)
    assert config.control == Path(f"/run/m6proxy/{path.stem}.sock")
    assert config.steering.site == config.site == f"{path.stem}.example"


def test_the_two_sites_are_those_of_the_lab() -> None:
    def uplinks(config: Config) -> list[tuple[str, str, Prefix, bytes]]:
        return [(u.name, u.interface, u.prefix, u.gateway) for u in config.uplinks]

    def expected(first: str, gateways: tuple[str, str]) -> list[tuple[str, str, Prefix, bytes]]:
        return [
            (
                f"isp{n}",
                f"wan{n}",
                Prefix.parse(f"2001:db8:{first}{n}::/48"),
                address(f"2001:db8:{gateways[n - 1]}::1"),
            )
            for n in (1, 2)
        ]

    assert uplinks(load_config(CONF / "alpha.yaml")) == expected("a", ("f1", "f2"))
    assert uplinks(load_config(CONF / "beta.yaml")) == expected("b", ("f3", "f4"))
    assert load_config(CONF / "alpha.yaml").dns.servers == ("2001:db8:ff::53",)


def test_alpha_shows_every_key() -> None:
    value = parse_yaml((CONF / "alpha.yaml").read_text()).value
    assert isinstance(value, dict)
    for section, model in (
        (value, ConfigFile),
        (value["uplinks"]["isp1"], UplinkSection),
        (value["dns"], DnsSection),
        (value["policy"], PolicySection),
        (value["policy"]["establish"], EstablishSection),
        (value["queues"], QueuesSection),
        (value["locators"], LocatorsSection),
        (value["routing"], RoutingSection),
    ):
        assert section.keys() == model.model_fields.keys()


def test_the_zone_example_is_what_dns_record_prints() -> None:
    text = (CONF / "zone-example.txt").read_text()
    command = ["dns", "record", "-c", str(CONF / "alpha.yaml"), "--host", "a1.alpha.example"]
    printed = CliRunner().invoke(m6proxy, command, catch_exceptions=False)
    assert printed.exit_code == 0
    for line in printed.output.splitlines():
        if not line.startswith(";"):
            assert line in text
    zone = dns.zone.from_text(text, origin="alpha.example.", relativize=False)
    capability = zone.get_rdataset("_m6proxy.a1.alpha.example.", dns.rdatatype.SVCB)
    assert capability is not None
    assert len(capability) == 1
    addresses = zone.get_rdataset("a1.alpha.example.", dns.rdatatype.AAAA)
    assert addresses is not None
    assert {rdata.to_text() for rdata in addresses} == {"2001:db8:a1::11", "2001:db8:a2::11"}


def test_the_unit_runs_a_command_that_exists_with_just_what_it_needs() -> None:
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read_string((CONF / "m6proxy.service").read_text())
    service = unit["Service"]
    assert service["Type"] == "notify"
    assert set(service["CapabilityBoundingSet"].split()) == {
        *("CAP_NET_ADMIN", "CAP_NET_RAW"),
        *("CAP_BPF", "CAP_PERFMON"),  # held by tests/dataplane/bpf/test_privileges.py
    }
    assert "2" in service["RestartPreventExitStatus"].split()
    program, command, *arguments = shlex.split(service["ExecStart"])
    assert Path(program).name == "m6proxy"
    found = m6proxy.get_command(click.Context(m6proxy), command)
    assert found is not None
    found.make_context(command, arguments, resilient_parsing=True)

"""The facts of DESIGN §7 as the lab's data has them, and their rendering for the tools."""

from __future__ import annotations

import ipaddress
import itertools

import pytest

from m6proxy.errors import SetupError
from m6proxy.lab import plan
from m6proxy.lab.build import Lab, gateway_config
from m6proxy.lab.topology import (
    ALPHA,
    BETA,
    GAMMA,
    NODES,
    PROVIDERS,
    SITES,
    provider_by_target,
    site_by_name,
)


def test_nodes_are_those_of_the_design() -> None:
    assert set(NODES) == {
        *("a1", "a2", "agw", "b1", "b2", "bgw", "c1"),
        *("p1", "p2", "p3", "p4", "p5", "core", "ns"),
    }  # fmt: skip
    assert len(NODES) == len(set(NODES))


def test_hosts_have_one_address_in_the_first_prefix() -> None:
    addresses = {h.node: h.address for s in SITES for h in s.hosts}
    assert addresses == {
        "a1": "2001:db8:a1:1::10",
        "a2": "2001:db8:a1:1::20",
        "b1": "2001:db8:b1:1::10",
        "b2": "2001:db8:b1:1::20",
        "c1": "2001:db8:c1:1::10",
    }
    for site in SITES:
        for host in site.hosts:
            first = ipaddress.IPv6Network(site.uplinks[0].prefix)
            assert ipaddress.IPv6Address(host.address) in first


def test_uplinks() -> None:
    isp2 = BETA.uplinks[1]
    assert (isp2.name, isp2.provider, isp2.prefix) == ("isp2", "p4", "2001:db8:b2::/48")
    assert (isp2.provider_address, isp2.site_address) == ("2001:db8:f4::1", "2001:db8:f4::2")
    assert ALPHA.uplinks[0].interface == "wan1"
    assert ALPHA.lan_address == "2001:db8:a1:1::1"
    assert ALPHA.locator(ALPHA.hosts[1], ALPHA.uplinks[1]) == "2001:db8:a2::20"


def test_no_two_networks_overlap() -> None:
    nets = [
        ipaddress.IPv6Network(text)
        for _, uplink in PROVIDERS.values()
        for text in (uplink.prefix, uplink.net, uplink.core_net)
    ]
    assert not any(a.overlaps(b) for a, b in itertools.combinations(nets, 2))


@pytest.mark.parametrize(
    ("target", "node"),
    [("p1", "p1"), ("alpha.isp2", "p2"), ("beta.isp1", "p3"), ("gamma.isp1", "p5")],
)
def test_provider_by_target(target: str, node: str) -> None:
    assert provider_by_target(target) == node


def test_unknown_names_are_one_line_with_the_known_ones() -> None:
    with pytest.raises(KeyError, match=r"alpha\.isp1 \(p1\)"):
        provider_by_target("alpha.isp9")
    with pytest.raises(KeyError, match="alpha, beta, gamma"):
        site_by_name("delta")
    with pytest.raises(SetupError, match="no node 'a9'"):
        Lab("x").namespace("a9")
    with pytest.raises(SetupError, match="small letters"):
        Lab("../etc")


def test_bcp38_lets_only_the_delegated_prefix_and_the_uplink_net_in() -> None:
    rules = plan.provider_filter("p2")
    assert "-A lab-bcp38 -s 2001:db8:a2::/48 -j RETURN" in rules
    assert "-A lab-bcp38 -s 2001:db8:f2::/64 -j RETURN" in rules
    assert "-A lab-bcp38 -j DROP\nCOMMIT" in rules


def test_a_host_gets_an_address_and_a_default_route_and_nothing_else() -> None:
    assert plan.interior("b2") == (
        "link set lo up\n"
        "address replace 2001:db8:b1:1::20/64 dev eth0 nodad\n"
        "link set eth0 up\n"
        "route replace default via 2001:db8:b1:1::1 dev eth0\n"
    )


def test_a_gateway_s_main_table_knows_only_the_first_provider() -> None:
    defaults = [line for line in plan.interior("agw").splitlines() if "default" in line]
    assert defaults == ["route replace default via 2001:db8:f1::1 dev wan1"]


def test_no_m6proxy_at_a_legacy_site() -> None:
    with pytest.raises(SetupError, match="legacy site"):
        gateway_config(Lab("x"), GAMMA)

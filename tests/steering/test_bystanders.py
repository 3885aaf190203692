"""Who else is on a gateway: in namespaces of the running kernel, with everybody's own tools."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from m6proxy import netlink
from m6proxy.names import UlidPair, address
from m6proxy.netlink import NETFILTER, Asking
from m6proxy.steering import hooks, nftables
from m6proxy.steering.apply import RuleBundles
from m6proxy.steering.bystanders import LINES_MAX, Bystanders, look_once
from m6proxy.steering.routes import SourceRouting
from tests.harness import nft
from tests.steering.namespaces import TwoSites, inside, run_line, settings_of

pytestmark = pytest.mark.netns
PLACES = ("lan0", "wan1", "wan2")
SETTINGS = replace(settings_of("a"), mark_shift=24)


@pytest.fixture
def gateway() -> Iterator[str]:
    """A gateway without m6proxy and without rules; the thread of the test is inside."""
    with TwoSites() as sites, inside(sites.gateway["a"]):
        yield sites.gateway["a"]


def found() -> list[str]:
    return look_once(PLACES)


def test_on_a_bare_gateway_there_is_nobody(gateway: str) -> None:
    assert found() == []


def test_what_we_put_there_ourselves_is_nobody(gateway: str) -> None:
    bundles, routing = RuleBundles(SETTINGS), SourceRouting(SETTINGS)
    routing.apply()
    bundles.apply()
    try:
        assert found() == []
        run_line("ip6tables -t mangle -A PREROUTING -i lan0 -j ACCEPT")
        assert found() == ["nftables: table ip6 mangle, chain PREROUTING (prerouting): 2 rules"]
        run_line("ip6tables -t mangle -D PREROUTING -i lan0 -j ACCEPT")
        run_line("ip6tables -t raw -P PREROUTING DROP")
        assert found() == ["nftables: table ip6 raw, chain PREROUTING (prerouting): 1 rule"]
    finally:
        bundles.remove()
        routing.remove()


FILTER = "nftables: table ip6 filter, chain FORWARD (forward)"


@pytest.mark.parametrize(
    ("there", "gone", "line"),
    [
        ("-A FORWARD -p udp -j DROP", "-F FORWARD", f"{FILTER}: 1 rule"),
        ("-P FORWARD DROP", "-P FORWARD ACCEPT", f"{FILTER}: policy drop"),
        (
            "-A FORWARD -m conntrack --ctstate NEW -j ACCEPT",
            "-F FORWARD",
            f"{FILTER}: 1 rule",
        ),
        (
            "-t mangle -A POSTROUTING -j ACCEPT",
            "-t mangle -F POSTROUTING",
            "nftables: table ip6 mangle, chain POSTROUTING (postrouting): 1 rule",
        ),
        (
            "-t nat -A POSTROUTING -j MASQUERADE",
            "-t nat -F",
            "nftables: table ip6 nat, chain POSTROUTING (postrouting): 1 rule",
        ),
        (
            "-t nat -A PREROUTING -p tcp -j REDIRECT",
            "-t nat -F",
            "nftables: table ip6 nat, chain PREROUTING (prerouting): 1 rule",
        ),
    ],
)
def test_rules_of_ip6tables_are_somebody_and_what_they_leave_empty_is_nobody(
    gateway: str, there: str, gone: str, line: str
) -> None:
    bystanders = Bystanders(PLACES)
    assert bystanders.look() == []
    run_line(f"ip6tables {there}")
    assert line in bystanders.look()
    run_line(f"ip6tables {gone}")
    assert bystanders.look() == []
    bystanders.close()


def test_tables_of_iptables_legacy_are_somebody_whatever_is_in_them(gateway: str) -> None:
    run_line("ip6tables-legacy -A FORWARD -j ACCEPT")
    assert "iptables-legacy: table filter, whose changes nobody is told of" in found()


def test_a_rule_of_nftables_counts_where_it_meets_forwarded_packets(gateway: str) -> None:
    nft.add_chain(nft.INET, "wall")
    assert found() == [], "an empty chain that lets pass decides nothing"
    nft.add_drop(nft.INET, "wall")
    assert found() == ["nftables: table inet wall, chain c (forward): 1 rule"]
    nft.delete_table(nft.INET, "wall")
    assert found() == []
    nft.add_chain(nft.IP, "four", policy=nft.DROP)
    assert found() == [], "that is IPv4"
    nft.add_chain(nft.IP6, "six", policy=nft.DROP)
    assert found() == ["nftables: table ip6 six, chain c (forward): policy drop"]


@pytest.mark.parametrize(
    ("family", "name", "hook"),
    [(nft.NETDEV, "netdev", nft.INGRESS), (nft.INET, "inet", nft.INET_INGRESS)],
)
def test_a_rule_at_the_ingress_of_an_interface_of_ours_counts(
    gateway: str, family: int, name: str, hook: int
) -> None:
    for device, lines in (
        ("lo", []),
        ("lan0", [f"nftables: table {name} edge, chain c (ingress of lan0): 1 rule"]),
    ):
        nft.add_chain(family, "edge", hook=hook, device=device)
        nft.add_drop(family, "edge")
        assert found() == lines
        nft.delete_table(family, "edge")


@pytest.mark.parametrize(
    ("rule", "tracks"),
    [
        ("INPUT -p tcp --dport 22 -m limit --limit 3/s -j ACCEPT", False),
        ("OUTPUT -p icmpv6 --icmpv6-type 128 -j LOG", False),
        ("INPUT -p udp -m comment --comment x -j REJECT", False),
        ("INPUT -m conntrack --ctstate NEW -j ACCEPT", True),
        ("OUTPUT -m connmark --mark 1 -j ACCEPT", True),
    ],
)
def test_rules_that_forwarded_packets_do_not_meet_count_if_they_track_connections(
    gateway: str, rule: str, tracks: bool
) -> None:
    run_line(f"ip6tables -A {rule}")
    lines = [line for line in found() if line.startswith("nftables: ")]
    chain = rule.partition(" ")[0]
    told = f"chain {chain} ({chain.lower()}): 1 rule, which may track connections"
    assert lines == ([f"nftables: table ip6 filter, {told}"] if tracks else [])


def test_what_the_kernel_lists_of_its_hooks_is_told_as_well(gateway: str) -> None:
    with Asking(NETFILTER) as asking:
        assert hooks.registered(asking, PLACES) == []


def test_ipsec_counts_by_its_policies_and_by_its_default(gateway: str) -> None:
    run_line("ip xfrm policy add src 2001:db8:a1::/48 dst 2001:db8:b1::/48 dir fwd action block")
    assert found() == ["IPsec: 1 policy"]
    run_line("ip xfrm policy flush")
    run_line("ip xfrm policy setdefault fwd block")
    assert found() == ["IPsec: what no policy allows is dropped"]


def test_an_interface_that_belongs_to_another_counts(gateway: str) -> None:
    run_line("ip link add br0 type bridge")
    run_line("ip link set wan2 master br0")
    assert found() == ["wan2: it belongs to br0"]


def test_an_interface_that_is_not_there_is_nobody(gateway: str) -> None:
    assert look_once([*PLACES, "lan7"]) == []


def test_whoever_has_many_rules_is_named_in_some_lines(gateway: str) -> None:
    for number in range(LINES_MAX + 2):
        nft.add_chain(nft.IP6, f"wall{number}", policy=nft.DROP)
    lines = found()
    assert len(lines) == LINES_MAX and lines[-1] == "and 3 more"


def test_a_look_is_cheap_while_nothing_changed(gateway: str) -> None:
    RuleBundles(SETTINGS).apply()
    bystanders = Bystanders(PLACES)
    bystanders.look()
    before_s, count = time.thread_time(), 50
    for _ in range(count):
        assert bystanders.look() == []
    assert (time.thread_time() - before_s) / count < 0.001
    bystanders.close()


def test_a_change_of_our_own_chains_is_no_news_and_one_of_others_is(gateway: str) -> None:
    bundles = RuleBundles(SETTINGS)
    bundles.apply()
    pair = UlidPair(address("2001:db8:a1::1"), address("2001:db8:b1::1"))
    with netlink.subscribe(NETFILTER, nftables.NOTICES) as heard:

        def news() -> list[bool]:
            told = []
            while True:
                try:
                    told += list(netlink.messages(heard.recv(1 << 16)))
                except BlockingIOError:
                    return [nftables.is_about_others(each) for each in told]

        bundles.apply_rehomed((pair,))
        ours = news()
        assert len(ours) >= 2 and not any(ours)
        run_line("ip6tables -A FORWARD -j ACCEPT")
        assert any(news())
        nft.add_chain(nft.IP, "four")
        assert not any(news())


def test_iptables_legacy_and_others_are_read_from_files(tmp_path: Path) -> None:
    names, ipvs, selinux, ila = (tmp_path / name for name in ("names", "vs", "enforce", "ila"))
    assert hooks.legacy_tables(names) == [] == hooks.others(ipvs, selinux, ila)
    names.write_text("mangle\nfilter\n")
    ipvs.write_text("IP Virtual Server version 1.2.1\nProt LocalAddress\n  -> RemoteAddress\n")
    assert hooks.others(ipvs, selinux, ila) == []
    with ipvs.open("a") as table:
        table.write("TCP  [2001:0db8::1]:0050 rr\n")
    selinux.write_text("1")
    ila.mkdir()
    assert len(hooks.legacy_tables(names)) == 2
    assert [line.partition(":")[0] for line in hooks.others(ipvs, selinux, ila)] == [
        *("IPVS", "SELinux", "ILA"),
    ]

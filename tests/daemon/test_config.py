"""The configuration: what it means, and what the operator is told when it is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m6proxy.daemon.config import Config, ConfigError, LocatorSettings, load_config, parse_config
from m6proxy.daemon.document import ConfigFile, Section
from m6proxy.discovery.addressing import MapKind
from m6proxy.errors import SetupError
from m6proxy.names import Prefix, address
from m6proxy.shim.demux import DemuxMode
from m6proxy.shim.policy import Detection, EstablishPolicy, FailbackMode, Selector

CONTRACT = """\
site: alpha.example
lan: [lan0]
uplinks:
  isp1: {interface: wan1, prefix: "2001:db8:a1::/48", gateway: "2001:db8:f1::1", preference: 1}
  isp2: {interface: wan2, prefix: "2001:db8:a2::/48", gateway: "2001:db8:f2::1", preference: 2}
dns: {servers: ["2001:db8:ff::53"]}
policy: {establish: {after_octets: 2048, after_s: 10}, unknown_peers: ignore, send_timeout_s: 3}
control: /run/m6proxy/alpha.sock
"""


def problems(text: str) -> list[str]:
    with pytest.raises(ConfigError) as raised:
        parse_config(text, "f.yaml")
    assert isinstance(raised.value, SetupError)
    assert str(raised.value) == "\n".join(raised.value.problems)
    return raised.value.problems


def changed(old: str, new: str) -> str:
    assert old in CONTRACT
    return CONTRACT.replace(old, new)


def test_capable_peers() -> None:
    text = CONTRACT.replace(
        "unknown_peers: ignore",
        'capable: ["2001:db8:c1::/48", B1.beta.example], detection: [dns, probe]',
    ).replace("control:", "peers: {b1.beta.example: ['2001:db8:b1::1']}\ncontrol:")
    config = parse_config(text, "f.yaml")
    prefixes = (Prefix.parse("2001:db8:c1::/48"), Prefix(address("2001:db8:b1::1"), 128))
    assert config.capable == prefixes
    assert config.detection == (Detection.DNS, Detection.PROBE)


def test_the_contract_means_what_it_says(tmp_path: Path) -> None:
    path = tmp_path / "alpha.yaml"
    path.write_text(CONTRACT)
    config = load_config(path)
    assert config.site == "alpha.example"
    assert config.lan == ("lan0",)
    first, second = config.uplinks
    assert (first.name, first.interface, first.preference) == ("isp1", "wan1", 1)
    assert first.prefix == Prefix.parse("2001:db8:a1::/48")
    assert first.gateway == address("2001:db8:f1::1")
    assert second.name == "isp2"
    assert config.dns.servers == ("2001:db8:ff::53",)
    assert config.establish == EstablishPolicy(after_octets=2048, after_s=10.0)
    assert config.unknown_peers == "ignore"
    assert config.send_timeout_s == 3.0
    assert config.control == Path("/run/m6proxy/alpha.sock")


def test_demux_modes_in_order_of_preference() -> None:
    text = changed("send_timeout_s", "demux: [flowlabel, exthdr], send_timeout_s")
    config = parse_config(text, "")
    assert config.demux == (DemuxMode.FLOWLABEL, DemuxMode.EXTHDR)
    assert parse_config(CONTRACT, "").demux == (DemuxMode.EXTHDR, DemuxMode.DSTOPT)


@pytest.mark.parametrize(
    ("written", "what"),
    [
        ("[flowlabel]", "exthdr is missing"),
        ("[exthdr, exthdr]", "a mode stands there twice"),
        ("[tags, exthdr]", "the modes are exthdr, flowlabel, identifier, dstopt"),
        ("exthdr", "'exthdr' is not a list of `dstopt`, `exthdr`, `flowlabel` and `identifier`"),
        ("[]", "is not a list of `dstopt`, `exthdr`, `flowlabel` and `identifier`"),
    ],
)
def test_demux_modes_that_cannot_be(written: str, what: str) -> None:
    (problem,) = problems(changed("send_timeout_s", f"demux: {written}, send_timeout_s"))
    assert "f.yaml:7: policy.demux" in problem and what in problem


NSQUARE = "locators: {map: nsquare}\n"


def test_n_square_addresses_have_their_mark_where_the_prefixes_end() -> None:
    config = parse_config(CONTRACT + NSQUARE, "")
    ulid = address("2001:db8:a1:1::11")
    second = config.uplinks[1].prefix
    assert config.locator_map.locator(ulid, second) == address("2001:db8:a2:4001::11")
    assert config.capability.mark_at == 48
    assert len(config.steering.locator_only) == 4
    moved = parse_config(CONTRACT + "locators: {map: nsquare, mark_at: 60}\n", "")
    assert moved.locator_map.locator(ulid, second) == address("2001:db8:a2:5::11")


def test_pre_agreed_identifiers_come_from_the_best_uplink_or_the_named_one() -> None:
    for more, prefix in (("", "2001:db8:a1::/48"), (", identifier: isp2", "2001:db8:a2::/48")):
        config = parse_config(CONTRACT + f"locators: {{map: preagreed{more}}}\n", "")
        assert config.locators.identifier == Prefix.parse(prefix)
        assert config.capability.mark_at is None
        other = next(u.prefix for u in config.uplinks if u.prefix != config.locators.identifier)
        assert config.locator_map.is_locator_only(other.graft(address("::11")))
    assert not parse_config(CONTRACT, "").steering.locator_only


@pytest.mark.parametrize(
    ("more", "what"),
    [
        ("locators: {map: nsquares}", "'nsquares' is not one of `neutral`, `prefix`"),
        ("locators: {mark_at: 48}", "locators.mark_at: means nothing without `map: nsquare`"),
        ("locators: {map: prefix, identifier: isp1}", "means nothing without `map: preagreed`"),
        ("locators: {map: preagreed, identifier: isp9}", "'isp9' is no uplink; the uplinks here"),
        ("locators: {map: nsquare, mark_at: 47}", "2 bits at 47 are not behind the prefix"),
        ("locators: {map: nsquare, mark_at: 127}", "write a number from 48 to 126"),
        (
            'locators: {map: nsquare}\nhosts: {a.alpha.example: "2001:db8:a1:8000::1"}',
            "hosts.a.alpha.example: 2001:db8:a1:8000::1 is a locator-only address",
        ),
        (
            'locators: {map: preagreed}\nhosts: {a.alpha.example: "2001:db8:a2::1"}',
            "2001:db8:a2::1 is a locator-only address",
        ),
    ],
)
def test_mappings_that_cannot_be(more: str, what: str) -> None:
    (problem,) = problems(CONTRACT + more + "\n")
    assert what in problem


def test_a_mark_among_interface_identifiers_needs_the_operators_word() -> None:
    narrow = CONTRACT.replace("a1::/48", "a1::/64").replace("a2::/48", "a2::/64")
    (problem,) = problems(narrow + NSQUARE)
    assert "finds no room between /64 and the interface identifier" in problem
    config = parse_config(narrow + "locators: {map: nsquare, mark_at: 64}\n", "")
    found = config.locator_map.locator(address("2001:db8:a1::11"), config.uplinks[1].prefix)
    assert found == address("2001:db8:a2:0:4000::11")


def test_identifier_is_asked_of_peers_only_with_locator_only_addresses() -> None:
    first = CONTRACT.replace("send_timeout_s", "demux: [identifier, exthdr], send_timeout_s")
    (problem,) = problems(first)
    assert "policy.demux: identifier is asked of peers" in problem
    assert parse_config(first + NSQUARE, "").demux[0] is DemuxMode.IDENTIFIER
    second = first.replace("[identifier, exthdr]", "[exthdr, identifier]")
    assert parse_config(second, "").demux[1] is DemuxMode.IDENTIFIER


def test_what_is_left_out_has_a_default() -> None:
    config = parse_config("".join(CONTRACT.splitlines(keepends=True)[:6]), "f")
    assert config == Config(
        site=config.site,
        lan=config.lan,
        uplinks=config.uplinks,
        dns=config.dns,
        control=Path("/run/m6proxy/alpha.sock"),
        locators=LocatorSettings(MapKind.NEUTRAL),
    )
    longer = "".join(CONTRACT.splitlines(keepends=True)[:6]).replace("::/48", "::/56")
    assert parse_config(longer, "f").locators == LocatorSettings(MapKind.PREFIX)
    assert (config.queue_outbound, config.queue_inbound) == (140, 141)
    assert (config.table_base, config.rule_priority, config.manage_routes) == (14000, 14000, True)
    assert (config.idle_s, config.max_contexts, config.send_timeout_s) == (300.0, 200_000, 15.0)
    assert (config.failback, config.failback_hold_s) == (FailbackMode.SOFT, 60.0)
    assert config.probes_per_s == 2000.0
    assert (config.dns.port, config.dns.timeout_s) == (53, 2.0)


def test_everything_can_be_set() -> None:
    config = parse_config(
        CONTRACT.replace("after_s: 10", "after_s: null, always: [tcp/22], never: ['2001:db8::/32']")
        + """
hosts: {A1.alpha.example.: "2001:db8:a1::11"}
peers: {b1.beta.example: ["2001:db8:b1::11", "2001:db8:b2::11"]}
queues: {outbound: 7, inbound: 8}
routing: {table_base: 500, rule_priority: 9, manage: false}
""",
        "f",
    )
    assert config.establish.after_s is None
    assert config.establish.always == (Selector(protocol=6, port=22),)
    assert config.establish.never == (Selector(prefix=Prefix.parse("2001:db8::/32")),)
    assert config.hosts == (("a1.alpha.example", address("2001:db8:a1::11")),)
    assert config.peers == (
        ("b1.beta.example", address("2001:db8:b1::11")),
        ("b1.beta.example", address("2001:db8:b2::11")),
    )
    assert (config.queue_outbound, config.queue_inbound) == (7, 8)
    assert (config.table_base, config.rule_priority, config.manage_routes) == (500, 9, False)
    assert config.steering.uplinks == config.uplinks
    assert config.steering.table_base == 500


def test_the_better_preference_comes_first() -> None:
    config = parse_config(changed("preference: 1", "preference: 200"), "f")
    assert [uplink.name for uplink in config.uplinks] == ["isp2", "isp1"]


def test_a_gateway_may_be_link_local() -> None:
    config = parse_config(changed("2001:db8:f1::1", "fe80::1"), "f")
    assert config.uplinks[0].gateway == address("fe80::1")


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("site:", "sit:", "f.yaml:1: sit: unknown key; did you mean `site`?"),
        (
            "interface: wan1",
            "interfaces: wan1",
            "f.yaml:4: uplinks.isp1.interfaces: unknown key; did you mean `interface`?",
        ),
        (
            "after_octets: 2048",
            "after_bytes: 2048",
            "f.yaml:7: policy.establish.after_bytes: unknown key; did you mean `after_octets`?",
        ),
        (
            "control:",
            "frobnicate: 1\ncontrol:",
            "f.yaml:8: frobnicate: unknown key; the keys here are site, lan, uplinks, dns, policy, "
            "locators, hosts, peers, fast_path, express, queues, routing, control",
        ),
        (
            "alpha.example",
            "al pha",
            "f.yaml:1: site: 'al pha' is not a domain name; write for example a1.alpha.example",
        ),
        (
            "alpha.example",
            "no",
            "f.yaml:1: site: false is not text; put it in quotes",
        ),
        (
            "[lan0]",
            "lan0",
            "f.yaml:2: lan: 'lan0' is not a list of at least one interface; "
            "write for example `[lan0]`",
        ),
        (
            "[lan0]",
            "[]",
            "f.yaml:2: lan: [] is not a list of at least one interface; write for example `[lan0]`",
        ),
        (
            "[lan0]",
            "[lan0, wan2]",
            "f.yaml:5: uplinks.isp2.interface: interface wan2 has a part already (line 2); "
            "give each LAN and uplink its own",
        ),
        (
            "wan2",
            "wan1",
            "f.yaml:5: uplinks.isp2.interface: interface wan1 has a part already (line 4); "
            "give each LAN and uplink its own",
        ),
        (
            "wan2",
            "wan2/x",
            "f.yaml:5: uplinks.isp2.interface: 'wan2/x' is not an interface name; "
            "`ip link` lists them",
        ),
        (
            "2001:db8:a2::/48",
            "2001:db8:a2::1/48",
            "f.yaml:5: uplinks.isp2.prefix: 2001:db8:a2::1/48 has host bits set; "
            "write 2001:db8:a2::/48",
        ),
        (
            "2001:db8:a2::/48",
            "2001:db8:a2::/65",
            "f.yaml:5: uplinks.isp2.prefix: 2001:db8:a2::/65: wrong prefix length 65; "
            "write the prefix that the provider delegated, from /1 to /64",
        ),
        (
            "2001:db8:a2::/48",
            "2001:db8:a2::/56",
            "f.yaml:5: uplinks.isp2.prefix: wrong prefix length /56: isp1 has /48, and a locator "
            "is a host's address with one prefix in place of the other; "
            "use the same length for all uplinks",
        ),
        (
            "2001:db8:a2::/48",
            "2001:db8:a1::/48",
            "f.yaml:5: uplinks.isp2.prefix: 2001:db8:a1::/48 overlaps 2001:db8:a1::/48 of isp1; "
            "give each uplink its own prefix",
        ),
        (
            "2001:db8:a2::/48",
            "10.0.0.0/8",
            "f.yaml:5: uplinks.isp2.prefix: '10.0.0.0/8' is not an IPv6 prefix; "
            "write for example '2001:db8:a1::/48'",
        ),
        (
            "2001:db8:f2::1",
            "ff02::1",
            "f.yaml:5: uplinks.isp2.gateway: ff02::1 is not the address of one machine; "
            "write its unicast address",
        ),
        (
            "2001:db8:f2::1",
            "fe80::1%wan2",
            "f.yaml:5: uplinks.isp2.gateway: 'fe80::1%wan2' is not an IPv6 address; "
            "write for example '2001:db8:f1::1'",
        ),
        (
            ", preference: 2",
            "",
            "f.yaml:5: uplinks.isp2.preference: is missing; add `preference: 1`",
        ),
        (
            "preference: 2",
            "preference: true",
            "f.yaml:5: uplinks.isp2.preference: true is not a whole number from 0 to 255, "
            "lower is better; write for example `1`",
        ),
        (
            "isp2:",
            "isp1:",
            "f.yaml:5: uplinks.isp1: stands here and in line 4; keep one of them",
        ),
        (
            'dns: {servers: ["2001:db8:ff::53"]}',
            "dns:",
            "f.yaml:6: dns: nothing is not a mapping; the keys here are servers, port, timeout_s",
        ),
        (
            "2001:db8:ff::53",
            "ns.example",
            "f.yaml:6: dns.servers[0]: 'ns.example' is not an IP address; "
            "write for example '2001:db8:ff::53'",
        ),
        (
            "unknown_peers: ignore",
            "unknown_peers: ask",
            "f.yaml:7: policy.unknown_peers: 'ask' is not one of `ignore` and `probe`; "
            "write for example `ignore`",
        ),
        (
            "unknown_peers: ignore",
            "forks: [{match: [tcp/873], uplink: isp9}]",
            "f.yaml:7: policy.forks[0].uplink: 'isp9' is no uplink; "
            "the uplinks here are isp1, isp2",
        ),
        (
            "unknown_peers: ignore",
            "detection: [dns, dns]",
            "f.yaml:7: policy.detection: names a way twice; write each at most once",
        ),
        (
            "unknown_peers: ignore",
            "capable: [b1.beta.example]",
            "f.yaml:7: policy.capable[0]: 'b1.beta.example' has no address in `peers`; "
            "add it there, or write a prefix",
        ),
        (
            "unknown_peers: ignore",
            'capable: ["2001:db8::1/48"]',
            "f.yaml:7: policy.capable[0]: '2001:db8::1/48' is neither a prefix nor a name; "
            "write for example '2001:db8:b1::/48'",
        ),
        (
            "unknown_peers: ignore",
            "failback: always",
            "f.yaml:7: policy.failback: 'always' is not one of `never`, `soft` and `hard`; "
            "write for example `soft`",
        ),
        (
            "send_timeout_s: 3",
            "failback_hold_s: 5",
            "f.yaml:7: policy.failback_hold_s: 5 is not seconds from 10 to 86400; "
            "write for example `60`",
        ),
        (
            "send_timeout_s: 3",
            "probes_per_s: 0",
            "f.yaml:7: policy.probes_per_s: 0 is not a rate from 10 to 100000; "
            "write for example `2000`",
        ),
        (
            "send_timeout_s: 3",
            "return_routability: sometimes",
            "f.yaml:7: policy.return_routability: 'sometimes' is not one of `always`, "
            "`first_use`, `changed_source` and `never`; write for example `first_use`",
        ),
        (
            "send_timeout_s: 3",
            "send_timeout_s: 101",
            "f.yaml:7: policy.send_timeout_s: 101 is not seconds from 1 to 100; "
            "write for example `15`",
        ),
        (
            "send_timeout_s: 3",
            "send_timeout_s: 100, idle_s: 60",
            "f.yaml:7: policy.idle_s: 60 is not longer than send_timeout_s: a context would be "
            "removed before its path can be found dead; make idle_s longer",
        ),
        (
            "after_s: 10",
            "never: [icmp]",
            "f.yaml:7: policy.establish.never[0]: 'icmp' is neither a prefix nor a protocol "
            "(tcp, udp, esp, ah, icmpv6, sctp or a number up to 255); "
            "write a prefix, a protocol, or protocol/port such as 'udp/53'",
        ),
        (
            "/run/m6proxy/alpha.sock",
            "alpha.sock",
            "f.yaml:8: control: 'alpha.sock' is not an absolute path; begin it with /",
        ),
        (
            "/run/m6proxy/alpha.sock",
            "/" + "x" * 107,
            "f.yaml:8: control: a socket's path has at most 107 octets and this one 108; "
            "shorten it",
        ),
        (
            "control:",
            'hosts: {x.example: "2001:db8:ee::1"}\ncontrol:',
            "f.yaml:8: hosts.x.example: 2001:db8:ee::1 is in none of the uplinks' prefixes; "
            "write an address that the host has from one of them",
        ),
        (
            "control:",
            'hosts:\n  x.example: "2001:db8:a1::1"\n  y.example: "2001:db8:a1::1"\ncontrol:',
            "f.yaml:10: hosts.y.example: 2001:db8:a1::1 is x.example already; "
            "give each host one name",
        ),
        (
            "control:",
            "peers: {b1.beta.example: [2001:db8:b1::1, 5]}\ncontrol:",
            "f.yaml:8: peers.b1.beta.example[1]: 5 is not text; put it in quotes",
        ),
        (
            "control:",
            "queues: {outbound: 141}\ncontrol:",
            "f.yaml:8: queues.outbound: both directions have the same queue; use two numbers",
        ),
        (
            "control:",
            "routing: {table_base: 254}\ncontrol:",
            "f.yaml:8: routing.table_base: 254 is not a routing table number from 256; "
            "write for example `14000`",
        ),
    ],
)
def test_what_is_wrong_and_how_to_mend_it(old: str, new: str, line: str) -> None:
    found = problems(changed(old, new))
    if new.endswith(("interfaces: wan1", "sit:")):  # and then the right key is missing
        assert any("is missing; add" in problem for problem in found)
        found = [problem for problem in found if "is missing" not in problem]
    assert found == [line]


def test_all_problems_are_found_at_once_in_the_order_of_the_file() -> None:
    text = (
        CONTRACT.replace("wan2", "wan1")
        .replace("2001:db8:a2::/48", "2001:db8:a1:8000::/49")
        .replace("preference: 1", "preference: first")
        .replace("lan:", "lam:")
        .replace("after_s: 10", "after_s: -1")
    )
    found = problems(text)
    assert [line.split(": ")[:2] for line in found] == [
        ["f.yaml:1", "lan"],
        ["f.yaml:2", "lam"],
        ["f.yaml:4", "uplinks.isp1.preference"],
        ["f.yaml:5", "uplinks.isp2.interface"],
        ["f.yaml:5", "uplinks.isp2.prefix"],
        ["f.yaml:5", "uplinks.isp2.prefix"],
        ["f.yaml:7", "policy.establish.after_s"],
    ]
    assert all(";" in line for line in found if "did you mean" not in line)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", "f.yaml:1: the file is empty; conf/alpha.yaml is an example to begin with"),
        ("- site", "f.yaml:1: the file is not a mapping; write lines of `key: value`"),
        (
            "site: a\nlan: [lan0\ndns: 1",
            "f.yaml:3: this is not YAML (expected ',' or ']', but got ':'); "
            "check indentation, braces and quotes",
        ),
        ("a: &x 1\nb: *x", "f.yaml:2: aliases (*name) are not accepted; write the value out"),
        (
            "\nsite: !!python/object/apply:os.system [x]",
            "f.yaml:2: tags (tag:yaml.org,2002:python/object/apply:os.system) are not accepted; "
            "write the plain value",
        ),
        ('"si\\nte": 1', "f.yaml:1: si\\nte: unknown key; did you mean `site`?"),
        ("[" * 5000, "f.yaml:1: nested deeper than 16 levels; check the brackets"),
        (
            "a: \x00",
            "f.yaml:1: this is not YAML (unacceptable character #x0000: special characters are "
            'not allowed in "<unicode string>", position 3); check indentation, braces and quotes',
        ),
    ],
)
def test_what_is_not_a_configuration_at_all(text: str, line: str) -> None:
    assert [found for found in problems(text) if "is missing" not in found] == [line]


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"missing\.yaml: cannot be read: No such file"):
        load_config(tmp_path / "missing.yaml")
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        load_config(tmp_path)
    (tmp_path / "latin1.yaml").write_bytes(b"site: \xe4")
    with pytest.raises(ConfigError, match="not UTF-8"):
        load_config(tmp_path / "latin1.yaml")


@settings(max_examples=300)
@given(
    st.one_of(
        st.text(),
        st.text(alphabet="{}[]:,-*&!|>'\"%@`?#= \n\tab01"),
        st.builds(
            lambda at, length, junk: CONTRACT[:at] + junk + CONTRACT[at + length :],
            st.integers(0, len(CONTRACT)),
            st.integers(0, 20),
            st.text(max_size=6),
        ),
    )
)
def test_any_text_is_a_configuration_or_a_list_of_lines(text: str) -> None:
    try:
        parse_config(text, "f.yaml")
    except ConfigError as error:
        assert error.problems
        assert all(line.startswith("f.yaml:") and "\n" not in line for line in error.problems)


def test_every_key_can_say_what_it_expects() -> None:
    def visit(model: type[Section]) -> None:
        for name, info in model.model_fields.items():
            annotation = info.annotation
            if isinstance(annotation, type) and issubclass(annotation, Section):
                visit(annotation)
            else:
                assert info.examples, f"{model.__name__}.{name}"

    visit(ConfigFile)


def test_more_uplinks_than_one_message_takes() -> None:
    """The seventeenth uplink made an I2 too large: the daemon died in its first exchange."""
    lines = [
        f"  isp{n}: {{interface: wan{n}, prefix: '2001:db8:c{n:02x}::/48', "
        f"gateway: '2001:db8:f{n:02x}::1', preference: {n}}}"
        for n in range(3, 18)
    ]
    before, after = CONTRACT.split("dns: ")
    sixteen = "\n".join(lines[:-1]) + "\n"
    assert len(parse_config(f"{before}{sixteen}dns: {after}", "f").uplinks) == 16
    (line,) = problems(f"{before}{sixteen}{lines[-1]}\ndns: {after}")
    assert line == (
        "f.yaml:3: uplinks: 17 uplinks, and one message to a peer takes 16 at most; "
        "leave the least useful ones out"
    )

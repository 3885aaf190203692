"""``m6proxy plan nsquare``."""

from __future__ import annotations

import json
from pathlib import Path

import dns.rdatatype
import dns.zone
import pytest
from click.testing import CliRunner

from m6proxy.cli.main import m6proxy
from m6proxy.discovery.capability import NameData
from m6proxy.discovery.codec import parse_svcb
from m6proxy.errors import SetupError
from m6proxy.names import address

ALPHA = str(Path(__file__).parents[2] / "conf" / "alpha.yaml")
GIVEN = ("--prefix", "2001:db8:a1::/48", "--prefix", "2001:db8:a2::/48")
HOST = ("--host", "a1.alpha.example=2001:db8:a1:1::10")


def nsquare(*words: str) -> str:
    result = CliRunner().invoke(m6proxy, ["plan", "nsquare", *words], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_the_plan_is_a_part_of_a_zone_whose_record_proves_its_locators() -> None:
    head = "@ 60 IN SOA ns h 1 2 3 4 5\n@ 60 IN NS ns\n"
    zone = dns.zone.from_text(head + nsquare(*GIVEN, *HOST), "alpha.example.", relativize=False)
    (record,) = zone.find_rdataset("_m6proxy.a1.alpha.example.", dns.rdatatype.SVCB)
    addresses = {
        address(rdata.to_text()) for rdata in zone.find_rdataset("a1.alpha.example.", "AAAA")
    }
    assert addresses == {address("2001:db8:a1:1::10"), address("2001:db8:a2:1::10")}
    data = NameData("a1.alpha.example", frozenset(addresses), parse_svcb([record]).capability)
    plan = json.loads(nsquare(*GIVEN, *HOST, "--json"))
    (host,) = plan["hosts"]
    for one in host["sets"]:
        ulid = address(one["ulid"])
        assert ulid in addresses
        for text in (*one["locators"].values(), one["stand_in"]):
            assert data.ties(ulid, address(text)) and address(text) not in addresses
    assert host["sets"][0] == {
        "ulid": "2001:db8:a1:1::10",
        "locators": {"2001:db8:a2::/48": "2001:db8:a2:4001::10"},
        "stand_in": "2001:db8:a1:4001::10",
    }
    assert plan["mark"] == {"at": 48, "bits": 2}
    assert [one["prefix"] for one in plan["prefixes"]] == ["2001:db8:a1::/48", "2001:db8:a2::/48"]


def test_a_configuration_says_which_hosts_and_the_command_line_changes_it(tmp_path: Path) -> None:
    plan = json.loads(nsquare("-c", ALPHA, "--json"))
    assert [host["name"] for host in plan["hosts"]] == ["a1.alpha.example", "a2.alpha.example"]
    assert plan["site"] == "alpha.example" and len(plan["records"]) == 6
    path = tmp_path / "marked.yaml"
    text = Path(ALPHA).read_text().replace("map: neutral", "map: nsquare")
    text = text.replace("mark_at: null", "mark_at: 52")
    path.write_text(text)
    assert json.loads(nsquare("-c", str(path), "--json"))["mark"]["at"] == 52
    changed = json.loads(nsquare("-c", str(path), "--mark-at", "56", *HOST, "--json"))
    assert changed["mark"]["at"] == 56
    assert [host["name"] for host in changed["hosts"]] == ["a1.alpha.example"]


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("--prefix", "2001:db8:a1::/48", *HOST), "need two prefixes"),
        (GIVEN, "no host to plan for"),
        ((*GIVEN, "--host", "a1"), "is not a name and an address"),
        (("--prefix", "x", *GIVEN, *HOST), "--prefix: 'x' is not a prefix"),
        ((*GIVEN, "--host", "a=2001:db8:b1::1"), "is in none of the prefixes"),
        ((*GIVEN, "--host", "a=2001:db8:a1:4000::1"), "has a mark there"),
        ((*GIVEN, *HOST, "--mark-at", "40"), "are not behind /48"),
        (
            ("--prefix", "2001:db8:a1::/64", "--prefix", "2001:db8:a2::/64", *HOST),
            "finds no room between /64 and the interface identifier",
        ),
    ],
)
def test_a_plan_that_cannot_be(words: tuple[str, ...], complaint: str) -> None:
    with pytest.raises(SetupError, match=complaint):
        nsquare(*words)


def test_a_record_of_a_site_with_locator_only_addresses(tmp_path: Path) -> None:
    """AAAA and PTR only for addresses that a host may have."""
    text = Path(ALPHA).read_text()
    for kind, addresses, mark in (("nsquare", 2, True), ("preagreed", 1, False)):
        path = tmp_path / f"{kind}.yaml"
        path.write_text(text.replace("map: neutral", f"map: {kind}"))
        words = ["dns", "record", "-c", str(path), "--host", "a1.alpha.example"]
        output = CliRunner().invoke(m6proxy, words, catch_exceptions=False).output
        assert output.count(" IN AAAA ") == output.count(" IN PTR ") == addresses
        assert ("+m=nsquare@48" in output) is mark
        never = ["--address", "2001:db8:a2:4000::11"]
        with pytest.raises(SetupError, match="is a locator-only address"):
            CliRunner().invoke(m6proxy, [*words, *never], catch_exceptions=False)

"""Source-prefix routing in a real kernel."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from m6proxy.errors import SetupError
from m6proxy.names import Prefix, address
from m6proxy.steering.routes import SourceRouting
from m6proxy.steering.settings import SteeringSettings
from tests.steering.namespaces import HOST_B, TwoSites, inside, run, run_line, settings_of

pytestmark = pytest.mark.netns
SETTINGS = settings_of("a")


@pytest.fixture
def sites() -> Iterator[TwoSites]:
    """The topology, and the test inside gateway a."""
    with TwoSites() as built, inside(built.gateway["a"]):
        yield built


def _everything() -> str:
    """All rules and unicast routes. Numbers, so that no name of a table hides."""
    routes = run("ip", "-N", "-6", "route", "show", "table", "all", "type", "unicast")
    return run("ip", "-N", "-6", "rule") + "\n".join(
        line for line in routes.splitlines() if "proto 2" not in line
    )


def _way(source: str, target: str = HOST_B) -> str:
    return run("ip", "-6", "route", "get", target, "from", source, "iif", "lan0")


def test_each_source_prefix_has_its_uplink_and_neighbours_stay_near(sites: TwoSites) -> None:
    routing = SourceRouting(SETTINGS)
    assert len(routing.verify()) == 2 * 2 + 2 * 2
    assert routing.apply() == [] and routing.verify() == []
    assert " dev wan1 " in _way("2001:db8:a1:1::10")
    assert " dev wan2 " in _way("2001:db8:a2:1::10")
    assert " dev lan0 " in _way("2001:db8:a2:1::10", "2001:db8:a1:1::77")


def test_apply_twice_changes_nothing_and_remove_leaves_what_was(sites: TwoSites) -> None:
    before = _everything()
    SourceRouting(SETTINGS).apply()
    once = _everything()
    SourceRouting(SETTINGS).apply()
    assert _everything() == once != before
    SourceRouting(SETTINGS).remove()
    assert _everything() == before
    SourceRouting(SETTINGS).remove()
    assert _everything() == before


def test_an_operators_own_rules_and_routes_stay(sites: TwoSites) -> None:
    rule = ("from", "2001:db8:a1::/48", "lookup", "14000", "priority", "14001")
    run("ip", "-6", "rule", "add", *rule)
    run("ip", "-6", "rule", "add", *rule, "protocol", "99")
    run_line("ip -6 route add 2001:db8:77::/48 dev lan0 table 14000")
    before = _everything()
    routing = SourceRouting(SETTINGS)
    routing.apply()
    assert routing.verify() == []
    routing.remove()
    assert _everything() == before


def test_a_dead_predecessors_rules_are_replaced(sites: TwoSites) -> None:
    other = SteeringSettings(
        "old.example", ("lan0",), SETTINGS.uplinks[:1], table_base=15_000, rule_priority=15_000
    )
    SourceRouting(other).apply()
    routing = SourceRouting(SETTINGS)
    routing.apply()
    assert "15000" not in _everything() and "15001" not in _everything()
    routing.remove()
    assert " 140" not in _everything()


def test_what_was_lost_is_named_and_put_back(sites: TwoSites) -> None:
    routing = SourceRouting(SETTINGS)
    routing.apply()
    run_line("ip -6 route del default via 2001:db8:f2::b dev wan2 table 14001")
    run_line("ip -6 rule del from 2001:db8:a1::/48 priority 14001")
    wrong = routing.verify()
    assert len(wrong) == 2
    assert "uplink isp2" in wrong[0] and "via 2001:db8:f2::b" in wrong[0]
    assert "from 2001:db8:a1::/48 lookup 14000" in wrong[1]
    assert routing.repair() == {} and routing.verify() == []
    routing.remove()
    assert routing.repair() == {} and len(routing.verify()) == 8


def test_without_its_route_a_prefix_does_not_fall_to_another_uplink(sites: TwoSites) -> None:
    """The packet would leave with a source that the other provider filters."""
    SourceRouting(SETTINGS).apply()
    run("ip", "link", "set", "wan2", "down")
    with pytest.raises(AssertionError, match=r"unreachable|No route"):
        _way("2001:db8:a2:1::10")


def test_an_uplink_that_is_switched_off_does_not_hinder_the_start(sites: TwoSites) -> None:
    run("ip", "link", "set", "wan2", "down")
    routing = SourceRouting(SETTINGS)
    assert routing.apply() == ["uplink isp2: wan2 is switched off, no route yet"]
    assert " dev wan1 " in _way("2001:db8:a1:1::10")


def _with_isp2(**changes: object) -> SteeringSettings:
    isp1, isp2 = SETTINGS.uplinks
    return replace(SETTINGS, uplinks=(isp1, replace(isp2, **changes)))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        (_with_isp2(interface="wan7"), "uplink isp2: the interface wan7 does not exist"),
        (
            _with_isp2(gateway=address("2001:db8:f9::1")),
            "uplink isp2: the gateway 2001:db8:f9::1 is not on a network of wan2",
        ),
        (
            replace(SETTINGS, table_base=16_000),
            "uplink isp2: table 16001 already has a default route that is not ours; "
            "choose another table base",
        ),
    ],
)
def test_what_the_operator_must_mend_is_one_line(
    sites: TwoSites, settings: SteeringSettings, line: str
) -> None:
    run_line("ip -6 route add default dev lan0 table 16001 metric 1024")
    with pytest.raises(SetupError) as caught:
        SourceRouting(settings).apply()
    assert str(caught.value) == line


def test_a_whole_address_as_prefix(sites: TwoSites) -> None:
    routing = SourceRouting(_with_isp2(prefix=Prefix.parse("2001:db8:a2::5/128")))
    routing.apply()
    assert routing.verify() == []
    routing.remove()
    assert " 140" not in _everything()


def test_a_packet_with_an_uplinks_mark_takes_its_table_whatever_its_source(sites: TwoSites) -> None:
    """The kernel's programs mark a re-homed packet while it still has its ULID."""
    before = _everything()
    marked = SourceRouting(replace(SETTINGS, mark_shift=8))
    marked.apply()
    assert marked.verify() == []
    once = _everything()
    marked.repair()
    assert _everything() == once
    way = ("ip", "-6", "route", "get", HOST_B, "from", "2001:db8:a1:1::10", "iif", "lan0")
    for mark, interface in (
        ("0x8100", "wan1"),
        ("0x8200", "wan2"),
        ("0x7f82cd", "wan2"),
        ("0x7f92cd", "wan2"),  # nobody was there to see it first
        ("0x7fa2cd", "wan1"),  # not our mark
    ):
        assert f" dev {interface} " in run(*way, "mark", mark)
    SourceRouting(SETTINGS).apply()
    assert " dev wan1 " in run(*way, "mark", "0x8200"), "a successor without marks takes them out"
    marked.remove()
    assert _everything() == before

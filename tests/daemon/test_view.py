"""What the control socket shows of engines that really talked."""

from __future__ import annotations

import json
from typing import Any

from m6proxy.daemon import view
from m6proxy.daemon.config import parse_config
from m6proxy.reasons import Reason
from m6proxy.shim import flows
from tests.daemon.test_config import CONTRACT
from tests.harness.pair import Pair

A1, A1_ISP2 = "2001:db8:a1:1::10", "2001:db8:a2:1::10"
B1, B1_ISP2 = "2001:db8:b1:1::10", "2001:db8:b2:1::10"


def _moved() -> Pair:
    pair = Pair()
    pair.establish()
    pair.cut_provider("a", 1)
    pair.stream(8.0)
    return pair


def test_a_context_that_moved_shows_where_it_is_and_since_when() -> None:
    pair = _moved()
    shown = view.context_view(pair.alpha.context, lambda moment_s: moment_s + 1e9)
    json.dumps(shown)
    assert (shown["local_ulid"], shown["peer_ulid"]) == (A1, B1)
    assert (shown["local_locator"], shown["peer_locator"]) == (A1_ISP2, B1)
    assert (shown["state"], shown["reap_state"], shown["rehomings"]) == (
        "ESTABLISHED",
        "OPERATIONAL",
        1,
    )
    assert shown["established_at"] < shown["rehomed_at"]
    assert shown["established_at"] > 1e9, "Unix time, by the function that was given"
    assert [row["address"] for row in shown["local_locators"]] == [A1, A1_ISP2]
    assert [row["tested"] for row in shown["local_locators"]] == [False, True]
    assert {row["address"]: row["proof"] for row in shown["peer_locators"]} == {
        B1: "ulid",
        B1_ISP2: "dns",
    }
    other = view.context_view(pair.beta.context, float)
    assert (shown["local_tag"], shown["peer_tag"]) == (other["peer_tag"], other["local_tag"])
    assert len(shown["local_tag"]) == 12 and int(shown["local_tag"], 16)


def test_a_context_that_is_not_established_has_no_reachability() -> None:
    pair = Pair()
    pair.lose = lambda packet: True
    for _ in range(3):
        pair.talk(pair.alpha)
    pair.run(0.5)
    shown = view.context_view(pair.alpha.context, float)
    assert (shown["state"], shown["reap_state"]) == ("I1-SENT", None)
    assert shown["peer_tag"] is None and shown["established_at"] is None


def test_uplinks_count_the_contexts_that_send_through_them() -> None:
    config = parse_config(CONTRACT, "f")
    pair = _moved()
    first, second = view.uplinks_view(pair.alpha.engine, config, {"isp1": "wan1 is up"})
    assert (first["contexts"], second["contexts"]) == (0, 1)
    assert (first["why"], second["why"]) == ("wan1 is up", "")
    assert (first["prefix"], first["gateway"]) == ("2001:db8:a1::/48", "2001:db8:f1::1")


def test_a_peer_that_has_contexts_and_was_never_asked_about_is_shown() -> None:
    pair = _moved()
    (stranger,) = view.peers_view([], pair.alpha.engine)
    assert (stranger["address"], stranger["capability"], stranger["contexts"]) == (
        B1,
        "unknown",
        1,
    )
    known = {**stranger, "name": "b1.beta.example", "capability": "yes", "contexts": 99}
    assert view.peers_view([known], pair.alpha.engine) == [{**known, "contexts": 1}]


def test_drops_show_every_reason_with_number_and_words() -> None:
    pair = Pair()
    rows = view.drops_view(pair.alpha.engine)
    assert [row["number"] for row in rows] == [reason.value for reason in Reason]
    assert all(row["text"] and row["count"] == 0 for row in rows)


def test_a_flow_of_the_kernel_shows_its_way_and_what_was_counted() -> None:
    pair = Pair(kernel=True)
    pair.establish()
    kernel, context = pair.alpha.kernel, pair.alpha.context
    assert kernel is not None

    def shown() -> Any:
        return view.flow_view(context, kernel.read, lambda moment_s: moment_s + 1e9)

    at_home = shown()
    assert (at_home["mode"], at_home["path"], at_home["uplink"]) == (None, "kernel", "isp1")
    pair.cut_provider("a", 1)
    pair.stream(8.0, both=True)
    moved = shown()
    json.dumps(moved)
    assert (moved["local_locator"], moved["mode"], moved["uplink"]) == (A1_ISP2, "exthdr", "isp2")
    assert moved["octets_out"] > moved["packets_out"] > at_home["packets_out"]
    assert moved["last_out_at"] > 1e9 and moved["last_in_at"] > 1e9
    flows.watch(pair.alpha.engine._core, context, wanted=True)
    assert shown()["path"] == "engine"
    kernel.slots.clear()
    assert shown()["last_out_at"] is None, "not in 1970"
    assert view.flow_view(_moved().alpha.context, kernel.read, float) is None, "without the kernel"


def test_a_parked_context_says_who_is_away() -> None:
    pair = Pair()
    pair.establish()

    def said() -> list[Any]:
        return [view.context_view(site.context, float)["parked"] for site in pair.sites.values()]

    assert said() == [None, None]
    for site, away in ((pair.alpha, ["local", "peer"]), (pair.beta, ["both", "both"])):
        site.engine.park(600, pair.clock.now)
        pair.settle(site)
        pair.run(0.1)
        assert said() == away

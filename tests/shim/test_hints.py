"""Indirect indications: each starts one test, and changes nothing when the path works."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from m6proxy.names import Address
from m6proxy.shim.effects import What
from m6proxy.shim.reap import TEST_PAUSE_S
from m6proxy.shim.transitions import ReapState
from m6proxy.wire.message import Probe
from tests.harness.packets import find_messages, icmp_error, rewritten, route_of, udp
from tests.harness.pair import A1, A1_ISP2, A2, B1, B1_ISP2, Pair
from tests.shim.moved import established, moved

ROUTER = bytes.fromhex("20010db800ff00000000000000000001")
SUSPICIOUS = [(1, 0, 0), (1, 3, 0), (1, 5, 0), (3, 0, 0), (2, 0, 1287)]
HARMLESS = [(1, 1, 0), (1, 4, 0), (3, 1, 0), (2, 0, 1400), (4, 1, 0), (100, 0, 0)]


def quiet(pair: Pair) -> Pair:
    """Long after the last search; what was sent before is forgotten."""
    pair.stream(TEST_PAUSE_S + 2, both=True, interval_s=0.2)
    for site in pair.sites.values():
        site.sent.clear()
        site.reports.clear()
    return pair


def on_the_wire(pair: Pair) -> bytes:
    packet = udp(A1, B1, b"data")
    verdict = pair.alpha.engine.handle_outbound(packet, pair.clock.now)
    return verdict if isinstance(verdict, bytes) else packet


def tell(pair: Pair, kind: int, code: int, word: int, quoted: bytes) -> None:
    pair.inject(pair.alpha, icmp_error(ROUTER, quoted[8:24], kind, code, word, quoted))


def probes(pair: Pair) -> list[tuple[Address, Address]]:
    """The pairs of alpha's probes in state Exploring."""
    found = find_messages(pair.alpha.sent, Probe)
    return [route_of(packet) for _, packet, probe in found if probe.state == 1]


def unchanged(pair: Pair, route: bytes) -> bool:
    return (
        all(
            not site.what(What.REHOMED) and site.context.reap_state is ReapState.OPERATIONAL
            for site in pair.sites.values()
        )
        and pair.alpha.context.route == route
    )


@pytest.mark.parametrize("error", SUSPICIOUS)
@pytest.mark.parametrize("start", [established, moved], ids=["ULIDs", "re-homed"])
def test_an_error_about_a_packet_of_ours_tests_the_pair(
    start: Callable[[], Pair], error: tuple[int, int, int]
) -> None:
    pair = quiet(start())
    route = pair.alpha.context.route
    tell(pair, *error, on_the_wire(pair))
    pair.stream(5.0, both=True, interval_s=0.1)
    assert probes(pair) == [(route[:16], route[16:])]
    assert unchanged(pair, route)


@pytest.mark.parametrize("error", HARMLESS)
def test_an_error_that_says_nothing_of_the_path_tests_nothing(error: tuple[int, int, int]) -> None:
    for pair in (quiet(established()), quiet(moved())):
        tell(pair, *error, on_the_wire(pair))
        pair.stream(3.0, both=True, interval_s=0.1)
        assert not probes(pair)


def test_errors_about_others_packets_test_nothing() -> None:
    pair = quiet(moved())
    tag = pair.alpha.context.peer_tag
    for quoted in (
        udp(A1, B1, b"on the ULIDs, which are not in use"),
        udp(A2, B1, b"another host"),
        rewritten(A1_ISP2, B1_ISP2, tag ^ 1, 17, bytes(8)),
        rewritten(A1, B1_ISP2, tag, 17, bytes(8)),
        on_the_wire(pair)[:60],
    ):
        wrong = icmp_error(ROUTER, A1_ISP2, 1, 0, 0, quoted)
        pair.inject(pair.alpha, wrong[:-1] + bytes((wrong[-1] ^ 1,)))
    for quoted in (udp(A1, B1), udp(A2, B1), rewritten(A1_ISP2, B1_ISP2, tag ^ 1, 17, bytes(8))):
        tell(pair, 1, 0, 0, quoted)
    pair.stream(3.0, both=True, interval_s=0.1)
    assert not probes(pair)


def test_a_flood_of_forged_errors_is_one_test_in_ten_seconds() -> None:
    pair = quiet(established())
    start_s = pair.clock.now
    while pair.clock.now < start_s + 3 * TEST_PAUSE_S:
        tell(pair, 1, 0, 0, udp(A1, B1, b"forged"))
        pair.stream(0.1, both=True, interval_s=0.05)
    assert 2 <= len(probes(pair)) <= 4
    assert unchanged(pair, A1 + B1)


def test_one_source_that_forges_for_all_contexts_is_held_back() -> None:
    pair = quiet(established())
    core = pair.alpha.engine._core
    while core.requests_limit.allow(ROUTER, pair.clock.now):
        pass
    tell(pair, 1, 0, 0, udp(A1, B1, b"forged"))
    pair.run(1.0)
    assert not probes(pair)


def test_a_true_error_moves_the_context_before_the_silence_would() -> None:
    pair = quiet(established())
    pair.cut_provider("a", 1)
    start_s = pair.clock.now
    quoted = on_the_wire(pair)
    tell(pair, 1, 0, 0, quoted)
    pair.stream(1.0, both=True)
    (moved_s, *_) = pair.alpha.what(What.REHOMED)
    assert moved_s - start_s < 0.7


def test_a_new_source_of_the_peer_tests_our_pair() -> None:
    pair = quiet(moved())
    route = pair.alpha.context.route
    tag = pair.alpha.context.local_tag
    pair.inject(pair.alpha, rewritten(B1, A1_ISP2, tag, 17, bytes(8)))
    pair.inject(pair.alpha, rewritten(B1_ISP2, A1_ISP2, tag, 17, bytes(8)))
    pair.stream(5.0, both=True, interval_s=0.1)
    assert probes(pair) == [(route[:16], route[16:])]
    assert unchanged(pair, route)


def test_our_other_locator_as_their_destination_tests_nothing() -> None:
    pair = quiet(moved())
    tag = pair.alpha.context.local_tag
    pair.inject(pair.alpha, rewritten(B1_ISP2, A1, tag, 17, bytes(8)))
    pair.stream(3.0, both=True, interval_s=0.1)
    assert not probes(pair)

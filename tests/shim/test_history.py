"""What the site remembers of its uplinks: left by many, they are tried last by all."""

from __future__ import annotations

import pytest

from m6proxy.shim.history import HALF_LIFE_S, UplinkHistory
from m6proxy.shim.policy import EstablishPolicy
from m6proxy.wire.message import Probe
from tests.harness.packets import find_messages, udp
from tests.harness.pair import A1, A1_ISP2, B1, B1_ISP2, NAMES, Pair


def test_several_must_leave_before_it_counts() -> None:
    history = UplinkHistory(fades=True)
    for number in range(2):
        history.note_left("isp1", 100.0 + number)
        assert not history.suspects(101.0)
    history.note_left("isp1", 102.0)
    assert history.suspects(102.0) == {"isp1"}
    assert not history.suspects(102.0 + HALF_LIFE_S)


def test_a_slow_trickle_never_counts() -> None:
    history = UplinkHistory(fades=True)
    for number in range(50):
        history.note_left("isp1", 100.0 + number * 2 * HALF_LIFE_S)
        assert not history.suspects(100.0 + number * 2 * HALF_LIFE_S)


def test_only_what_is_seen_clears_it_where_nothing_is_gone_back_to() -> None:
    history = UplinkHistory(fades=False)
    for _ in range(3):
        history.note_left("isp1", 100.0)
    assert history.suspects(1e6) == {"isp1"}
    history.clear("isp1")
    assert not history.suspects(1e6)


def host(number: int, isp: int = 1) -> bytes:
    return (A1, A1_ISP2)[isp - 1][:15] + bytes((number,))


LATE = host(9, isp=2)
"""A host whose ULID is from the second provider: its context never had to leave the first."""


@pytest.fixture(autouse=True)
def _names(monkeypatch: pytest.MonkeyPatch) -> None:
    for ulid in (*(host(number) for number in range(1, 5)), LATE):
        monkeypatch.setitem(NAMES, ulid, f"h{ulid[15]}.alpha.example")


def talk(pair: Pair, hosts: list[bytes], seconds: float) -> None:
    end_s = pair.clock.now + seconds
    while pair.clock.now < end_s:
        for source in hosts:
            pair.host_sends(pair.alpha, udp(source, B1, bytes(50)))
        pair.run(0.25)


def probed_by_late(pair: Pair) -> list[bytes]:
    """The pairs that the late context probed, each once, in their order, 32 octets each."""
    sent = [packet for _, packet, _ in find_messages(pair.alpha.sent, Probe)]
    return list(dict.fromkeys(packet[8:40] for packet in sent if packet[23] == LATE[15]))


def after_others_left(count: int) -> Pair:
    """So many contexts had to leave alpha's first provider; then beta's first one dies."""
    pair = Pair(policy=EstablishPolicy(after_packets=1), requests_per_s=1e6)
    others = [host(number) for number in range(1, 1 + count)]
    talk(pair, [*others, LATE], 1.0)
    pair.cut_provider("a", 1)
    talk(pair, [*others, LATE], 8.0)
    for context in pair.alpha.engine.contexts():
        assert context.carries
        assert context.route[:6] == A1_ISP2[:6]
    return pair


@pytest.mark.parametrize(("others", "last"), [(1, False), (3, True)])
def test_what_several_contexts_left_all_others_try_last(others: int, last: bool) -> None:
    pair = after_others_left(others)
    pair.cut_provider("b", 1)
    talk(pair, [LATE], 6.0)
    second = probed_by_late(pair)[1]
    assert (second == LATE + B1_ISP2) is last


def test_an_event_of_the_uplink_clears_it() -> None:
    pair = after_others_left(3)
    for up in (False, True):
        pair.alpha.engine.handle_uplink("isp1", up=up, mtu=1500, now=pair.clock.now)
        pair.settle(pair.alpha)
    talk(pair, [LATE], 1.0)
    pair.cut_provider("b", 1)
    pair.alpha.sent.clear()
    talk(pair, [LATE], 6.0)
    assert probed_by_late(pair)[1] == host(LATE[15]) + B1

"""Token buckets: rate, burst, one for each /48, bounded memory."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from m6proxy.names import address
from m6proxy.shim.ratelimit import RateLimit

X = address("2001:db8:1::1")
SAME_SITE = address("2001:db8:1:ffff::2")
OTHER_SITE = address("2001:db8:2::1")


def test_burst_then_rate() -> None:
    limit = RateLimit(8.0, 5.0)
    assert [limit.allow(X, 100.0) for _ in range(6)] == [True] * 5 + [False]
    assert [limit.allow(X, 100.125) for _ in range(2)] == [True, False]
    assert [limit.allow(X, 200.0) for _ in range(6)] == [True] * 5 + [False]


def test_a_site_shares_its_bucket_with_nobody_else() -> None:
    limit = RateLimit(1.0, 1.0)
    assert limit.allow(X, 1.0)
    assert not limit.allow(SAME_SITE, 1.0)
    assert limit.allow(OTHER_SITE, 1.0)


def test_memory_is_bounded_and_who_speaks_is_remembered() -> None:
    limit = RateLimit(1.0, 1.0)
    assert limit.allow(X, 1.0)
    for number in range(10_000):
        limit.allow(number.to_bytes(6) + bytes(10), 1.0)
        if number % 1000 == 0:
            assert not limit.allow(X, 1.0)
    assert len(limit._buckets) <= 4096


@given(st.lists(st.floats(0.0, 0.5), max_size=60))
def test_no_rhythm_gets_more_than_rate_and_burst(pauses: list[float]) -> None:
    limit = RateLimit(4.0, 3.0)
    now, allowed = 50.0, 0
    for pause_s in pauses:
        now += pause_s
        allowed += limit.allow(X, now)
    assert allowed <= 3 + 4 * (now - 50.0) + 1e-6

"""How long answers hold."""

from __future__ import annotations

import pytest

from m6proxy.discovery.cache import NegativeCache, PositiveCache


@pytest.mark.parametrize(("ttl_s", "held_s"), [(0, 30), (3600, 3600), (10**9, 86_400)])
def test_positive_bounds(ttl_s: float, held_s: float) -> None:
    cache: PositiveCache[str, int] = PositiveCache()
    assert cache.put("a", 1, ttl_s, 100.0) == 100 + held_s
    assert cache.get("a", 99.0 + held_s) == (1, 100 + held_s)
    assert cache.get("a", 100.0 + held_s) is None
    assert len(cache) == 0


@pytest.mark.parametrize(("soa_s", "held_s"), [(0, 5), (60, 60), (86_400, 300), (None, 30)])
def test_negative_bounds(soa_s: float | None, held_s: float) -> None:
    cache: NegativeCache[str, int] = NegativeCache()
    assert cache.put("a", 1, soa_s, 100.0) == 100 + held_s


def test_failures_are_forgotten_soon() -> None:
    cache: NegativeCache[str, int] = NegativeCache()
    assert cache.put_failure("a", 1, 100.0) == 130.0


def test_size_is_bounded_and_the_least_used_goes_first() -> None:
    cache: PositiveCache[str, int] = PositiveCache(entries_max=2)
    for key in "ab":
        cache.put(key, 1, 60, 0.0)
    assert cache.get("a", 1.0) is not None
    cache.put("c", 1, 60, 1.0)
    assert [cache.get(key, 2.0) is not None for key in "abc"] == [True, False, True]
    cache.drop("a")
    cache.drop("never there")
    assert len(cache) == 1
    with pytest.raises(ValueError, match="at least one"):
        PositiveCache(entries_max=0)

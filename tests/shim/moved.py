"""Pairs of engines in states from which many tests start."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from m6proxy.discovery.addressing import PLAIN, LocatorMap
from m6proxy.names import Address
from m6proxy.shim.demux import DemuxMode
from m6proxy.shim.engine import Engine
from tests.harness.entropy import SeededEntropy
from tests.harness.pair import A_GATEWAY, Pair


def established(seed: int = 1) -> Pair:
    """Both ends have a context and use their ULIDs."""
    pair = Pair(seed=seed)
    pair.establish()
    return pair


def moved(
    seed: int = 1,
    gateway: Address | None = A_GATEWAY,
    demux: tuple[DemuxMode, ...] = (DemuxMode.EXTHDR,),
    *,
    kernel: bool = False,
    locator_map: Callable[[str], LocatorMap] = lambda letter: PLAIN,
) -> Pair:
    """Both ends had to leave their first provider, which is still dead."""
    pair = Pair(seed=seed, demux=demux, kernel=kernel, locator_map=locator_map)
    if gateway is None:
        alpha = pair.alpha
        alpha.settings = replace(alpha.settings, gateway=None)
        alpha.engine = Engine(alpha.settings, SeededEntropy(seed))
    pair.establish()
    pair.cut_provider("a", 1)
    pair.cut_provider("b", 1)
    pair.stream(8.0, both=True, interval_s=0.1)
    for site in pair.sites.values():
        assert site.context.wire_addresses is not None
        assert site.context.route[:16] != site.ulid
        assert site.context.route[16:] != pair.other(site).ulid
    return pair

"""The engine makes no reference cycles: the daemon's collector does not look for them."""

from __future__ import annotations

import gc

from tests.harness.pair import Pair
from tests.shim.moved import established


def life(pair: Pair) -> None:
    """A failure, an exploration, an update, a recovery, an end."""
    pair.stream(1.0, both=True)
    pair.alpha.engine.handle_uplink("isp1", up=False, mtu=1500, now=pair.clock.now)
    pair.settle(pair.alpha)
    pair.cut_provider("a", 1)
    pair.stream(4.0, both=True)
    pair.restart(pair.beta)
    pair.stream(5.0, both=True)
    pair.alpha.engine.close_all(pair.clock.now)
    pair.settle(pair.alpha)
    pair.run(5.0)


def test_what_the_engine_drops_is_given_back_at_once() -> None:
    life(established())  # what is made only once
    pair = established(seed=2)
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        life(pair)
        gc.collect()
        left = {
            type(one).__qualname__ for one in gc.garbage if type(one).__module__[:7] == "m6proxy"
        }
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
    assert not list(pair.alpha.engine.contexts())
    assert not left

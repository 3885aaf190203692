"""The garbage collector in a process with many contexts."""

from __future__ import annotations

import gc

from m6proxy.daemon.collector import set_up_collector


def test_the_daemon_makes_no_full_collections() -> None:
    before = gc.get_threshold()
    try:
        set_up_collector()
        assert gc.get_threshold()[2] > 1_000_000
        assert gc.isenabled()
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()

"""The daemon's two clocks: one that never jumps for the protocol, one that people read."""

from __future__ import annotations

import time

monotonic = time.monotonic
"""Seconds since some moment; what ``now`` means everywhere."""


def unix_time(moment_s: float) -> float:
    """Turn a moment of the monotonic clock into Unix time, seconds."""
    return time.time() - (time.monotonic() - moment_s)

"""How often a context sends what by itself: sliding windows after the RFCs.

Only what an engine sends of its own accord (timers, uplink events) is counted here; what it
sends in answer is bounded by what it received: at most ``ANSWERS_MAX`` for one packet.

    I1             five in 2 s: 0.5 s apart while it looks for a pair that works, else 2 s
    I2, I2bis      one in 2 s (RFC 5533 §14: 4 s, less half of it)
    Update         one in 2 s, and one for each uplink event (§10.3)
    Keepalive      four in a Keepalive Timeout (RFC 5534 §4.1: a third of it apart)
    Probe          five in 2 s, one more for a Send Timer that expires meanwhile, one for a
                   test of a better pair, and one for each uplink event (§4.3)
    Close          three in 2 s, then none
    Capability Request   one in 2 s to one peer, whatever the contexts
"""

from __future__ import annotations

from collections import deque
from typing import Final

from m6proxy.shim.timers import (
    INITIAL_PROBE_TIMEOUT_S,
    INITIAL_PROBES,
    MAX_PROBE_TIMEOUT_S,
    backoff_s,
)
from tests.harness.simulator import wire
from tests.harness.simulator.invariants import Broken, Invariant, require

ANSWERS_MAX: Final = 3
_WINDOW_S: Final = 1.99
_MOST: Final = {
    wire.I1: 5,
    wire.I2: 1,
    wire.I2BIS: 1,
    wire.UPDATE_REQUEST: 1,
    wire.KEEPALIVE: 4,
    wire.PROBE: 7,
    wire.CLOSE: 3,
    wire.CAPABILITY_REQUEST: 1,
}
_EXPLORING: Final = 1
_PROBE_SPREAD: Final = 0.9


class Rates:
    """What one engine sent of its own accord lately, by message type and tag."""

    def __init__(self, shortest_keepalive_s: float) -> None:
        self._sent: dict[tuple[int, int | bytes], deque[float]] = {}
        self._keepalive_s = shortest_keepalive_s
        self._uplink_events: deque[float] = deque()
        self._runs: dict[int, tuple[int, float]] = {}
        """For each tag: probes Exploring in a row that nothing interrupted, and the last one."""

    def note_uplink(self, now: float) -> None:
        """The engine heard of an uplink."""
        self._uplink_events.append(now)
        self._runs.clear()

    def note_received(self) -> None:
        """Something came in: a search may begin anew."""
        self._runs.clear()

    def note_own(self, packet: bytes, now: float) -> None:
        """The engine sent a control message that nobody asked for."""
        kind, tag = wire.type_of(packet), wire.named_tag(packet)
        if kind not in _MOST:
            return
        window_s = self._keepalive_s if kind == wire.KEEPALIVE else _WINDOW_S
        about = packet[8:40] if kind == wire.CAPABILITY_REQUEST else tag
        times = self._sent.setdefault((kind, about), deque())
        while times and times[0] < now - window_s:
            times.popleft()
        times.append(now)
        while self._uplink_events and self._uplink_events[0] < now - 2 * window_s:
            self._uplink_events.popleft()
        most = _MOST[kind] + len(self._uplink_events)
        if len(times) > most:
            seen = f"{len(times)} messages of type {kind} in {window_s:.1f} s"
            raise Broken(Invariant.RATES, seen)
        if kind == wire.PROBE:
            self._check_backoff(tag, wire.probe_state(packet), now)

    def _check_backoff(self, tag: int, state: int, now: float) -> None:
        """RFC 5534 §4.3: four probes half a second apart, then ever slower, up to 60 s."""
        if state != _EXPLORING:
            self._runs.pop(tag, None)
            return
        count, last_s = self._runs.get(tag, (0, 0.0))
        spent = max(0, count - INITIAL_PROBES)
        wait_s = backoff_s(INITIAL_PROBE_TIMEOUT_S, spent, MAX_PROBE_TIMEOUT_S)
        waited = not count or now - last_s >= wait_s * _PROBE_SPREAD - 1e-6
        require(waited, Invariant.RATES, "probes follow each other too fast")
        self._runs[tag] = (count + 1, now)

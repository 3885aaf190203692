"""How long it may take after the mending until a conversation is heard again.

Everything works, so the first message over any pair gets through. What is still to be waited
for, each at its longest, one after the other at worst:

    silence    the Send Timeout until the failure is noticed
    search     the wait between two probes of a search that backed off, MAX_PROBE_TIMEOUT
               and the spread of 10 % (RFC 5534 §4.3). With a provider that stays dead each
               pair has its turn first: once for each pair that the two ends can form
    recovery   the last wait of an exchange that began while nothing worked: that of an I1,
               I1_TIMEOUT four times doubled, and the spread of 50 % (RFC 5533 §7.8; that of
               an I2bis is shorter). The tag means nothing to that end meanwhile (§12.2).
               With a provider that stays dead: all the waits of an I2bis and of an I1 that
               follow it, until the end gives up and answers with R1bis
    proof      REPROOF, when a locator could not be proved while DNS was wrong
    park       the rest of the time for which a site asked its peers to wait, when it lost its
               state before it could say that it is back, and the peers' patience beyond it
    mode       with a provider that drops what some modes need: until enough packets are missed
               to begin a test, the test that marks the count, the pause after it, and as many
               packets again before the test that ends the mode
    talk       the conversation's own interval, twice, round trips, and DNS

and all of it on the slower of the two clocks.
"""

from __future__ import annotations

from typing import Final

from m6proxy.shim.arrivals import ENOUGH
from m6proxy.shim.reap import TEST_PAUSE_S
from m6proxy.shim.timers import (
    I1_RETRIES_MAX,
    I1_TIMEOUT_S,
    I2BIS_RETRIES_MAX,
    I2BIS_TIMEOUT_S,
    MAX_PROBE_TIMEOUT_S,
    PARK_GRACE_S,
    REPROOF_S,
    backoff_s,
)
from tests.harness.simulator.schedule import Away, Conversation, Schedule, Strict

PROBE_SPREAD: Final = 1.1
EXCHANGE_SPREAD: Final = 1.5
ROUND_TRIPS_S: Final = 1.0


def recovery_bound_s(schedule: Schedule, talk: Conversation) -> float:
    """The longest time from the mending to the first packet that is heard, true seconds."""
    ends = [schedule.sites[talk.first[0]], schedule.sites[talk.second[0]]]
    turns = ends[0].uplinks * ends[1].uplinks if schedule.scar else 1
    exchange_s = backoff_s(I1_TIMEOUT_S, I1_RETRIES_MAX)
    if schedule.scar:
        exchange_s = _whole_s(I1_TIMEOUT_S, I1_RETRIES_MAX)
        exchange_s += _whole_s(I2BIS_TIMEOUT_S, I2BIS_RETRIES_MAX)
    strict = any(isinstance(step.happening, Strict) for step in schedule.steps)
    silence_s = max(end.send_timeout_s for end in ends)
    mode_s = 2 * (ENOUGH * talk.interval_s + silence_s) + TEST_PAUSE_S if strict else 0.0
    away = [step.happening for step in schedule.steps if isinstance(step.happening, Away)]
    park_s = max((one.for_s + PARK_GRACE_S for one in away), default=0.0)
    return (
        silence_s
        + mode_s
        + park_s
        + turns * MAX_PROBE_TIMEOUT_S * PROBE_SPREAD
        + exchange_s * EXCHANGE_SPREAD
        + REPROOF_S
        + 2 * talk.interval_s
        + ROUND_TRIPS_S
    ) / min(end.clock_rate for end in ends)


def _whole_s(first_s: float, retries: int) -> float:
    return sum(backoff_s(first_s, retry) for retry in range(retries + 1))

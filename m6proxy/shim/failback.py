"""Going back to a better pair: tested in the background, with hysteresis.

Who calls: ``reap`` and ``establish`` when a context got another pair (``begin``), ``reap``
for each Probe (``handle_reports``) and the timers (``expire``). Only the policy ``hard`` has
any of this.

A context that is not on its best pair tests a better one while it goes on to use its own:
four probes, a quarter of the hold time apart. When all four are reported to have arrived,
the context moves. One that is not reported starts the count again, on the next better pair,
and doubles the hold time; so does a context that has to leave the pair that it went back to.

The test is a Probe in state InboundOk without reports. RFC 5534 §6.8 has a peer in state
Operational answer it with a Probe in state Operational, which reports it, and neither end
leaves that state: every peer that speaks REAP can be asked so.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from m6proxy.names import LocatorPair
from m6proxy.shim import lifecycle
from m6proxy.shim.effects import What
from m6proxy.shim.exploration import preferred
from m6proxy.shim.policy import FailbackMode
from m6proxy.shim.timers import NEVER
from m6proxy.shim.transitions import ReapState, State
from m6proxy.wire.message import Probe, ProbeRecord, ProbeState

if TYPE_CHECKING:
    from m6proxy.shim.context import Context
    from m6proxy.shim.core import Core

ANSWERS_NEEDED: Final = 4
"""So many probes in a row must arrive."""
HOLD_FACTOR_MAX: Final = 16
"""The hold time ends its doubling at so many times what the policy says."""


class Failback:
    """How far a context is on its way back."""

    __slots__ = ("answers", "due_s", "hold_s", "outstanding", "pair", "returned", "turn")

    def __init__(self, hold_s: float) -> None:
        self.hold_s = hold_s
        self.due_s = NEVER
        """When the next probe is sent, or the last one given up."""
        self.pair: LocatorPair | None = None
        """The pair that is tested."""
        self.outstanding: ProbeRecord | None = None
        """The last probe, while nobody reported it."""
        self.answers = 0
        """How many in a row arrived over ``pair``."""
        self.turn = 0
        """Which of the better pairs is tested: each failure goes on to the next."""
        self.returned = False
        """The context went back less than a hold time ago."""

    def start_again(self) -> None:
        """Count from the beginning."""
        self.answers = 0
        self.outstanding = None
        self.returned = False


def begin(core: Core, context: Context, now: float) -> None:
    """A context had to take another pair: see from now on whether it can go back.

    A fork is where policy put it, whatever the preferences say.
    """
    if core.settings.failback is not FailbackMode.HARD or context.fii:
        return
    if context.failback is None:
        context.failback = Failback(core.settings.failback_hold_s)
    elif context.failback.returned:
        _double(core, context.failback)
    context.failback.start_again()
    _sleep(core, context, context.failback, now)


def resume(core: Core, context: Context, now: float) -> None:
    """An end was away and is back: what answered before says nothing about now."""
    if context.failback is not None:
        context.failback.start_again()
        _sleep(core, context, context.failback, now)


def expire(core: Core, context: Context, now: float) -> None:
    """Send the next probe when it is due; an answer that did not come by now is none."""
    failback = context.failback
    if failback is None or now < failback.due_s:
        return
    better, done = preferred(context.local_set, context.peer_locators, context.locators)
    if done:
        context.failback = None
        return
    if not better or not _may_test(core, context, now):
        failback.start_again()
    elif failback.outstanding is not None:
        failback.start_again()
        failback.turn += 1
        _double(core, failback)
    elif core.failback_limit.allow(b"", now):
        _test(core, context, failback, better[failback.turn % len(better)])
    _sleep(core, context, failback, now)


def handle_reports(
    core: Core, context: Context, reports: Iterable[ProbeRecord], now: float
) -> None:
    """A Probe of the peer says what arrived; move when that was the last of all needed."""
    failback = context.failback
    if failback is None or failback.outstanding is None:
        return
    sent = failback.outstanding
    mine = (sent.src, sent.dst, sent.nonce)
    if all((report.src, report.dst, report.nonce) != mine for report in reports):
        return
    failback.outstanding = None
    failback.answers += 1
    if failback.answers < ANSWERS_NEEDED or context.reap_state is not ReapState.OPERATIONAL:
        return
    failback.start_again()
    pair = LocatorPair(sent.src, sent.dst)
    better, _ = preferred(context.local_set, context.peer_locators, context.locators)
    if pair not in better:
        return
    locator = context.peer_locator(pair.peer)
    if locator is not None:
        locator.tested = True
    context.suspects -= {pair.local, pair.peer}
    uplink = context.local_set.uplink_of(pair.local)
    if uplink is not None:
        core.history.clear(uplink.name)
    lifecycle.use_route(core, context, pair, now)
    failback.returned = True
    failback.turn = 0
    failback.due_s = now + failback.hold_s


def _may_test(core: Core, context: Context, now: float) -> bool:
    """Only a context in use whose own path is beyond doubt: the probe says that we hear."""
    in_doubt = context.send_due_s and now > context.send_due_s - context.send_timeout_s / 2
    return (
        context.reap_state is ReapState.OPERATIONAL
        and context.state is State.ESTABLISHED
        and not in_doubt
        and now < context.last_traffic_s + core.settings.failback_hold_s
    )


def _test(core: Core, context: Context, failback: Failback, pair: LocatorPair) -> None:
    if pair != failback.pair:
        failback.start_again()
        failback.pair = pair
    record = ProbeRecord(pair.local, pair.peer, core.entropy.nonce(), 0)
    failback.outstanding = record
    core.send(Probe(context.peer_tag, ProbeState.INBOUND_OK, (record,), ()), pair)
    core.report(What.PROBE, context.outbound_key, f"better pair {pair}")


def _double(core: Core, failback: Failback) -> None:
    limit_s = core.settings.failback_hold_s * HOLD_FACTOR_MAX
    failback.hold_s = min(limit_s, failback.hold_s * 2)


def _sleep(core: Core, context: Context, failback: Failback, now: float) -> None:
    quarter_s = failback.hold_s / ANSWERS_NEEDED
    failback.due_s = now + quarter_s * core.entropy.uniform(1.0, 1.1)
    core.timers.arm(context, failback.due_s)

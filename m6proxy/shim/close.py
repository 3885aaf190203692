"""Ending a context at both ends: Close and its acknowledgement (ours, docs/wire.md).

    closer                                    peer
    end_idle, close_all
                    -> Close     ->  handle_close    (the context is gone; plain packets)
    handle_ack      <- Close-Ack <-

The closer stops to rewrite at once and goes on restoring what the peer sent before it heard;
when nobody answers it forgets the context all the same. docs/decisions/0010-close.md says why
a Close is believed, and what it costs when it was forged.
"""

from __future__ import annotations

from typing import Final

from m6proxy.errors import PeerViolation
from m6proxy.names import LocatorPair
from m6proxy.reasons import Reason
from m6proxy.shim import lifecycle
from m6proxy.shim.context import Context, PendingClose
from m6proxy.shim.core import Core
from m6proxy.shim.demux import DemuxMode
from m6proxy.shim.exploration import candidates
from m6proxy.shim.features import Feature
from m6proxy.shim.timers import CLOSE_SENT_MAX, CLOSE_TIMEOUT_S, NO_R1_HOLDDOWN_S, backoff_s
from m6proxy.shim.transitions import Input, State
from m6proxy.wire.dstopt import short_tag
from m6proxy.wire.message import Close, CloseAck

_PACE_S: Final = 0.0005
_ALL_WITHIN_S: Final = 1.0
"""However many contexts there are, each has sent its first Close by then."""


def end_idle(core: Core, context: Context, now: float) -> None:
    """RFC 5533 §9: no traffic for long; tell the peer if it understands, and forget."""
    if _can_close(context):
        _begin(core, context, Input.IDLE_TIMEOUT, now, now)
        expire(core, context, now)
    else:
        lifecycle.remove(core, context, Input.IDLE_TIMEOUT, now)


def close_all(core: Core, now: float) -> None:
    """Close every context whose peer understands it; from now on no context is made."""
    core.max_contexts = 0
    contexts = [context for context in core.contexts if _can_close(context)]
    pace_s = min(_PACE_S, _ALL_WITHIN_S / max(1, len(contexts)))
    for number, context in enumerate(contexts):
        _begin(core, context, Input.STOP, now + number * pace_s, now)
        core.rearm(context)


def handle_close(
    core: Core, context: Context, message: Close, route: LocatorPair, now: float
) -> None:
    """The peer restores no packets any more: forget the context and say so."""
    _forget(core, context, Input.CLOSE, now)
    core.accounts.hold(context.outbound_key, now, now + NO_R1_HOLDDOWN_S)
    core.send(CloseAck(message.sender_tag, message.nonce, message.receiver_tag), route)


def handle_ack(core: Core, context: Context, message: CloseAck, now: float) -> None:
    """The peer has forgotten the context too."""
    if context.closing is None or context.closing.message.nonce != message.nonce:
        raise PeerViolation(Reason.WRONG_NONCE, "an acknowledgement of no Close of ours")
    _forget(core, context, Input.CLOSE_ACK, now)


def handle_unknown(core: Core, message: Close | CloseAck, route: LocatorPair, now: float) -> None:
    """No context has this tag: a Close is acknowledged again, for the first answer may be lost."""
    if isinstance(message, CloseAck):
        if core.closed.recently(message.receiver_tag, now):
            return
        raise PeerViolation(Reason.NO_CONTEXT, "an acknowledgement of no Close of ours")
    if not core.local_sets.is_local(route.local):
        raise PeerViolation(Reason.NOT_OUR_HOST, "a tag for an address outside the site")
    core.limit_requests(route.peer, now)
    core.send(CloseAck(message.sender_tag, message.nonce, message.receiver_tag), route)


def expire(core: Core, context: Context, now: float) -> None:
    """Send a Close that is due, each time over another pair; or give up."""
    closing = context.closing
    if closing is None or now < closing.timeout_due_s:
        return
    if closing.sent >= CLOSE_SENT_MAX:
        lifecycle.remove(core, context, Input.RETRIES_SPENT, now)
        return
    if closing.sent:
        lifecycle.enter(core, context, State.CLOSING, Input.RETRANSMIT, now)
    pairs = candidates(context.local_set, context.peer_locators, context.locators, context.suspects)
    core.send(closing.message, pairs[closing.sent % len(pairs)])
    nominal_s = backoff_s(CLOSE_TIMEOUT_S, closing.sent)
    closing.sent += 1
    closing.timeout_due_s = now + nominal_s * core.entropy.uniform(0.75, 1.25)
    core.rearm(context)


def _can_close(context: Context) -> bool:
    return context.state is State.ESTABLISHED and bool(context.peer_features & Feature.CLOSE)


def _begin(core: Core, context: Context, cause: Input, due_s: float, now: float) -> None:
    lifecycle.enter(core, context, State.CLOSING, cause, now)
    lifecycle.leave_pair(core, context)
    message = Close(context.peer_tag, core.entropy.nonce(), context.local_tag)
    context.closing = PendingClose(message, due_s)


def _forget(core: Core, context: Context, cause: Input, now: float) -> None:
    core.closed.add(context.local_tag, now)
    if core.settings.asks_for(DemuxMode.DSTOPT):
        core.closed.add(short_tag(context.local_tag), now)
    lifecycle.remove(core, context, cause, now)

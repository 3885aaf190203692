"""What is legal when: the states of a context and of its reachability, as tables.

Theory of operation
-------------------
A context walks through two machines. The first (``State``, RFC 5533 §6.2) sets it up: the
initiator goes IDLE, I1-SENT, I2-SENT, ESTABLISHED; the responder keeps nothing until a
valid I2 takes it from IDLE to ESTABLISHED in one step. I2BIS-SENT is an established
context whose peer said that it lost its state. CLOSING carries nothing and waits for the
peer's word that the context is gone there too (ours, docs/wire.md). E-FAILED and NO-SUPPORT
remember a refusal.
The second machine (``ReapState``, RFC 5534 §6) runs inside ESTABLISHED and I2BIS-SENT and
watches whether packets come through.

Two rules hold for both:
1. A (state, input) that is not in the table is illegal: the input is counted and dropped,
   and nothing changes.
2. State is written in one place each (``Context.set_state``, ``reap.handle``), and only to
   a state that the table names for this input.

``docs/architecture.md`` shows the diagrams that ``diagram`` draws from these tables.
"""

from __future__ import annotations

from enum import Enum, IntEnum, unique
from typing import Final


@unique
class State(Enum):
    """The states of RFC 5533 §6.2, and CLOSING. IDLE is a context that does not exist."""

    __hash__ = object.__hash__  # members are single; Enum's own hashes the name, in Python

    IDLE = "IDLE"
    I1_SENT = "I1-SENT"
    I2_SENT = "I2-SENT"
    I2BIS_SENT = "I2BIS-SENT"
    ESTABLISHED = "ESTABLISHED"
    CLOSING = "CLOSING"
    E_FAILED = "E-FAILED"
    NO_SUPPORT = "NO-SUPPORT"


@unique
class Input(Enum):
    """What can happen to a context."""

    __hash__ = object.__hash__

    INITIATE = "policy wants a context"
    I1 = "I1"
    R1 = "R1"
    I2 = "I2"
    R2 = "R2"
    R1BIS = "R1bis"
    I2BIS = "I2bis"
    UPDATE_REQUEST = "Update Request"
    UPDATE_ACK = "Update Acknowledgement"
    CLOSE = "Close"
    CLOSE_ACK = "Close Acknowledgement"
    REAP = "Keepalive or Probe"
    PAYLOAD = "payload header"
    RETRANSMIT = "retransmission timer"
    RETRIES_SPENT = "retries spent"
    UNRECOGNIZED = "ICMPv6 unrecognized next header"
    HOLDDOWN_OVER = "hold-down over"
    IDLE_TIMEOUT = "idle timer"
    STOP = "the gateway stops"
    PARK_OVER = "park time over"
    CONFUSED = "context confusion"
    TAKEN_OVER = "taken over"


_NONE: Final = State.IDLE
_EST: Final = State.ESTABLISHED

CONTEXT: Final[dict[tuple[State, Input], tuple[State, ...]]] = {
    # IDLE: nothing is stored, RFC 5533 §7.7, §7.9, §7.13, §7.20
    (State.IDLE, Input.INITIATE): (State.I1_SENT,),
    (State.IDLE, Input.I1): (State.IDLE,),
    (State.IDLE, Input.I2): (_EST,),
    (State.IDLE, Input.I2BIS): (_EST,),
    (State.IDLE, Input.CLOSE): (State.IDLE,),
    (State.IDLE, Input.TAKEN_OVER): (_EST,),
    # I1-SENT: §7.8, §7.9, §7.11, §7.13, §7.16, §7.20
    (State.I1_SENT, Input.I1): (State.I1_SENT,),
    (State.I1_SENT, Input.R1): (State.I2_SENT,),
    (State.I1_SENT, Input.R2): (_EST,),
    (State.I1_SENT, Input.I2): (_EST,),
    (State.I1_SENT, Input.I2BIS): (_EST,),
    (State.I1_SENT, Input.RETRANSMIT): (State.I1_SENT,),
    (State.I1_SENT, Input.RETRIES_SPENT): (State.E_FAILED,),
    (State.I1_SENT, Input.UNRECOGNIZED): (State.NO_SUPPORT,),
    # I2-SENT: §7.9, §7.12, §7.13, §7.16, §10.4, §10.5, §12.2
    (State.I2_SENT, Input.I1): (State.I2_SENT,),
    (State.I2_SENT, Input.R2): (_EST,),
    (State.I2_SENT, Input.I2): (State.I2_SENT,),
    (State.I2_SENT, Input.I2BIS): (State.I2_SENT,),
    (State.I2_SENT, Input.UPDATE_REQUEST): (State.I2_SENT,),
    (State.I2_SENT, Input.UPDATE_ACK): (State.I2_SENT,),
    (State.I2_SENT, Input.PAYLOAD): (State.I2_SENT,),
    (State.I2_SENT, Input.RETRANSMIT): (State.I2_SENT,),
    (State.I2_SENT, Input.RETRIES_SPENT): (State.I1_SENT,),
    (State.I2_SENT, Input.UNRECOGNIZED): (State.NO_SUPPORT,),
    # ESTABLISHED: §7.9, §7.13, §7.15, §7.18, §7.20, §9, §10, §12.2
    (_EST, Input.I1): (_EST,),
    (_EST, Input.I2): (_EST,),
    (_EST, Input.I2BIS): (_EST,),
    (_EST, Input.R1BIS): (State.I2BIS_SENT,),
    (_EST, Input.UPDATE_REQUEST): (_EST,),
    (_EST, Input.UPDATE_ACK): (_EST,),
    (_EST, Input.REAP): (_EST,),
    (_EST, Input.PAYLOAD): (_EST,),
    (_EST, Input.CLOSE): (_NONE,),
    (_EST, Input.STOP): (State.CLOSING,),
    (_EST, Input.IDLE_TIMEOUT): (_NONE, State.CLOSING),
    (_EST, Input.PARK_OVER): (_NONE,),
    (_EST, Input.CONFUSED): (_NONE,),
    # I2BIS-SENT: §7.9, §7.13, §7.15, §7.16, §7.19, §7.20, §10, §12.2
    (State.I2BIS_SENT, Input.I1): (State.I2BIS_SENT,),
    (State.I2BIS_SENT, Input.I2): (State.I2BIS_SENT,),
    (State.I2BIS_SENT, Input.I2BIS): (State.I2BIS_SENT,),
    (State.I2BIS_SENT, Input.R2): (_EST,),
    (State.I2BIS_SENT, Input.UPDATE_REQUEST): (State.I2BIS_SENT,),
    (State.I2BIS_SENT, Input.UPDATE_ACK): (State.I2BIS_SENT,),
    (State.I2BIS_SENT, Input.REAP): (State.I2BIS_SENT,),
    (State.I2BIS_SENT, Input.PAYLOAD): (State.I2BIS_SENT,),
    (State.I2BIS_SENT, Input.RETRANSMIT): (State.I2BIS_SENT,),
    (State.I2BIS_SENT, Input.RETRIES_SPENT): (State.I1_SENT,),
    (State.I2BIS_SENT, Input.CLOSE): (_NONE,),
    (State.I2BIS_SENT, Input.IDLE_TIMEOUT): (_NONE,),
    (State.I2BIS_SENT, Input.PARK_OVER): (_NONE,),
    (State.I2BIS_SENT, Input.CONFUSED): (_NONE,),
    # CLOSING: docs/decisions/0010-close.md; what the peer sent before it heard us is restored
    (State.CLOSING, Input.I1): (State.CLOSING,),
    (State.CLOSING, Input.I2): (_EST,),
    (State.CLOSING, Input.I2BIS): (_EST,),
    (State.CLOSING, Input.PAYLOAD): (State.CLOSING,),
    (State.CLOSING, Input.CLOSE): (_NONE,),
    (State.CLOSING, Input.CLOSE_ACK): (_NONE,),
    (State.CLOSING, Input.RETRANSMIT): (State.CLOSING,),
    (State.CLOSING, Input.RETRIES_SPENT): (_NONE,),
    # E-FAILED and NO-SUPPORT remember only the pair: the peer may still come, §6.2, §7.8
    (State.E_FAILED, Input.I1): (State.E_FAILED,),
    (State.E_FAILED, Input.I2): (_EST,),
    (State.E_FAILED, Input.I2BIS): (_EST,),
    (State.E_FAILED, Input.CLOSE): (State.E_FAILED,),
    (State.E_FAILED, Input.HOLDDOWN_OVER): (_NONE,),
    (State.NO_SUPPORT, Input.I1): (State.NO_SUPPORT,),
    (State.NO_SUPPORT, Input.I2): (_EST,),
    (State.NO_SUPPORT, Input.I2BIS): (_EST,),
    (State.NO_SUPPORT, Input.CLOSE): (State.NO_SUPPORT,),
    (State.NO_SUPPORT, Input.HOLDDOWN_OVER): (_NONE,),
}
"""(state, input) -> the states that may follow."""

CARRIES: Final = frozenset({State.ESTABLISHED, State.I2BIS_SENT})
"""The states in which CT(peer) and Ls(peer) are set, so that packets use the context (§11)."""


REMEMBERS: Final = frozenset({State.E_FAILED, State.NO_SUPPORT})
"""The states that remember a refusal: a tag of theirs is one of no context (§6.2)."""


def legal(state: State, given: Input) -> bool:
    """Tell whether an input means anything in a state."""
    return (state, given) in CONTEXT


@unique
class ReapState(IntEnum):
    """Reachability of one context, RFC 5534 §6; the values are those of the Probe's Sta field."""

    __hash__ = int.__hash__

    OPERATIONAL = 0
    EXPLORING = 1
    INBOUND_OK = 2


@unique
class ReapEvent(Enum):
    """The inputs of RFC 5534 §6.1 to §6.9, and what the upper layer says (§4.1)."""

    __hash__ = object.__hash__

    PAYLOAD_IN = "payload in"
    PAYLOAD_OUT = "payload out"
    KEEPALIVE_TIMER = "keepalive timer"
    SEND_TIMER = "send timer"
    RETRANSMIT = "probe timer"
    KEEPALIVE_IN = "Keepalive in"
    PROBE_EXPLORING_IN = "Probe Exploring in"
    PROBE_INBOUND_OK_IN = "Probe InboundOk in"
    PROBE_OPERATIONAL_IN = "Probe Operational in"
    PROGRESS = "TCP goes on"


@unique
class Act(Enum):
    """What a cell of the reachability table does; START leaves a running timer alone."""

    __hash__ = object.__hash__

    START_SEND = "start send timer"
    RESTART_SEND = "restart send timer"
    STOP_SEND = "stop send timer"
    START_KEEPALIVE = "start keepalive timer"
    STOP_KEEPALIVE = "stop keepalive timer"
    SEND_KEEPALIVE = "send Keepalive"
    SEND_PROBE = "send Probe"


_O, _E, _I = ReapState.OPERATIONAL, ReapState.EXPLORING, ReapState.INBOUND_OK

REAP: Final[dict[tuple[ReapState, ReapEvent], tuple[tuple[Act, ...], ReapState]]] = {
    # §6.1
    (_O, ReapEvent.PAYLOAD_IN): ((Act.STOP_SEND, Act.START_KEEPALIVE), _O),
    (_E, ReapEvent.PAYLOAD_IN): ((Act.SEND_PROBE, Act.START_SEND), _I),
    (_I, ReapEvent.PAYLOAD_IN): ((Act.STOP_SEND,), _I),
    # §6.2
    (_O, ReapEvent.PAYLOAD_OUT): ((Act.START_SEND, Act.STOP_KEEPALIVE), _O),
    (_I, ReapEvent.PAYLOAD_OUT): ((Act.START_SEND,), _I),
    # §6.3
    (_O, ReapEvent.KEEPALIVE_TIMER): ((Act.SEND_KEEPALIVE,), _O),
    # §6.4
    (_O, ReapEvent.SEND_TIMER): ((Act.SEND_PROBE,), _E),
    (_I, ReapEvent.SEND_TIMER): ((Act.SEND_PROBE,), _E),
    # §6.5
    (_E, ReapEvent.RETRANSMIT): ((Act.SEND_PROBE,), _E),
    (_I, ReapEvent.RETRANSMIT): ((Act.SEND_PROBE, Act.START_SEND), _I),
    # §6.6
    (_O, ReapEvent.KEEPALIVE_IN): ((Act.STOP_SEND,), _O),
    (_E, ReapEvent.KEEPALIVE_IN): ((Act.SEND_PROBE, Act.START_SEND), _I),
    (_I, ReapEvent.KEEPALIVE_IN): ((Act.STOP_SEND,), _I),
    # §6.7
    (_O, ReapEvent.PROBE_EXPLORING_IN): (
        (Act.SEND_PROBE, Act.STOP_KEEPALIVE, Act.RESTART_SEND),
        _I,
    ),
    (_E, ReapEvent.PROBE_EXPLORING_IN): ((Act.SEND_PROBE, Act.START_SEND), _I),
    (_I, ReapEvent.PROBE_EXPLORING_IN): ((Act.SEND_PROBE, Act.RESTART_SEND), _I),
    # §6.8
    (_O, ReapEvent.PROBE_INBOUND_OK_IN): (
        (Act.SEND_PROBE, Act.RESTART_SEND, Act.STOP_KEEPALIVE),
        _O,
    ),
    (_E, ReapEvent.PROBE_INBOUND_OK_IN): ((Act.SEND_PROBE, Act.RESTART_SEND), _O),
    (_I, ReapEvent.PROBE_INBOUND_OK_IN): ((Act.SEND_PROBE, Act.RESTART_SEND), _O),
    # §6.9
    (_O, ReapEvent.PROBE_OPERATIONAL_IN): ((Act.STOP_SEND, Act.START_KEEPALIVE), _O),
    (_E, ReapEvent.PROBE_OPERATIONAL_IN): ((Act.STOP_SEND, Act.START_KEEPALIVE), _O),
    (_I, ReapEvent.PROBE_OPERATIONAL_IN): ((Act.STOP_SEND, Act.START_KEEPALIVE), _O),
    # ours: docs/decisions/0018-advice-of-tcp.md
    (_E, ReapEvent.PROGRESS): ((Act.STOP_SEND, Act.START_KEEPALIVE), _O),
    (_I, ReapEvent.PROGRESS): ((Act.STOP_SEND, Act.START_KEEPALIVE), _O),
}
"""(state, event) -> what to do and the state after it. An absent cell does nothing."""


def diagram() -> str:
    """Draw both tables as Mermaid state diagrams, for the documentation."""
    lines = ["stateDiagram-v2"]
    for (state, given), successors in CONTEXT.items():
        lines += [
            f"    {_word(state.value)} --> {_word(after.value)}: {given.value}"
            for after in successors
            if after is not state
        ]
    lines += ["", "stateDiagram-v2"]
    for (before, event), (_, after) in REAP.items():
        if after is not before:
            lines.append(f"    {before.name} --> {after.name}: {event.value}")
    return "\n".join(lines)


def _word(text: str) -> str:
    return text.replace("-", "_")

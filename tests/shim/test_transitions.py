"""The tables, and that the engine does what they say: every state with every input."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Final

import pytest

from m6proxy.reasons import Reason
from m6proxy.shim import reap
from m6proxy.shim.context import Context, Handshake, Parking, PendingUpdate
from m6proxy.shim.core import Core
from m6proxy.shim.locators import LocalSet, PeerLocator
from m6proxy.shim.timers import MIN_IDLE_S
from m6proxy.shim.transitions import (
    CARRIES,
    CONTEXT,
    REAP,
    Act,
    Input,
    ReapEvent,
    ReapState,
    State,
    diagram,
    legal,
)
from m6proxy.wire.message import (
    I1,
    I2,
    R1,
    R2,
    Close,
    CloseAck,
    I2bis,
    Keepalive,
    Probe,
    ProbeRecord,
    ProbeState,
    R1bis,
    UpdateAck,
    UpdateRequest,
)
from m6proxy.wire.options import METHOD_DNS, LocatorList, Option, ResponderValidator, SenderName
from tests.harness.packets import control, find_messages, icmp_error, is_control, rewritten, udp
from tests.harness.pair import A1, A2, B1, B1_ISP2, NAMES, Pair, name_data, uplinks
from tests.shim.moved import established

DOCUMENT: Final = Path(__file__).parents[2] / "docs" / "architecture.md"
NEW_TAG: Final = 0x123456

# --- the tables ------------------------------------------------------------------------


def test_every_successor_is_reached_from_somewhere_and_left_again() -> None:
    reached = {after for successors in CONTEXT.values() for after in successors}
    assert reached == set(State)
    assert {state for state, _ in CONTEXT} == set(State)
    assert {given for _, given in CONTEXT} == set(Input)


@pytest.mark.parametrize(("state", "given"), list(product(State, Input)))
def test_the_writer_of_state_obeys_the_table(state: State, given: Input) -> None:
    assert legal(state, given) == ((state, given) in CONTEXT)
    for after in State:
        context = Context(A1 + B1, 0, 5, LocalSet(A1, uplinks("a"), 1))
        context.state = state
        if after in CONTEXT.get((state, given), ()):
            context.set_state(after, given)
            assert context.state is after
        else:
            with pytest.raises(ValueError, match="not legal"):
                context.set_state(after, given)
            assert context.state is state


def test_timers_of_reachability_exclude_each_other() -> None:
    """RFC 5534 §6: no timer in Exploring, never both."""
    for actions, after in REAP.values():
        starts = {act for act in actions if act.value.startswith(("start", "restart"))}
        assert len(starts) <= 1
        if after is ReapState.EXPLORING:
            assert not starts
        if Act.START_KEEPALIVE in starts:
            assert after is ReapState.OPERATIONAL
            assert Act.STOP_SEND in actions


def test_the_diagrams_are_those_of_the_document() -> None:
    drawn = diagram()
    assert drawn == diagram()
    assert drawn.count("stateDiagram-v2") == 2
    document = DOCUMENT.read_text(encoding="utf-8")
    for figure in drawn.split("\n\n"):
        assert figure in document


# --- every state with every input, through the engine ------------------------------------


def in_state(state: State) -> Pair:
    """A pair whose alpha is in a state; from then on no control message goes through."""
    if state is State.IDLE:
        pair = Pair()
    elif state in CARRIES or state is State.CLOSING:
        pair = established()
    else:
        pair = Pair()
        kind = {State.I2_SENT: R2}.get(state, R1)
        pair.lose = lambda packet: bool(find_messages([(0.0, packet)], kind))
        for _ in range(2):
            pair.talk(pair.alpha)
        pair.run(0.1)
    pair.lose = is_control
    if state is State.I2BIS_SENT:
        send(pair, R1bis(pair.alpha.context.peer_tag, 1, (ResponderValidator(b"v"),)))
    elif state is State.NO_SUPPORT:
        unrecognized(pair)
    elif state is State.CLOSING:
        stop(pair)
        core_of(pair).max_contexts = 1000
    elif state is State.E_FAILED:
        while pair.alpha.context.state is not State.E_FAILED:
            pair.run(5.0)
    assert state_of(pair) is state
    pair.alpha.sent.clear()
    return pair


def state_of(pair: Pair) -> State:
    for context in pair.alpha.engine.contexts():
        if context.pair == (A1, B1):
            return context.state
    return State.IDLE


def send(pair: Pair, message: object) -> object:
    return pair.inject(pair.alpha, control(B1, A1, message))  # type: ignore[arg-type]


def ours(pair: Pair) -> tuple[int, int]:
    """Alpha's tag and nonce, as far as there are any."""
    for context in pair.alpha.engine.contexts():
        handshake = context.handshake
        return context.local_tag, handshake.initiator_nonce if handshake else 77
    return 99, 77


def core_of(pair: Pair) -> Core:
    return pair.alpha.engine._core


def fresh(pair: Pair, tag: int, ulids: bytes) -> tuple[int, tuple[Option, ...]]:
    """A responder nonce and the options of an I2 with a validator that alpha just made."""
    now, responder = pair.clock.now, core_of(pair).responder
    nonce = responder.nonce(now)
    route = established().alpha.context.locators
    validator = responder.validator(nonce, tag, ulids, route, 0, now)
    listed = LocatorList(1, (METHOD_DNS,) * 2, (B1, B1_ISP2))
    return nonce, (ResponderValidator(validator), listed, SenderName(NAMES[B1]))


def unrecognized(pair: Pair) -> object:
    core, (tag, nonce) = core_of(pair), ours(pair)
    quoted = control(A1, B1, I1(tag, nonce))
    assert core.local_sets.is_local(A1)
    return pair.inject(pair.alpha, icmp_error(B1, A1, 4, 1, 6, quoted))


def initiate(pair: Pair) -> object:
    context = pair.alpha.context.pair if state_of(pair) is not State.IDLE else None
    engine = pair.alpha.engine
    ulids = context or established().alpha.context.pair
    engine.handle_capability(ulids, name_data(NAMES[B1], B1, "b"), None, pair.clock.now)
    pair.settle(pair.alpha)
    return None


def confuse(pair: Pair) -> object:
    """Another context comes to have the same tag of a peer with the same locator."""
    tag = pair.alpha.context.peer_tag if state_of(pair) is not State.IDLE else NEW_TAG
    core = core_of(pair)
    other = Context(A2 + B1, 0, 4242, core.local_sets.by_ulid(A2))
    other.state = State.I1_SENT
    route = established().alpha.context.locators
    other.handshake = Handshake(555, route)
    core.contexts.add(other)
    core.contexts.bind_nonce(other, 555)
    return send(pair, R2(tag or NEW_TAG, 555))


def stop(pair: Pair) -> object:
    pair.alpha.engine.close_all(pair.clock.now)
    pair.settle(pair.alpha)
    return None


def close(pair: Pair) -> object:
    peer_tag = pair.alpha.context.peer_tag if state_of(pair) is not State.IDLE else NEW_TAG
    return send(pair, Close(ours(pair)[0], 8, peer_tag))


def close_ack(pair: Pair) -> object:
    if state_of(pair) is State.IDLE:
        return send(pair, CloseAck(99, 8, NEW_TAG))
    context = pair.alpha.context
    nonce = context.closing.message.nonce if context.closing else 8
    return send(pair, CloseAck(context.local_tag, nonce, context.peer_tag))


def i2(pair: Pair) -> object:
    nonce, options = fresh(pair, NEW_TAG, A1 + B1)
    return send(pair, I2(NEW_TAG, 1, nonce, options))


def i2bis(pair: Pair) -> object:
    nonce, options = fresh(pair, 0x777, b"")
    return send(pair, I2bis(NEW_TAG, 1, nonce, 0x777, options))


def r1bis(pair: Pair) -> object:
    tag = pair.alpha.context.peer_tag if state_of(pair) is not State.IDLE else 0
    return send(pair, R1bis(tag or 5, 1, (ResponderValidator(b"v"),)))


def ack(pair: Pair) -> object:
    if state_of(pair) in CARRIES:
        pair.alpha.context.update = PendingUpdate(
            UpdateRequest(pair.alpha.context.peer_tag, 8), None
        )
    return send(pair, UpdateAck(ours(pair)[0], 8))


INJECT: dict[Input, Callable[[Pair], object]] = {
    Input.INITIATE: initiate,
    Input.I1: lambda pair: send(pair, I1(NEW_TAG, 1)),
    Input.R1: lambda pair: send(pair, R1(ours(pair)[1], 1, (ResponderValidator(b"v"),))),
    Input.I2: i2,
    Input.R2: lambda pair: send(pair, R2(NEW_TAG, ours(pair)[1])),
    Input.R1BIS: r1bis,
    Input.I2BIS: i2bis,
    Input.UPDATE_REQUEST: lambda pair: send(pair, UpdateRequest(ours(pair)[0], 8)),
    Input.UPDATE_ACK: ack,
    Input.CLOSE: close,
    Input.CLOSE_ACK: close_ack,
    Input.STOP: stop,
    Input.REAP: lambda pair: send(pair, Keepalive(ours(pair)[0])),
    Input.PAYLOAD: lambda pair: pair.inject(
        pair.alpha, rewritten(B1, A1, ours(pair)[0], 17, b"payload")
    ),
    Input.UNRECOGNIZED: unrecognized,
    Input.CONFUSED: confuse,
}
ONLY_IN_IDLE = {Input.TAKEN_OVER}
"""See test_adopt."""
BY_TIME = {
    Input.RETRANSMIT,
    Input.RETRIES_SPENT,
    Input.HOLDDOWN_OVER,
    Input.IDLE_TIMEOUT,
    Input.PARK_OVER,
}


def snapshot(context: Context) -> dict[str, object]:
    """Everything that a context is, to compare."""
    peers = tuple((x.address, x.proof, x.broken, x.priority) for x in context.peer_locators)
    kept = {name: getattr(context, name) for name in context.__slots__}
    return {**kept, "peer_locators": peers}


def test_every_input_is_tried() -> None:
    assert set(INJECT) | BY_TIME | ONLY_IN_IDLE == set(Input)
    assert PeerLocator.__slots__


@pytest.mark.parametrize("given", list(INJECT), ids=lambda given: given.name)
@pytest.mark.parametrize("state", list(State), ids=lambda state: state.name)
def test_every_input_in_every_state(state: State, given: Input) -> None:
    pair = in_state(state)
    contexts = list(pair.alpha.engine.contexts())
    before = snapshot(contexts[0]) if contexts else None
    verdict = INJECT[given](pair)
    if legal(state, given):
        assert state_of(pair) in CONTEXT[state, given], f"{state_of(pair)}"
    else:
        assert state_of(pair) is state
        if given in (Input.CONFUSED, Input.UNRECOGNIZED, Input.INITIATE, Input.STOP):
            assert before is None or snapshot(contexts[0])["state"] is state
        else:
            assert isinstance(verdict, Reason)
            assert before is None or snapshot(contexts[0]) == before
    pair.run(700.0)
    assert all(context.state is not State.IDLE for context in pair.alpha.engine.contexts())


@pytest.mark.parametrize("state", list(State), ids=lambda state: state.name)
def test_time_alone_leads_only_where_the_table_says(state: State) -> None:
    pair = in_state(state)
    if state is not State.IDLE:
        pair.alpha.context.last_traffic_s = pair.clock.now
    by_time = {given for given in BY_TIME if legal(state, given)}
    may_follow = {after for given in by_time for after in CONTEXT[state, given]} | {state}
    seen = [state]
    for _ in range(40_000):
        pair.run(0.05 if len(seen) < 2 else 5.0)
        now = state_of(pair)
        if now is not seen[-1]:
            seen.append(now)
            if len(seen) == 2:
                assert now in may_follow
        if now is State.IDLE:
            break
    assert seen[-1] is State.IDLE
    assert pair.alpha.engine.next_deadline() is None


BROUGHT_BY_TIME: Final = [
    (state, given, after)
    for (state, given), successors in CONTEXT.items()
    if given in BY_TIME
    for after in successors
]


@pytest.mark.parametrize(("state", "given", "after"), BROUGHT_BY_TIME)
def test_every_input_that_time_brings(
    state: State, given: Input, after: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody can inject these: the engine gives each of them to the state when its time comes."""
    pair = in_state(state)
    context, steps = pair.alpha.context, list[tuple[State, Input, State]]()
    if given is Input.IDLE_TIMEOUT:
        context.last_traffic_s -= MIN_IDLE_S
        context.peer_features = 0 if after is State.IDLE else context.peer_features
        core_of(pair).rearm(context)
    elif given is Input.PARK_OVER:
        context.parking = Parking()
        context.parking.peer_until_s = pair.clock.now + 1.0
        core_of(pair).rearm(context)
    real = Context.set_state

    def note(moved: Context, to: State, cause: Input) -> None:
        steps.append((moved.state, cause, to))
        real(moved, to, cause)

    monkeypatch.setattr(Context, "set_state", note)
    pair.run(700.0)
    assert (state, given, after) in steps


# --- reachability: the packet path and the table --------------------------------------------

RUNNING: Final = [
    (ReapState.OPERATIONAL, False, False),
    (ReapState.OPERATIONAL, True, False),
    (ReapState.OPERATIONAL, False, True),
    (ReapState.EXPLORING, False, False),
    (ReapState.INBOUND_OK, False, False),
    (ReapState.INBOUND_OK, True, False),
]


def reaching(state: ReapState, send_runs: bool, keepalive_runs: bool) -> Pair:
    """A pair whose alpha is in a state of reachability with these timers running."""
    pair = established()
    pair.lose = is_control
    context, core, now = pair.alpha.context, core_of(pair), pair.clock.now
    context.send_due_s = context.keepalive_due_s = 0.0
    if state is not ReapState.OPERATIONAL:
        reap.handle(core, context, ReapEvent.SEND_TIMER, now)
        if state is ReapState.INBOUND_OK:
            reap.handle(core, context, ReapEvent.KEEPALIVE_IN, now)
    context.send_due_s = now + 2.0 if send_runs else 0.0
    context.keepalive_due_s = now + 3.0 if keepalive_runs else 0.0
    context.keepalive_next_s = now + 1.0 if keepalive_runs else 0.0
    pair.settle(pair.alpha)
    pair.alpha.sent.clear()
    assert context.reap_state is state
    return pair


def reachability(pair: Pair) -> tuple[object, ...]:
    context = pair.alpha.context
    return (
        context.reap_state,
        context.send_due_s,
        context.keepalive_due_s,
        [packet for _, packet in pair.alpha.sent],
    )


@pytest.mark.parametrize("inbound", [False, True], ids=["out", "in"])
@pytest.mark.parametrize(("state", "send_runs", "keepalive_runs"), RUNNING)
@pytest.mark.parametrize("header", [False, True], ids=["plain", "header"])
def test_the_shortcut_of_the_packet_path_is_the_table(
    state: ReapState, send_runs: bool, keepalive_runs: bool, inbound: bool, header: bool
) -> None:
    packets, table = (reaching(state, send_runs, keepalive_runs) for _ in range(2))
    engine, now = packets.alpha.engine, packets.clock.now
    if not inbound:
        engine.handle_outbound(udp(A1, B1, b"x"), now)
    elif header:
        tag = packets.alpha.context.local_tag
        engine.handle_inbound(rewritten(B1_ISP2, A1, tag, 17, bytes(8)), now)
    else:
        engine.handle_inbound(udp(B1, A1, b"x"), now)
    event = ReapEvent.PAYLOAD_IN if inbound else ReapEvent.PAYLOAD_OUT
    reap.handle(core_of(table), table.alpha.context, event, now)
    for pair in (packets, table):
        pair.settle(pair.alpha)
    assert reachability(packets) == reachability(table)


PROBES: Final = {
    ReapEvent.PROBE_EXPLORING_IN: ProbeState.EXPLORING,
    ReapEvent.PROBE_INBOUND_OK_IN: ProbeState.INBOUND_OK,
    ReapEvent.PROBE_OPERATIONAL_IN: ProbeState.OPERATIONAL,
}


@pytest.mark.parametrize("event", list(ReapEvent), ids=lambda event: event.name)
@pytest.mark.parametrize(("state", "send_runs", "keepalive_runs"), RUNNING)
def test_every_event_of_reachability(
    state: ReapState, send_runs: bool, keepalive_runs: bool, event: ReapEvent
) -> None:
    pair = reaching(state, send_runs, keepalive_runs)
    context, core, now = pair.alpha.context, core_of(pair), pair.clock.now
    earlier_send_s, earlier_keepalive_s = context.send_due_s, context.keepalive_due_s
    if event in PROBES:
        exploration = context.exploration
        heard = exploration.sent[:1] if exploration is not None else ()
        probe = Probe(context.local_tag, PROBES[event], (ProbeRecord(B1, A1, 3),), heard)
        send(pair, probe)
    elif event is ReapEvent.KEEPALIVE_IN:
        send(pair, Keepalive(context.local_tag))
    else:
        reap.handle(core, context, event, now)
        pair.settle(pair.alpha)
    actions, after = REAP.get((state, event), ((), state))
    assert context.reap_state is after
    sent = [message for _, _, message in find_messages(pair.alpha.sent, object)]
    assert [type(message) for message in sent] == [
        {Act.SEND_PROBE: Probe, Act.SEND_KEEPALIVE: Keepalive}[act]
        for act in actions
        if act in (Act.SEND_PROBE, Act.SEND_KEEPALIVE)
    ]
    for message in sent:
        if isinstance(message, Probe):
            assert message.state.value == after.value
    if after is ReapState.EXPLORING:
        assert context.send_due_s == context.keepalive_due_s == 0.0
    elif Act.STOP_SEND in actions:
        assert context.send_due_s == 0.0
    elif Act.RESTART_SEND in actions:
        assert context.send_due_s == now + context.send_timeout_s
    elif Act.START_SEND in actions:
        assert context.send_due_s == (earlier_send_s or now + context.send_timeout_s)
    if Act.START_KEEPALIVE in actions:
        assert context.keepalive_due_s == (earlier_keepalive_s or now + 3.0)
    if Act.STOP_KEEPALIVE in actions:
        assert context.keepalive_due_s == 0.0
    assert not (context.send_due_s and context.keepalive_due_s)


def test_a_peer_that_tests_its_better_pair_does_not_end_our_search() -> None:
    """A Probe InboundOk without reports says that the peer hears something, not what.

    §6.8 would declare the path operational; the peer may not know yet that it is silent.
    """
    pair = reaching(ReapState.EXPLORING, False, False)
    send(
        pair, Probe(pair.alpha.context.local_tag, ProbeState.INBOUND_OK, (ProbeRecord(B1, A1, 3),))
    )
    assert pair.alpha.context.reap_state is ReapState.INBOUND_OK

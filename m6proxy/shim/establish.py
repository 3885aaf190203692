"""Setting contexts up: I1, R1, I2, R2 and the recovery with R1bis, I2bis (RFC 5533 §7).

An exchange, in the order in which its messages meet these functions:

    initiator                                   responder
    initiate      -> I1  ->  handle_i1   (stores nothing, answers R1)
    handle_r1     <- R1
                  -> I2  ->  handle_i2   (validator; then asks for the proof by DNS)
                             complete    (the context exists now; answers R2)
    handle_r2     <- R2

I2 and R2 carry the sender's DNS name. The responder asks DNS about it before it answers, so
that it acknowledges only what it proved (§7.2); the initiator already knows the peer's data
from finding its capability.
"""

from __future__ import annotations

from m6proxy.discovery.capability import NameData
from m6proxy.errors import PeerViolation
from m6proxy.names import UNSPECIFIED, LocatorPair, Tag, UlidPair, is_multicast
from m6proxy.proof.judge import Evidence, Proof, prove_listed, prove_ulid
from m6proxy.reasons import Reason
from m6proxy.shim import failback, flows, forks, lifecycle, memo, park, reap, startup, update
from m6proxy.shim.context import Context, Handshake
from m6proxy.shim.core import Core
from m6proxy.shim.effects import AskProof
from m6proxy.shim.locators import PeerLocator
from m6proxy.shim.peerset import adopt_peer, check_locators, offer, peer_parameters
from m6proxy.shim.pending import PendingProofs
from m6proxy.shim.signed import evidence_of, fresh_evidence, listed_by_cga
from m6proxy.shim.timers import (
    I1_RETRIES_MAX,
    I1_TIMEOUT_S,
    I2_RETRIES_MAX,
    I2_TIMEOUT_S,
    I2BIS_RETRIES_MAX,
    I2BIS_TIMEOUT_S,
    INITIAL_PROBE_TIMEOUT_S,
    NO_R1_HOLDDOWN_S,
    PENDING_PROOF_S,
    backoff_s,
)
from m6proxy.shim.transitions import Input, State, legal
from m6proxy.wire.message import I1, I2, MAX_MESSAGE_OCTETS, R1, R2, I2bis, R1bis, find
from m6proxy.wire.options import (
    ForkedInstance,
    LocatorList,
    Option,
    ResponderValidator,
    SenderName,
    UlidPairOption,
    encode_options,
)

VALIDATOR_OCTETS_MAX = 512
"""A peer's validator must fit our I2 beside everything else within 1280 octets."""
_R2_OCTETS, _I2_OCTETS, _I2BIS_OCTETS = 16, 24, 32
"""The messages without options (§5.6, §5.7, §5.9)."""
_RETRIES_MAX = {
    State.I1_SENT: I1_RETRIES_MAX,
    State.I2_SENT: I2_RETRIES_MAX,
    State.I2BIS_SENT: I2BIS_RETRIES_MAX,
}
_ANSWERED_BY_I2 = frozenset(
    (State.IDLE, State.I1_SENT, State.CLOSING, State.E_FAILED, State.NO_SUPPORT)
)
"""The states that a good I2 of the peer turns into ESTABLISHED."""
_TIMEOUT_S = {
    State.I1_SENT: I1_TIMEOUT_S,
    State.I2_SENT: I2_TIMEOUT_S,
    State.I2BIS_SENT: I2BIS_TIMEOUT_S,
}


def initiate(
    core: Core, key: bytes, data: NameData | None, local_name: str | None, now: float
) -> None:
    """§7.7: start a context for a ULID pair (32 octets), if there is none."""
    if core.contexts.by_pair(key) is not None:
        return
    context = lifecycle.create(core, key, 0, now)
    context.local_name = local_name
    context.handshake = Handshake(core.entropy.nonce(), context.locators)
    context.handshake.data = data
    startup.plan_routes(core, context, data, now)
    core.contexts.bind_nonce(context, context.handshake.initiator_nonce)
    lifecycle.enter(core, context, State.I1_SENT, Input.INITIATE, now)
    _send_current(core, context, now)


def begin_forks(core: Core, main: Context, now: float) -> None:
    """§7.7: set up the forks that policy wants of a pair and that are not there."""
    for rule, route in tuple(forks.missing(core, main)):
        try:
            fork = lifecycle.create(core, main.outbound_key, forks.new_fii(core, main), now)
        except PeerViolation as violation:
            core.drop(violation.reason)
            return
        fork.local_name = main.local_name
        fork.peer_locators = tuple(
            PeerLocator(known.address, known.proof, tested=known.tested)
            for known in main.peer_locators
            if not known.stands_in
        )
        fork.handshake = Handshake(core.entropy.nonce(), route)
        core.contexts.bind_nonce(fork, fork.handshake.initiator_nonce)
        main.forks = (*main.forks, (rule, fork))
        core.contexts.open(main)
        flows.install(core, main)
        lifecycle.enter(core, fork, State.I1_SENT, Input.INITIATE, now)
        _send_current(core, fork, now)


def handle_i1(core: Core, message: I1, route: LocatorPair, now: float) -> None:
    """§7.9: answer with R1, storing nothing, or with R2 when the context is there.

    R2 tells our tag and locators, so that it goes to none but a known locator of the peer; §7.9
    would send it anywhere while two exchanges cross.
    """
    key, fii = _identity(core, message.options, route)
    core.limit_requests(route.peer, now)
    context = core.contexts.by_pair(key, fii)
    if context is not None and context.peer_locator(route.peer) is not None:
        crossing = context.state in (State.I1_SENT, State.I2_SENT, State.I2BIS_SENT)
        same = context.state is State.ESTABLISHED and context.peer_tag == message.initiator_tag
        if crossing or same:
            _send_r2(core, context, message.initiator_nonce, route, now)
            return
    nonce = core.responder.nonce(now)
    validator = core.responder.validator(nonce, message.initiator_tag, key, route, fii, now)
    core.send(R1(message.initiator_nonce, nonce, (ResponderValidator(validator),)), route)


def handle_r1(core: Core, message: R1, route: LocatorPair, now: float) -> None:
    """§7.11: prove that we receive at our address, with I2."""
    context = _by_nonce(core, message.initiator_nonce, route)
    handshake = context.handshake
    if handshake is None or not legal(context.state, Input.R1):
        raise PeerViolation(Reason.ILLEGAL_IN_STATE, f"R1 in {context.state.value}")
    handshake.responder_nonce = message.responder_nonce
    handshake.validator = _validator(message.options)
    handshake.retries = 0
    lifecycle.enter(core, context, State.I2_SENT, Input.R1, now)
    _send_current(core, context, now)


def handle_i2(
    core: Core, pending: PendingProofs, message: I2 | I2bis, route: LocatorPair, now: float
) -> None:
    """§7.13, §7.20: check the validator, then ask DNS what the sender's name proves."""
    key, fii = _identity(core, message.options, route)
    validator = _validator(message.options)
    if isinstance(message, I2):
        tag, ulids, bound_fii = message.initiator_tag, key, fii
    else:
        tag, ulids, bound_fii = message.packet_tag, b"", 0
    core.responder.check(validator, message.responder_nonce, tag, ulids, route, bound_fii, now)
    context = core.contexts.by_pair(key, fii)
    if (
        context is not None
        and context.state is State.ESTABLISHED
        and context.peer_tag == message.initiator_tag
        and context.peer_locator(route.peer) is not None
        and (context.peer_updated or _says_nothing_new(context, message.options))
    ):
        _send_r2(core, context, message.initiator_nonce, route, now)
        return
    core.limit_requests(route.peer, now)
    check_locators(message.options, key[16:], fresh_evidence(message.options, key[16:]))
    pending.put(key, fii, message, route, now + PENDING_PROOF_S)
    name = find(message.options, SenderName)
    core.effects.append(
        AskProof(UlidPair(key[:16], key[16:]), name.name if name is not None else None)
    )


def claimed(message: I2 | I2bis, data: NameData | None) -> NameData | None:
    """What DNS says of the name in the message; None when it was asked about another name."""
    name = find(message.options, SenderName)
    return data if data is not None and name is not None and name.name == data.name else None


def complete(
    core: Core,
    key: bytes,
    fii: int,
    message: I2 | I2bis,
    route: LocatorPair,
    data: NameData | None,
    local_name: str | None,
    now: float,
) -> None:
    """The proof is here: create or renew the context and answer R2 (§7.13, §7.14, §7.20)."""
    given = Input.I2 if isinstance(message, I2) else Input.I2BIS
    ulid = key[16:]
    # handle_i2 let no message through whose signature is not the key's
    signed = listed_by_cga(message.options)
    evidence = Evidence(data, peer_parameters(message.options, ulid), signed)
    if not prove_ulid(ulid, route.peer, evidence):
        raise PeerViolation(Reason.UNPROVED_ULID, "neither name nor hash bears the ULID")
    context = core.contexts.by_pair(key, fii)
    _check_source(context, message, route, evidence, ulid)
    if context is None:
        context = lifecycle.create(core, key, fii, now)
    if not context.carries:
        context.take_route(route)
    context.local_name = local_name
    _adopt(core, context, message.initiator_tag, message.options, evidence, now)
    if context.state in _ANSWERED_BY_I2:
        lifecycle.enter(core, context, State.ESTABLISHED, given, now)
    core.peers.forgive(context.outbound_key[16:])
    if context.carries:
        if given is Input.I2BIS:
            lifecycle.use_route(core, context, route, now)
        _may_go_back(core, context, now)
        lifecycle.refresh_path(core, context)
    _send_r2(core, context, message.initiator_nonce, route, now)
    core.rearm(context)
    begin_forks(core, context, now)


def handle_r2(core: Core, message: R2, route: LocatorPair, now: float) -> None:
    """§7.16: the exchange is complete."""
    context = _by_nonce(core, message.initiator_nonce, route)
    handshake = context.handshake
    if handshake is None or not legal(context.state, Input.R2):
        raise PeerViolation(Reason.ILLEGAL_IN_STATE, f"R2 in {context.state.value}")
    name = find(message.options, SenderName)
    data = handshake.data
    if data is not None and name is not None and name.name != data.name:
        data = None
    evidence = evidence_of(core, context, message.options, data, route.peer, now)
    reached = context.peer_locator(route.peer)
    if not context.carries and reached is not None and reached.proved:
        context.take_route(route)
        reached.tested |= route.peer != context.outbound_key[16:]
    _adopt(core, context, message.responder_tag, message.options, evidence, now)
    core.peers.forgive(context.outbound_key[16:])
    lifecycle.enter(core, context, State.ESTABLISHED, Input.R2, now)
    _may_go_back(core, context, now)
    lifecycle.refresh_path(core, context)
    if data is None and name is not None:
        core.effects.append(AskProof(context.pair, name.name))
    told = handshake.told_set or context.told_set or context.local_set
    context.told_set = None if handshake.shortened else told
    if context.told_set is not context.local_set and context.update is None:
        update.announce(core, context, now, now)
    core.rearm(context)
    begin_forks(core, context, now)


def respond_r1bis(core: Core, tag: Tag, route: LocatorPair, now: float) -> None:
    """§7.17: somebody uses a context that we do not have; store nothing, offer recovery."""
    if not core.local_sets.is_local(route.local):
        raise PeerViolation(Reason.NOT_OUR_HOST, "a tag for an address outside the site")
    if core.closed.recently(tag, now):
        raise PeerViolation(Reason.NO_CONTEXT, "late on its way in a context that was closed")
    core.limit_requests(route.peer, now)
    nonce = core.responder.nonce(now)
    validator = core.responder.validator(nonce, tag, b"", route, 0, now)
    core.send(R1bis(tag, nonce, (ResponderValidator(validator),)), route)


def handle_r1bis(core: Core, message: R1bis, route: LocatorPair, now: float) -> None:
    """§7.18: the peer lost the context; set it up again with I2bis, from here."""
    context = core.contexts.by_sent(message.packet_tag, route)
    if context is None:
        raise PeerViolation(Reason.NO_CONTEXT, "R1bis for a tag that we do not use there")
    if not legal(context.state, Input.R1BIS):
        raise PeerViolation(Reason.ILLEGAL_IN_STATE, f"R1bis in {context.state.value}")
    handshake = Handshake(core.entropy.nonce(), route)
    handshake.responder_nonce = message.responder_nonce
    handshake.validator = _validator(message.options)
    handshake.packet_tag = message.packet_tag
    context.handshake = handshake
    core.contexts.bind_nonce(context, handshake.initiator_nonce)
    lifecycle.enter(core, context, State.I2BIS_SENT, Input.R1BIS, now)
    _send_current(core, context, now)


def answer_early(core: Core, context: Context, now: float) -> None:
    """§10.4, §10.5, §12.2: the peer is established and we are not: send I2 or I2bis again."""
    handshake = context.handshake
    if context.state not in (State.I2_SENT, State.I2BIS_SENT) or handshake is None:
        return
    if core.requests_limit.allow(handshake.route.peer, now):
        _send_message(core, context)


def expire(core: Core, context: Context, now: float) -> None:
    """Handle the retransmission and hold-down timers of a context that are due."""
    handshake = context.handshake
    if context.holddown_due_s and now >= context.holddown_due_s:
        lifecycle.remove(core, context, Input.HOLDDOWN_OVER, now)
        main = core.contexts.by_pair(context.outbound_key)
        if main is not None:
            begin_forks(core, main, now)
        return
    if handshake is None or not handshake.timeout_due_s or now < handshake.timeout_due_s:
        return
    if handshake.retries < _RETRIES_MAX[context.state] + _routes_left(context, handshake):
        handshake.retries += 1
        if context.state is State.I1_SENT:
            startup.next_route(handshake)
        lifecycle.enter(core, context, context.state, Input.RETRANSMIT, now)
        _send_current(core, context, now)
    elif context.state is State.I1_SENT:
        _fail(core, context, handshake, now)
    else:
        lifecycle.enter(core, context, State.I1_SENT, Input.RETRIES_SPENT, now)
        handshake.retries = 0
        handshake.rounds += 1
        if handshake.rounds > 1:
            _fail(core, context, handshake, now)
        else:
            _send_current(core, context, now)


def _fail(core: Core, context: Context, handshake: Handshake, now: float) -> None:
    """§7.8: nobody answers. Who has a record is refused for this identifier only."""
    recorded = handshake.data is not None and handshake.data.capability is not None
    ulid = context.outbound_key[16:] if recorded or handshake.validator else b""
    for peer in (
        () if context.fii else {tried.peer for tried in (*handshake.routes, handshake.route)}
    ):
        core.peers.refuse(peer, now + NO_R1_HOLDDOWN_S, ulid)
    lifecycle.refuse(core, context, Input.RETRIES_SPENT, NO_R1_HOLDDOWN_S, now)


def _may_go_back(core: Core, context: Context, now: float) -> None:
    """An exchange that did not go over the ULIDs began because they, or a path, did not work."""
    if context.route != context.outbound_key:
        if context.failback is None:
            failback.begin(core, context, now)
        reap.test_stand_in(core, context, now)


def _send_current(core: Core, context: Context, now: float) -> None:
    """Send the message of the state and start its timer (§7.8, §7.12, §7.19)."""
    handshake = context.handshake
    if handshake is None:
        return
    _send_message(core, context)
    fresh = _routes_left(context, handshake)
    if handshake.retries < fresh:
        nominal_s = INITIAL_PROBE_TIMEOUT_S
    else:
        nominal_s = backoff_s(_TIMEOUT_S[context.state], handshake.retries - fresh)
    handshake.timeout_due_s = now + nominal_s * core.entropy.uniform(0.5, 1.5)
    core.rearm(context)


def _routes_left(context: Context, handshake: Handshake) -> int:
    """How many I1 go out at the rate of first probes, each over a pair of its own."""
    return max(0, len(handshake.routes) - 1) if context.state is State.I1_SENT else 0


def _send_message(core: Core, context: Context) -> None:
    handshake = context.handshake
    if handshake is None:
        return
    nonce = handshake.initiator_nonce
    identity = _identity_options(context, handshake.route)
    if context.state is State.I1_SENT:
        core.send(I1(context.local_tag, nonce, identity), handshake.route)
        return
    fixed_octets = _I2_OCTETS if context.state is State.I2_SENT else _I2BIS_OCTETS
    required: tuple[Option, ...] = (ResponderValidator(handshake.validator), *identity)
    room_octets = MAX_MESSAGE_OCTETS - fixed_octets - len(encode_options(required))
    offered, whole = offer(core, context, room_octets, handshake.route.local)
    changed = handshake.told_set not in (None, context.local_set)
    handshake.shortened |= changed or not whole
    handshake.told_set = context.local_set
    options = (*required, *offered)
    if context.state is State.I2_SENT:
        message: I2 | I2bis = I2(context.local_tag, nonce, handshake.responder_nonce, options)
    else:
        message = I2bis(
            context.local_tag, nonce, handshake.responder_nonce, handshake.packet_tag, options
        )
    core.send(message, handshake.route)


def _send_r2(core: Core, context: Context, nonce: int, route: LocatorPair, now: float) -> None:
    """What R2 has no room for is told by an Update as soon as the context carries."""
    options, whole = offer(core, context, MAX_MESSAGE_OCTETS - _R2_OCTETS, route.local)
    core.send(R2(context.local_tag, nonce, options), route)
    context.told_set = context.local_set if whole else None
    if whole:
        return
    if context.handshake is not None:
        context.handshake.shortened = True
    elif context.carries and context.update is None:
        update.announce(core, context, now, now)


def _identity(core: Core, options: tuple[Option, ...], route: LocatorPair) -> tuple[bytes, int]:
    """The ULID pair (32 octets, ours first) and fork that a message is about (§7.9)."""
    ulids = find(options, UlidPairOption)
    fork = find(options, ForkedInstance)
    local, peer = (ulids.receiver, ulids.sender) if ulids is not None else route
    if not core.local_sets.same_host(local, route.local):
        raise PeerViolation(Reason.NOT_OUR_HOST, "the message is not at a locator of the ULID")
    if peer == UNSPECIFIED or is_multicast(peer):
        raise PeerViolation(Reason.BAD_ADDRESS, "a ULID that no host can have")
    if core.local_sets.is_local(peer):
        raise PeerViolation(Reason.UNPROVED_ULID, "a peer's ULID inside the site")
    return local + peer, fork.fii if fork is not None else 0


def _identity_options(context: Context, route: LocatorPair) -> tuple[Option, ...]:
    options: list[Option] = []
    if route.local + route.peer != context.outbound_key:
        options.append(UlidPairOption(*context.pair))
    if context.fii:
        options.append(ForkedInstance(context.fii))
    return tuple(options)


def _validator(options: tuple[Option, ...]) -> bytes:
    option = find(options, ResponderValidator)
    if option is None:
        raise PeerViolation(Reason.MISSING_OPTION, "no responder validator")
    if len(option.validator) > VALIDATOR_OCTETS_MAX:
        raise PeerViolation(Reason.BAD_OPTION, "a validator too long to be sent back")
    return option.validator


def _by_nonce(core: Core, nonce: int, route: LocatorPair) -> Context:
    context = core.contexts.by_nonce(nonce)
    if context is None or context.handshake is None:
        raise PeerViolation(Reason.WRONG_NONCE, "no exchange has this nonce")
    if context.state is State.I1_SENT and route in context.handshake.routes:
        context.handshake.route = route
    if context.handshake.route != route:
        raise PeerViolation(Reason.WRONG_LOCATOR, "the answer came from elsewhere")
    return context


def _says_nothing_new(context: Context, options: tuple[Option, ...]) -> bool:
    """Whether a repeated message lists the locators that are known already.

    It is asked only of a peer that sent no Update with its tag: an I2 that comes after one is
    an old one, and would take back what the Update said.
    """
    listed = find(options, LocatorList)
    return listed is None or listed.generation == context.peer_generation


def _check_source(
    context: Context | None,
    message: I2 | I2bis,
    route: LocatorPair,
    evidence: Evidence,
    ulid: bytes,
) -> None:
    """The source must be the ULID, a known locator, or an offered one that is proved."""
    if route.peer == ulid:
        return
    known = context.peer_locator(route.peer) if context is not None else None
    if known is not None and known.proved:
        return
    listed = find(message.options, LocatorList)
    if listed is None or route.peer not in listed.locators:
        raise PeerViolation(Reason.WRONG_LOCATOR, "the source is not in the sender's list")
    method = listed.methods[listed.locators.index(route.peer)]
    if prove_listed(ulid, (route.peer,), (method,), evidence)[0] is Proof.NONE:
        raise PeerViolation(Reason.UNPROVED_LOCATOR, "the source is not proved")


def _adopt(
    core: Core,
    context: Context,
    peer_tag: Tag,
    options: tuple[Option, ...],
    evidence: Evidence,
    now: float,
) -> None:
    """Take the peer in. An update that waits for its answer must go to the peer's new tag."""
    before = context.peer_tag
    adopt_peer(core, context, peer_tag, options, evidence)
    memo.note(core, context)
    _remove_confused(core, context, now)
    if context.parking is not None:
        park.handle_exchange(core, context, now)
    elif context.update is not None and peer_tag != before:
        update.announce(core, context, now, now)


def _remove_confused(core: Core, context: Context, now: float) -> None:
    """§7.15: a peer that gives one tag to two contexts has lost the older one: remove it.

    Only locators that are proved count: who offers another's address removes nothing.
    """
    proved = {locator.address for locator in context.peer_locators if locator.proved}
    for other in core.contexts.by_peer_tag(context.peer_tag):
        if other is context or not other.carries:
            continue
        if any(locator.address in proved for locator in other.peer_locators if locator.proved):
            core.drop(Reason.CONTEXT_CONFUSED)
            lifecycle.remove(core, other, Input.CONFUSED, now)

"""One Update about many contexts with one peer's gateway (mobike-design §2.3, decision 26).

    the end whose uplink changed            its peer
    key_of, tell  -> Update Request     ->  handle_request   (prefixes, and the contexts' tags)
    handle_ack    <- Update Ack         <-                   (the tags of those that it took in)

The message goes over one of the contexts that it names, and is repeated there as any Update is.
It says of each of the site's prefixes what a list would say of the locator in it. A context
that the acknowledgement does not name, or that has none in time, gets an Update of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

from m6proxy.names import UNSPECIFIED, Address, LocatorPair, Tag
from m6proxy.proof.judge import Proof
from m6proxy.shim import activity, memo, reap, update
from m6proxy.shim.context import Context, PendingUpdate
from m6proxy.shim.core import Core
from m6proxy.shim.effects import What
from m6proxy.shim.features import Feature
from m6proxy.shim.peerset import adopt_scope
from m6proxy.shim.timers import ALONE_S, SOON_S
from m6proxy.shim.transitions import ReapState, State
from m6proxy.wire.message import MAX_MESSAGE_OCTETS, UpdateAck, UpdateRequest, find
from m6proxy.wire.options import LocatorDelta, LocatorList, Scope

SITE_OCTETS: Final = 7
"""Addresses with a /56 in common are of one site: the least that sites are given (RFC 6177)."""
_ESTABLISHED: Final = State.ESTABLISHED
_UNPROVED: Final = Proof.NONE
_BY_DNS: Final = Proof.DNS
"""Looked up once: 100,000 contexts are asked whose they are."""
_FIXED_OCTETS: Final = 16 + 4 + 12
"""An Update Request, and the head and fixed fields of the option."""
_PREFIX_OCTETS: Final = 20
_TAGS_OCTETS: Final = 12
_ANSWERED_MAX: Final = (MAX_MESSAGE_OCTETS - _FIXED_OCTETS - 8) // _TAGS_OCTETS
"""An acknowledgement has no room for more, beside a park time; a request that comes may be longer
than one of ours."""


class Gateways(NamedTuple):
    """Contexts with equal ones are between the same two gateways."""

    local_site: bytes
    domain: str
    """The peer's name without its first label."""
    peer_sites: tuple[bytes, ...]
    """Where the peer's proved locators are."""


class Key(NamedTuple):
    """Contexts with equal ones can be told in one message."""

    base_generation: int
    """Of our list as the peer has it."""
    generation: int
    """Of our list as it is now."""
    gateways: Gateways


def key_of(context: Context) -> Key | None:
    """With whom a context can be told that our set changed; None: it is told by itself."""
    base, current = context.told_set, context.local_set
    if (
        base is None
        or base.generation == current.generation
        or base.locators != current.locators
        or (gateways := gateways_of(context)) is None
    ):
        return None
    return Key(base.generation, current.generation, gateways)


def gateways_of(context: Context) -> Gateways | None:
    """Whose contexts one message of ours can be about; None: the context has its own messages.

    Two contexts have one gateway at the other end when the locators that are proved lie in the
    same sites, and DNS, which proved them, has the names in one domain.
    """
    if (
        not context.peer_features & Feature.SCOPE
        or context.state is not _ESTABLISHED
        or context.peer_name is None
    ):
        return None
    domain = context.peer_name.partition(".")[2]
    sites, by_dns = [], False
    for locator in context.peer_locators:
        proof = locator.proof
        if proof is not _UNPROVED:
            by_dns = by_dns or proof is _BY_DNS
            sites.append(locator.address[:SITE_OCTETS])
    if not domain or not by_dns:
        return None
    sites.sort()
    local_site = context.local_set.locators[0][:SITE_OCTETS]
    return Gateways(local_site, domain, tuple(dict.fromkeys(sites)))


def _is_at(context: Context, key: Key) -> bool:
    """Whether what both ends know of our set is still what it was when the key was made."""
    return (
        context.state is _ESTABLISHED
        and context.told_set is not None
        and context.told_set.generation == key.base_generation
        and context.local_set.generation == key.generation
    )


def most(core: Core) -> int:
    """How many contexts fit one message."""
    room_octets = MAX_MESSAGE_OCTETS - _FIXED_OCTETS
    return (room_octets - _PREFIX_OCTETS * len(core.local_sets.uplinks)) // _TAGS_OCTETS


def is_told(context: Context) -> bool:
    """Whether the peer has our set as it is, or is being told."""
    pending = context.update
    told = pending.told if pending is not None else context.told_set
    return told is context.local_set


def tell(core: Core, key: Key, contexts: list[Context], now: float) -> bool:
    """Tell a peer's gateway of so many contexts (``most``) with one key that our set changed.

    Returns whether anything went out: some may have ended, or been told, meanwhile. What a
    context's peer may have said of itself since then its gateway sees by itself.
    """
    named = []
    for context in contexts:
        if context.watched and not is_told(context):
            if _is_at(context, key):
                named.append(context)
            else:
                update.announce(core, context, core.pace.take(now), now)
    if len(named) < 2:
        for context in named:
            update.announce(core, context, core.pace.take(now), now)
        return False
    carrier = carrier_of(named)
    request = UpdateRequest(carrier.peer_tag, core.entropy.nonce(), (_scope(named),))
    alone_s = alone_due_s(core, now)
    for context in named:
        context.update = PendingUpdate(request, context.local_set, named=())
        context.update.timeout_due_s = alone_s
        core.timers.arm(context, alone_s)
    carrier.update = PendingUpdate(request, carrier.local_set, named=tuple(named))
    update.send(core, carrier, now)
    return True


def carrier_of(named: list[Context]) -> Context:
    """The context that a message about several goes over: one whose path works, if there is one."""
    return next((context for context in named if _seems_to_work(context)), named[0])


def alone_due_s(core: Core, now: float) -> float:
    """When those that a message was about do without its acknowledgement."""
    return now + ALONE_S * core.entropy.uniform(1.0, 1.5)


def tags_of(named: Iterable[Context]) -> tuple[tuple[Tag, Tag], ...]:
    """How a message of ours names contexts."""
    return tuple([(one.peer_tag, one.local_tag) for one in named])


def answered(
    named: Iterable[Context], request: UpdateRequest, message: UpdateAck
) -> Iterator[tuple[Context, PendingUpdate, bool]]:
    """Those that still wait for the answer to a message, and whether the answer names them."""
    answer = find(message.options, Scope)
    tags = frozenset(answer.tags if answer is not None else ())
    for one in named:
        if one.update is not None and one.update.request is request:
            yield one, one.update, (one.local_tag, one.peer_tag) in tags


def handle_ack(core: Core, context: Context, message: UpdateAck, now: float) -> bool:
    """Tell whether an acknowledgement was to a message about several contexts; then take it in."""
    pending = context.update
    if pending is None or not pending.named:
        return False
    if pending.request.request_nonce != message.request_nonce:
        return False
    for other, waiting, is_taken_in in answered(pending.named, pending.request, message):
        other.update = None
        if is_taken_in:
            other.told_set = waiting.told
        else:
            other.told_set = None  # the peer has another list, or none: it is told all of ours
            due_s = max(core.pace.take(now), now + SOON_S)
            update.announce(core, other, now if other is context else due_s, now)
    return True


def asks(context: Context, message: UpdateRequest) -> Scope | None:
    """The scope of a peer's Update; a list or a difference beside it leaves it out of account."""
    if not context.peer_features & Feature.SCOPE or context.parking is not None:
        return None
    if find(message.options, LocatorList) or find(message.options, LocatorDelta):
        return None
    return find(message.options, Scope)


def handle_request(
    core: Core,
    context: Context,
    message: UpdateRequest,
    scope: Scope,
    route: LocatorPair,
    now: float,
) -> None:
    """Take in what a peer says of several contexts, and name those of which it could be taken in.

    Raises PeerViolation when its site asks too often.
    """
    core.limit_requests(route.peer, now)
    taken_in = tuple(
        tags for tags in named_in(scope) if _take_in(core, scope, tags, context, route.peer, now)
    )
    answer = Scope(scope.base_generation, scope.generation, (), mirrored(taken_in))
    core.report(
        What.UPDATED, context.outbound_key, f"{len(taken_in)} of {len(scope.tags)} contexts"
    )
    core.send(UpdateAck(context.peer_tag, message.request_nonce, (answer,)), route)


def _take_in(
    core: Core, scope: Scope, tags: tuple[Tag, Tag], carrier: Context, source: Address, now: float
) -> bool:
    """Note it for one context, when both tags, its list and the sender's site are the context's.

    One that has the resulting list already was in a message whose acknowledgement was lost. That
    the message came from a locator stands for a test only in the context that it came over.
    """
    context = addressed(core, tags, source)
    if context is None or context.parking is not None:
        return False
    if context.peer_generation == scope.generation:
        return True
    if context.peer_generation != scope.base_generation:
        return False
    if context.flow is not None:
        activity.look(core, context, now)
    adopt_scope(core, context, scope)
    memo.note(core, context)
    context.peer_updated = True
    current = context.peer_locator(context.route[16:])
    if current is not None and current.broken:
        reap.leave_broken(core, context, source if context is carrier else UNSPECIFIED, now)
    core.rearm(context)
    return True


def named_in(scope: Scope) -> tuple[tuple[Tag, Tag], ...]:
    """The contexts that a message is about, as far as an acknowledgement has room for them."""
    return scope.tags[:_ANSWERED_MAX]


def mirrored(tags: Iterable[tuple[Tag, Tag]]) -> tuple[tuple[Tag, Tag], ...]:
    """The same contexts as the other end names them."""
    return tuple([(theirs, ours) for ours, theirs in tags])


def addressed(core: Core, tags: tuple[Tag, Tag], source: Address) -> Context | None:
    """The context that somebody at ``source`` names, when both tags and his site are its peer's."""
    own_tag, sender_tag = tags
    context = core.contexts.by_tag.get(own_tag)
    if (
        context is None
        or context.peer_tag != sender_tag
        or context.state is not State.ESTABLISHED
        or not context.peer_features & Feature.SCOPE
        or not _is_of_site(context, source)
    ):
        return None
    return context


def _is_of_site(context: Context, source: Address) -> bool:
    """The place of §12.4 for a context whose own locator the message did not come from."""
    site = source[:SITE_OCTETS]
    return any(
        locator.listed and locator.proved and locator.address[:SITE_OCTETS] == site
        for locator in context.peer_locators
    )


def _seems_to_work(context: Context) -> bool:
    lost = context.route[:16] in context.local_set.down
    return not lost and context.reap_state is ReapState.OPERATIONAL


def _scope(contexts: list[Context]) -> Scope:
    context = contexts[0]
    base = context.told_set.generation if context.told_set is not None else 0
    return Scope(
        base,
        context.local_set.generation,
        context.local_set.by_prefix(),
        tags_of(contexts),
    )

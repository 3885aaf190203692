"""What both ends tell each other about their locators, and what we believe of it.

``offer`` builds the options of I2, I2bis, R2 and Update Request; ``adopt_peer`` and
``adopt_locators`` take the peer's in. A locator is believed as far as it is proved: the
proof by DNS may come later, and until then the locator is known but never used.
"""

from __future__ import annotations

from m6proxy.discovery.capability import NameData
from m6proxy.errors import PeerViolation
from m6proxy.names import UNSPECIFIED, Address, Tag
from m6proxy.proof.judge import Proof, prove_locators
from m6proxy.reasons import Reason
from m6proxy.shim.context import Context
from m6proxy.shim.core import Core
from m6proxy.shim.effects import What
from m6proxy.shim.features import OURS
from m6proxy.shim.locators import PeerLocator
from m6proxy.shim.timers import SEND_TIMEOUT_S
from m6proxy.wire.message import find
from m6proxy.wire.options import (
    BROKEN,
    METHOD_DNS,
    Features,
    KeepaliveTimeout,
    LocatorList,
    LocatorPreferences,
    Option,
    SenderName,
)

SUPPORTED_METHODS = frozenset({METHOD_DNS})
"""A list with any other method is refused as a whole (RFC 5533 §7.2)."""
LOCATORS_MAX = 32
"""How many locators of a peer are kept; the rest of a longer list is ignored."""


def offer(core: Core, context: Context) -> tuple[Option, ...]:
    """The options that tell the peer our locators, our name and our Send Timeout."""
    options: list[Option] = list(context.local_set.options())
    if context.local_name is not None:
        options.append(SenderName(context.local_name))
    if core.settings.send_timeout_s != SEND_TIMEOUT_S:
        options.append(KeepaliveTimeout(max(1, int(core.settings.send_timeout_s))))
    if OURS:
        options.append(Features(OURS))
    return tuple(options)


def adopt_peer(
    core: Core,
    context: Context,
    peer_tag: Tag,
    options: tuple[Option, ...],
    data: NameData | None,
) -> None:
    """Take in what an I2, I2bis or R2 says of its sender. Raises PeerViolation."""
    adopt_locators(core, context, options, data)
    core.contexts.bind_peer_tag(context, peer_tag)
    features = find(options, Features)
    context.peer_features = features.bits & OURS if features is not None else 0
    name = find(options, SenderName)
    context.peer_name = name.name if name is not None else None


def adopt_locators(
    core: Core, context: Context, options: tuple[Option, ...], data: NameData | None
) -> None:
    """Take in a locator list, preferences and keepalive timeout, whichever are there (§10.4).

    Raises PeerViolation, and changes nothing, when they contradict each other.
    """
    listed = find(options, LocatorList)
    preferences = find(options, LocatorPreferences)
    check_locators(options, context.peer_generation, len(_listed(context)))
    if listed is not None:
        context.peer_locators = _merged(context, listed, data)
        context.last_in_pair = context.inbound_key
        context.peer_generation = listed.generation
    if preferences is not None:
        by_address = dict(
            zip(
                listed.locators if listed is not None else _listed(context),
                preferences.preferences,
                strict=True,
            )
        )
        for locator in context.peer_locators:
            preference = by_address.get(locator.address)
            if preference is not None:
                locator.broken = bool(preference.flags & BROKEN)
                locator.priority = preference.priority
    timeout = find(options, KeepaliveTimeout)
    context.keepalive_timeout_s = (
        float(max(1, timeout.seconds)) if timeout is not None else context.keepalive_timeout_s
    )


def check_locators(options: tuple[Option, ...], generation: int = 0, count: int = 1) -> None:
    """Raise PeerViolation when a locator list or preferences cannot be taken in (§10.4).

    ``generation`` and ``count`` are those of the list that the preferences are about when no
    list comes with them.
    """
    listed = find(options, LocatorList)
    preferences = find(options, LocatorPreferences)
    if listed is not None:
        generation, count = listed.generation, len(listed.locators)
        if any(method not in SUPPORTED_METHODS for method in listed.methods):
            raise PeerViolation(Reason.BAD_METHOD, "a verification method that we do not have")
    if preferences is not None:
        if preferences.generation != generation:
            raise PeerViolation(Reason.GENERATION_MISMATCH, "preferences of another generation")
        if len(preferences.preferences) != count:
            raise PeerViolation(Reason.PREFERENCE_COUNT, "not one preference for each locator")


def adopt_proof(core: Core, context: Context, data: NameData | None) -> None:
    """DNS answered: believe those locators that it covers."""
    unproved = [
        locator
        for locator in context.peer_locators
        if not locator.proved and _is_unicast(locator.address)
    ]
    proofs = prove_locators(
        context.outbound_key[16:], tuple(locator.address for locator in unproved), data
    )
    for locator, proof in zip(unproved, proofs, strict=True):
        locator.proof = proof
    proved = sum(proof is not Proof.NONE for proof in proofs)
    if proved:
        core.report(What.PROVED, context.pair, f"{proved} of {len(unproved)} locators")


def _listed(context: Context) -> tuple[Address, ...]:
    """The peer's list as it came."""
    return tuple(locator.address for locator in context.peer_locators if locator.listed)


def _is_unicast(octets: Address) -> bool:
    """Whether an address can be a locator at all (RFC 5534 §4.3 prunes the others)."""
    link_local = octets[0] == 0xFE and octets[1] & 0xC0 == 0x80
    return octets[0] != 0xFF and not link_local and octets != UNSPECIFIED


def _merged(
    context: Context, listed: LocatorList, data: NameData | None
) -> tuple[PeerLocator, ...]:
    """The new Ls(peer): known locators keep what is known of them.

    The ULID and the locator in use stay even when the list leaves them out, as broken ones:
    there must be something to send from until another pair is confirmed.
    """
    ulid = context.outbound_key[16:]
    offered = listed.locators[:LOCATORS_MAX]
    proofs = prove_locators(ulid, offered, data)
    merged: dict[Address, PeerLocator] = {}
    for octets, proof in zip(offered, proofs, strict=True):
        known = context.peer_locator(octets)
        if known is None:
            known = PeerLocator(octets, proof if _is_unicast(octets) else Proof.NONE)
        elif not known.proved:
            known.proof = proof
        known.listed, known.broken = True, False
        merged[octets] = known
    for octets in (ulid, context.route[16:]):
        if octets not in merged:
            kept = context.peer_locator(octets) or PeerLocator(octets, Proof.ULID)
            kept.listed, kept.broken = False, True
            merged[octets] = kept
    return tuple(merged.values())

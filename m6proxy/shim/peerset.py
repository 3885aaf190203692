"""What both ends tell each other about their locators, and what we believe of it.

``offer`` builds the options of I2, I2bis, R2 and Update Request; ``adopt_peer``,
``adopt_locators`` and ``adopt_delta`` take the peer's in. A locator is believed as far as it
is proved: the proof by DNS may come later, and until then the locator is known but never used.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Final

from m6proxy.discovery.capability import NameData
from m6proxy.errors import MalformedMessage, PeerViolation
from m6proxy.names import UNSPECIFIED, Address, Tag
from m6proxy.proof import cga, hba
from m6proxy.proof.judge import (
    JUDGES,
    Evidence,
    Proof,
    inconsistent,
    made_with,
    prove_listed,
    prove_locators,
)
from m6proxy.reasons import Reason
from m6proxy.shim import flows, lifecycle
from m6proxy.shim.context import Context
from m6proxy.shim.core import Core
from m6proxy.shim.demux import DemuxMode
from m6proxy.shim.effects import What
from m6proxy.shim.features import OURS, Feature
from m6proxy.shim.locators import PeerLocator
from m6proxy.shim.timers import SEND_TIMEOUT_S
from m6proxy.wire.message import find
from m6proxy.wire.options import (
    BROKEN,
    METHOD_DNS,
    TRANSIENT,
    CgaParameters,
    Demux,
    Features,
    KeepaliveTimeout,
    LocatorDelta,
    LocatorList,
    LocatorPreferences,
    Option,
    Preference,
    Scope,
    SenderName,
    encode_options,
)

_LOCATOR_OCTETS: Final = 19
"""What one locator takes in list and preferences, rounded up: method, address, two octets."""
_LOT_MIN: Final = 1e-9
_FEATURE_OF: Final[dict[int, Feature]] = {
    DemuxMode.FLOWLABEL: Feature.FLOWLABEL,
    DemuxMode.IDENTIFIER: Feature.IDENTIFIER,
    DemuxMode.DSTOPT: Feature.DSTOPT,
}
_LISTED_MAX: Final = 255
"""A list has no more places (§5.15.2)."""


def offer(
    core: Core, context: Context, room_octets: int, current: Address, *, first: bool = True
) -> tuple[tuple[Option, ...], bool]:
    """The options that tell the peer our locators; ``first`` in an exchange also what stays as
    it is, our name and our Send Timeout (RFC 5534 §5.3: once is enough).

    They take ``room_octets`` at most: locators that do not fit are left out, the current one
    never (§5.1). Returns the options, and whether all locators are among them.
    """
    options: list[Option] = []
    if first and context.local_name is not None:
        options.append(SenderName(context.local_name))
    if first and core.settings.send_timeout_s != SEND_TIMEOUT_S:
        options.append(KeepaliveTimeout(max(1, int(core.settings.send_timeout_s))))
    if OURS:
        options.append(Features(OURS))
    options += _asked(core, context)
    local_set = context.local_set
    room_octets -= len(encode_options(options))
    listed = local_set.options()
    total = count = len(local_set.locators)
    while count > 1 and len(encode_options(listed)) > room_octets:
        count = min(count - 1, max(1, room_octets // _LOCATOR_OCTETS))
        listed = local_set.options(local_set.best_places(count, current))
    if count < total:
        core.report(What.SHORTENED, context.outbound_key, f"{total - count} of {total} did not fit")
    return (*listed, *options), count == total


def _asked(core: Core, context: Context) -> list[Demux]:
    """How we ask the peer to send, for those modes that it may understand."""
    asked = {
        DemuxMode.FLOWLABEL: Demux(DemuxMode.FLOWLABEL, context.label) if context.label else None,
        DemuxMode.IDENTIFIER: None
        if context.fii
        else Demux(DemuxMode.IDENTIFIER, stand_in=context.local_set.stand_in),
        DemuxMode.DSTOPT: Demux(DemuxMode.DSTOPT),
    }
    return [
        option
        for mode in core.settings.demux
        if core.settings.asks_for(mode)
        and (context.peer_features & _FEATURE_OF[mode] or not context.carries)
        and (option := asked[mode]) is not None
    ]


def adopt_peer(
    core: Core,
    context: Context,
    peer_tag: Tag,
    options: tuple[Option, ...],
    evidence: Evidence,
) -> None:
    """Take in what an I2, I2bis or R2 says of its sender. Raises PeerViolation."""
    adopt_locators(core, context, options, evidence)
    if peer_tag != context.peer_tag:
        context.peer_updated = False
    core.contexts.bind_peer_tag(context, peer_tag)
    features = find(options, Features)
    context.peer_features = features.bits & OURS if features is not None else 0
    asked = tuple(option for option in options if isinstance(option, Demux))
    _take_modes(core, context, asked, evidence.data)
    name = find(options, SenderName)
    claimed = name.name if name is not None else None
    data = evidence.data
    if data is not None and data.name == claimed:
        claimed = data.name  # the resolver's own copy serves all contexts with that peer
    context.peer_name = claimed


def adopt_demux(core: Core, context: Context, options: tuple[Option, ...]) -> None:
    """Send in the first mode that the peer asks for and our policy has; no option: no change."""
    asked = tuple(option for option in options if isinstance(option, Demux))
    if asked:
        _take_modes(core, context, asked, None, lost_on=context.unlabelled_route)


def _take_modes(
    core: Core,
    context: Context,
    asked: tuple[Demux, ...],
    data: NameData | None,
    *,
    lost_on: bytes | None = None,
) -> None:
    """``lost_on``: the path that loses the mode so far; who asks for it again knows no better."""
    before = context.peer_mode
    context.peer_mode, context.peer_label = DemuxMode.EXTHDR, 0
    stand_in: Address | None = None
    for option in asked:
        feature = _FEATURE_OF.get(option.mode)
        if feature is None or not context.peer_features & feature:
            continue
        mode = DemuxMode(option.mode)
        if mode is DemuxMode.IDENTIFIER and context.fii:
            continue
        if mode in core.settings.demux and (option.label or mode is not DemuxMode.FLOWLABEL):
            context.peer_mode, context.peer_label = mode, option.label
            stand_in = option.stand_in if mode is DemuxMode.IDENTIFIER else None
            break
    _take_stand_in(context, stand_in, data)
    context.unlabelled_route = lost_on if context.peer_mode is before else None
    context.arrived = None
    if before is DemuxMode.IDENTIFIER is not context.peer_mode:
        core.contexts.forget_untagged(context)
    if context.carries:
        lifecycle.refresh_path(core, context)


def _take_stand_in(context: Context, octets: Address | None, data: NameData | None) -> None:
    """Know what stands in for the peer's ULID; it is proved, and tested, like a locator."""
    others = tuple(known for known in context.peer_locators if not known.stands_in)
    known = next((known for known in context.peer_locators if known.stands_in), None)
    if octets is None or any(locator.address == octets for locator in others):
        context.peer_locators = others
    elif known is None or known.address != octets:
        (proof,) = prove_locators(context.outbound_key[16:], (octets,), data)
        added = PeerLocator(octets, proof if _is_unicast(octets) else Proof.NONE)
        added.stands_in = True
        context.peer_locators = (*others, added)


def adopt_locators(
    core: Core, context: Context, options: tuple[Option, ...], evidence: Evidence
) -> None:
    """Take in a locator list, preferences and keepalive timeout, whichever are there (§10.4).

    Raises PeerViolation, and changes nothing, when they contradict each other.
    """
    listed = find(options, LocatorList)
    preferences = find(options, LocatorPreferences)
    ulid = context.outbound_key[16:]
    check_locators(options, ulid, evidence, context.peer_generation, len(_listed(context)))
    sent, parameters = find(options, CgaParameters), evidence.parameters
    if sent is not None:
        bound = evidence.signed or (parameters is not None and hba.prefixes(parameters))
        context.peer_parameters = sent.octets if bound else b""
    if listed is not None:
        _take_list(core, context, listed, evidence)
    if preferences is not None:
        by_address: dict[Address, Preference] = {}
        for octets, preference in zip(_listed(context), preferences.preferences, strict=True):
            by_address.setdefault(octets, preference)
        for locator in context.peer_locators:
            if locator.address in by_address:
                _prefer(core, locator, by_address[locator.address])
    timeout = find(options, KeepaliveTimeout)
    if timeout is not None:
        context.keepalive_timeout_s = _seconds(timeout.seconds)
    if context.carries:
        flows.install(core, context)


def adopt_delta(core: Core, context: Context, delta: LocatorDelta) -> None:
    """Take in how the peer's list changed (decision 11).

    What is added is known and not used until it is proved, as in a list; to remove one takes
    no more than the context's tag and a known source, for it harms only its owner. Raises
    PeerViolation, and changes nothing, when it is about another list than ours, or a method
    is none that we have.
    """
    if delta.generation == context.peer_generation:
        return
    if delta.base_generation != context.peer_generation:
        raise PeerViolation(Reason.DELTA_BASE, "a difference to another list")
    added: dict[Address, tuple[int, Preference]] = {}
    for method, preference, octets in delta.added:
        added.setdefault(octets, (method, preference))
    kept = [octets for octets in dict.fromkeys(_listed(context)) if octets not in delta.removed]
    places = dict.fromkeys((*kept, *added))
    methods = tuple(added[octets][0] if octets in added else METHOD_DNS for octets in places)
    listed = LocatorList(delta.generation, methods[:_LISTED_MAX], tuple(places)[:_LISTED_MAX])
    ulid = context.outbound_key[16:]
    evidence = Evidence(None, peer_parameters((), ulid, context.peer_parameters))
    check_locators((listed,), ulid, evidence)
    broken = [locator.address for locator in context.peer_locators if locator.broken]
    _take_list(core, context, listed, evidence)
    for locator in context.peer_locators:
        if locator.address in added:
            _prefer(core, locator, added[locator.address][1])
        elif locator.address in broken:
            locator.broken = True


def adopt_scope(core: Core, context: Context, scope: Scope) -> None:
    """Take in what the peer says of all locators in a prefix; the longest prefix counts.

    The list stays as it is, and so does what is proved. The caller has compared generations.
    """
    prefixes = sorted(scope.prefixes, key=lambda element: -element[0].length)
    for locator in context.peer_locators:
        said = next((what for where, what in prefixes if where.contains(locator.address)), None)
        if said is not None and locator.listed and not _is_preferred(locator, said):
            _prefer(core, locator, said)
    context.peer_generation = scope.generation
    flows.install(core, context)


def _is_preferred(locator: PeerLocator, preference: Preference) -> bool:
    """Whether it is noted already: lots are not drawn again for the same."""
    flags = (BROKEN if locator.broken else 0) | (TRANSIENT if locator.transient else 0)
    return (flags, locator.priority, locator.weight) == (
        preference.flags & (BROKEN | TRANSIENT),
        preference.priority,
        preference.weight,
    )


def _take_list(core: Core, context: Context, listed: LocatorList, evidence: Evidence) -> None:
    context.peer_locators = _merged(context, listed, evidence, core.settings.locators_max)
    context.peer_order = None
    if _listed(context) != listed.locators:
        context.peer_order = listed.locators
    context.last_in_pair = context.inbound_key
    context.peer_generation = listed.generation


def peer_parameters(
    options: tuple[Option, ...], ulid: Address, known: bytes = b""
) -> cga.CgaParameters | None:
    """The CGA parameters that a message brings, or those that the peer sent before (§10.1).

    Raises PeerViolation when they are malformed or not those of the peer's ULID (§7.13).
    """
    sent = find(options, CgaParameters)
    if sent is None:
        return cga.CgaParameters.parse(known) if known else None
    try:
        parameters = cga.CgaParameters.parse(sent.octets)
    except MalformedMessage as malformed:
        raise PeerViolation(malformed.reason, str(malformed)) from None
    if not made_with(ulid, parameters):
        raise PeerViolation(Reason.UNPROVED_ULID, "the ULID was not made with the CGA parameters")
    return parameters


def check_locators(
    options: tuple[Option, ...],
    ulid: Address,
    evidence: Evidence,
    generation: int = 0,
    count: int = 1,
) -> None:
    """Raise PeerViolation when a locator list or preferences cannot be taken in (§10.4).

    A list with a method that has no judge, or that the evidence contradicts, is refused as a
    whole (§7.2). ``generation`` and ``count`` are those of the list that the preferences are
    about when no list comes with them.
    """
    listed = find(options, LocatorList)
    preferences = find(options, LocatorPreferences)
    if listed is not None:
        generation, count = listed.generation, len(listed.locators)
        for place, method in enumerate(listed.methods):
            if method not in JUDGES:
                raise PeerViolation(Reason.BAD_METHOD, f"verification method {method}", place)
        wrong = inconsistent(ulid, listed.locators, listed.methods, evidence)
        if wrong is not None:
            raise PeerViolation(Reason.BAD_METHOD, "neither in the HBA set nor signed for", wrong)
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
    if proved and context.carries:
        flows.install(core, context)
    if proved:
        core.report(What.PROVED, context.outbound_key, f"{proved} of {len(unproved)} locators")


def _prefer(core: Core, locator: PeerLocator, preference: Preference) -> None:
    """Note what the peer says of one locator (§5.15.3).

    The lots are those of RFC 2782: the lowest of exponential draws with these rates falls to
    each in proportion to its weight. They are drawn once for each list, so that a context
    does not change its mind.
    """
    locator.broken = bool(preference.flags & BROKEN)
    locator.transient = bool(preference.flags & TRANSIENT)
    locator.priority = preference.priority
    locator.weight = preference.weight
    locator.lot = math.inf
    if preference.weight:
        locator.lot = -math.log(core.entropy.uniform(_LOT_MIN, 1.0)) / preference.weight


@lru_cache
def _seconds(told: int) -> float:
    """A keepalive timeout; one number serves all contexts whose peers say the same."""
    return float(max(1, told))


def _listed(context: Context) -> tuple[Address, ...]:
    """The peer's list as it came."""
    if context.peer_order is not None:
        return context.peer_order
    return tuple(locator.address for locator in context.peer_locators if locator.listed)


def _is_unicast(octets: Address) -> bool:
    """Whether an address can be a locator at all (RFC 5534 §4.3 prunes the others)."""
    link_local = octets[0] == 0xFE and octets[1] & 0xC0 == 0x80
    return octets[0] != 0xFF and not link_local and octets != UNSPECIFIED


def _merged(
    context: Context, listed: LocatorList, evidence: Evidence, limit: int
) -> tuple[PeerLocator, ...]:
    """The new Ls(peer): known locators keep what is known of them.

    The ULID and the locator in use stay even when the list leaves them out, as broken ones:
    there must be something to send to until another pair is confirmed. Of a locator that is
    listed twice the first counts.
    """
    ulid = context.outbound_key[16:]
    methods: dict[Address, int] = {}
    for octets, method in zip(listed.locators, listed.methods, strict=True):
        methods.setdefault(octets, method)
    offered = tuple(methods)[:limit]
    proofs = prove_listed(ulid, offered, tuple(methods.values())[:limit], evidence)
    merged: dict[Address, PeerLocator] = {}
    for octets, proof in zip(offered, proofs, strict=True):
        known = context.peer_locator(octets)
        if known is None:
            known = PeerLocator(octets, proof if _is_unicast(octets) else Proof.NONE)
        elif not known.proved or proof in (Proof.HBA, Proof.CGA):
            known.proof = proof if _is_unicast(octets) else Proof.NONE
        known.listed, known.broken = True, False
        merged[octets] = known
    for octets in (ulid, context.route[16:]):
        if octets not in merged:
            kept = context.peer_locator(octets) or PeerLocator(octets, Proof.ULID)
            kept.listed, kept.broken = False, True
            merged[octets] = kept
    for known in context.peer_locators:
        if known.stands_in:
            merged.setdefault(known.address, known)
    return tuple(merged.values())

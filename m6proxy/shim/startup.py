"""A pair whose ULIDs do not work from the start (functional decomposition §2.2, the shim's way;
docs/decisions/0015-start-up.md).

Two things tell: the uplink of the local ULID is down, or TCP sends its first segment again and
nothing at all came back. Then the exchange goes over the other locators of both ends: those of
the peer that DNS proves, or that an earlier context had proved.
"""

from __future__ import annotations

from typing import Final

from m6proxy.discovery.capability import NameData
from m6proxy.proof.judge import Proof, prove_locators
from m6proxy.shim.context import Context, Handshake
from m6proxy.shim.core import Core
from m6proxy.shim.exploration import candidates
from m6proxy.shim.locators import PeerLocator
from m6proxy.shim.timers import INITIAL_PROBES

ROUTES_MAX: Final = INITIAL_PROBES
"""How many pairs are tried at the rate of REAP's first probes."""


def suspected(core: Core, key: bytes) -> bool:
    """Tell whether the ULIDs of a pair (32 octets, no context yet) seem not to work."""
    return core.local_sets.is_down(key[:16]) or core.accounts.is_silent(key)


def plan_routes(core: Core, context: Context, data: NameData | None, now: float) -> None:
    """Choose the locator pairs over which a new exchange is tried.

    The ULIDs are the first of them, unless their uplink is down: a false alarm moves nothing.
    """
    if not suspected(core, context.outbound_key):
        return
    ulid = context.outbound_key[16:]
    context.peer_locators = (*context.peer_locators, *_known(core, ulid, data, now))
    routes = candidates(context.local_set, context.peer_locators, context.locators)
    if routes and context.handshake is not None:
        context.handshake.routes = routes[:ROUTES_MAX]
        context.handshake.route = routes[0]


def next_route(handshake: Handshake) -> None:
    """Try another pair with the next I1, one after the other."""
    if handshake.routes:
        place = handshake.routes.index(handshake.route)
        handshake.route = handshake.routes[(place + 1) % len(handshake.routes)]


def _known(core: Core, ulid: bytes, data: NameData | None, now: float) -> list[PeerLocator]:
    named = data.locators_of(ulid) if data is not None else ()
    known: dict[bytes, Proof] = {
        octets: proof
        for octets, proof in zip(named, prove_locators(ulid, named, data), strict=True)
        if proof is Proof.DNS
    }
    for octets in core.peers.locators_of(ulid, now):
        known.setdefault(octets, Proof.REMEMBERED)
    return [
        PeerLocator(octets, proof)
        for octets, proof in known.items()
        if not core.local_sets.is_local(octets)
    ]

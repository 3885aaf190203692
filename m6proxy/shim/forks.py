"""Forked contexts: further contexts of one ULID pair, for traffic that another uplink takes
(RFC 5533 §4.2, §7; the configuration's ``policy.forks``).

Once the context of a pair is established, each rule gets a fork: an exchange of its own, with a
random identifier, that goes over the rule's uplink, so that it tests the path it will use. A
fork has its own tags, reachability and route, and may be re-homed by itself. The host's packets
are sorted by the rules, only those of pairs that have forks; what comes in is found by its tag,
which a fork's packets carry on the ULIDs as well: taken for the pair's they would hide that its
path is dead.
Until a fork is there, and when it fails, its traffic goes by the pair's context.
"""

from __future__ import annotations

from collections.abc import Iterator

from m6proxy.names import LocatorPair
from m6proxy.shim.context import Context
from m6proxy.shim.core import Core
from m6proxy.shim.policy import ForkRule


def sort(main: Context, packet: bytes) -> Context:
    """Find the context that a packet of the pair goes by."""
    for rule, fork in main.forks:
        if rule.takes(packet):
            return fork if fork.carries else main
    return main


def missing(core: Core, main: Context) -> Iterator[tuple[ForkRule, LocatorPair]]:
    """The rules without a fork, each with the locator pair over which to set it up.

    A rule whose uplink the ULIDs use needs none, and one whose uplink is down gets none.
    """
    if main.fii or not main.carries:
        return
    have = {rule for rule, _ in main.forks}
    local = main.local_set
    for rule in core.settings.forks:
        for octets, uplink in zip(local.locators, local.uplinks, strict=True):
            route = LocatorPair(octets, main.route[16:])
            if uplink.name != rule.uplink or not uplink.up or rule in have:
                continue
            if octets + route.peer != main.outbound_key:
                yield rule, route


def new_fii(core: Core, main: Context) -> int:
    """A fork identifier that the pair does not use yet; never 0 (RFC 5533 §7.7)."""
    while True:
        fii = core.entropy.nonce()
        if fii and core.contexts.by_pair(main.outbound_key, fii) is None:
            return fii


def keep_with_pair(core: Core, context: Context) -> None:
    """A fork of ours is idle only when its pair is: it was asked for with the pair."""
    main = core.contexts.by_pair(context.outbound_key)
    if main is not None and any(fork is context for _, fork in main.forks):
        context.last_traffic_s = max(context.last_traffic_s, main.last_traffic_s)

"""Forked contexts: further contexts of one ULID pair, for traffic that another uplink takes
(RFC 5533 §4.2, §7; the configuration's ``policy.forks``).

Once the context of a pair is established, each rule gets a fork: an exchange of its own, with a
random identifier, that goes over the rule's uplink, so that it tests the path it will use. A
fork has its own tags, reachability and route, and may be re-homed by itself. The host's packets
are sorted by the rules, only those of pairs that have forks; what comes in is found by its tag,
which a fork's packets carry on the ULIDs as well: taken for the pair's they would hide that its
path is dead.
Until a fork is there, and when it fails, its traffic goes by the pair's context. A pair and
its forks end together. docs/decisions/0019-forks.md says why it is so.
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
            return fork if fork.watched else main
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


def is_used(core: Core, context: Context, now: float) -> bool:
    """Whether another context of its pair is: a pair and its forks become idle together.

    Both ends see the same traffic, so both end all of them at about the same time.
    """
    family = core.contexts.all_of_pair(context.outbound_key)
    used_s = [one.last_traffic_s for one in family if one.carries]
    context.last_traffic_s = max(used_s, default=context.last_traffic_s)
    return now < context.last_traffic_s + core.settings.idle_s

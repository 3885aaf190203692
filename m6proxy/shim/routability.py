"""May payload go to a locator of the peer before a probe to it was answered (mobike-design §3.2)?

The question comes up when the peer itself says that its locator in use is broken: then there
is a better one to go to at once, or a test to wait for. A search (``reap``) always ends on a
pair that was just tested. Either way only proved locators are looked at.
"""

from __future__ import annotations

from collections.abc import Set
from enum import Enum, unique

from m6proxy.names import Address
from m6proxy.proof.judge import Proof
from m6proxy.shim.locators import PeerLocator


@unique
class ReturnRoutability(Enum):
    """When a test must come before payload; the values are the words of the configuration."""

    ALWAYS = "always"
    """Before each use, also of locators that were tested for an earlier one."""
    FIRST_USE = "first_use"
    """Until a probe to the locator was answered once."""
    CHANGED_SOURCE = "changed_source"
    """As before, but not when the peer's update came from that very locator."""
    NEVER = "never"
    """The peer is believed."""


def may_send(
    policy: ReturnRoutability, locator: PeerLocator, source: Address, exempt: Set[Proof]
) -> bool:
    """Tell whether payload may go to a proved locator now, without another test.

    ``source`` is where the peer's update came from. A proof in ``exempt`` stands for the test,
    unless policy wants one always.
    """
    match policy:
        case ReturnRoutability.ALWAYS:
            return False
        case ReturnRoutability.NEVER:
            return True
        case ReturnRoutability.CHANGED_SOURCE if locator.address == source:
            return True
    return locator.tested or locator.proof in exempt

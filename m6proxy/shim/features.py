"""Extensions to RFC 5533 that two ends use only when both announced them (docs/wire.md)."""

from __future__ import annotations

from enum import IntEnum
from typing import Final


class Feature(IntEnum):
    """The bits of the Features option. No IntFlag: testing a bit of that takes a microsecond."""

    CLOSE = 1
    """Close and Close-Ack end a context at both ends."""
    DELTA = 2
    """Update Request may add and remove locators instead of listing all."""
    PARK = 4
    """An empty locator set says that the site goes away for a while."""
    SCOPE = 8
    """One Update may be about many contexts with the peer."""
    FLOWLABEL = 16
    """Re-homed packets may carry a flow label instead of the payload header."""
    IDENTIFIER = 32
    """Re-homed packets to locator-only addresses need no tag at all."""
    DSTOPT = 64
    """Re-homed packets may carry the context tag in a destination option."""


MODES: Final[int] = Feature.FLOWLABEL | Feature.IDENTIFIER | Feature.DSTOPT
"""Ways to send without the payload header."""
OURS: Final[int] = Feature.CLOSE | Feature.DELTA | Feature.PARK | Feature.SCOPE | MODES
"""What this version understands."""

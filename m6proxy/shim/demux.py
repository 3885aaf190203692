"""How the receiver of a re-homed packet finds its context (docs/decisions/0014, 0017)."""

from __future__ import annotations

from enum import IntEnum
from typing import Final


class DemuxMode(IntEnum):
    """The values are those of option Demux; the names, in lower case, those of the policy."""

    EXTHDR = 0
    """By the context tag in the payload header, 8 octets more."""
    FLOWLABEL = 1
    """By source, destination and the flow label that the receiver chose; no octet more."""
    IDENTIFIER = 2
    """By source and destination alone, where the destination is a locator-only address."""
    DSTOPT = 3
    """By the low 32 bits of the context tag in a destination option, 8 octets more, which the
    segmentation of the kernel and of network cards takes along (docs/decisions/0021)."""


UNTAGGED: Final = -1
"""In the place of a flow label: the packet has neither a label nor a header for us."""

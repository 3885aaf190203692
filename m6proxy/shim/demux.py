"""How the receiver of a re-homed packet finds its context (docs/decisions/0014)."""

from __future__ import annotations

from enum import IntEnum


class DemuxMode(IntEnum):
    """The values are those of option Demux; the names, in lower case, those of the policy."""

    EXTHDR = 0
    """By the context tag in the payload header, 8 octets more."""
    FLOWLABEL = 1
    """By source, destination and the flow label that the receiver chose; no octet more."""

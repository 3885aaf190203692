"""What becomes of a packet: the answer of the packet path.

Plain values instead of objects: on the packet path building an object for each packet
costs more than the lookup that decides about it.
"""

from __future__ import annotations

from enum import Enum
from typing import Final, Literal, TypeAlias

from m6proxy.reasons import Reason


class _Consumed(Enum):
    CONSUMED = "consumed"


CONSUMED: Final = _Consumed.CONSUMED
"""The packet was for us (a control message): it goes no further, and that is no loss."""

Verdict: TypeAlias = bytes | Reason | Literal[_Consumed.CONSUMED] | None
"""None: accept unchanged; bytes: send these octets instead; Reason: drop; CONSUMED: taken."""

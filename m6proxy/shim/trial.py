"""What would become of a packet, without anything becoming of it.

A second core is made that looks into the first one's tables and sees copies: the packet is
handled by the same code as a real one, and whatever that changes is thrown away.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from m6proxy.shim.context import Context
from m6proxy.shim.core import Core
from m6proxy.shim.effects import Effect
from m6proxy.shim.table import ContextTable
from m6proxy.shim.verdict import Verdict


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the engine would say of a packet."""

    verdict: Verdict
    effects: tuple[Effect, ...]
    """What it would ask of the world, in order."""
    context: Context | None
    """A copy of the context that the packet found, with the packet counted; None: it found none."""


class _Shadow(dict[Any, Any]):
    """Shows copies of what another dictionary has; what is written stays here."""

    def __init__(self, real: Mapping[Any, Any], copies: dict[int, Any]) -> None:
        super().__init__()
        self._real = real
        self._copies = copies

    def __missing__(self, key: Any) -> Any:
        value = self[key] = copy.deepcopy(self._real[key], self._copies)
        return value

    def get(self, key: Any, default: Any = None) -> Any:
        """Find a copy, the same one each time."""
        try:
            return self[key]
        except KeyError:
            return default

    def __contains__(self, key: object) -> bool:
        return super().__contains__(key) or key in self._real

    def __len__(self) -> int:
        return super().__len__() + len(self._real)

    def pop(self, key: Any, *default: Any) -> Any:
        """Forget a copy; the original stays in sight, as it does in its own dictionary."""
        return super().pop(key, *default or (None,))


def shadow_of(core: Core, packet: bytes, *, outbound: bool) -> Core:
    """Return a core in which one packet (at least 40 octets) may be tried.

    Only for packets of hosts: control messages change more than is copied here.
    """
    shadow = Core(core.settings, core.entropy)
    copies: dict[int, Any] = {}
    for name in ContextTable.__slots__:
        setattr(shadow.contexts, name, _Shadow(getattr(core.contexts, name), copies))
    key = packet[8:40] if outbound else packet[24:40] + packet[8:24]
    shadow.accounts = core.accounts.only(key)
    shadow.local_sets = core.local_sets
    shadow.peers = core.peers
    shadow.max_contexts = core.max_contexts
    return shadow


def outcome_of(shadow: Core, verdict: Verdict) -> Outcome:
    """Gather what was seen after a packet was tried in a shadow."""
    found = None
    for name in ContextTable.__slots__:
        seen = getattr(shadow.contexts, name)
        found = found or next((one for one in seen.values() if isinstance(one, Context)), None)
    return Outcome(verdict, tuple(shadow.effects), found)

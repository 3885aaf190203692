"""Names of addresses, learned from the DNS answers that pass through the gateway.

A host asks for a name and then sends to an address of the answer: so the passing answer is
where the name of a peer's address is to be had without asking anybody. It is a hint and no
more: anybody can send a packet that looks like an answer. A name counts for an address only
after its own DNS data says so (``plan``).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping

from m6proxy.discovery.overheard import parse_answer
from m6proxy.errors import MalformedMessage
from m6proxy.names import Address

ADDRESSES_MAX = 65_536
NAMES_MAX = 4
"""Names kept for one address; the one seen longest ago goes first."""
TTL_MIN_S = 60.0
TTL_MAX_S = 86_400.0


class NameBook:
    """Which names an address has. Static names come first and never expire."""

    def __init__(
        self,
        static: Mapping[Address, tuple[str, ...]] | None = None,
        addresses_max: int = ADDRESSES_MAX,
    ) -> None:
        if addresses_max < 1:
            raise ValueError("a name book holds at least one address")
        self._static = dict(static or {})
        self._addresses_max = addresses_max
        self._learned: OrderedDict[Address, OrderedDict[str, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._learned)

    def learn(self, payload: bytes, now: float) -> tuple[tuple[str, Address], ...]:
        """Take in one UDP payload, untrusted; return the names that are new. Never raises."""
        try:
            heard = parse_answer(payload)
        except MalformedMessage:
            return ()
        if heard is None:
            return ()
        until_s = now + min(max(heard.ttl_s, TTL_MIN_S), TTL_MAX_S)
        learned: list[tuple[str, Address]] = []
        for address in heard.addresses:
            names = self._names(address)
            for name in reversed(heard.names):  # the last one put is the most recent
                if names.get(name, now) <= now:
                    learned.append((name, address))
                names[name] = until_s
                names.move_to_end(name)
            while len(names) > NAMES_MAX:
                names.popitem(last=False)
        return tuple(learned)

    def names_of(self, address: Address, now: float) -> tuple[str, ...]:
        """Return the names of an address: the static ones, then the most recent first."""
        names = self._learned.get(address)
        fresh: list[str] = []
        if names is not None:
            for name in [name for name, until_s in names.items() if until_s <= now]:
                del names[name]
            fresh = list(reversed(names))
            if not names:
                del self._learned[address]
        return tuple(dict.fromkeys([*self.static_names_of(address), *fresh]))

    def static_names_of(self, address: Address) -> tuple[str, ...]:
        """Return the names that the configuration gives an address."""
        return self._static.get(address, ())

    def _names(self, address: Address) -> OrderedDict[str, float]:
        names = self._learned.setdefault(address, OrderedDict())
        self._learned.move_to_end(address)
        while len(self._learned) > self._addresses_max:
            self._learned.popitem(last=False)
        return names

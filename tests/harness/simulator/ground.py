"""No locator gets data before its proof and its test: kept from what passed the wire alone.

Proved: DNS said so to this engine, of this peer, before; or ULID and locator are of one set
of hashes. Tested, for one context: a probe to the locator was reported back by the peer; or
an exchange was completed over it, which needs an answer from there to what was sent there (an
I2 or I2bis that repeats our validator, or an R2 to a nonce of ours). Where the operator lets
an Update stand for the test, or wants none, it is not looked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from m6proxy.discovery.capability import NameData
from m6proxy.names import Address
from m6proxy.shim.context import Context
from m6proxy.shim.routability import ReturnRoutability
from tests.harness.simulator import wire
from tests.harness.simulator.invariants import Broken, Invariant


class Ground:
    """What one engine may know of its peers' locators."""

    def __init__(
        self, policy: ReturnRoutability, hashed: Callable[[Address, Address], bool]
    ) -> None:
        self._policy = policy
        self._hashed = hashed
        self._told: dict[Address, list[NameData]] = {}
        self._probes: set[wire.Record] = set()
        self._asked: dict[tuple[bytes, Address], int] = {}
        self._repeated: set[tuple[bytes, Address]] = set()
        self._tested: set[tuple[int, Address]] = set()

    def note_told(self, ulid: Address, data: NameData | None) -> None:
        """DNS answered the engine."""
        if data is not None:
            told = self._told.setdefault(ulid, [])
            if data not in told:
                told.append(data)

    def note_sent(self, packet: bytes) -> None:
        """The engine sent a control message."""
        kind, peer = wire.type_of(packet), packet[24:40]
        if kind == wire.PROBE:
            self._probes.add(wire.sent_record(packet))
        elif kind in (wire.I1, wire.I2, wire.I2BIS):
            self._asked[wire.nonce_of(packet), peer] = wire.named_tag(packet)
        elif kind == wire.R2 and (wire.nonce_of(packet), peer) in self._repeated:
            self._tested.add((wire.named_tag(packet), peer))

    def note_received(self, packet: bytes) -> None:
        """A control message reached the engine."""
        kind, peer = wire.type_of(packet), packet[8:24]
        if kind == wire.PROBE:
            tag = wire.named_tag(packet)
            self._tested.update(
                (tag, record.dst)
                for record in wire.received_records(packet)
                if record in self._probes
            )
        elif kind in (wire.I2, wire.I2BIS):
            self._repeated.add((wire.nonce_of(packet), peer))
        elif kind == wire.UPDATE_REQUEST and self._policy is ReturnRoutability.CHANGED_SOURCE:
            self._tested.add((wire.named_tag(packet), peer))
        elif kind == wire.R2:
            tag = self._asked.get((wire.nonce_of(packet), peer), 0)
            if tag:
                self._tested.add((tag, peer))

    def check_data(self, context: Context, locator: Address, pairs_tags: Iterable[int]) -> None:
        """Data of a context leaves for a locator of its peer.

        ``pairs_tags`` are those of all contexts of the pair: a fork begins with what its pair's
        context tested.
        """
        ulid = context.outbound_key[16:]
        if locator == ulid:
            return
        told = self._told.get(ulid, ())
        if not any(data.ties(ulid, locator) for data in told) and not self._hashed(ulid, locator):
            raise Broken(Invariant.GROUND, f"unproved: {locator.hex()}")
        if self._policy is ReturnRoutability.NEVER:
            return
        if all((tag, locator) not in self._tested for tag in pairs_tags):
            raise Broken(Invariant.GROUND, f"untested: {locator.hex()}")

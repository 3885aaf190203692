"""A host without a name that speaks for itself: its messages to b1, one by one."""

from __future__ import annotations

from dataclasses import dataclass

from m6proxy.names import Address
from m6proxy.proof.judge import Proof
from m6proxy.wire.message import I1, I2, R1, UpdateRequest
from m6proxy.wire.options import Option, UlidPairOption
from tests.harness.packets import control, find_messages
from tests.harness.pair import B1, Pair


@dataclass(frozen=True, slots=True)
class Nameless:
    """The host whose ULID this is."""

    ulid: Address

    def exchange(self, pair: Pair, source: Address, *options: Option) -> object:
        """Set a context up with b1 from an address; returns the verdict about the I2."""
        identity = () if source == self.ulid else (UlidPairOption(self.ulid, B1),)
        pair.inject(pair.beta, control(source, B1, I1(0xE0E, 1, identity)))
        (_, _, r1) = find_messages(pair.beta.sent, R1)[-1]
        message = I2(0xE0E, 1, r1.responder_nonce, (*r1.options, *identity, *options))
        return pair.inject(pair.beta, control(source, B1, message))

    def update(self, pair: Pair, *options: Option) -> object:
        """Tell b1 of other locators; returns the verdict."""
        request = UpdateRequest(pair.beta.context.local_tag, 5, options)
        return pair.inject(pair.beta, control(self.ulid, B1, request))


def proofs(pair: Pair) -> dict[Address, Proof]:
    """How b1's gateway proved each of the peer's locators."""
    return {locator.address: locator.proof for locator in pair.beta.context.peer_locators}

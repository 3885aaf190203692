"""Pieces of the four-way exchange that several tests need."""

from __future__ import annotations

from m6proxy.names import Address
from m6proxy.shim.transitions import State
from m6proxy.wire.message import I1, I2, R1, Message
from m6proxy.wire.options import (
    Option,
    UlidPairOption,
)
from tests.harness.packets import (
    control,
    find_messages,
    is_control,
)
from tests.harness.pair import (
    Pair,
    Site,
)

EVE = bytes.fromhex("20010db800660000000000000000000e")


def kinds(site: Site) -> list[type[object]]:
    """The types of the control messages that a site sent, in order."""
    return [
        type(message)
        for _, packet in site.sent
        if is_control(packet)
        for _, _, message in find_messages([(0.0, packet)], object)
    ]


def lose_first(pair: Pair, kind: type[Message], count: int = 1) -> list[bytes]:
    """Lose the first messages of a kind; returns the list in which they will be."""
    lost: list[bytes] = []

    def lose(packet: bytes) -> bool:
        if len(lost) < count and find_messages([(0.0, packet)], kind):
            lost.append(packet)
            return True
        return False

    pair.lose = lose
    return lost


def begin(pair: Pair) -> None:
    """Enough traffic from a1 that alpha wants a context."""
    for _ in range(2):
        pair.talk(pair.alpha)


def both_established(pair: Pair) -> bool:
    return all(
        [context.state for context in site.engine.contexts()] == [State.ESTABLISHED]
        for site in pair.sites.values()
    )


def answer_with(pair: Pair, kind: type[Message]) -> tuple[bytes, Message]:
    """Stop the exchange before an answer to alpha arrives; returns the answer."""
    lost = lose_first(pair, kind)
    begin(pair)
    pair.run(0.5)
    pair.lose = lambda _: False
    ((_, packet, message),) = find_messages([(0.0, lost[0])], kind)
    return packet, message


def exchange_from(
    pair: Pair, source: Address, ulids: UlidPairOption | None, *options: Option, tag: int = 0xE0E
) -> object:
    """A whole exchange by somebody at ``source``; returns the verdict about the I2."""
    identity = (ulids,) if ulids is not None else ()
    target = pair.beta.ulid
    pair.beta.sent.clear()
    pair.inject(pair.beta, control(source, target, I1(tag, 1, identity)))
    ((_, _, r1),) = find_messages(pair.beta.sent, R1)
    message = I2(tag, 1, r1.responder_nonce, (*r1.options, *identity, *options))
    return pair.inject(pair.beta, control(source, target, message))

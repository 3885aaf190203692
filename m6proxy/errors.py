"""The error tree. Whose fault it is stands in the type.

MalformedMessage and PeerViolation come from outside: they are counted and the packet is
dropped. SetupError is the operator's to mend and is one clear line. Anything else is our
own mistake and propagates.
"""

from __future__ import annotations

from m6proxy.reasons import Reason


class M6ProxyError(Exception):
    """The root of all errors that m6proxy raises on purpose."""


class MalformedMessage(M6ProxyError):
    """The octets are not a valid packet, message or option.

    ``pointer`` is the octet offset of the fault from the start of what was parsed.
    """

    def __init__(self, reason: Reason, what: str, pointer: int = 0) -> None:
        super().__init__(f"{what} (octet {pointer})")
        self.reason = reason
        self.pointer = pointer


class PeerViolation(M6ProxyError):
    """A well-formed message that the protocol does not allow here and now.

    ``place`` is the place in a list that is at fault, from 0, for reasons that are about one.
    """

    def __init__(self, reason: Reason, what: str, place: int = 0) -> None:
        super().__init__(what)
        self.reason = reason
        self.place = place


class SetupError(M6ProxyError):
    """What the operator must mend before m6proxy can run: one line, exit code 2.

    The text says what is wrong, where, and how to mend it.
    """

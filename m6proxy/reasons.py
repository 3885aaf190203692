"""Every way in which a packet can die, or be taken, has one number here.

The numbers are stable: metrics, logs and (later) the kernel programs share them. A new
reason gets the next free number of its block; a number is never used again.
"""

from __future__ import annotations

from enum import IntEnum, unique


@unique
class Reason(IntEnum):
    """Why a packet does not go on; the docstring of a member is its line in the manual."""

    # 1-19: the octets do not make a message (wire)
    TRUNCATED = 1
    BAD_LENGTH = 2
    BAD_CHECKSUM = 3
    BAD_ADDRESS = 4
    BAD_OPTION = 5
    MISSING_OPTION = 6
    BAD_FIELD = 7
    UNKNOWN_TYPE = 8
    CRITICAL_OPTION = 9
    TOO_MANY_HEADERS = 10

    # 20-49: the message does not fit the protocol's state (shim)
    NO_CONTEXT = 20
    WRONG_LOCATOR = 21
    WRONG_NONCE = 22
    BAD_VALIDATOR = 23
    OLD_VALIDATOR = 24
    ILLEGAL_IN_STATE = 25
    NOT_OUR_HOST = 26
    UNPROVED_LOCATOR = 27
    GENERATION_MISMATCH = 28
    PREFERENCE_COUNT = 29
    CONTEXT_CONFUSED = 30
    RATE_LIMITED = 31
    TABLE_FULL = 32
    UNPROVED_ULID = 33
    PEER_ERROR = 34
    BAD_METHOD = 35
    DELTA_BASE = 36
    BAD_SIGNATURE = 37
    NOBODYS_ADDRESS = 38
    PARKED = 39

    # 50-69: the packet cannot be rewritten or restored (data path)
    TOO_BIG = 50
    CUT_BY_QUEUE = 51
    BAD_CHAIN = 52

    @property
    def text(self) -> str:
        """One line for people."""
        return _TEXT[self]


_TEXT: dict[Reason, str] = {
    Reason.TRUNCATED: "the packet ends inside a header",
    Reason.BAD_LENGTH: "a length field disagrees with the packet",
    Reason.BAD_CHECKSUM: "the shim checksum is wrong",
    Reason.BAD_ADDRESS: "source or destination is multicast or unspecified",
    Reason.BAD_OPTION: "an option's contents are malformed",
    Reason.MISSING_OPTION: "an option that the message must carry is absent",
    Reason.BAD_FIELD: "a field has a value that is not allowed",
    Reason.UNKNOWN_TYPE: "the shim message type is unknown",
    Reason.CRITICAL_OPTION: "a critical option is unknown",
    Reason.TOO_MANY_HEADERS: "the chain of extension headers is too long",
    Reason.NO_CONTEXT: "no context has this tag, nonce or pair",
    Reason.WRONG_LOCATOR: "the addresses do not belong to the context",
    Reason.WRONG_NONCE: "the nonce is not the one that was sent",
    Reason.BAD_VALIDATOR: "the responder validator is not ours",
    Reason.OLD_VALIDATOR: "the responder validator is too old",
    Reason.ILLEGAL_IN_STATE: "the message is not legal in the context's state",
    Reason.NOT_OUR_HOST: "the destination is in none of the site's prefixes",
    Reason.UNPROVED_LOCATOR: "the locator is not proved to belong to the ULID",
    Reason.GENERATION_MISMATCH: "locator preferences for another generation of the list",
    Reason.PREFERENCE_COUNT: "not one preference for each locator of the list",
    Reason.CONTEXT_CONFUSED: "the peer gave one tag to two contexts",
    Reason.RATE_LIMITED: "the source sends control messages faster than allowed",
    Reason.TABLE_FULL: "the context table is full",
    Reason.UNPROVED_ULID: "the sender did not show that the ULID is its own",
    Reason.PEER_ERROR: "the peer reported an error",
    Reason.DELTA_BASE: "a difference to a locator list that we do not have",
    Reason.BAD_SIGNATURE: "the CGA signature over a locator list is not the ULID's",
    Reason.NOBODYS_ADDRESS: "a locator-only address, and no context says whose packet it is",
    Reason.PARKED: "the context is parked: one end said that it is away",
    Reason.BAD_METHOD: "a locator's verification method is unknown or reserved",
    Reason.TOO_BIG: "the packet does not fit the uplink with 8 octets more",
    Reason.CUT_BY_QUEUE: "the queue delivered only part of the packet",
    Reason.BAD_CHAIN: "the extension headers leave no place for the shim header",
}

"""The stateless half of the responder: validators for R1 and R1bis (RFC 5533 §7.10.1, §7.17.1).

The responder nonce is a counter of seconds, so that its age can be told without storing it;
the validator is a keyed hash over all that the initiator must repeat. The key changes every
two minutes and the last one stays valid, longer than any validator may live.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import Final

from m6proxy.errors import PeerViolation
from m6proxy.names import LocatorPair, Tag
from m6proxy.reasons import Reason
from m6proxy.shim.entropy import Entropy
from m6proxy.shim.timers import VALIDATOR_MIN_LIFETIME_S

VALIDATOR_OCTETS: Final = 16
LIFETIME_S: Final = 2 * VALIDATOR_MIN_LIFETIME_S
KEY_PERIOD_S: Final = 120
_NONCE_MASK: Final = 0xFFFFFFFF


class Responder:
    """Makes and checks validators; stores nothing about any initiator."""

    __slots__ = ("_entropy", "_keys")

    def __init__(self, entropy: Entropy) -> None:
        self._entropy = entropy
        self._keys: dict[int, bytes] = {}

    def nonce(self, now: float) -> int:
        """The responder nonce of this second, 32 bits."""
        return int(now) & _NONCE_MASK

    def validator(
        self,
        nonce: int,
        tag: Tag,
        ulids: bytes,
        route: LocatorPair,
        fii: int,
        now: float,
    ) -> bytes:
        """Compute a validator, 16 octets, over everything that an I2 or I2bis must repeat.

        ``ulids`` is 32 octets for an R1 and empty for an R1bis, whose receiver knows no ULIDs.
        """
        return self._hash(int(now) // KEY_PERIOD_S, nonce, tag, ulids, route, fii)

    def check(
        self,
        validator: bytes,
        nonce: int,
        tag: Tag,
        ulids: bytes,
        route: LocatorPair,
        fii: int,
        now: float,
    ) -> None:
        """Raise PeerViolation unless this validator was made here at most 60 s ago."""
        age_s = (self.nonce(now) - nonce) & _NONCE_MASK
        if age_s > LIFETIME_S:
            raise PeerViolation(Reason.OLD_VALIDATOR, f"a validator of {age_s} s")
        period = (int(now) - age_s) // KEY_PERIOD_S
        expected = self._hash(period, nonce, tag, ulids, route, fii)
        if not hmac.compare_digest(expected, validator):
            raise PeerViolation(Reason.BAD_VALIDATOR, "a validator that was not made here")

    def _hash(
        self, period: int, nonce: int, tag: Tag, ulids: bytes, route: LocatorPair, fii: int
    ) -> bytes:
        data = b"".join(
            (
                nonce.to_bytes(4),
                tag.to_bytes(6),
                fii.to_bytes(4),
                route.local,
                route.peer,
                ulids,
            )
        )
        return hashlib.blake2b(data, key=self._key(period), digest_size=VALIDATOR_OCTETS).digest()

    def _key(self, period: int) -> bytes:
        key = self._keys.get(period)
        if key is None:
            key = self._entropy.octets(32)
            newest = max(period, *self._keys, period)
            self._keys = {p: k for p, k in self._keys.items() if p >= newest - 1}
            self._keys[period] = key
        return key

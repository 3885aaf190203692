"""Proof by DNS: a locator belongs to a ULID when one name's DNS data covers both of them.

Whoever can write the records of a name speaks for the addresses in them as far as the name
is bound to the ULID. The binding of the ULID itself is ``prove_ulid``: either the message
came from the ULID, so that the four-way exchange showed that its sender receives there
(RFC 5533 §6), or PTR or the configuration gives the ULID that name. That somebody answers
at a locator is another question (RFC 5533 §7.2, the second aspect), and only a probe can
tell. What this is worth: docs/decisions/0004-proof-by-dns.md.
"""

from __future__ import annotations

from m6proxy.discovery.capability import NameData
from m6proxy.names import Address


def covers_both(ulid: Address, locator: Address, data: NameData | None) -> bool:
    """Tell whether DNS ties a locator to a ULID (16 octets each) under one name."""
    return data is not None and data.ties(ulid, locator)


def bears_name(ulid: Address, data: NameData | None) -> bool:
    """Tell whether PTR or the configuration names the ULID so, and the name covers the ULID."""
    return data is not None and data.owns_ulid and data.covers(ulid)

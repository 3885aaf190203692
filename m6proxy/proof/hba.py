"""Hash-based addresses: a set of addresses bound to each other by one hash (RFC 5535).

The Multi-Prefix extension lists the prefixes of the set; each address hashes its own prefix
together with that list. So one structure proves all addresses of the set, without any
signature, and nobody can add a prefix later.
"""

from __future__ import annotations

from typing import Final

from m6proxy.names import Address
from m6proxy.proof.cga import PREFIX_OCTETS, CgaParameters

MULTI_PREFIX: Final = 0x0012
"""Extension type (RFC 5535 §10)."""
_FLAGS_OCTETS: Final = 4


def prefixes(parameters: CgaParameters) -> tuple[bytes, ...]:
    """The prefixes (8 octets each) of the set; empty when this is no HBA structure (§5)."""
    for extension in parameters.extensions:
        listed = extension.data[_FLAGS_OCTETS:]
        if extension.number != MULTI_PREFIX or not listed or len(listed) % PREFIX_OCTETS:
            continue
        return tuple(listed[at : at + PREFIX_OCTETS] for at in range(0, len(listed), PREFIX_OCTETS))
    return ()


def verify(parameters: CgaParameters, address: Address) -> bool:
    """Tell whether an address belongs to the set of these parameters (RFC 5535 §7.2)."""
    return address[:PREFIX_OCTETS] in prefixes(parameters) and parameters.verify_under(address)


def same_set(parameters: CgaParameters, ulid: Address, locator: Address) -> bool:
    """Tell whether both addresses belong to the set: then one proves the other."""
    return verify(parameters, ulid) and verify(parameters, locator)

"""HBA sets for tests: the generation of RFC 5535 §6, which the package does not need."""

from __future__ import annotations

import hashlib
import random

from m6proxy.names import Address
from m6proxy.proof.cga import CgaParameters, Extension
from m6proxy.proof.hba import MULTI_PREFIX

_SEC_SHIFT = 61
_KEEP = 0x1CFFFFFFFFFFFFFF


def hba_set(
    prefixes: list[bytes], *, sec: int = 0, seed: int = 1
) -> list[tuple[Address, CgaParameters]]:
    """Return address and parameters for each prefix (8 octets each). Sec 0 or 1."""
    chosen = random.Random(seed)
    # a 384-bit number that looks like an RSA key: DER of SubjectPublicKeyInfo
    number = b"\x00" + (chosen.getrandbits(383) | 1 << 383).to_bytes(48)
    integers = b"\x02" + bytes([len(number)]) + number + b"\x02\x03\x01\x00\x01"
    key = b"\x30" + bytes([len(integers)]) + integers
    bits = b"\x03" + bytes([len(key) + 1]) + b"\x00" + key
    algorithm = bytes.fromhex("300d06092a864886f70d0101010500")
    public_key = b"\x30" + bytes([len(algorithm + bits)]) + algorithm + bits
    extension = Extension(MULTI_PREFIX, bytes(4) + b"".join(prefixes))
    modifier = chosen.getrandbits(128)
    while any(
        hashlib.sha1(
            modifier.to_bytes(16) + bytes(9) + public_key + extension.encode(),
            usedforsecurity=False,
        ).digest()[: 2 * sec]
    ):
        modifier = (modifier + 1) % (1 << 128)
    made = []
    for prefix in prefixes:
        parameters = CgaParameters(modifier.to_bytes(16), prefix, 0, public_key, (extension,))
        hash1 = int.from_bytes(
            hashlib.sha1(parameters.encode(), usedforsecurity=False).digest()[:8]
        )
        identifier = hash1 & _KEEP | sec << _SEC_SHIFT
        made.append((prefix + identifier.to_bytes(8), parameters))
    return made

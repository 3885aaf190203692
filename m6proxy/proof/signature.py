"""The CGA signature over locators (RFC 5533 §5.15.5, RFC 3972 §6): octets in, verdict out.

Who holds the private key of the structure that a ULID was made with signs the locators that
are its own as well. RSASSA-PKCS1-v1_5 with SHA-1 is what RFC 3972 prescribes. Keys that would
prove nothing, or cost too much, are refused before any arithmetic.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.hashes import SHA1
from cryptography.hazmat.primitives.serialization import load_der_public_key

from m6proxy.names import Address

MESSAGE_TYPE: Final = bytes.fromhex("4a3056624858574b3655416f506a6d48")
"""The CGA Message Type tag of Shim6."""
KEY_BITS: Final = range(1024, 4097)
"""Shorter ones can be factored; an HBA's, which nobody holds, has 384 bits (RFC 5535 §6.3)."""
EXPONENT_MAX: Final = 0xFFFFFFFF
"""The work grows with the length of the public exponent; 65537 is usual."""


def signed_octets(generation: int, locators: Iterable[Address]) -> bytes:
    """What is signed: the tag, the generation of the list (32 bits), its CGA locators in order."""
    return b"".join((MESSAGE_TYPE, generation.to_bytes(4), *locators))


def verify(
    public_key: bytes, signature: bytes, generation: int, locators: Iterable[Address]
) -> bool:
    """Tell whether the key's owner signed these locators (16 octets each) of this list.

    ``public_key`` is the DER of a SubjectPublicKeyInfo; one that is no RSA key of a usual size
    has signed nothing.
    """
    try:
        key = load_der_public_key(public_key)
        if not isinstance(key, RSAPublicKey) or key.key_size not in KEY_BITS:
            return False
        if key.public_numbers().e > EXPONENT_MAX:
            return False
        key.verify(signature, signed_octets(generation, locators), PKCS1v15(), SHA1())  # noqa: S303
    except (InvalidSignature, UnsupportedAlgorithm, ValueError):
        return False
    return True

"""CGA signatures over locators: what verifies, what does not, and what is not even tried."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1
from cryptography.hazmat.primitives.asymmetric.ec import generate_private_key as ec_key
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicNumbers
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from m6proxy.names import address
from m6proxy.proof.cga import CgaParameters
from m6proxy.proof.judge import Evidence, Proof, inconsistent, prove_listed, prove_ulid
from m6proxy.proof.signature import EXPONENT_MAX, KEY_BITS, signed_octets, verify
from m6proxy.wire.message import I2, find, parse_message
from m6proxy.wire.options import CgaParameters as CgaOption
from m6proxy.wire.options import CgaSignature, LocatorList
from tests.harness.cga import key, make, public_octets, sign
from tests.harness.hba import hba_set
from tests.vectors import load_vectors

PREFIX = address("2001:db8:c1:1::")[:8]
ANY = address("2001:db8:c2:1::7")
VICTIM = address("2001:db8:bad::1")
KEY = public_octets(key())
ULID, PARAMETERS = make(KEY, PREFIX)
STRICT, STRICT_PARAMETERS = make(KEY, PREFIX, sec=1)
BOTH = (ULID, ANY)
SIGNATURE = sign(key(), 5, *BOTH)
SIGNED = Evidence(None, PARAMETERS, BOTH)


def test_octets_of_the_openssl_program_verify() -> None:
    message = parse_message(load_vectors("messages.txt")["i2 with cga"])
    assert isinstance(message, I2)
    listed = find(message.options, LocatorList)
    sent = find(message.options, CgaOption)
    signature = find(message.options, CgaSignature)
    assert listed is not None
    assert sent is not None
    assert signature is not None
    parameters = CgaParameters.parse(sent.octets)
    assert parameters.verify(listed.locators[0])
    assert verify(parameters.public_key, signature.octets, listed.generation, listed.locators)


def test_what_is_signed() -> None:
    assert signed_octets(5, BOTH).hex() == (
        "4a3056624858574b3655416f506a6d48" + "00000005" + ULID.hex() + ANY.hex()
    )


def test_the_keys_own_signature_and_no_other() -> None:
    assert verify(KEY, SIGNATURE, 5, BOTH)
    assert not verify(KEY, SIGNATURE, 6, BOTH)
    assert not verify(KEY, SIGNATURE, 5, (ANY, ULID))
    assert not verify(KEY, SIGNATURE, 5, (ULID, VICTIM))
    assert not verify(KEY, SIGNATURE, 5, (ULID,))
    assert not verify(KEY, sign(key(1), 5, *BOTH), 5, BOTH)
    assert not verify(KEY, sign(key(), 5, *BOTH, tag=bytes(16)), 5, BOTH)
    assert not verify(public_octets(key(1)), SIGNATURE, 5, BOTH)
    assert verify(public_octets(key(2, 2048)), sign(key(2, 2048), 5, *BOTH), 5, BOTH)


def with_numbers(exponent: int, modulus: int) -> bytes:
    numbers = RSAPublicNumbers(exponent, modulus).public_key()
    return numbers.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


@pytest.mark.parametrize(
    "public_key",
    [
        b"",
        b"\x30\x03\x02\x01\x05",
        KEY[:-1],
        hba_set([PREFIX])[0][1].public_key,
        ec_key(SECP256R1())
        .public_key()
        .public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
        with_numbers(EXPONENT_MAX + 2, key().public_key().public_numbers().n),
        with_numbers(65537, (1 << KEY_BITS.stop) + 1),
    ],
    ids=["nothing", "no key", "cut", "of an hba", "elliptic", "exponent", "too long"],
)
def test_keys_that_sign_nothing(public_key: bytes) -> None:
    """A key that can be factored, or that makes us work for long, is not used at all."""
    assert not verify(public_key, SIGNATURE, 5, BOTH)


@given(st.binary(max_size=300), st.binary(max_size=300), st.integers(0, 2**32 - 1))
def test_any_octets_are_refused(public_key: bytes, signature: bytes, generation: int) -> None:
    assert not verify(public_key, SIGNATURE, generation, BOTH)
    assert not verify(KEY, signature, generation, BOTH)


# --- the judge -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ulid", "locator", "evidence", "proof"),
    [
        (ULID, ANY, SIGNED, Proof.CGA),
        (STRICT, ANY, Evidence(None, STRICT_PARAMETERS, BOTH), Proof.CGA),
        (ULID, ULID, SIGNED, Proof.ULID),
        (ULID, VICTIM, SIGNED, Proof.NONE),
        (ULID, ANY, Evidence(None, PARAMETERS), Proof.NONE),
        (ULID, ANY, Evidence(None, None, BOTH), Proof.NONE),
        (VICTIM, ANY, SIGNED, Proof.NONE),
        (ULID[:15] + bytes([ULID[15] ^ 1]), ANY, SIGNED, Proof.NONE),
    ],
)
def test_the_judge_of_method_cga(
    ulid: bytes, locator: bytes, evidence: Evidence, proof: Proof
) -> None:
    assert prove_listed(ulid, (locator,), (2,), evidence) == (proof,)


def test_a_locator_that_is_not_signed_for_has_its_place() -> None:
    assert inconsistent(ULID, BOTH, (2, 2), SIGNED) is None
    assert inconsistent(ULID, (*BOTH, VICTIM), (2, 2, 2), SIGNED) == 2
    assert inconsistent(ULID, (*BOTH, VICTIM), (2, 2, 201), SIGNED) is None
    assert inconsistent(ULID, BOTH, (2, 2), Evidence(None, PARAMETERS)) == 1
    assert inconsistent(ULID, BOTH, (2, 2), Evidence()) == 0
    assert inconsistent(ULID, BOTH, (201, 1), SIGNED) == 1


def test_a_ulid_is_proved_from_a_locator_that_its_key_signs_for() -> None:
    assert prove_ulid(ULID, ANY, SIGNED)
    assert not prove_ulid(ULID, VICTIM, SIGNED)
    assert not prove_ulid(ULID, ANY, Evidence(None, PARAMETERS))
    assert not prove_ulid(VICTIM, ANY, SIGNED)

"""Hosts with cryptographically generated addresses and the keys to sign with (RFC 3972 §4, §6).

The other end of method CGA, which the package lacks: our hosts have ordinary addresses.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cache
from typing import Any

from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, generate_private_key
from cryptography.hazmat.primitives.hashes import SHA1
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from m6proxy.names import Address
from m6proxy.proof.cga import CgaParameters
from m6proxy.shim.core import Core
from m6proxy.shim.locators import LocalSet, LocalSets, Uplink
from m6proxy.wire.options import METHOD_CGA, CgaSignature, LocatorList
from m6proxy.wire.options import CgaParameters as CgaOption
from tests.harness.pair import Site

TAG = bytes.fromhex("4A30 5662 4858 574B 3655 416F 506A 6D48")
"""RFC 5533 §5.15.5."""
_SEC_SHIFT = 61
_KEEP = 0x1CFFFFFFFFFFFFFF


def key(number: int = 0, bits: int = 1024) -> RSAPrivateKey:
    """A key of its own for each number."""
    return _key(number, bits)


@cache
def _key(number: int, bits: int) -> RSAPrivateKey:
    assert number >= 0
    return generate_private_key(65537, bits)


def public_octets(private: RSAPrivateKey) -> bytes:
    """DER of the SubjectPublicKeyInfo."""
    return private.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def make(public_key: bytes, prefix: bytes, *, sec: int = 0) -> tuple[Address, CgaParameters]:
    """An address under a prefix (8 octets) and its parameters. Sec 0 or 1."""
    modifier = 0
    while any(_sha1(modifier.to_bytes(16) + bytes(9) + public_key)[: 2 * sec]):
        modifier += 1
    parameters = CgaParameters(modifier.to_bytes(16), prefix, 0, public_key)
    hash1 = int.from_bytes(_sha1(parameters.encode())[:8])
    return prefix + (hash1 & _KEEP | sec << _SEC_SHIFT).to_bytes(8), parameters


def sign(private: RSAPrivateKey, generation: int, *locators: Address, tag: bytes = TAG) -> bytes:
    """Sign locators of a list with this generation, in this order."""
    octets = tag + generation.to_bytes(4) + b"".join(locators)
    return private.sign(octets, PKCS1v15(), SHA1())  # noqa: S303


def _sha1(octets: bytes) -> bytes:
    return hashlib.sha1(octets, usedforsecurity=False).digest()


class CgaLocalSet(LocalSet):
    """Ls(local) of a host with a CGA, which signs for its other addresses."""

    def __init__(
        self,
        made: tuple[Address, CgaParameters],
        uplinks: tuple[Uplink, ...],
        generation: int,
        private: RSAPrivateKey,
    ) -> None:
        ulid, self._parameters = made
        super().__init__(ulid, uplinks, generation)
        self._signature = sign(private, generation, *self.locators)

    def options(self, places: Sequence[int] | None = None) -> Any:
        assert places is None, "two locators always fit"
        listed = LocatorList(self.generation, (METHOD_CGA,) * len(self.locators), self.locators)
        parameters = CgaOption(self._parameters.encode())
        return listed, *super().options()[1:], parameters, CgaSignature(self._signature)


class CgaLocalSets(LocalSets):
    """The locator sets of a site with one such host; stands in for the site's own."""

    def __init__(
        self, made: tuple[Address, CgaParameters], core: Core, private: RSAPrivateKey
    ) -> None:
        super().__init__(core.settings.uplinks, core.entropy)
        self._made, self._private = made, private

    def by_ulid(self, ulid: Address) -> LocalSet:
        assert ulid == self._made[0]
        found = self._by_ulid.get(ulid)
        if found is None:
            found = CgaLocalSet(self._made, self.uplinks, self._entropy.nonce(), self._private)
            self._by_ulid[ulid] = found
        return found


def become_cga(site: Site, number: int = 0) -> Address:
    """Make a site's host one with a CGA and no name; returns its ULID."""
    private = key(number)
    made = make(public_octets(private), site.settings.uplinks[0].prefix.graft(site.ulid)[:8])
    core = site.engine._core
    core.local_sets = CgaLocalSets(made, core, private)
    site.ulid, site.name = made[0], ""
    return site.ulid

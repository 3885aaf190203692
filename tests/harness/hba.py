"""HBA sets and hosts for tests: RFC 5535 §6, and the other end of §7, which the package lacks."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from typing import Any

from m6proxy.names import Address
from m6proxy.proof.cga import CgaParameters, Extension
from m6proxy.proof.hba import MULTI_PREFIX
from m6proxy.shim.core import Core
from m6proxy.shim.locators import LocalSet, LocalSets, Uplink
from m6proxy.wire.options import METHOD_HBA, LocatorList
from m6proxy.wire.options import CgaParameters as CgaOption
from tests.harness.pair import Site

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


class HbaLocalSet(LocalSet):
    """Ls(local) of a host whose addresses are hashes: each has an identifier of its own."""

    def __init__(
        self,
        made: list[tuple[Address, CgaParameters]],
        uplinks: tuple[Uplink, ...],
        generation: int,
    ) -> None:
        super().__init__(made[0][0], uplinks, generation)
        self.locators = tuple(octets for octets, _ in made)
        self._parameters = made[0][1].encode()

    def options(self, places: Sequence[int] | None = None) -> Any:
        assert places is None, "few locators always fit"
        listed = LocatorList(self.generation, (METHOD_HBA,) * len(self.locators), self.locators)
        return listed, *super().options()[1:], CgaOption(self._parameters)


class HbaLocalSets(LocalSets):
    """The locator sets of a site whose hosts have HBAs; stands in for the site's own."""

    def __init__(self, hosts: list[list[tuple[Address, CgaParameters]]], core: Core) -> None:
        super().__init__(core.settings.uplinks, core.entropy)
        self._made = {made[0][0]: made for made in hosts}

    def same_host(self, ulid: Address, locator: Address) -> bool:
        return any(
            ulid in addresses and locator in addresses
            for addresses in ([octets for octets, _ in made] for made in self._made.values())
        )

    def by_ulid(self, ulid: Address) -> LocalSet:
        found = self._by_ulid.get(ulid)
        if found is None:
            found = HbaLocalSet(self._made[ulid], self.uplinks, self._entropy.nonce())
            self._by_ulid[ulid] = found
        return found


def become_hba(site: Site, seed: int = 1) -> list[tuple[Address, CgaParameters]]:
    """Make a site's host one of an ordinary Shim6 kind: no name, addresses that are hashes."""
    prefixes = [uplink.prefix.graft(site.ulid)[:8] for uplink in site.settings.uplinks]
    made = hba_set(prefixes, seed=seed)
    core = site.engine._core
    core.local_sets = HbaLocalSets([made], core)
    site.ulid, site.name = made[0][0], ""
    return made

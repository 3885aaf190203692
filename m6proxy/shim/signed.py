"""The locators of a peer that its CGA key signs for (RFC 5533 §5.15.5), in a message of it.

Every message with a locator list is weighed once, behind its cheaper checks and its rate limit;
``peerset`` believes method CGA of nothing but what was found signed for here.
"""

from __future__ import annotations

from m6proxy.discovery.capability import NameData
from m6proxy.errors import PeerViolation
from m6proxy.names import Address
from m6proxy.proof.cga import CgaParameters
from m6proxy.proof.judge import Evidence
from m6proxy.proof.signature import verify
from m6proxy.reasons import Reason
from m6proxy.shim.context import Context
from m6proxy.shim.core import Core
from m6proxy.shim.peerset import peer_parameters
from m6proxy.wire.message import find
from m6proxy.wire.options import METHOD_CGA, CgaSignature, LocatorList, Option


def evidence_of(
    core: Core,
    context: Context,
    options: tuple[Option, ...],
    data: NameData | None,
    source: Address,
    now: float,
) -> Evidence:
    """What a message brings, or its sender brought before, to prove the locators in its list.

    A signature takes a token of the source's requests: a public-key operation is dear. Raises
    PeerViolation when there is none left, and as ``peer_parameters`` and ``_signed`` do.
    """
    parameters = peer_parameters(options, context.outbound_key[16:], context.peer_parameters)
    if listed_by_cga(options) and not core.requests_limit.allow(source, now):
        raise PeerViolation(Reason.RATE_LIMITED, "too many signatures from this prefix")
    return Evidence(data, parameters, _signed(options, parameters))


def fresh_evidence(options: tuple[Option, ...], ulid: Address) -> Evidence:
    """The same of an I2 or I2bis, whose sender has no context yet and spent its token already."""
    parameters = peer_parameters(options, ulid)
    return Evidence(None, parameters, _signed(options, parameters))


def listed_by_cga(options: tuple[Option, ...]) -> tuple[Address, ...]:
    """The locators whose method is CGA, in the order of the list."""
    listed = find(options, LocatorList)
    if listed is None or METHOD_CGA not in listed.methods:
        return ()
    pairs = zip(listed.locators, listed.methods, strict=True)
    return tuple(locator for locator, method in pairs if method == METHOD_CGA)


def _signed(options: tuple[Option, ...], parameters: CgaParameters | None) -> tuple[Address, ...]:
    """The locators that the signature covers; none without a signature or without a key.

    Then list and message contradict each other, and ``check_locators`` says so. Raises
    PeerViolation when the signature is not the key's.
    """
    locators = listed_by_cga(options)
    listed, signature = find(options, LocatorList), find(options, CgaSignature)
    if not locators or listed is None or signature is None or parameters is None:
        return ()
    if not verify(parameters.public_key, signature.octets, listed.generation, locators):
        place = listed.methods.index(METHOD_CGA)
        raise PeerViolation(Reason.BAD_SIGNATURE, "the CGA signature is not the key's", place)
    return locators

"""The Internet checksum (RFC 1071), over plain octets and with the pseudo-header."""

from __future__ import annotations

from m6proxy.names import ADDRESS_OCTETS, Address

_ICMPV6 = 58


def checksum(octets: bytes) -> int:
    """Return the 16-bit one's complement of the one's complement sum of the octets.

    Octets that hold their own right checksum give 0. An odd end is padded with a zero.

    The sum of 16-bit words with end-around carry is the number itself modulo 65,535
    (because 2^16 is 1 there), so one division of a big integer does all the work.
    """
    number = int.from_bytes(octets)
    if len(octets) & 1:
        number <<= 8
    remainder = number % 0xFFFF
    # One's complement has two zeros: only a sum of nothing but zeros folds to 0x0000.
    if not remainder and number:
        return 0
    return 0xFFFF - remainder


def icmpv6_checksum(src: Address, dst: Address, message: bytes) -> int:
    """Return the checksum of an ICMPv6 message with its pseudo-header (RFC 8200 §8.1).

    The checksum field of ``message`` must be zero for sending; with the field in place a
    right message gives 0. Raises ValueError when an address is not 16 octets.
    """
    return upper_checksum(src, dst, _ICMPV6, message)


def upper_checksum(src: Address, dst: Address, protocol: int, message: bytes) -> int:
    """Return the same for any upper-layer protocol (0 to 255) that has this pseudo-header.

    UDP sends 0xFFFF where it is 0, and the others may. Raises ValueError as above.
    """
    if len(src) != ADDRESS_OCTETS or len(dst) != ADDRESS_OCTETS:
        raise ValueError("an address is 16 octets")
    return checksum(
        b"".join((src, dst, len(message).to_bytes(4), bytes((0, 0, 0, protocol)), message))
    )

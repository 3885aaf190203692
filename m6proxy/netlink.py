"""Netlink, as far as we speak it ourselves: questions out, answers in, attributes apart.

``pyroute2`` knows everything, and needs milliseconds and an event loop of its own for it. What is
asked every second, or inside our loop, is asked here. Numbers are in this machine's order.
"""

from __future__ import annotations

import os
import socket
import struct
import sys
from collections.abc import Iterator
from types import TracebackType
from typing import Final, NamedTuple, Self

ROUTE: Final = 0
XFRM: Final = 6
NETFILTER: Final = 12
"""Protocols of the netlink family."""

ERROR, DONE = 2, 3
"""Types of the kernel's own messages; DONE ends a dump."""

_REQUEST, _DUMP = 0x1, 0x300
_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
_TYPE_MASK: Final = 0x3FFF
"""Above it are the flags NLA_F_NESTED and NLA_F_NET_BYTEORDER."""
_SOL_NETLINK, _ADD_MEMBERSHIP = 270, 1
_SO_RCVBUFFORCE: Final = 33
_READ_OCTETS: Final = 65_536
_TIMEOUT_S: Final = 2.0


class Message(NamedTuple):
    """One message of the kernel."""

    kind: int
    sequence: int
    payload: bytes


def messages(datagram: bytes) -> Iterator[Message]:
    """Take a datagram apart; what is cut off at its end is left out."""
    offset = 0
    while offset + _HEADER.size <= len(datagram):
        length, kind, _, sequence, _ = _HEADER.unpack_from(datagram, offset)
        if length < _HEADER.size or offset + length > len(datagram):
            return
        yield Message(kind, sequence, datagram[offset + _HEADER.size : offset + length])
        offset += (length + 3) & ~3


def attributes(octets: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield type, without its flags, and value of each attribute."""
    offset = 0
    while offset + _ATTRIBUTE.size <= len(octets):
        length, kind = _ATTRIBUTE.unpack_from(octets, offset)
        if length < _ATTRIBUTE.size or offset + length > len(octets):
            return
        yield kind & _TYPE_MASK, octets[offset + _ATTRIBUTE.size : offset + length]
        offset += (length + 3) & ~3


def attribute(kind: int, value: bytes) -> bytes:
    """Return one attribute, padded."""
    length = _ATTRIBUTE.size + len(value)
    return _ATTRIBUTE.pack(length, kind) + value + bytes(-length % 4)


def text_of(value: bytes) -> str:
    """Read a name: the octets before the first zero."""
    return value.partition(b"\0")[0].decode("utf-8", "replace")


def message(kind: int, payload: bytes, *, dump: bool, sequence: int) -> bytes:
    """Return a question, with its header."""
    flags = _REQUEST | (_DUMP if dump else 0)
    return _HEADER.pack(_HEADER.size + len(payload), kind, flags, sequence, 0) + payload


def subscribe(
    protocol: int, groups: tuple[int, ...], *, room_octets: int | None = None
) -> socket.socket:
    """Open a socket that hears announcements and never blocks. Raises OSError.

    ``room_octets``: what may wait in it, as the kernel counts, if not the usual 208 KiB.
    """
    heard = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol)
    try:
        heard.setblocking(False)
        heard.bind((0, 0))
        if room_octets is not None:
            heard.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, room_octets)
        for group in groups:
            heard.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, group)
    except OSError:
        heard.close()
        raise
    return heard


class Asking:
    """One socket for questions to the network namespace of the thread that opens it.

    Each question waits for its answer, which the kernel has ready: some 20 us. Raises OSError with
    the kernel's errno, or TimeoutError.
    """

    def __init__(self, protocol: int) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol)
        try:
            self._socket.settimeout(_TIMEOUT_S)
            self._socket.bind((0, 0))
        except OSError:
            self._socket.close()
            raise
        self._sequence = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the socket; safe to call twice."""
        self._socket.close()

    def ask(self, kind: int, payload: bytes) -> Message:
        """Return the one answer."""
        self._send(kind, payload, dump=False)
        while True:
            for answer in self._heard():
                return answer

    def dump(self, kind: int, payload: bytes) -> list[Message]:
        """Return all that the kernel lists."""
        self._send(kind, payload, dump=True)
        listed: list[Message] = []
        while True:
            for answer in self._heard():
                if answer.kind == DONE:
                    return listed
                listed.append(answer)

    def _send(self, kind: int, payload: bytes, *, dump: bool) -> None:
        self._sequence += 1
        self._socket.send(message(kind, payload, dump=dump, sequence=self._sequence))

    def _heard(self) -> Iterator[Message]:
        """The messages of one datagram that answer the last question."""
        for answer in messages(self._socket.recv(_READ_OCTETS)):
            if answer.sequence != self._sequence:
                continue
            if answer.kind in (ERROR, DONE) and len(answer.payload) >= 4:
                number = -int.from_bytes(answer.payload[:4], sys.byteorder, signed=True)
                if number:
                    raise OSError(number, os.strerror(number))
            yield answer

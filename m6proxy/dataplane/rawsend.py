"""Send whole IPv6 packets whose source is a host of the site, out of the right uplink.

A packet from an IPPROTO_RAW socket carries its own header, but the kernel chooses the
route by the source that it was told, not by that header: without IPV6_PKTINFO it takes an
address of its own, the ``from PREFIX`` rules do not match, and the packet leaves by main's
default. IPV6_PKTINFO with an address that is not the gateway's needs IPV6_FREEBIND.
Seen on the wire: tests/netns/test_steering_rawsend.py.
"""

from __future__ import annotations

import errno
import socket
from collections import Counter

from m6proxy.errors import SetupError
from m6proxy.names import ADDRESS_OCTETS, address_text

_IPV6_FREEBIND = 78
"""linux/in6.h; Python's socket module does not name it."""
_ANY_INTERFACE = bytes(4)
"""The second half of in6_pktinfo: the routing decides."""
_HEADER_OCTETS = 40
_SEND_BUFFER_OCTETS = 1 << 20

_NAMES = {
    errno.EAGAIN: "send_buffer_full",
    errno.ENOBUFS: "send_buffer_full",
    errno.ENOMEM: "send_buffer_full",
    errno.ENETUNREACH: "send_no_route",
    errno.EHOSTUNREACH: "send_no_route",
    errno.ENETDOWN: "send_no_route",
    errno.ENODEV: "send_no_route",
    errno.EPERM: "send_forbidden",
    errno.EACCES: "send_forbidden",
    errno.EMSGSIZE: "send_too_big",
}
NAMES = (*dict.fromkeys(_NAMES.values()), "send_failed")
"""The names under which packets that could not be sent are counted."""


class RawSender:
    """A socket that sends packets of ours, in the namespace of the thread that opened it.

    Raises SetupError when the kernel refuses the socket (CAP_NET_RAW and CAP_NET_ADMIN).
    """

    def __init__(self) -> None:
        self._losses: Counter[str] = Counter(dict.fromkeys(NAMES, 0))
        try:
            self._socket = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_RAW)
            self._socket.setblocking(False)
            self._socket.setsockopt(socket.IPPROTO_IPV6, _IPV6_FREEBIND, 1)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_OCTETS)
        except OSError as refused:
            raise SetupError(f"cannot open a raw IPv6 socket: {refused.strerror}") from None

    def send(self, packet: bytes) -> None:
        """Send one IPv6 packet, header included. What fails is counted, never raised.

        A packet shorter than an IPv6 header is our own mistake: ValueError.
        """
        if len(packet) < _HEADER_OCTETS:
            raise ValueError("a packet has at least the 40 octets of the IPv6 header")
        source = packet[8 : 8 + ADDRESS_OCTETS]
        steer = (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, source + _ANY_INTERFACE)
        target = (address_text(packet[24:40]), 0)
        try:
            self._socket.sendmsg([packet], [steer], 0, target)
        except OSError as failed:
            self._losses[_NAMES.get(failed.errno or 0, "send_failed")] += 1

    def losses(self) -> dict[str, int]:
        """Packets that could not be sent, by cause."""
        return dict(self._losses)

    def close(self) -> None:
        """Close the socket; safe to call twice. What is sent afterwards is counted as failed."""
        self._socket.close()

"""Rules of nftables for tests, given to the kernel itself: the program nft need not be there."""

from __future__ import annotations

import struct

from m6proxy.netlink import ERROR, NETFILTER, attribute, messages
from m6proxy.netlink import subscribe as _open

IP, INET, NETDEV, BRIDGE, IP6 = 2, 1, 5, 7, 10
FORWARD, INGRESS, INET_INGRESS = 2, 0, 5
ACCEPT, DROP = 1, 0

_NFT = 10 << 8
_NEW_TABLE, _DELETE_TABLE, _NEW_CHAIN, _NEW_RULE = _NFT, _NFT | 2, _NFT | 3, _NFT | 6
_BATCH_BEGIN, _BATCH_END, _SUBSYSTEM = 0x10, 0x11, 10
_REQUEST, _ACK, _CREATE, _APPEND = 0x1, 0x4, 0x400, 0x800
_HEADER = struct.Struct("=IHHII")


def add_chain(
    family: int,
    table: str,
    *,
    hook: int = FORWARD,
    device: str | None = None,
    policy: int = ACCEPT,
    kind: str = "filter",
) -> None:
    """Make a table with one base chain, ``c``, in the namespace of this thread."""
    place = attribute(1, hook.to_bytes(4)) + attribute(2, (100).to_bytes(4))
    place += attribute(3, _text(device)) if device else b""
    chain = attribute(1, _text(table)) + attribute(3, _text("c")) + attribute(4 | 0x8000, place)
    chain += attribute(5, policy.to_bytes(4)) + attribute(7, _text(kind))
    _batch(
        _command(_NEW_TABLE, family, attribute(1, _text(table))),
        _command(_NEW_CHAIN, family, chain),
    )


def add_drop(family: int, table: str) -> None:
    """Let everything that comes to chain ``c`` be dropped."""
    verdict = attribute(2 | 0x8000, attribute(2 | 0x8000, attribute(1, DROP.to_bytes(4))))
    immediate = attribute(1, _text("immediate"))
    immediate += attribute(2 | 0x8000, attribute(1, (0).to_bytes(4)) + verdict)
    rule = attribute(1, _text(table)) + attribute(2, _text("c"))
    rule += attribute(4 | 0x8000, attribute(1 | 0x8000, immediate))
    _batch(_command(_NEW_RULE, family, rule, _APPEND))


def delete_table(family: int, table: str) -> None:
    """Delete a table with all that is in it."""
    _batch(_command(_DELETE_TABLE, family, attribute(1, _text(table)), create=False))


def _text(name: str) -> bytes:
    return name.encode() + b"\0"


def _command(
    kind: int, family: int, content: bytes, flags: int = 0, *, create: bool = True
) -> tuple[int, int, bytes]:
    flags |= _ACK | (_CREATE if create else 0)
    return kind, flags, bytes([family, 0, 0, 0]) + content


def _batch(*commands: tuple[int, int, bytes]) -> None:
    ends = bytes([0, 0]) + _SUBSYSTEM.to_bytes(2)
    parts = [(_BATCH_BEGIN, 0, ends), *commands, (_BATCH_END, 0, ends)]
    packed = b"".join(
        _HEADER.pack(_HEADER.size + len(content), kind, flags | _REQUEST, number, 0) + content
        for number, (kind, flags, content) in enumerate(parts)
    )
    with _open(NETFILTER, ()) as asking:
        asking.setblocking(True)
        asking.settimeout(2)
        asking.send(packed)
        answered = 0
        while answered < len(commands):
            for answer in messages(asking.recv(65_536)):
                assert answer.kind == ERROR, "an acknowledgement or a refusal"
                assert answer.payload[:4] == bytes(4), f"refused: {answer.payload[:4].hex()}"
                answered += 1

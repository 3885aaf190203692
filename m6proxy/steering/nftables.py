"""What nftables has, asked from the kernel itself: no program has to be installed for it.

``iptables-nft`` puts its tables there too, as tables of family ip6 with the names that it has for
them, and leaves base chains without rules behind: those decide nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from m6proxy.netlink import Asking, Message, attribute, attributes, text_of
from m6proxy.steering.render import HOOKS, is_ours

INET, NETDEV, BRIDGE, IPV6 = 1, 5, 7, 10
"""Families whose chains an IPv6 packet may meet, or may get connection tracking from."""
FAMILIES: Final = {INET: "inet", NETDEV: "netdev", BRIDGE: "bridge", IPV6: "ip6"}
_FAMILY_OCTETS: Final = frozenset(bytes([family]) for family in FAMILIES)
NOTICES: Final = (7,)
"""NFNLGRP_NFTABLES: announcements of all changes."""

# linux/netfilter/nf_tables.h; all numbers are in network order
_NFT: Final = 10 << 8
_NEW_CHAIN, _GET_CHAIN, _DEL_CHAIN = _NFT | 3, _NFT | 4, _NFT | 5
_NEW_RULE, _GET_RULE, _DEL_RULE = _NFT | 6, _NFT | 7, _NFT | 8
_GET_GENERATION: Final = _NFT | 16
_HEADER_OCTETS: Final = 4
_CHAIN_TABLE, _CHAIN_NAME, _CHAIN_HOOK, _CHAIN_POLICY, _CHAIN_USE = 1, 3, 4, 5, 6
_HOOK_NUMBER, _HOOK_DEVICES = 1, 4
_RULE_TABLE, _RULE_CHAIN, _RULE_EXPRESSIONS = 1, 2, 4
_EXPRESSION_NAME, _EXPRESSION_DATA = 1, 2
_IMMEDIATE_DATA, _DATA_VERDICT, _VERDICT_CHAIN = 2, 2, 2
_GENERATION_ID, _NF_ACCEPT = 1, 1
_EXTENSION_NAME: Final = 1
_COMPATIBLE: Final = frozenset({"match", "target"})
"""Parts of a rule that are extensions of iptables, by a name of their own."""
_BLIND: Final = frozenset(
    {
        *("immediate", "meta", "payload", "cmp", "bitwise", "byteorder", "range", "lookup"),
        *("counter", "limit", "quota", "log", "reject", "exthdr", "rt", "fib", "hash", "numgen"),
        *("match comment", "match tcp", "match udp", "match icmp6", "match multiport"),
        *("match addrtype", "match limit", "match hashlimit", "match mark", "match mac"),
        *("match length", "match iprange", "match set", "match pkttype", "match hl"),
        *("target LOG", "target NFLOG", "target REJECT", "target MARK", "target NFQUEUE"),
    }
)
"""Parts of a rule that look at the packet alone; whatever is not here may track connections."""

_HOOK_NAMES = ("prerouting", "input", "forward", "output", "postrouting", "ingress")
_PASSED = frozenset({"prerouting", "forward", "postrouting", "ingress"})
"""Hooks that a forwarded packet passes, and would not any more."""


@dataclass(frozen=True, slots=True)
class Chain:
    """One chain of nftables."""

    family: int
    table: str
    name: str
    uses: int
    """How many rules it has, and rules that jump to it."""
    hook: str | None = None
    """Where packets come to it; None: only by jumps."""
    accepts: bool = True
    """What its policy says."""
    devices: tuple[str, ...] = ()
    """At whose ingress or egress it is; a name may end in an asterisk."""

    @property
    def is_met(self) -> bool:
        """Whether forwarded packets come to it by themselves."""
        return self.hook in _PASSED and self.family != BRIDGE

    @property
    def decides_nothing(self) -> bool:
        """Whether packets come through it as if it were not there.

        That holds of type nat as well: without a rule it tracks no connection.
        """
        return not self.uses and self.accepts

    def is_at(self, interfaces: tuple[str, ...]) -> bool:
        """Whether it sees packets of one of these; a chain without devices sees all."""
        return not self.devices or any(
            name.startswith(device[:-1]) if device.endswith("*") else name == device
            for device in self.devices
            for name in interfaces
        )

    def __str__(self) -> str:
        where = f"{self.hook} of {', '.join(self.devices)}" if self.devices else self.hook
        words = f"table {FAMILIES[self.family]} {self.table}, chain {self.name}"
        return f"{words} ({where})" if where else words


def generation(asking: Asking) -> int:
    """The number that each change of the rules adds one to. Raises OSError."""
    found = dict(_attributes(asking.ask(_GET_GENERATION, _header(0))))
    return int.from_bytes(found.get(_GENERATION_ID, b""))


def read_chains(asking: Asking) -> list[Chain]:
    """All chains of ``FAMILIES``. Raises OSError."""
    return [
        chain
        for each in asking.dump(_GET_CHAIN, _header(0))
        if each.payload[0] in FAMILIES and (chain := _chain(each)) is not None
    ]


def is_our_chain(chain: Chain) -> bool:
    """Tell whether m6proxy made it."""
    return chain.family == IPV6 and chain.table in HOOKS and is_ours(chain.table, chain.name)


def holds_only_our_jump(asking: Asking, chain: Chain) -> bool:
    """Tell whether nothing but jumps to chains of ours stand in a built-in chain.

    Raises OSError.
    """
    if (chain.family, chain.name) != (IPV6, "PREROUTING") or chain.table not in HOOKS:
        return False
    rules = _rules(asking, chain)
    return chain.accepts and all(_jump(rule) in HOOKS[chain.table] for rule in rules)


def skipped_chains(asking: Asking, interfaces: tuple[str, ...]) -> list[str]:
    """Say in a line each which chains of others a packet would not meet. Raises OSError.

    Rules elsewhere count if they might let the kernel track connections: that is done where
    forwarded packets go.
    """
    chains = [
        chain
        for chain in read_chains(asking)
        if not (chain.decides_nothing or is_our_chain(chain)) and chain.is_at(interfaces)
    ]
    lines = [
        f"nftables: {chain}: {_what(chain)}"
        for chain in chains
        if chain.is_met and not holds_only_our_jump(asking, chain)
    ]
    return lines or [
        f"nftables: {chain}: {_what(chain)}, which may track connections"
        for chain in chains
        if not chain.is_met and not all(map(_is_blind, _rules(asking, chain)))
    ]


def is_about_others(notice: Message) -> bool:
    """Tell whether an announcement may be of anything but the contents of our own chains."""
    if notice.payload[:1] not in _FAMILY_OCTETS:  # nor is a new generation of a family
        return False
    if notice.kind in (_NEW_CHAIN, _DEL_CHAIN):
        at_table, at_chain = _CHAIN_TABLE, _CHAIN_NAME
    elif notice.kind in (_NEW_RULE, _DEL_RULE):
        at_table, at_chain = _RULE_TABLE, _RULE_CHAIN
    else:
        return True
    found = dict(_attributes(notice))
    table, chain = text_of(found.get(at_table, b"")), text_of(found.get(at_chain, b""))
    return not (notice.payload[:1] == bytes([IPV6]) and table in HOOKS and is_ours(table, chain))


def _what(chain: Chain) -> str:
    if chain.uses:
        return "1 rule" if chain.uses == 1 else f"{chain.uses} rules"
    return "policy drop"


def _header(family: int) -> bytes:
    """The start of a message of netfilter: family, version, resource."""
    return bytes([family, 0, 0, 0])


def _zero_ended(name: str) -> bytes:
    return name.encode() + b"\0"


def _attributes(answer: Message) -> Iterator[tuple[int, bytes]]:
    return attributes(answer.payload[_HEADER_OCTETS:])


def _number(found: dict[int, bytes], kind: int, default: int = 0) -> int:
    return int.from_bytes(found[kind]) if kind in found else default


def _chain(answer: Message) -> Chain | None:
    if answer.kind != _NEW_CHAIN or len(answer.payload) < _HEADER_OCTETS:
        return None
    family = answer.payload[0]
    found = dict(_attributes(answer))
    hook = dict(attributes(found[_CHAIN_HOOK])) if _CHAIN_HOOK in found else None
    return Chain(
        family,
        text_of(found.get(_CHAIN_TABLE, b"")),
        text_of(found.get(_CHAIN_NAME, b"")),
        _number(found, _CHAIN_USE),
        None if hook is None else _hook_name(family, _number(hook, _HOOK_NUMBER)),
        _number(found, _CHAIN_POLICY, _NF_ACCEPT) == _NF_ACCEPT,
        () if hook is None else tuple(_devices(hook)),
    )


def _hook_name(family: int, number: int) -> str:
    if family == NETDEV:
        return "egress" if number else "ingress"
    return _HOOK_NAMES[number] if number < len(_HOOK_NAMES) else f"hook {number}"


def _devices(hook: dict[int, bytes]) -> Iterator[str]:
    """Type 1 is a name, type 2 the beginning of names."""
    for kind, value in attributes(hook.get(_HOOK_DEVICES, b"")):
        yield text_of(value) + ("*" if kind == 2 else "")


def _rules(asking: Asking, chain: Chain) -> list[Message]:
    names = attribute(_RULE_TABLE, _zero_ended(chain.table))
    names += attribute(_RULE_CHAIN, _zero_ended(chain.name))
    return asking.dump(_GET_RULE, _header(chain.family) + names)


def _expressions(rule: Message) -> Iterator[tuple[str, bytes]]:
    """Name and data of each part of a rule."""
    for _, element in attributes(dict(_attributes(rule)).get(_RULE_EXPRESSIONS, b"")):
        found = dict(attributes(element))
        yield text_of(found.get(_EXPRESSION_NAME, b"")), found.get(_EXPRESSION_DATA, b"")


def _is_blind(rule: Message) -> bool:
    """Tell whether a rule is made of parts that need no connection tracking."""
    for name, data in _expressions(rule):
        if name in _COMPATIBLE:
            name = f"{name} {text_of(dict(attributes(data)).get(_EXTENSION_NAME, b''))}"
        if name not in _BLIND:
            return False
    return True


def _jump(rule: Message) -> str | None:
    """The chain that a rule jumps to in its last expression."""
    target = None
    for name, data in _expressions(rule):
        target = _target(data) if name == "immediate" else None
    return target


def _target(immediate: bytes) -> str | None:
    for kind in (_IMMEDIATE_DATA, _DATA_VERDICT, _VERDICT_CHAIN):
        inner = dict(attributes(immediate)).get(kind)
        if inner is None:
            return None
        immediate = inner
    return text_of(immediate)

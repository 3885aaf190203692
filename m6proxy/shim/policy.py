"""When a pair deserves a context: deferred establishment by policy (RFC 5533 §4, §11).

No packet waits for a context. The traffic of each pair is counted, in both directions,
and the first threshold that is crossed makes the pair ripe. Selectors overrule counting:
``never`` wins over ``always``.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from dataclasses import dataclass
from enum import Enum, unique

from m6proxy.names import Address, Prefix
from m6proxy.wire.ipv6 import upper_layer

SILENT_START_S = 0.9
"""TCP sends its first segment again after 1 s: without any answer until then, the addresses of
the pair seem not to work."""
_SYN_AT = 40 + 13
_SYN, _SYN_ACK = 0x02, 0x12
PROTOCOLS = {"tcp": 6, "udp": 17, "esp": 50, "ah": 51, "icmpv6": 58, "sctp": 132}
_WITH_PORTS = frozenset({6, 17, 132})


@unique
class FailbackMode(Enum):
    """Whether contexts go back to a better pair; the values are the words of the configuration."""

    NEVER = "never"
    """And what many contexts had to leave is tried last until it is seen to work."""
    SOFT = "soft"
    """New contexts only: what many had to leave is tried last for some minutes."""
    HARD = "hard"
    """Contexts that live go back as well, after a hold time."""


@dataclass(frozen=True, slots=True)
class Selector:
    """Matches traffic by the peer's prefix, or by protocol and either port."""

    prefix: Prefix | None = None
    protocol: int | None = None
    """IP protocol number, 0 to 255."""
    port: int | None = None
    """1 to 65535; only with TCP, UDP or SCTP."""

    @classmethod
    def parse(cls, text: str) -> Selector:
        """Parse ``2001:db8::/32``, ``2001:db8::1``, ``udp``, ``udp/53`` or ``89``.

        Raises ValueError with one line that says what is wrong.
        """
        if ":" in text:
            return cls(prefix=Prefix.parse(text))
        word, slash, port_text = text.partition("/")
        protocol = PROTOCOLS.get(word.lower())
        if protocol is None:
            if not word.isdecimal() or int(word) > 255:
                raise ValueError(
                    f"{text!r} is neither a prefix nor a protocol "
                    f"({', '.join(PROTOCOLS)} or a number up to 255)"
                )
            protocol = int(word)
        if not slash:
            return cls(protocol=protocol)
        if protocol not in _WITH_PORTS:
            raise ValueError(f"{text!r}: only tcp, udp and sctp have ports")
        if not port_text.isdecimal() or not 1 <= int(port_text) <= 65535:
            raise ValueError(f"{text!r}: a port is a number from 1 to 65535")
        return cls(protocol=protocol, port=int(port_text))


@unique
class Detection(Enum):
    """The ways to find out whether a peer has a shim; the values are those of the file."""

    CONFIGURATION = "configuration"
    """The operator says so."""
    DNS = "dns"
    """The peer's record says so."""
    PROBE = "probe"
    """The peer answers a question of its own."""
    I1 = "i1"
    """The peer answers an I1."""


DETECTION = (Detection.CONFIGURATION, Detection.DNS, Detection.I1)
"""The order unless the configuration gives another."""


@dataclass(frozen=True, slots=True)
class EstablishPolicy:
    """Thresholds and selectors; a threshold of None never triggers."""

    after_octets: int | None = 2048
    after_packets: int | None = None
    after_s: float | None = 10.0
    always: tuple[Selector, ...] = ()
    never: tuple[Selector, ...] = ()


@dataclass(frozen=True, slots=True)
class ForkRule:
    """Traffic that goes by a fork of its pair's context, over one uplink."""

    match: tuple[Selector, ...]
    uplink: str

    def takes(self, packet: bytes) -> bool:
        """Tell whether an outbound packet matches one of the selectors."""
        if _matches_prefix(self.match, packet[24:40]):
            return True
        upper = upper_layer(packet)
        return upper is not None and _matches_flow(self.match, upper[0], _ports(packet, *upper))


@dataclass(frozen=True, slots=True)
class Traffic:
    """What the kernel counted of a pair that has no context."""

    packets: int
    octets: int
    first_s: float
    """When it began, on the clock of ``now``."""
    outbound: bool
    """A host of ours sent some of it."""
    answered: bool
    silent: bool
    """TCP had to send its first segment again, and nothing came back."""


class _Account:
    """What one pair without a context has sent and received."""

    __slots__ = (
        "answered",
        "by_prefix",
        "first_s",
        "octets",
        "outbound",
        "packets",
        "quiet_until_s",
        "silent",
        "syn_s",
    )

    def __init__(self, now: float, by_prefix: bool | None) -> None:
        self.first_s = now
        self.octets = 0
        self.packets = 0
        self.outbound = False
        self.answered = False
        self.syn_s = 0.0
        self.silent = False
        self.quiet_until_s = 0.0
        self.by_prefix = by_prefix


class Accounts:
    """Traffic counters of pairs that have no context, the least recently used forgotten first."""

    def __init__(self, policy: EstablishPolicy, *, limit: int = 65_536) -> None:
        self._policy = policy
        self._limit = limit
        self._by_pair: OrderedDict[bytes, _Account] = OrderedDict()
        self._flow_rules = any(s.protocol is not None for s in (*policy.always, *policy.never))

    def __len__(self) -> int:
        return len(self._by_pair)

    def count(
        self, key: bytes, packet: bytes, *, outbound: bool, now: float, dead: bool = False
    ) -> bool:
        """Count one packet of the pair ``key`` (local 16 + peer 16 octets).

        Returns whether a context should be asked for now. A pair that only ever receives
        is never ripe: the host may not exist. ``dead``: its addresses are known not to work.
        """
        account = self._by_pair.get(key)
        if account is None:
            account = self._open(key, now)
        else:
            self._by_pair.move_to_end(key)
        if account.by_prefix is False:
            return False
        by_flow = self._flow_verdict(packet) if self._flow_rules else None
        if by_flow is False:
            return False
        if not account.packets:
            account.first_s = now
        account.octets += len(packet)
        account.packets += 1
        if outbound:
            account.outbound = True
            if packet[6] == 6 and not account.answered:
                _note_syn(account, packet, now)
        else:
            account.answered, account.silent = True, False
        return self._is_ripe(account, now, wanted=by_flow is True or dead)

    def take(self, key: bytes, traffic: Traffic, now: float, *, dead: bool) -> bool:
        """Take the kernel's counters for a pair over; whether to ask for a context now.

        The selectors that look at protocols do not decide: who has any counts by ``count``.
        """
        account = self._by_pair.get(key) or self._open(key, now)
        account.packets, account.octets = traffic.packets, traffic.octets
        account.first_s = traffic.first_s
        account.outbound, account.answered = traffic.outbound, traffic.answered
        account.silent = traffic.silent and not traffic.answered
        return account.by_prefix is not False and self._is_ripe(account, now, wanted=dead)

    def only(self, key: bytes) -> Accounts:
        """Return accounts of their own with a copy of what is known of one pair."""
        other = Accounts(self._policy, limit=self._limit)
        if key in self._by_pair:
            other._by_pair[key] = copy.copy(self._by_pair[key])
        return other

    def silence(self, key: bytes, until_s: float) -> None:
        """Do not call the pair ripe again before ``until_s``: it was asked for, or refused."""
        account = self._by_pair.get(key)
        if account is not None:
            account.quiet_until_s = until_s

    def is_silent(self, key: bytes) -> bool:
        """Tell whether TCP had to send the first segment of a pair again, unanswered."""
        account = self._by_pair.get(key)
        return account is not None and account.silent

    def hold(self, key: bytes, now: float, until_s: float) -> None:
        """Let a pair not become ripe before ``until_s``, whether it was counted yet or not.

        The time of a pair that was not is counted from its first packet all the same.
        """
        if key not in self._by_pair:
            self._open(key, now)
        self.silence(key, until_s)

    def forget(self, key: bytes) -> None:
        """Drop the counters of a pair: it has a context now."""
        self._by_pair.pop(key, None)

    def _open(self, key: bytes, now: float) -> _Account:
        peer = key[16:]
        by_prefix: bool | None = None
        if _matches_prefix(self._policy.never, peer):
            by_prefix = False
        elif _matches_prefix(self._policy.always, peer):
            by_prefix = True
        account = self._by_pair[key] = _Account(now, by_prefix)
        if len(self._by_pair) > self._limit:
            self._by_pair.popitem(last=False)
        return account

    def _flow_verdict(self, packet: bytes) -> bool | None:
        upper = upper_layer(packet)
        if upper is None:
            return None
        protocol, offset = upper
        ports = _ports(packet, protocol, offset)
        if _matches_flow(self._policy.never, protocol, ports):
            return False
        return True if _matches_flow(self._policy.always, protocol, ports) else None

    def _is_ripe(self, account: _Account, now: float, *, wanted: bool) -> bool:
        if not account.outbound or now < account.quiet_until_s:
            return False
        wanted = wanted or account.by_prefix is True or account.silent
        return wanted or self._crossed(account, now)

    def _crossed(self, account: _Account, now: float) -> bool:
        policy = self._policy
        return (
            (policy.after_octets is not None and account.octets >= policy.after_octets)
            or (policy.after_packets is not None and account.packets >= policy.after_packets)
            or (policy.after_s is not None and now - account.first_s >= policy.after_s)
        )


def _note_syn(account: _Account, packet: bytes, now: float) -> None:
    if len(packet) <= _SYN_AT or packet[_SYN_AT] & _SYN_ACK != _SYN:
        return
    account.syn_s = account.syn_s or now
    account.silent = now - account.syn_s >= SILENT_START_S


def _ports(packet: bytes, protocol: int, offset: int) -> tuple[int, ...]:
    if protocol not in _WITH_PORTS or len(packet) < offset + 4:
        return ()
    both = packet[offset : offset + 4]
    return int.from_bytes(both[:2]), int.from_bytes(both[2:])


def _matches_prefix(selectors: tuple[Selector, ...], peer: Address) -> bool:
    return any(s.prefix is not None and s.prefix.contains(peer) for s in selectors)


def _matches_flow(selectors: tuple[Selector, ...], protocol: int, ports: tuple[int, ...]) -> bool:
    return any(
        s.protocol == protocol and (s.port is None or s.port in ports)
        for s in selectors
        if s.protocol is not None
    )

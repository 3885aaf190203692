"""What steering has to know about the site: a plain value, made from the configuration.

Steering stands below the daemon and cannot see its configuration model.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from m6proxy.discovery.addressing import Pattern
from m6proxy.names import ADDRESS_OCTETS, Address, Prefix

_INTERFACE = re.compile(r"[A-Za-z0-9_.@:-]{1,15}")
_SITE = re.compile(r"[A-Za-z0-9_.-]{1,200}")
MARK_OURS, MARK_OURS_MASK = 0x80, 0xF0
"""In our octet of the mark: it is decided how the packet goes. Low nibble: an uplink, from 1."""
MARK_SHOWN = 0x90
"""The same, if no daemon is there to see the packet first."""
_MARK_EITHER_MASK = 0xEF
_RESERVED_TABLES = range(253, 256)
"""default, main and local: never ours."""


@dataclass(frozen=True, slots=True)
class UplinkSettings:
    """One provider attachment."""

    name: str
    interface: str
    prefix: Prefix
    gateway: Address
    """The provider's router, 16 octets; reached through ``interface``."""
    preference: int = 1
    """The lower the better."""
    weight: int = 0
    """Among equal preferences, its share of what comes in; 0 to 255, 0: none unless all have 0."""
    temporary: bool = False
    """Peers are told that it is less stable than the others."""

    def __post_init__(self) -> None:
        if not _INTERFACE.fullmatch(self.interface):
            raise ValueError(f"{self.interface!r} is not an interface name")
        if len(self.gateway) != ADDRESS_OCTETS:
            raise ValueError("a gateway is an address of 16 octets")


@dataclass(frozen=True, slots=True)
class SteeringSettings:
    """Everything that rules and routes are rendered from."""

    site: str
    lan: tuple[str, ...]
    """Interfaces towards the hosts."""
    uplinks: tuple[UplinkSettings, ...]
    queue_outbound: int = 140
    """NFQUEUE number, 0 to 65535."""
    queue_inbound: int = 141
    table_base: int = 14_000
    """The routing table of the first uplink; the next ones follow."""
    rule_priority: int = 14_000
    """Priority of the rule that spares connected networks; the next number selects the table."""
    locator_only: tuple[Pattern, ...] = ()
    """Destinations that no machine has: only through the engine, dropped when it is dead."""
    mark_shift: int | None = None
    """Where our 8 bits of a packet's mark begin, 0 to 24; None: nothing of ours marks any."""

    def __post_init__(self) -> None:
        if not _SITE.fullmatch(self.site):
            raise ValueError(f"{self.site!r} is not a site name")
        if not self.lan or not self.uplinks:
            raise ValueError("a site has at least one LAN interface and one uplink")
        for interface in self.lan:
            if not _INTERFACE.fullmatch(interface):
                raise ValueError(f"{interface!r} is not an interface name")
        queues = (self.queue_outbound, self.queue_inbound)
        if not all(0 <= queue <= 0xFFFF for queue in queues) or queues[0] == queues[1]:
            raise ValueError("the queues are two different numbers from 0 to 65535")
        tables = range(self.table_base, self.table_base + len(self.uplinks))
        if tables.start < 1 or tables.stop > 1 << 32 or set(tables) & set(_RESERVED_TABLES):
            raise ValueError(f"tables {tables.start} to {tables.stop - 1} are not all free to use")
        if not 1 <= self.rule_priority < 32_765:
            raise ValueError("the rule priority is a number from 1 to 32764, before main's")
        if self.mark_shift is not None and not 0 <= self.mark_shift <= 24:
            raise ValueError("our 8 bits of the mark begin at bit 0 to 24")

    @property
    def comment(self) -> str:
        """The words that every rule of ours carries."""
        return f"m6proxy {self.site}"

    def mark(self, octet: int, mask: int = 0xFF) -> str:
        """Our 8 bits of the mark with their mask, as ``ip`` and ip6tables write them."""
        shift = self.mark_shift or 0
        return f"{octet << shift:#x}/{mask << shift:#x}"

    @property
    def mark_bits(self) -> int:
        """Which bits of a packet's mark are ours, 32 bits; 0 where nothing of ours marks any."""
        return 0xFF << self.mark_shift if self.mark_shift is not None else 0

    def uplink_match(self, uplink: UplinkSettings) -> str:
        """The mark of packets that leave by an uplink, with its mask."""
        return self.mark(self._uplink_octet(uplink), _MARK_EITHER_MASK)

    def uplink_mark(self, uplink: UplinkSettings) -> int:
        """The same as a number, without the mask."""
        return self._uplink_octet(uplink) << (self.mark_shift or 0)

    def _uplink_octet(self, uplink: UplinkSettings) -> int:
        return MARK_OURS + 1 + self.uplinks.index(uplink)

    def table(self, uplink: UplinkSettings) -> int:
        """Return the number of an uplink's routing table."""
        return self.table_base + self.uplinks.index(uplink)

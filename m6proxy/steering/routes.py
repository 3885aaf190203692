"""Source-prefix routing: a packet leaves by the uplink that its source prefix belongs to.

For each uplink there is a table with a default route to the provider, and below it an
``unreachable`` default: when the provider's route is gone, a packet from its prefix is
refused here and does not fall through to another provider, which would filter it. Two
rules lead there: connected and more specific routes of ``main`` come first, its default
does not (``suppress_prefixlength 0``), then the uplink's table. A rule before these leads from
a mark of ours to its uplink's table: programs in the kernel mark packets, and the daemon its
questions to name servers. Rules and
routes carry protocol number 140, by which they are recognised; nothing else is ever changed.
See docs/decisions/0006-routing.md.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from threading import Lock
from typing import Any

from m6proxy.errors import SetupError
from m6proxy.names import Prefix, address_text
from m6proxy.steering.programs import run_program
from m6proxy.steering.settings import SteeringSettings, UplinkSettings

PROTOCOL = 140
"""rtm_protocol and FRA_PROTOCOL of what m6proxy installed; the shim's protocol number."""

_MAIN = 254
_LAST_METRIC = 4_294_967_295
_RULE_KEYS = frozenset(
    {"priority", "src", "srclen", "table", "suppress_prefixlen", "protocol", "fwmark", "fwmask"}
)


@dataclass(frozen=True, slots=True)
class _Rule:
    priority: int
    prefix: str | None
    """None: any source, with the mark."""
    table: int
    suppress: bool
    """Whether main's default route is passed over."""
    mark: str | None = None
    """Value and mask."""

    def words(self) -> list[str]:
        suppress = ["suppress_prefixlength", "0"] if self.suppress else []
        source = ["from", self.prefix] if self.prefix is not None else []
        mark = ["fwmark", self.mark] if self.mark is not None else []
        return [
            *(*source, *mark, "lookup", str(self.table), *suppress),
            *("priority", str(self.priority), "protocol", str(PROTOCOL)),
        ]


@dataclass(frozen=True, slots=True)
class _Route:
    table: int
    gateway: str | None
    """None: the unreachable default."""
    interface: str | None

    def words(self) -> list[str]:
        if self.gateway is None or self.interface is None:
            what = ["unreachable", "default", "metric", str(_LAST_METRIC)]
        else:
            what = ["default", "via", self.gateway, "dev", self.interface]
        return [*what, "table", str(self.table), "proto", str(PROTOCOL)]


class SourceRouting:
    """The rules and routes of one site in the network namespace of the calling thread.

    All calls run ``ip`` and block for some milliseconds each: use them before the loop
    starts and after it ended, or in a thread. ``apply``, ``repair`` and ``remove``
    wait for each other.
    """

    def __init__(self, settings: SteeringSettings) -> None:
        self._settings = settings
        self._lock = Lock()
        self._applied = False

    def apply(self) -> list[str]:
        """Install what is missing and take away what a predecessor left of another site.

        Returns one line for each uplink that is switched off, whose route has to wait.
        Raises SetupError when an interface is missing or the kernel refuses.
        """
        for uplink in self._settings.uplinks:
            if self._link(uplink) is None:
                raise SetupError(_no_interface(uplink))
        self._applied = True
        waiting: list[str] = []
        for name, why in self.repair().items():
            uplink = next(u for u in self._settings.uplinks if u.name == name)
            link = self._link(uplink)
            if link is not None and "UP" in link["flags"]:
                raise SetupError(f"uplink {name}: {why}")
            waiting.append(f"uplink {name}: {uplink.interface} is switched off, no route yet")
        return waiting

    def repair(self) -> dict[str, str]:
        """Put back what is missing; say for each uplink that stays without its route why.

        Does nothing before ``apply`` and after ``remove``: a repair that was under way in
        another thread must not bring back what was just removed. Raises SetupError only
        when the rules cannot be read or written at all.
        """
        with self._lock:
            return self._repair() if self._applied else {}

    def _repair(self) -> dict[str, str]:
        rules, routes = self._ours()
        wanted = Counter(self._rules())
        for rule in (rules - wanted).elements():
            _delete("rule", rule.words())
        wanted_routes = {
            route for uplink in self._settings.uplinks for route in self._routes(uplink)
        }
        for route in routes - wanted_routes:
            _delete("route", route.words())
        failed: dict[str, str] = {}
        for uplink in self._settings.uplinks:
            try:
                for route in self._routes(uplink):
                    if route not in routes:
                        self._add(uplink, route)
            except SetupError as refused:
                failed[uplink.name] = str(refused)
        for rule in (wanted - rules).elements():
            _ip("rule", "add", *rule.words())
        return failed

    def verify(self) -> list[str]:
        """Say in one line each what is missing; empty when all is well."""
        rules, routes = self._ours()
        wrong = [
            f"uplink {uplink.name}: the route is missing: {' '.join(route.words())}"
            for uplink in self._settings.uplinks
            for route in self._routes(uplink)
            if route not in routes
        ]
        missing = (Counter(self._rules()) - rules).elements()
        return wrong + [f"the rule is missing: {' '.join(rule.words())}" for rule in missing]

    def remove(self) -> None:
        """Take away every rule and route with our protocol number, a dead predecessor's too."""
        with self._lock:
            self._applied = False
            rules, routes = self._ours()
            for rule in rules.elements():
                _delete("rule", rule.words())
            for route in routes:
                _delete("route", route.words())

    def _rules(self) -> list[_Rule]:
        settings = self._settings
        first = settings.rule_priority
        spare = [_Rule(first, str(u.prefix), _MAIN, True) for u in settings.uplinks]
        marked = [
            _Rule(max(1, first - 1), None, settings.table(u), False, settings.uplink_match(u))
            for u in settings.uplinks
            if settings.mark_shift is not None
        ]
        return [
            *marked,
            *spare,
            *(_Rule(first + 1, str(u.prefix), settings.table(u), False) for u in settings.uplinks),
        ]

    def _routes(self, uplink: UplinkSettings) -> tuple[_Route, _Route]:
        table = self._settings.table(uplink)
        gateway = address_text(uplink.gateway)
        return _Route(table, None, None), _Route(table, gateway, uplink.interface)

    def _ours(self) -> tuple[Counter[_Rule], set[_Route]]:
        rules = Counter(
            rule for row in _listed("rule", "show") if (rule := _parse_rule(row)) is not None
        )
        rows = _listed("route", "show", "table", "all", "proto", str(PROTOCOL))
        return rules, {route for row in rows if (route := _parse_route(row)) is not None}

    def _link(self, uplink: UplinkSettings) -> dict[str, Any] | None:
        try:
            rows = _listed("link", "show", "dev", uplink.interface)
        except SetupError:
            return None
        return rows[0] if rows else None

    def _add(self, uplink: UplinkSettings, route: _Route) -> None:
        try:
            _ip("route", "add", *route.words())
        except SetupError as refused:
            complaint = str(refused)
            if "File exists" in complaint:
                raise SetupError(
                    f"table {route.table} already has a default route that is not ours; "
                    "choose another table base"
                ) from None
            if self._link(uplink) is None:
                raise SetupError(_no_interface(uplink)) from None
            if "No route to host" in complaint or "invalid gateway" in complaint.lower():
                raise SetupError(
                    f"the gateway {route.gateway} is not on a network of {uplink.interface}"
                ) from None
            raise


def _no_interface(uplink: UplinkSettings) -> str:
    return f"uplink {uplink.name}: the interface {uplink.interface} does not exist"


def _ip(*words: str) -> None:
    run_program(["ip", "-6", *words])


def _delete(what: str, words: list[str]) -> None:
    """Delete a rule or a route, which the kernel may have done meanwhile."""
    try:
        _ip(what, "del", *words)
    except SetupError as refused:
        if not any(gone in str(refused) for gone in ("No such", "Cannot find device")):
            raise


def _listed(*words: str) -> list[dict[str, Any]]:
    text = run_program(["ip", "-N", "-j", "-6", *words])
    rows = json.loads(text) if text.strip() else []
    return [row for row in rows if row]


def _parse_rule(row: dict[str, Any]) -> _Rule | None:
    """Read one row of ``ip -N -j rule``; None when it does not carry our protocol number."""
    if row.get("protocol") != str(PROTOCOL) or not row.keys() <= _RULE_KEYS:
        return None
    prefix = None
    if row["src"] != "all":
        prefix = str(Prefix.parse(f"{row['src']}/{row.get('srclen', 128)}"))
    mark = f"{row['fwmark']}/{row.get('fwmask', '0xffffffff')}" if "fwmark" in row else None
    suppress = "suppress_prefixlen" in row
    return _Rule(row["priority"], prefix, int(row["table"]), suppress, mark)


def _parse_route(row: dict[str, Any]) -> _Route | None:
    """Read one row of ``ip -N -j route``; None when it is not a default route."""
    if row["dst"] != "default" or "table" not in row:
        return None
    table = int(row["table"])
    if _kind(row) == "unreachable":
        return _Route(table, None, None)
    return _Route(table, row.get("gateway"), row.get("dev"))


def _kind(row: dict[str, Any]) -> str:
    kind: str = row.get("type", "unicast")
    return "unreachable" if kind in ("unreachable", "7") else kind

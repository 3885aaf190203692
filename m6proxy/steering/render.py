"""Rule bundles: templates of ``rules/`` and values in, text for ip6tables-restore out. Pure
but for reading the templates.

A template line is written once for each combination of the values that it names: a line
with ``${lan}`` once per LAN interface, a line with ``${prefix}`` or ``${interface}`` once
per uplink, a line with ``${unhook}`` once per hook rule of ours that the kernel has now,
a line with ``${local_ulid}`` once per re-homed pair, and so on; not at all when there is no
such thing. Comment lines of a template are not rendered.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from string import Template

from m6proxy.names import address_text
from m6proxy.steering.branches import BRANCH_PREFIX, Tree
from m6proxy.steering.settings import MARK_OURS, MARK_OURS_MASK, MARK_SHOWN, SteeringSettings

MARK_PAST = 0x8F
"""It goes on as it is; with 0x81 to 0x8e it leaves by that uplink."""

HOOKS = {"raw": ("M6PROXY-IN",), "mangle": ("M6PROXY-OUT",)}
"""Chains that one rule of the built-in PREROUTING jumps to, by table."""

CHAINS = {
    "raw": ("M6PROXY-IN",),
    "mangle": ("M6PROXY-OUT", "M6PROXY-SITE", "M6PROXY-REHOMED"),
}
"""All chains of ours, by table; a chain stands before those that it jumps to."""

_INSTALLED = Path(__file__).parent / "bundles"
_IN_TREE = Path(__file__).parents[2] / "rules"


@cache
def _template(name: str) -> tuple[str, ...]:
    folder = _INSTALLED if _INSTALLED.is_dir() else _IN_TREE
    text = (folder / f"{name}.ip6tables").read_text(encoding="utf-8")
    return tuple(line for line in text.splitlines() if line and not line.startswith("#"))


def is_ours(table: str, chain: str) -> bool:
    """Tell whether a chain of the table belongs to m6proxy."""
    return chain in CHAINS[table] or (table == "mangle" and chain.startswith(BRANCH_PREFIX))


def render_table(
    settings: SteeringSettings,
    table: str,
    *,
    unhook: Sequence[str] = (),
    stale: Sequence[str] = (),
) -> str:
    """Render the bundle of ``raw`` or ``mangle``, without any re-homed pair.

    ``unhook`` are the ``-D`` lines that take away the hook rules that are there already:
    with ``--noflush`` an insertion would add a second one. ``stale`` are the branches that
    a predecessor left.
    """
    lans = [{"lan": interface} for interface in settings.lan]
    uplinks = [{"interface": u.interface, "prefix": str(u.prefix)} for u in settings.uplinks]
    hooks = [{"unhook": line} for line in unhook]
    gone = [{"stale": branch} for branch in stale]
    nobodys = [{"locator_only": str(pattern)} for pattern in settings.locator_only]
    return _expand(settings, _template(table), (lans, uplinks, nobodys, hooks, gone))


def render_rehomed(settings: SteeringSettings, tree: Tree, stale: Iterable[str] = ()) -> str:
    """Render the chains of the re-homed pairs; ``stale`` branches are taken away."""
    branches = [{"branch": branch} for branch in tree.branches]
    splits = [
        {"chain": s.chain, "side": s.side, "bits": s.bits, "target": s.branch} for s in tree.splits
    ]
    leaves = [
        {
            "leaf": leaf.chain,
            "local_ulid": address_text(leaf.pair.local),
            "peer_ulid": address_text(leaf.pair.peer),
        }
        for leaf in tree.leaves
    ]
    gone = [{"stale": branch} for branch in stale]
    return _expand(settings, _template("rehomed"), (branches, splits, leaves, gone))


def render_removal(table: str, chains: Iterable[str], unhook: Sequence[str]) -> str:
    """Render the removal of the given chains of ours, which exist, and of their hook rules."""
    ours = sorted(chains)
    lines = [f"*{table}", *unhook]
    lines += [f"-F {chain}" for chain in ours]
    lines += [f"-X {chain}" for chain in ours]
    return "\n".join([*lines, "COMMIT", ""])


def _identifiers(line: str) -> set[str]:
    return set(re.findall(r"\$\{(\w+)\}", line))


def _expand(
    settings: SteeringSettings,
    lines: Iterable[str],
    repeats: Sequence[Sequence[Mapping[str, str]]],
) -> str:
    single = {
        "comment": settings.comment,
        "queue_outbound": str(settings.queue_outbound),
        "queue_inbound": str(settings.queue_inbound),
    }
    # The hook rule itself looks at the mark: whatever the kernel decided about meets no other rule,
    # and not even this one's comment, which is a match that costs as much as another.
    marked = settings.mark_shift is not None
    ours, past = settings.mark(MARK_OURS, MARK_OURS_MASK), settings.mark(MARK_PAST)
    single["unless_ours"] = f"-m mark ! --mark {ours} " if marked else ""
    single["unless_past"] = f"-m mark ! --mark {past} " if marked else ""
    if marked:
        single["if_shown"] = f"-m mark --mark {settings.mark(MARK_SHOWN, MARK_OURS_MASK)}"
    written: list[str] = []
    for line in lines:
        template = Template(line)
        named = _identifiers(line)
        rows: list[dict[str, str]] = [single]
        for values in repeats:
            if values and named & values[0].keys():
                rows = [{**row, **value} for row in rows for value in values]
        missing = named - (rows[0].keys() if rows else set())
        if missing:
            continue  # names a thing of which there is none: no re-homed pair, no old hook
        written += dict.fromkeys(template.substitute(row) for row in rows)
    return "\n".join([*written, ""])

"""Put the rule bundles into the kernel and take them out, beside everybody else's rules.

Each table is one run of ip6tables-restore, hence one transaction: a packet meets the old
rules or the new ones, never half of them. What a predecessor that was killed left behind
is replaced by the same run. Two instances at a time are kept apart by the queue numbers:
open the data plane, which fails when another process has the queue, before applying.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from m6proxy.errors import SetupError
from m6proxy.names import UlidPair
from m6proxy.steering.branches import grow
from m6proxy.steering.programs import run_program
from m6proxy.steering.render import (
    CHAINS,
    HOOKS,
    is_ours,
    render_rehomed,
    render_removal,
    render_table,
)
from m6proxy.steering.settings import SteeringSettings

_COUNTED_RULE = re.compile(r"\[(\d+):(\d+)\] -A (\S+) (.*)")
_WAIT_S = 5
"""How long the legacy variant waits for its lock."""


@dataclass(frozen=True, slots=True)
class RuleCounter:
    """What the kernel counted at one rule of ours since it was last written."""

    chain: str
    rule: str
    """The rule as the kernel prints it, without the chain."""
    packets: int
    octets: int


class RuleBundles:
    """The bundles of one site in the network namespace of the calling thread.

    ``variant`` is the program's name up to the dash: ``ip6tables`` is what the system
    chose; ``ip6tables-nft`` and ``ip6tables-legacy`` force one. All calls block for some
    milliseconds and raise SetupError when the kernel or a program refuses.
    """

    def __init__(self, settings: SteeringSettings, *, variant: str = "ip6tables") -> None:
        self._settings = settings
        self._variant = variant
        self._branches: tuple[str, ...] = ()

    def apply(self) -> None:
        """Install or replace all our chains and hook each of them first, exactly once."""
        for table, fixed in CHAINS.items():
            saved = self._saved(table)
            stale = [chain for chain in _chains(table, saved) if chain not in fixed]
            self._restore(
                render_table(self._settings, table, unhook=_unhook(table, saved), stale=stale)
            )
        self._branches = ()

    def apply_rehomed(self, pairs: tuple[UlidPair, ...]) -> None:
        """Replace the rules of the re-homed pairs; the bundles must have been applied."""
        tree = grow(pairs)
        stale = self._branches[len(tree.branches) :]
        self._restore(render_rehomed(self._settings, tree, stale))
        self._branches = tree.branches

    def remove(self) -> None:
        """Take out our hook rules and chains and nothing else; nothing to do is no error."""
        for table in CHAINS:
            saved = self._saved(table)
            ours = _chains(table, saved)
            if ours:
                self._restore(render_removal(table, ours, _unhook(table, saved)))
        self._branches = ()

    def verify(self) -> list[str]:
        """Say in one line each what is missing or not in its place; empty when all is well."""
        wrong: list[str] = []
        for table, hooks in HOOKS.items():
            saved = self._saved(table)
            declared = _chains(table, saved)
            wrong += [
                f"table {table}: chain {chain} is missing"
                for chain in CHAINS[table]
                if chain not in declared
            ]
            jumps = [line for line in saved if line.startswith("-A PREROUTING ")]
            for hook in hooks:
                places = [n for n, line in enumerate(jumps) if line.endswith(f" -j {hook}")]
                if places != [0]:
                    wrong.append(
                        f"table {table}: PREROUTING has to jump to {hook} once, in its first rule"
                    )
        return wrong

    def counters(self) -> list[RuleCounter]:
        """Read the packet counters of our rules, in the order of the chains.

        A rule without bypass whose queue has no listener drops what it counts: while the
        daemon is dead, the counters of M6PROXY-REHOMED are the packets that died there.
        Each replacement of a chain starts its counters anew.
        """
        found: list[RuleCounter] = []
        for table in CHAINS:
            for line in self._saved(table, "-c"):
                match = _COUNTED_RULE.fullmatch(line)
                if match and is_ours(table, match[3]):
                    found.append(RuleCounter(match[3], match[4], int(match[1]), int(match[2])))
        return found

    def _saved(self, table: str, *options: str) -> list[str]:
        return run_program([f"{self._variant}-save", "-t", table, *options]).splitlines()

    def _restore(self, text: str) -> None:
        argv = [f"{self._variant}-restore", "--noflush", "-w", str(_WAIT_S)]
        try:
            run_program(argv, text=text)
        except SetupError as refused:
            raise SetupError(f"{refused}{_culprit(str(refused), text)}") from None


def _chains(table: str, saved: list[str]) -> list[str]:
    """Return the chains of ours that the table has."""
    declared = [line[1:].split()[0] for line in saved if line.startswith(":")]
    return [chain for chain in declared if is_ours(table, chain)]


def _unhook(table: str, saved: list[str]) -> list[str]:
    """Return one ``-D`` line for each rule of PREROUTING that jumps to a chain of ours."""
    return [
        f"-D PREROUTING{line.removeprefix('-A PREROUTING')}"
        for line in saved
        if line.startswith("-A PREROUTING ") and line.rpartition(" -j ")[2] in HOOKS[table]
    ]


def _culprit(complaint: str, text: str) -> str:
    """Quote the line that ip6tables-restore complains about."""
    match = re.search(r"line:? (\d+)", complaint)
    lines = text.splitlines()
    if match is None or not 0 < int(match[1]) <= len(lines):
        return ""
    return f" [{lines[int(match[1]) - 1]}]"

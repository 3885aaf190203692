"""Who else writes the bits of a packet's mark that the programs in the kernel use.

``CONNMARK --restore-mark`` and ``MARK --set-mark`` write all 32 bits unless they are told a mask.
Between our hook and the uplink that takes the decision off the packet again. Only rules of
iptables are looked at; others may write marks in tables of their own.
"""

from __future__ import annotations

import re
from typing import Final

from m6proxy.errors import SetupError
from m6proxy.steering.programs import run_program
from m6proxy.steering.settings import SteeringSettings

_SET: Final = re.compile(r" -j MARK --set-xmark (0x[0-9a-f]+)/(0x[0-9a-f]+)")
_RESTORED: Final = re.compile(
    r" -j CONNMARK --restore-mark(?: --nfmask (0x[0-9a-f]+))?(?: --ctmask (0x[0-9a-f]+))?"
)
_EVERY_BIT: Final = "0xffffffff"
_NEVER_FORWARDED: Final = ("-A INPUT ", "-A OUTPUT ")


def mark_writers(settings: SteeringSettings) -> list[str]:
    """The rules of table mangle that do, as the kernel prints them, in the namespace of this
    thread; none when there is no iptables to ask."""
    try:
        saved = run_program(["ip6tables-save", "-t", "mangle"]).splitlines()
    except SetupError:
        return []
    rules = [line for line in saved if line.startswith("-A ")]
    return [
        rule
        for rule in rules
        if not rule.startswith(_NEVER_FORWARDED) and _written(rule) & settings.mark_bits
    ]


def _written(rule: str) -> int:
    """Which bits of the mark a rule writes: what it clears, and what it turns over."""
    found = _SET.search(rule) or _RESTORED.search(rule)
    if found is None:
        return 0
    first, second = (int(number or _EVERY_BIT, 16) for number in found.groups())
    return first | second

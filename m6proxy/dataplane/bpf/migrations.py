"""How the entries of an older layout become ours, one function for each step.

Whoever changes the struct of a map in a release gives it the next version in its name (``maps.h``,
``layout.py``) and writes here how an entry of the version before becomes one of his:
``("m6p_out", 1)`` makes version 2 of version 1. A daemon that starts in the place of an older one
copies each map through all the steps that lie between them, while the old programs go on with
the old maps. A map without a way begins empty, and the start says so. The settings need none:
every daemon writes its own.
"""

from __future__ import annotations

from typing import Final

from m6proxy.dataplane.bpf.takeover import Migrations

MIGRATIONS: Final[Migrations] = {}
"""None since the first release."""

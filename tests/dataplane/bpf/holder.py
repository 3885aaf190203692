"""A process that holds a site's programs, for tests that kill it.

``holder.py OBJECT FOLDER PROGRAM INTERFACE tcx|clsact``: takes over or installs, attaches PROGRAM
to what INTERFACE receives, says "ready" with what it inherited, and waits for a line:
"remove" takes all away, anything else leaves all to a successor.
"""

from __future__ import annotations

import socket
import sys
from pathlib import Path

from m6proxy.dataplane.bpf.links import Side
from m6proxy.dataplane.bpf.load import read_object
from m6proxy.dataplane.bpf.takeover import install


def main(source: str, folder: str, program: str, interface: str, way: str) -> None:
    """Hold until told."""
    installed = install(read_object(Path(source)), Path(folder), use_tcx=way == "tcx")
    replaced = installed.attach(program, socket.if_nametoindex(interface), Side.INGRESS)
    installed.settle()
    print("ready", len(installed.heritage.taken_over), replaced, flush=True)  # noqa: T201
    if sys.stdin.readline().strip() == "remove":
        installed.remove()
    else:
        installed.release()


if __name__ == "__main__":
    main(*sys.argv[1:])

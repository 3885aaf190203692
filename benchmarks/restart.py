"""How long a re-homed stream is silent when a daemon is killed and started again.

    python benchmarks/restart.py [--json FILE] [--quick] [--runs N] [--dead-s S]

Host, gateway, gateway, host (``benchmarks/harness/line.py``), m6proxy on both gateways, the
context moved to the second link. a sends b 1,000 numbered datagrams in a second. The daemon of
one gateway gets SIGKILL, is dead for a while, and is started again; then the other one's.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import socket
import struct
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.harness.line import HOSTS, SITES, Proxied
from benchmarks.harness.rounds import (
    Goal,
    Outcome,
    Series,
    machine,
    options,
    progress,
    run_script,
    tell,
)
from m6proxy.errors import SetupError

PORT = 5006
PER_S = 1000
GOAL_LOST = 0
POLICY = "establish: {after_packets: 2}"
KINDS = {"alpha": "sender's gateway", "beta": "receiver's gateway"}
STEADY_S = 1.0
READY_DEADLINE_S = 30.0
_RECORD = struct.Struct("!Qd")
"""Number of a datagram, and when it was sent on the monotonic clock, which all share."""


@dataclass(frozen=True, slots=True)
class Restart:
    """One death of a daemon and its successor's start."""

    sent: int
    received: int
    gap_s: float
    """The longest time without an arrival."""
    pause_s: float
    """The longest time between two departures: the sender wants the same cores."""
    ready_s: float
    """From the start of the successor until it answers questions."""


def send(address: str) -> None:
    """Send until killed; inside the host. A refusal that ICMPv6 brings back is ignored."""
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sender:
        sender.connect((address, PORT))
        start_s = time.monotonic()
        for number in itertools.count():
            with contextlib.suppress(OSError):
                sender.send(_RECORD.pack(number, time.monotonic()))
            time.sleep(max(0.0, start_s + (number + 1) / PER_S - time.monotonic()))


def receive(address: str, path: Path) -> None:
    """Write what arrives, and when, to a file; inside the host."""
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as receiver, path.open("wb") as file:
        receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
        receiver.bind((address, PORT))
        while True:
            record = receiver.recv(2048)
            file.write(record[: _RECORD.size] + struct.pack("!d", time.monotonic()))
            file.flush()


def arrivals(path: Path) -> list[tuple[int, float, float]]:
    """Number, departure and arrival of what came so far, in seconds."""
    octets = path.read_bytes() if path.exists() else b""
    step = _RECORD.size + 8
    whole = len(octets) // step * step
    return [struct.unpack_from("!Qdd", octets, at) for at in range(0, whole, step)]


def stream(line: Proxied, path: Path) -> None:
    """Start the stream; it ends with the line."""
    module = [sys.executable, "-m", "benchmarks.restart"]
    line.start("b", *module, "--receive", str(path))
    line.start("a", *module, "--send")
    _until("the stream arrives", lambda: len(arrivals(path)) > PER_S / 10)


def restart(line: Proxied, site: str, path: Path, dead_s: float) -> Restart:
    """Kill a daemon and start it again; what the stream saw from before to after."""
    time.sleep(STEADY_S)
    first = arrivals(path)[-1][0]
    daemon = line.daemons[site]
    daemon.kill()
    daemon.wait()
    time.sleep(dead_s)
    start_s = time.monotonic()
    line.daemons[site] = line.start_daemon(site, SITES[site][1])
    _until("the daemon is back", lambda: line.is_ready(site))
    ready_s = time.monotonic() - start_s
    if not any(one["local_locator"] != HOSTS[site] for one in line.contexts(site)):
        raise SetupError(f"{site}: the successor took no re-homed context over")
    time.sleep(STEADY_S)
    last = arrivals(path)[-1][0]
    _until("later packets", lambda: arrivals(path)[-1][0] > last + PER_S / 10)
    seen = [one for one in arrivals(path) if first <= one[0] <= last]
    pauses = [[b - a for a, b in itertools.pairwise(each)] for each in zip(*seen, strict=True)]
    return Restart(
        sent=last - first + 1,
        received=len({number for number, _, _ in seen}),
        gap_s=max(pauses[2]),
        pause_s=max(pauses[1]),
        ready_s=ready_s,
    )


def main() -> int:
    """Run the rounds and tell."""
    parser = options(__doc__.split("\n", 1)[0] if __doc__ else "")
    parser.add_argument("--runs", type=int, default=5, help="restarts of either daemon")
    parser.add_argument("--dead-s", type=float, default=2.0, help="from the kill to the start")
    parser.add_argument("--send", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--receive", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.send:
        send(HOSTS["beta"])
    if arguments.receive is not None:
        receive(HOSTS["beta"], arguments.receive)
    if arguments.quick:
        arguments.runs, arguments.dead_s = 1, 0.5
    found: dict[str, list[Restart]] = {site: [] for site in KINDS}
    before = machine()
    with Proxied("r", policy=POLICY, settings="fast_path: bpf\n") as line:
        path = line.folder / "arrivals"
        stream(line, path)
        for number in range(arguments.runs):
            for site, restarts in found.items():
                restarts.append(restart(line, site, path, arguments.dead_s))
                progress((number + 1, KINDS[site], restarts[-1]))
    outcome = Outcome("A re-homed stream, and a daemon that is killed and started again")
    for site, kind in KINDS.items():
        _tell_site(outcome, kind, found[site])
    outcome.limits = [f"before: {before}; after: {machine()}"]
    outcome.settings = {"dead_s": arguments.dead_s, "packets_per_s": PER_S, "runs": arguments.runs}
    return tell(outcome, arguments)


def _tell_site(outcome: Outcome, kind: str, restarts: list[Restart]) -> None:
    lost = Series(f"{kind}: lost", "packets", tuple(one.sent - one.received for one in restarts))
    outcome.series += [
        Series(f"{kind}: sent", "packets", tuple(one.sent for one in restarts)),
        Series(f"{kind}: received", "packets", tuple(one.received for one in restarts)),
        lost,
        Series(f"{kind}: longest gap", "ms", tuple(one.gap_s * 1e3 for one in restarts)),
        Series(f"{kind}: sender's pause", "ms", tuple(one.pause_s * 1e3 for one in restarts)),
        Series(f"{kind}: start to ready", "s", tuple(one.ready_s for one in restarts)),
    ]
    outcome.goals.append(Goal(lost, GOAL_LOST, at_least=False))


def _until(what: str, is_so: Callable[[], bool]) -> None:
    end_s = time.monotonic() + READY_DEADLINE_S
    while not is_so():
        if time.monotonic() > end_s:
            raise SetupError(f"not within {READY_DEADLINE_S:g} s: {what}")
        time.sleep(0.02)


if __name__ == "__main__":
    run_script(main)

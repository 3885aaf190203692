"""What re-homed traffic costs, against plain forwarding and the kernel's own NPTv6.

    python benchmarks/dataplane.py [--json FILE] [--quick] [--rounds N] [--window-s S] [--only WORD]

    host - gateway - gateway - host, veth, m6proxy on both gateways

Every variant has a line of namespaces of its own, all of them stand at once, and each round
measures one after the other; ratios are taken within a round. ``forwarded`` are 64 octets of
UDP payload, sent from one core as fast as it goes, counted where they arrive; ``TCP`` is one
stream of iperf3 with the offloads that the kernel gives a veth, the median of three in a round.

The JSON is a list with one entry for each variant and metric: dataplane, mode, express, metric,
median, ratio_to_plain, ratio_to_nptv6, ratio_to_routed and the single rounds.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from benchmarks.harness.line import DISCARD_PORT, HOSTS, MACS, Line, Proxied, Routed, Translated
from benchmarks.harness.rounds import (
    Goal,
    Outcome,
    Series,
    machine,
    options,
    progress,
    ratio,
    run_script,
)
from m6proxy.dataplane.offloads import GSO, TSO, switch_offloads
from m6proxy.errors import SetupError
from m6proxy.names import address
from m6proxy.wire.checksum import upper_checksum
from m6proxy.wire.ipv6 import NEXT_UDP, build_packet

PAYLOAD_OCTETS = 64
BASES = ("plain", "routed", "nptv6")
"""What the others are compared with. ``routed`` is plain forwarding with routes by source, which a
gateway with two providers needs with or without m6proxy."""
TRANSLATED_BETA = "2001:db8:b2::10"
"""b's address as NPTv6 shows it to a: one more in the prefix, one less in the subnet."""
TCP_PORT = 5201
STREAMS, TRIES = 3, 3
QUICK_NAMES = ("plain", "nptv6", "bpf no context", "bpf flowlabel", "bpf flowlabel, express off")
QUICK = "establish: {after_packets: 2}"
NEVER = "establish: {after_octets: null, after_s: null}"
LABELS = {"forwarded": "packets/s", "TCP": "bit/s"}
METRICS = {"forwarded": "fwd_pps", "TCP": "tcp_bps"}


@dataclass(frozen=True, slots=True)
class Variant:
    """One line and what to call it."""

    dataplane: str
    mode: str
    goals: tuple[tuple[str, str, float], ...] = ()
    """Metric, the variant that it is compared with, the ratio to reach."""
    host_gso: bool = True
    express: bool = True
    """Whether packets may go past the gateway's IPv6 stack (fast_path bpf)."""
    flows: int = 0
    """How many flows beside the one that is measured the kernel's maps hold."""

    @property
    def name(self) -> str:
        """Its name in tables."""
        gso = "" if self.host_gso else ", host GSO off"
        express = "" if self.express else ", express off"
        flows = f", {self.flows:,} flows" if self.flows else ""
        return f"{self.dataplane} {self.mode}".strip() + gso + express + flows

    def line(self, number: int) -> Line:
        """Return the line, not built yet."""
        short = f"v{number}"
        if self.dataplane == "plain":
            return Line(short)
        if self.dataplane == "routed":
            return Routed(short)
        if self.dataplane == "nptv6":
            return Translated(short)
        settings = f"fast_path: {'off' if self.dataplane == 'nfqueue' else 'bpf'}\n"
        settings += f"express: {'auto' if self.express else 'off'}\n"
        if self.mode == "no context":
            return Proxied(short, policy=NEVER, settings=settings, moved=False)
        if self.mode == "exthdr":
            return Proxied(short, policy=f"{QUICK}, demux: [exthdr]", settings=settings)
        if self.mode == "identifier":
            settings += "locators: {map: nsquare}\n"
        policy = f"{QUICK}, demux: [{self.mode}, exthdr], max_contexts: {self.flows + 10_000}"
        return Proxied(short, policy=policy, settings=settings)

    @property
    def goes_express(self) -> bool:
        """Whether its packets are to go past the gateways' IPv6 stack."""
        return self.dataplane == "bpf" and self.express

    @property
    def target(self) -> str:
        """Where a sends to."""
        return TRANSLATED_BETA if self.dataplane == "nptv6" else HOSTS["beta"]


MANY_BASE = "bpf flowlabel, 1,000 flows"
_LIGHT = (
    ("forwarded", "plain", 0.92),
    ("forwarded", "nptv6", 1.10),
    ("TCP", "plain", 0.90),
)
VARIANTS = (
    Variant("plain", ""),
    Variant("routed", ""),
    Variant("nptv6", ""),
    Variant("bpf", "no context", (("forwarded", "plain", 0.97), ("TCP", "plain", 0.97))),
    Variant("bpf", "no context", express=False),
    Variant("bpf", "flowlabel", _LIGHT),
    Variant("bpf", "flowlabel", express=False),
    Variant("bpf", "identifier", _LIGHT),
    Variant("bpf", "dstopt", _LIGHT),
    Variant(
        "bpf",
        "exthdr",
        (("forwarded", "plain", 0.85), ("forwarded", "nptv6", 1.05), ("TCP", "plain", 0.30)),
    ),
    Variant("bpf", "flowlabel", flows=1_000),
    Variant("bpf", "flowlabel", (("forwarded", MANY_BASE, 0.90),), flows=1_000_000),
    Variant("plain", "", host_gso=False),
    Variant("bpf", "exthdr", (("TCP", "plain", 1.0),), host_gso=False),
    Variant("nfqueue", "exthdr"),
)


@contextlib.contextmanager
def flooded(line: Line, target: str, core: int) -> Iterator[None]:
    """a sends packets to b for the length of the block, from one core."""
    source, destination = address(HOSTS["alpha"]), address(target)
    udp = struct.pack("!4H", 40_000, DISCARD_PORT, 8 + PAYLOAD_OCTETS, 0) + bytes(PAYLOAD_OCTETS)
    total = upper_checksum(source, destination, NEXT_UDP, udp) or 0xFFFF
    udp = udp[:6] + total.to_bytes(2) + udp[8:]
    packet = build_packet(source, destination, NEXT_UDP, udp)
    ethernet = bytes.fromhex((MACS["ga"] + MACS["a"]).replace(":", "") + "86dd")
    words = ["-m", "benchmarks.harness.generator", "lan0", (ethernet + packet).hex(), str(core)]
    child = subprocess.Popen(line.inside("a", sys.executable, *words))
    try:
        yield
    finally:
        child.kill()
        child.wait()


def forwarded(line: Line, target: str, core: int, window_s: float) -> float:
    """Packets per second that arrive at b."""
    with flooded(line, target, core):
        end_s = time.monotonic() + 10.0
        start = line.arrived()
        while line.arrived() - start < 2000:
            if time.monotonic() > end_s:
                raise SetupError(f"line {line.name}: nothing comes through")
        time.sleep(0.2)
        first, first_s = line.arrived(), time.monotonic()
        time.sleep(window_s)
        last, last_s = line.arrived(), time.monotonic()
    return (last - first) / (last_s - first_s)


def tcp(line: Line, target: str, window_s: float, streams: int = STREAMS) -> float:
    """Bits per second of one TCP stream from a to b: the median of some that share the window.

    What a stream reaches depends on which of its ends the kernel puts on which core, and that
    stays as it is while the stream lasts.
    """
    return statistics.median(_stream(line, target, window_s / streams) for _ in range(streams))


def _stream(line: Line, target: str, window_s: float) -> float:
    words = ("iperf3", "-6", "-J", "-c", target, "-t", f"{max(1, round(window_s))}", "-O", "1")
    report: dict[str, Any] = {}
    for _ in range(TRIES):
        report = json.loads(line.run("a", *words))
        if "error" not in report:
            return float(report["end"]["sum_received"]["bits_per_second"])
        time.sleep(0.5)  # the server may not be done with the stream before
    raise SetupError(f"line {line.name}: iperf3: {report['error']}")


def switch_segmentation_off(interface: str) -> None:
    """TSO and GSO of an interface in this namespace; run by the script inside a host."""
    switch_offloads(interface, dict.fromkeys((*TSO, GSO), False))


def prepare_hosts(line: Line, variant: Variant) -> None:
    """Start the server on b, and switch the hosts' GSO off where the variant wants it."""
    if variant.flows:
        assert isinstance(line, Proxied)
        line.fill(variant.flows)
    line.start("b", "iperf3", "-6", "-s", "-p", str(TCP_PORT))
    if not variant.host_gso:
        for host in ("a", "b"):
            line.run(host, sys.executable, __file__, "--segmentation-off", "lan0")


def main() -> int:
    """Measure and tell."""
    parser = options("The data planes in one row of namespaces, as ratios to plain forwarding.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--window-s", type=float, default=2.0)
    parser.add_argument("--only", default="", help="variants whose name has this word, and plain")
    parser.add_argument("--segmentation-off", default="", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.segmentation_off:
        switch_segmentation_off(arguments.segmentation_off)
        return 0
    if arguments.quick:
        arguments.rounds, arguments.window_s = 1, 1.0
    variants = [v for v in VARIANTS if arguments.only in v.name or v.dataplane in BASES]
    if arguments.quick and not arguments.only:
        variants = [v for v in variants if v.name in QUICK_NAMES]
    outcome, rows = measure_all(variants, arguments)
    print(outcome.table())
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")
    return 0


def measure_all(
    variants: list[Variant], arguments: argparse.Namespace
) -> tuple[Outcome, list[dict[str, object]]]:
    """Build all lines, run the rounds, compare."""
    core = sorted(os.sched_getaffinity(0))[-1]
    values: dict[tuple[Variant, str], list[float]] = {}
    before = machine()
    with contextlib.ExitStack() as stack:
        lines = []
        for number, variant in enumerate(variants):
            lines.append(stack.enter_context(variant.line(number)))
            prepare_hosts(lines[-1], variant)
            progress(["ready:", variant.name])
        for number in range(arguments.rounds):
            for variant, line in zip(variants, lines, strict=True):
                found = {}
                if not variant.flows:
                    streams = 1 if arguments.quick else STREAMS
                    found["TCP"] = tcp(line, variant.target, arguments.window_s, streams)
                if variant.host_gso:
                    found["forwarded"] = forwarded(line, variant.target, core, arguments.window_s)
                for metric, value in found.items():
                    values.setdefault((variant, metric), []).append(value)
                told = (f"{metric} {value:,.0f}" for metric, value in found.items())
                progress(["round", number + 1, variant.name, *told])
        for variant, line in zip(variants, lines, strict=True):
            if isinstance(line, Proxied) and line.went_express() != variant.goes_express:
                raise SetupError(f"{variant.name}: packets went another way than that")
    series = {
        (variant, metric): Series(f"{variant.name}: {metric}", LABELS[metric], tuple(found))
        for (variant, metric), found in values.items()
    }
    outcome = Outcome("Data planes: host - gateway - gateway - host, one core sends")
    rows = [_row(outcome, series, variant, metric) for variant, metric in series]
    outcome.limits = [
        "sender, both gateways and receiver share the same cores: a packet's whole way is counted",
        "all packets of a run are of one flow, however many the maps hold",
        f"before: {before}; after: {machine()}",
    ]
    return outcome, rows


def _row(
    outcome: Outcome, series: dict[tuple[Variant, str], Series], variant: Variant, metric: str
) -> dict[str, object]:
    own = series[variant, metric]
    outcome.series.append(own)
    row: dict[str, object] = {
        "dataplane": variant.dataplane,
        "mode": variant.mode if variant.host_gso else f"{variant.mode} host-gso-off".strip(),
        "express": variant.goes_express,
        "flows": variant.flows + 1,
        "metric": METRICS[metric],
        "median": own.median,
        "ratio_to_plain": None,
        "ratio_to_nptv6": None,
        "ratio_to_routed": None,
        "runs": len(own.values),
        "values": list(own.values),
    }
    for other in series:
        if other[1] != metric or other[0].host_gso != variant.host_gso:
            continue
        many = variant.flows and other[0].name == MANY_BASE and other[0] is not variant
        if not many and (other[0].dataplane not in BASES or variant.dataplane in BASES):
            continue
        compared = ratio(f"  {variant.name} / {other[0].name}: {metric}", own, series[other])
        outcome.series.append(compared)
        if not many:
            row[f"ratio_to_{other[0].dataplane}"] = compared.median
        for goal_metric, base, bound in variant.goals:
            if goal_metric == metric and base in (other[0].dataplane, other[0].name):
                outcome.goals.append(Goal(compared, bound, at_least=True))
    return row


if __name__ == "__main__":
    run_script(main)

"""The same numbers for Prometheus, made anew at each scrape."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

CONTENT_TYPE = CONTENT_TYPE_LATEST


class _Snapshot(Collector):
    """One scrape's worth of numbers."""

    def __init__(self, found: list[Metric]) -> None:
        self._found = found

    def collect(self) -> Iterable[Metric]:
        return self._found


def render(
    status: dict[str, Any], uplinks: list[dict[str, Any]], drops: list[dict[str, Any]]
) -> bytes:
    """Write the text format of Prometheus from the views of the control socket."""
    contexts = GaugeMetricFamily("m6proxy_contexts", "Contexts by state", labels=["state"])
    for state, count in status["contexts"].items():
        contexts.add_metric([state], count)
    packets = CounterMetricFamily("m6proxy_packets", "Packets by what was done", labels=["what"])
    for what, count in status["packets"].items():
        packets.add_metric([what], count)
    losses = CounterMetricFamily("m6proxy_losses", "Losses around the queue", labels=["where"])
    for where, count in status["losses"].items():
        losses.add_metric([where], count)
    dropped = CounterMetricFamily("m6proxy_drops", "Packets dropped, by reason", labels=["reason"])
    for row in drops:
        dropped.add_metric([row["reason"].lower()], row["count"])
    express = GaugeMetricFamily("m6proxy_express", "Whether packets go past the IPv6 stack")
    express.add_metric([], status["express"]["on"])
    up = GaugeMetricFamily("m6proxy_uplink_up", "Whether an uplink works", labels=["uplink"])
    using = GaugeMetricFamily(
        "m6proxy_uplink_contexts", "Contexts that send through an uplink", labels=["uplink"]
    )
    for uplink in uplinks:
        up.add_metric([uplink["name"]], uplink["up"])
        using.add_metric([uplink["name"]], uplink["contexts"])
    registry = CollectorRegistry()
    registry.register(_Snapshot([contexts, packets, losses, dropped, express, up, using]))
    return generate_latest(registry)

"""The metrics: what Prometheus reads is what the control socket says."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from m6proxy.daemon import metrics

STATUS = {
    "contexts": {"ESTABLISHED": 3, "I1-SENT": 1},
    "packets": {"outbound": 10, "inbound": 20, "rewritten": 4, "restored": 5},
    "losses": {"queue_full_outbound": 7, "send_no_route": 0},
    "express": {"on": True, "in_the_way": []},
}
UPLINKS = [
    {"name": "isp1", "up": True, "contexts": 2},
    {"name": 'odd "name"\n', "up": False, "contexts": 0},
]
DROPS = [{"reason": "NO_CONTEXT", "count": 9}, {"reason": "TOO_BIG", "count": 0}]


def _samples() -> dict[tuple[str, str], float]:
    text = metrics.render(STATUS, UPLINKS, DROPS).decode()
    return {
        (sample.name, next(iter(sample.labels.values()), "")): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_every_number_is_there_under_its_label() -> None:
    assert _samples() == {
        ("m6proxy_contexts", "ESTABLISHED"): 3,
        ("m6proxy_contexts", "I1-SENT"): 1,
        ("m6proxy_packets_total", "outbound"): 10,
        ("m6proxy_packets_total", "inbound"): 20,
        ("m6proxy_packets_total", "rewritten"): 4,
        ("m6proxy_packets_total", "restored"): 5,
        ("m6proxy_losses_total", "queue_full_outbound"): 7,
        ("m6proxy_losses_total", "send_no_route"): 0,
        ("m6proxy_drops_total", "no_context"): 9,
        ("m6proxy_drops_total", "too_big"): 0,
        ("m6proxy_express", ""): 1,
        ("m6proxy_uplink_up", "isp1"): 1,
        ("m6proxy_uplink_up", 'odd "name"\n'): 0,
        ("m6proxy_uplink_contexts", "isp1"): 2,
        ("m6proxy_uplink_contexts", 'odd "name"\n'): 0,
    }


def test_the_content_type_is_that_of_the_text_format() -> None:
    assert metrics.CONTENT_TYPE.startswith("text/plain")

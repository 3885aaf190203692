"""Each demux mode with real packets: octet by octet the same at the other host, and full size."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from m6proxy.lab.build import Lab
from m6proxy.lab.plan import CUSTOMER
from m6proxy.lab.topology import provider_by_target
from m6proxy.names import address
from m6proxy.shim.forward import with_label
from m6proxy.wire.ipv6 import build_packet
from tests.harness.gateway import A1, B1, PLANES, ping
from tests.harness.netns import eventually, run_in
from tests.harness.netns import lab as lab
from tests.harness.stream import grows, streaming
from tests.harness.upper import UNKNOWN, upper_layers
from tests.netns.rehomed_pair import MODES, crosses, on_isp2, raw

pytestmark = pytest.mark.netns

HOST_LABEL, HOPS, TRAFFIC_CLASS = 0x12345, 64, 0x28
HOP_LIMIT_AT = 7


@pytest.mark.parametrize("mode", MODES)
def test_every_upper_layer_comes_out_at_the_other_host_as_sent(lab: Lab, mode: str) -> None:
    source, destination = address(A1), address(B1)
    with on_isp2(lab, mode), raw(lab) as (sender, receiver):
        for name, (protocol, octets) in upper_layers(source, destination).items():
            octets = octets if mode == "flowlabel" else octets[:1452]
            packet = build_packet(
                source,
                destination,
                protocol,
                octets,
                hop_limit=HOPS,
                traffic_class=TRAFFIC_CLASS,
                flow_label=HOST_LABEL,
            )
            arrived = crosses(sender, receiver, packet)
            assert arrived is not None, name
            wanted = with_label(packet, 0 if mode == "flowlabel" else HOST_LABEL)
            assert arrived[:HOP_LIMIT_AT] == wanted[:HOP_LIMIT_AT], name
            assert arrived[HOP_LIMIT_AT] < HOPS
            assert arrived[HOP_LIMIT_AT + 1 :] == wanted[HOP_LIMIT_AT + 1 :], name


@pytest.mark.parametrize(
    ("mode", "fits"),
    [("exthdr", 1492), ("flowlabel", 1500), ("dstopt", 1492), ("identifier", 1500)],
)
def test_full_packets_pass_without_growth_and_are_refused_with_it(
    lab: Lab, mode: str, fits: int
) -> None:
    """A re-homed pair with flow labels needs nothing of the hosts: no Packet Too Big is sent."""
    with on_isp2(lab, mode) as (alpha, beta), raw(lab) as (sender, receiver):
        packet = build_packet(address(A1), address(B1), UNKNOWN, bytes(1500 - 40))
        if fits < 1500:
            assert crosses(sender, receiver, packet) is None
            assert "TOO_BIG" in alpha.drops()
        else:
            assert crosses(sender, receiver, packet) is not None
            assert "TOO_BIG" not in {**alpha.drops(), **beta.drops()}
        assert crosses(sender, receiver, packet[:4] + (fits - 40).to_bytes(2) + packet[6:fits])
        for octets in (3000, 3700):
            eventually(
                partial(ping, lab, "a1", B1, "-s", str(octets)),
                deadline_s=6,
                what=f"a ping of {octets} octets, in fragments",
            )
        words = run_in(lab, "a1", "ip", "-6", "route", "get", B1).split()
        learned = int(words[words.index("mtu") + 1]) if "mtu" in words else 1500
        assert learned == fits


@pytest.mark.parametrize("fast", [False, True], ids=PLANES)
def test_a_provider_that_drops_options_is_found_out(lab: Lab, tmp_path: Path, fast: bool) -> None:
    """Probes pass it, and the peer's gateway says that nothing else does. Only to beta it drops."""
    received = tmp_path / "received"
    options = ("-m", "ipv6header", "--header", "dst", "--soft", "-j", "DROP")

    def modes() -> list[str]:
        found = alpha.context(A1, B1), beta.context(B1, A1)
        return [context["demux"] for context in found if context is not None]

    with on_isp2(lab, "dstopt", fast=fast) as (alpha, beta), streaming(lab, received):
        grows(received, 50)
        provider = provider_by_target("beta.isp2")
        run_in(lab, provider, "ip6tables", "-I", "FORWARD", "-o", CUSTOMER, *options)
        eventually(lambda: modes() == ["exthdr", "dstopt"], deadline_s=15, what="another mode")
        grows(received, 50)

"""Real packets through the programs of both gateways, whose maps the test writes.

Both sites leave their first provider in mid-flow. Their gateways have a stateful firewall with
a default drop, and what arrives has right checksums over the ULIDs.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable
from itertools import pairwise

import pytest

from m6proxy.dataplane.bpf.layout import Counter, Mode
from m6proxy.dataplane.offloads import CHECKSUM, GRO, GSO, TSO
from m6proxy.lab.build import Lab
from m6proxy.lab.topology import ALPHA, BETA
from m6proxy.names import LocatorPair, UlidPair, address
from m6proxy.shim.forward import GROWTH_OCTETS, SEGMENT_OCTETS
from tests.harness.fastpath import MTU, FastGateway, fast, offload
from tests.harness.gateway import A1, A1_ISP2, B1, B1_ISP2, listening, program, restore_rules
from tests.harness.netns import plain_lab as plain_lab
from tests.harness.netns import run_in

pytestmark = pytest.mark.netns

ULIDS = UlidPair(address(A1), address(B1))
LOCATORS = LocatorPair(address(A1_ISP2), address(B1_ISP2))
ALPHA_TAG, BETA_TAG = 0x2345_6789_ABCD, 0x3456_789A_BCDE
PORT = 5201
SECONDS = 2
LOST_PERCENT_MAX = 5
"""On a busy machine the receiving program itself loses some."""
PROVIDERS = ("p2", "p4")
"""Those of the second uplinks."""
MODES = pytest.mark.parametrize(
    "mode", [Mode.EXTHDR, Mode.FLOWLABEL, Mode.IDENTIFIER, Mode.DSTOPT], ids=lambda mode: mode.name
)
FIREWALL = """*filter
:FORWARD DROP [0:0]
-A FORWARD -m conntrack --ctstate INVALID -j DROP
-A FORWARD -m conntrack --ctstate ESTABLISHED -j ACCEPT
-A FORWARD -m conntrack --ctstate NEW -d {open} -j ACCEPT
COMMIT
"""


def rehome(alpha: FastGateway, beta: FastGateway, mode: Mode) -> None:
    """Both ends use their second uplinks from now on; the receiving entries come first."""
    back = UlidPair(ULIDS.peer, ULIDS.local), LocatorPair(LOCATORS.peer, LOCATORS.local)
    beta.rehome(*back, mode, uplink=2, local_tag=BETA_TAG, peer_tag=ALPHA_TAG)
    alpha.rehome(ULIDS, LOCATORS, mode, uplink=2, local_tag=ALPHA_TAG, peer_tag=BETA_TAG)


def prepare(lab: Lab, mode: Mode) -> None:
    """Firewalls, and room for what the mode inserts."""
    for gateway in ("agw", "bgw"):
        restore_rules(lab, gateway, FIREWALL.format(open=B1))
    give_room(lab, mode)


def give_room(lab: Lab, mode: Mode) -> None:
    """No daemon is there to ask the hosts for smaller packets."""
    room = {Mode.EXTHDR: GROWTH_OCTETS, Mode.DSTOPT: SEGMENT_OCTETS}.get(mode, 0)
    for site in (ALPHA, BETA):
        host = site.hosts[0]
        words = ("ip", "-6", "route", "replace", "default", "via", host.router)
        run_in(lab, host.node, *words, "mtu", str(MTU - room))


def like_a_wire(lab: Lab) -> None:
    """No packet is larger than a wire carries, its checksum is there, and gateways aggregate."""
    for provider in PROVIDERS:
        for interface in ("core", "cust"):
            offload(lab, provider, interface, *CHECKSUM, *TSO, GSO, on=False)
    for gateway in ("agw", "bgw"):
        offload(lab, gateway, "wan2", GRO, on=True)


def iperf(lab: Lab, *words: str, meanwhile: Callable[[], None]) -> dict[str, float]:
    """Send from a1 to b1; what the receiver got."""
    with program(lab, "b1", "iperf3", "-s", "-1"):
        listening(lab, "b1", PORT)
        sender = subprocess.Popen(
            lab.inside("a1", ["iperf3", "-c", B1, "-t", str(SECONDS), "-J", *words]),
            stdout=subprocess.PIPE,
            text=True,
        )
        time.sleep(SECONDS / 2)
        meanwhile()
        text, _ = sender.communicate(timeout=SECONDS + 20)
    result = json.loads(text)
    assert "error" not in result, result
    found: dict[str, float] = result["end"].get("sum_received") or result["end"]["sum"]
    return found


def snmp(lab: Lab, node: str) -> dict[str, int]:
    """Checksum errors of a host, by protocol."""
    rows = [line.split() for line in run_in(lab, node, "cat", "/proc/net/snmp").splitlines()]
    tcp = next(
        dict(zip(names, values, strict=True))
        for names, values in pairwise(rows)
        if names[0] == values[0] == "Tcp:"
    )
    udp = dict(line.split() for line in run_in(lab, node, "cat", "/proc/net/snmp6").splitlines())
    return {"tcp": int(tcp["InCsumErrors"]), "udp": int(udp["Udp6InCsumErrors"])}


@MODES
@pytest.mark.parametrize("wire", [False, True], ids=["veth", "wire"])
def test_a_stream_moves_in_mid_flight(plain_lab: Lab, mode: Mode, wire: bool) -> None:
    prepare(plain_lab, mode)
    if wire:
        like_a_wire(plain_lab)
    with fast(plain_lab, ALPHA, BETA) as (alpha, beta):
        tcp = iperf(plain_lab, meanwhile=lambda: rehome(alpha, beta, mode))
        counts = alpha.counts(), beta.counts()
        udp = iperf(plain_lab, "-u", "-b", "20M", "-l", "1200", meanwhile=lambda: None)
        after = beta.counts()
    assert tcp["bits_per_second"] > 50e6
    assert udp["lost_percent"] < LOST_PERCENT_MAX
    assert min(one["REWRITTEN"] for one in counts) > 100
    assert min(one["RESTORED"] for one in counts) > 100
    assert after["RESTORED"] - counts[1]["RESTORED"] > 20e6 * SECONDS / 8 / 1200 * 0.8
    assert not any(name.startswith("DROP") for one in counts for name in one)
    if mode is Mode.EXTHDR:
        assert counts[0]["SPLIT"] > 10
        assert 100 < counts[1]["REGROUPED"] < counts[1]["RESTORED"] / 3
    for node in ("a1", "b1"):
        assert snmp(plain_lab, node) == {"tcp": 0, "udp": 0}


def test_packets_on_their_way_follow_a_flow_that_moves_again(plain_lab: Lab) -> None:
    """They were marked, routed and forwarded for one uplink when the flow went to the other."""
    prepare(plain_lab, Mode.FLOWLABEL)
    with fast(plain_lab, ALPHA, BETA) as (alpha, beta):
        rehome(alpha, beta, Mode.FLOWLABEL)
        late = "-A PREROUTING -i lan0 -m mark --mark 0x82000000/0xff000000"
        rule = f"{late} -j MARK --set-xmark 0x81000000/0xff000000"
        restore_rules(plain_lab, "agw", f"*mangle\n{rule}\nCOMMIT\n")
        run_in(plain_lab, "a1", "ping", "-n", "-c", "20", "-i", "0.01", "-W", "1", B1)
        assert alpha.count(Counter.REDIRECTED) == 20
        assert alpha.count(Counter.REWRITTEN) == 20
        assert beta.count(Counter.RESTORED) == 20
        assert not {name for name in alpha.counts() if name.startswith("DROP")}


def test_a_marked_packet_whose_flow_is_gone_never_leaves(plain_lab: Lab) -> None:
    with fast(plain_lab, ALPHA) as (alpha,):
        mark = "-A PREROUTING -i lan0 -j MARK --set-xmark 0x82000000/0xff000000"
        restore_rules(plain_lab, "agw", f"*mangle\n{mark}\nCOMMIT\n")
        done = subprocess.run(
            plain_lab.inside("a1", ["ping", "-n", "-c", "3", "-i", "0.01", "-W", "1", B1]),
            capture_output=True,
            check=False,
        )
        assert done.returncode != 0
        assert alpha.count(Counter.DROP_NO_FLOW) == 3

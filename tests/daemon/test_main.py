"""Putting the parts together: what is read from the system, and what the engine is told."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from m6proxy.daemon.config import parse_config
from m6proxy.daemon.main import own_address, shim_settings
from m6proxy.names import address
from m6proxy.shim.core import ShimSettings
from m6proxy.shim.demux import DemuxMode
from m6proxy.shim.policy import DETECTION, FailbackMode
from m6proxy.shim.routability import ReturnRoutability
from tests.daemon.test_config import CONTRACT

IF_INET6 = """\
00000000000000000000000000000001 01 80 10 80       lo
fe80000000000000a4b5c6fffed7e8f9 03 40 20 80     lan0
20010db800a100010000000000000001 03 40 00 80     lan0
20010db800f100000000000000000002 04 40 00 80     wan1
fd000000000000000000000000000001 05 40 00 80     lan1
"""


def test_the_gateways_own_address_is_a_global_one_towards_the_hosts() -> None:
    assert own_address(("lan0",), IF_INET6) == address("2001:db8:a1:1::1")
    assert own_address(("lan1", "lan0"), IF_INET6) in (
        address("2001:db8:a1:1::1"),
        address("fd00::1"),
    )


@pytest.mark.parametrize(("interfaces", "table"), [(("lan7",), IF_INET6), (("lan0",), "")])
def test_without_one_there_is_none(interfaces: tuple[str, ...], table: str) -> None:
    assert own_address(interfaces, table) is None


def test_a_link_local_address_does_not_count() -> None:
    only = IF_INET6.splitlines()[1] + "\n"
    assert own_address(("lan0",), only) is None


def test_the_engine_is_told_what_the_configuration_says(tmp_path: Path) -> None:
    changed = "unknown_peers: probe, hold_first_packet_s: 2, failback: hard, failback_hold_s: 90"
    changed += ", probes_per_s: 700"
    settings = shim_settings(parse_config(CONTRACT.replace("unknown_peers: ignore", changed), "f"))
    assert (settings.failback, settings.failback_hold_s) == (FailbackMode.HARD, 90.0)
    assert [(u.name, u.preference) for u in settings.uplinks] == [("isp1", 1), ("isp2", 2)]
    assert settings.detection == DETECTION and settings.capable == ()
    assert settings.forks == ()
    assert settings.hold_first_packet_s == 2.0
    assert settings.probes_per_s == 700.0
    assert settings.park_max_s == 3600.0
    assert settings.probe_unknown and settings.send_timeout_s == 3.0
    assert settings.establish.after_octets == 2048


def test_the_engine_is_told_what_peers_hear_of_an_uplink() -> None:
    text = CONTRACT.replace("preference: 2", "preference: 2, weight: 7, temporary: true", 1)
    text = text.replace("send_timeout_s: 3", "send_timeout_s: 3, park_max_s: 90, locators_max: 3")
    settings = shim_settings(parse_config(text, "f"))
    assert [(u.weight, u.temporary) for u in settings.uplinks] == [(0, False), (7, True)]
    assert (settings.park_max_s, settings.locators_max) == (90.0, 3)


def test_a_lan_without_a_global_address_lends_an_uplinks() -> None:
    """On a LAN with link-local addresses only, no host was ever told Packet Too Big.

    The addresses of the uplinks are asked next, in the order of preference.
    """
    settings = IF_INET6.replace("20010db800a100010000000000000001 03 40 00 80     lan0\n", "")
    assert own_address(("lan0", "wan2", "wan1"), settings) == address("2001:db8:f1::2")
    both = settings + "20010db800f200000000000000000002 06 40 00 80     wan2\n"
    assert own_address(("lan0", "wan1", "wan2"), both) == address("2001:db8:f1::2")
    assert own_address(("lan0", "wan2", "wan1"), both) == address("2001:db8:f2::2")


def test_the_engine_is_told_when_to_test_a_locator() -> None:
    assert ShimSettings(uplinks=()).return_routability is ReturnRoutability.FIRST_USE
    for policy in ReturnRoutability:
        key = f"send_timeout_s: 3, return_routability: {policy.value}"
        settings = shim_settings(parse_config(CONTRACT.replace("send_timeout_s: 3", key), "f"))
        assert settings.return_routability is policy


def test_peers_are_asked_for_options_where_the_kernel_moves_packets() -> None:
    config = parse_config(CONTRACT, "")
    assert shim_settings(config).demux == (DemuxMode.EXTHDR, DemuxMode.DSTOPT)
    assert shim_settings(config, in_kernel=True).demux == (DemuxMode.DSTOPT, DemuxMode.EXTHDR)
    written = replace(config, demux=(DemuxMode.EXTHDR,))
    assert shim_settings(written, in_kernel=True).demux == (DemuxMode.EXTHDR,)

"""What the lab writes for its gateways, the daemon reads (the contract of the configuration)."""

from __future__ import annotations

import yaml

from m6proxy.lab.build import Lab, gateway_config
from m6proxy.lab.topology import ALPHA


def test_configuration_of_alpha() -> None:
    assert yaml.safe_load(gateway_config(Lab("m6t-x"), ALPHA)) == {
        "site": "alpha.example",
        "lan": ["lan0"],
        "uplinks": {
            "isp1": {
                "interface": "wan1",
                "prefix": "2001:db8:a1::/48",
                "gateway": "2001:db8:f1::1",
                "preference": 1,
            },
            "isp2": {
                "interface": "wan2",
                "prefix": "2001:db8:a2::/48",
                "gateway": "2001:db8:f2::1",
                "preference": 2,
            },
        },
        "dns": {"servers": ["2001:db8:ff::53"]},
        "policy": {
            "establish": {"after_octets": 2048, "after_s": 10},
            "unknown_peers": "ignore",
            "send_timeout_s": 3,
        },
        "control": "/run/m6proxy-lab/m6t-x/alpha.sock",
    }

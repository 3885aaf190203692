"""Values that cannot be rendered cannot be made."""

from __future__ import annotations

from typing import Any

import pytest

from m6proxy.names import Prefix, address
from m6proxy.steering.settings import SteeringSettings, UplinkSettings
from tests.steering.namespaces import settings_of


def test_each_uplink_has_its_table() -> None:
    settings = settings_of("a")
    assert [settings.table(uplink) for uplink in settings.uplinks] == [14_000, 14_001]


@pytest.mark.parametrize(
    "change",
    [
        {"site": 'x" -j ACCEPT\n'},
        {"site": ""},
        {"lan": ()},
        {"lan": ("lan0 -j DROP",)},
        {"lan": ("an-interface-name-too-long",)},
        {"uplinks": ()},
        {"queue_outbound": 141},
        {"queue_inbound": 65_536},
        {"table_base": 253},
        {"table_base": 0},
        {"rule_priority": 0},
        {"rule_priority": 32_765},
    ],
)
def test_bad_settings_are_refused(change: dict[str, Any]) -> None:
    good = settings_of("a")
    values: dict[str, Any] = {"site": good.site, "lan": good.lan, "uplinks": good.uplinks}
    with pytest.raises(ValueError):
        SteeringSettings(**(values | change))


def test_a_bad_uplink_is_refused() -> None:
    prefix, gateway = Prefix.parse("2001:db8::/48"), address("2001:db8:f1::1")
    with pytest.raises(ValueError, match="interface"):
        UplinkSettings("isp1", "wan 1", prefix, gateway)
    with pytest.raises(ValueError, match="16 octets"):
        UplinkSettings("isp1", "wan1", prefix, b"")

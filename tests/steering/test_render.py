"""The text that ip6tables-restore gets, line for line."""

from __future__ import annotations

from dataclasses import replace

from m6proxy.discovery.addressing import NsquareMap
from m6proxy.names import UlidPair, address
from m6proxy.steering.branches import grow
from m6proxy.steering.render import render_rehomed, render_removal, render_table
from tests.steering.namespaces import HOST_A, HOST_B, settings_of

SETTINGS = settings_of("a")

MANGLE = """\
*mangle
:M6PROXY-OUT - [0:0]
:M6PROXY-SITE - [0:0]
:M6PROXY-REHOMED - [0:0]
-A M6PROXY-OUT -i lan0 -s 2001:db8:a1::/48 -m comment --comment "m6proxy alpha.example" -j M6PROXY-SITE
-A M6PROXY-OUT -i lan0 -s 2001:db8:a2::/48 -m comment --comment "m6proxy alpha.example" -j M6PROXY-SITE
-A M6PROXY-SITE -d ff00::/8 -m comment --comment "m6proxy alpha.example" -j RETURN
-A M6PROXY-SITE -d fe80::/10 -m comment --comment "m6proxy alpha.example" -j RETURN
-A M6PROXY-SITE -d 2001:db8:a1::/48 -m comment --comment "m6proxy alpha.example" -j RETURN
-A M6PROXY-SITE -d 2001:db8:a2::/48 -m comment --comment "m6proxy alpha.example" -j RETURN
-A M6PROXY-SITE -m addrtype --dst-type LOCAL -m comment --comment "m6proxy alpha.example" -j RETURN
-A M6PROXY-SITE -m comment --comment "m6proxy alpha.example" -j M6PROXY-REHOMED
-A M6PROXY-SITE -m comment --comment "m6proxy alpha.example" -j NFQUEUE --queue-num 140 --queue-bypass
-I PREROUTING 1 -m comment --comment "m6proxy alpha.example" -j M6PROXY-OUT
COMMIT
"""  # noqa: E501

RAW = """\
*raw
:M6PROXY-IN - [0:0]
-A M6PROXY-IN -i wan1 -d 2001:db8:a1::/48 -p 140 -m comment --comment "m6proxy alpha.example" -j NFQUEUE --queue-num 141
-A M6PROXY-IN -i wan2 -d 2001:db8:a2::/48 -p 140 -m comment --comment "m6proxy alpha.example" -j NFQUEUE --queue-num 141
-A M6PROXY-IN -i wan1 -d 2001:db8:a1::/48 -m addrtype --dst-type LOCAL -m comment --comment "m6proxy alpha.example" -j RETURN
-A M6PROXY-IN -i wan2 -d 2001:db8:a2::/48 -m addrtype --dst-type LOCAL -m comment --comment "m6proxy alpha.example" -j RETURN
-A M6PROXY-IN -i wan1 -d 2001:db8:a1::/48 -m comment --comment "m6proxy alpha.example" -j NFQUEUE --queue-num 141 --queue-bypass
-A M6PROXY-IN -i wan2 -d 2001:db8:a2::/48 -m comment --comment "m6proxy alpha.example" -j NFQUEUE --queue-num 141 --queue-bypass
-D PREROUTING -j M6PROXY-IN
-I PREROUTING 1 -m comment --comment "m6proxy alpha.example" -j M6PROXY-IN
COMMIT
"""  # noqa: E501

REHOMED = """\
*mangle
:M6PROXY-REHOMED - [0:0]
-A M6PROXY-REHOMED -s 2001:db8:a1:1::10 -d 2001:db8:b1:1::10 -m comment --comment "m6proxy alpha.example" -j NFQUEUE --queue-num 140
-F M6PROXY-R-0
-F M6PROXY-R-1
-X M6PROXY-R-0
-X M6PROXY-R-1
COMMIT
"""  # noqa: E501


def test_outbound_bundle() -> None:
    assert render_table(SETTINGS, "mangle") == MANGLE


def test_inbound_bundle_takes_the_old_hook_away() -> None:
    assert render_table(SETTINGS, "raw", unhook=["-D PREROUTING -j M6PROXY-IN"]) == RAW


def test_locator_only_addresses_are_never_left_to_the_kernel() -> None:
    """They are nobody's: routed on, they would go in circles between gateway and provider."""
    nsquare = NsquareMap((uplink.prefix for uplink in SETTINGS.uplinks), 48)
    text = render_table(replace(SETTINGS, locator_only=nsquare.patterns()), "raw")
    rules = [line for line in text.splitlines() if "/ffff" in line]
    assert [line.split()[3] for line in rules] == [
        "2001:db8:a1:4000::/ffff:ffff:ffff:4000::",
        "2001:db8:a1:8000::/ffff:ffff:ffff:8000::",
        "2001:db8:a2:4000::/ffff:ffff:ffff:4000::",
        "2001:db8:a2:8000::/ffff:ffff:ffff:8000::",
    ]
    assert all("--queue-num 141" in line and "bypass" not in line for line in rules)
    lines = text.splitlines()
    assert lines.index(rules[-1]) < next(n for n, line in enumerate(lines) if "bypass" in line)


def test_rehomed_pairs() -> None:
    tree = grow([UlidPair(address(HOST_A), address(HOST_B))])
    stale = ["M6PROXY-R-0", "M6PROXY-R-1"]
    assert render_rehomed(SETTINGS, tree, stale) == REHOMED


def test_no_rehomed_pairs_leave_an_empty_chain() -> None:
    text = "*mangle\n:M6PROXY-REHOMED - [0:0]\nCOMMIT\n"
    assert render_rehomed(SETTINGS, grow([])) == text


def test_two_lans_with_two_prefixes_make_four_rules() -> None:
    text = render_table(replace(SETTINGS, lan=("lan0", "lan1")), "mangle")
    assert text.count("-j M6PROXY-SITE") == 4
    assert text.count("-d 2001:db8:a1::/48") == 1


def test_removal_flushes_all_chains_before_deleting_the_first() -> None:
    text = render_removal("mangle", ["M6PROXY-SITE", "M6PROXY-OUT"], ["-D PREROUTING -j X"])
    assert text.splitlines() == [
        "*mangle",
        "-D PREROUTING -j X",
        "-F M6PROXY-OUT",
        "-F M6PROXY-SITE",
        "-X M6PROXY-OUT",
        "-X M6PROXY-SITE",
        "COMMIT",
    ]


def test_marked_packets_pass_first() -> None:
    """Where programs in the kernel have decided already; without them nothing reads a mark."""
    marked = replace(SETTINGS, mark_shift=16)
    rules = {table: render_table(marked, table).splitlines() for table in ("mangle", "raw")}
    shown, outbound = (line for line in rules["mangle"] if "--mark" in line)
    (inbound,) = (line for line in rules["raw"] if "--mark" in line)
    assert shown.startswith("-A M6PROXY-OUT -m mark --mark 0x900000/0xf00000 -m comment")
    assert shown.endswith("-j NFQUEUE --queue-num 140 --queue-bypass")
    assert outbound.startswith("-I PREROUTING 1 -m mark ! --mark 0x800000/0xf00000 -m comment")
    assert inbound.startswith("-I PREROUTING 1 -m mark ! --mark 0x8f0000/0xff0000 -m comment")
    plain = {table: render_table(SETTINGS, table) for table in ("mangle", "raw")}
    assert not any("--mark" in text for text in plain.values())
    assert all("-I PREROUTING 1 -m comment" in text for text in plain.values())

"""Rule bundles in a real kernel, beside the rules of others."""

from __future__ import annotations

import re
import shutil
import socket
import struct
import threading
from collections.abc import Iterator

import pytest

from m6proxy.errors import SetupError
from m6proxy.names import UlidPair, address
from m6proxy.steering.apply import RuleBundles
from tests.steering.namespaces import (
    HOST_A,
    HOST_B,
    Namespaces,
    TwoSites,
    inside,
    run,
    settings_of,
    until,
)

pytestmark = pytest.mark.netns

FOREIGN = """\
*raw
:OPERATOR - [0:0]
-A PREROUTING -s 2001:db8:99::/48 -m comment --comment "not m6proxy's" -j DROP
-A PREROUTING -j OPERATOR
-A OPERATOR -p tcp -m tcp --dport 22 -j ACCEPT
COMMIT
*mangle
:M6PROXYISH - [0:0]
-A PREROUTING -i lan0 -p tcp -m tcp --tcp-flags SYN,RST SYN -j TCPMSS --set-mss 1400
-A PREROUTING -j M6PROXYISH
-A FORWARD -j MARK --set-xmark 0x1/0x1
COMMIT
*filter
:FORWARD DROP [0:0]
-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -i lan0 -m comment --comment "hosts may" -j ACCEPT
COMMIT
"""


def _saved(variant: str = "ip6tables") -> str:
    text = run(f"{variant}-save")
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    return re.sub(r"\[\d+:\d+\]", "[0:0]", "\n".join(lines))


def _pairs(count: int) -> tuple[UlidPair, ...]:
    return tuple(
        UlidPair(address(f"2001:db8:a1:1::{n:x}"), address(f"2001:db8:b1::{n:x}"))
        for n in range(count)
    )


@pytest.fixture(params=["ip6tables", "ip6tables-nft", "ip6tables-legacy"])
def gateway(request: pytest.FixtureRequest) -> Iterator[str]:
    """Put the test into a namespace with foreign rules; the value is the variant."""
    variant: str = request.param
    assert shutil.which(f"{variant}-restore")
    with Namespaces() as spaces, inside(spaces.add("g")):
        run(f"{variant}-restore", text=FOREIGN)
        yield variant


def test_foreign_rules_survive_apply_twice_and_remove_twice(gateway: str) -> None:
    before = _saved(gateway)
    bundles = RuleBundles(settings_of("a"), variant=gateway)
    bundles.apply()
    once = _saved(gateway)
    bundles.apply()
    assert _saved(gateway) == once and bundles.verify() == []
    foreign = [line for line in once.splitlines() if "M6PROXY-" not in line]
    assert foreign == before.splitlines()
    bundles.remove()
    assert _saved(gateway) == before
    bundles.remove()
    assert _saved(gateway) == before


def test_rehomed_pairs_come_and_go_and_leave_nothing(gateway: str) -> None:
    before = _saved(gateway)
    bundles = RuleBundles(settings_of("a"), variant=gateway)
    bundles.apply()
    empty = _saved(gateway)
    for count in (1, 300, 40, 5):
        bundles.apply_rehomed(_pairs(count))
        guarded = [c for c in bundles.counters() if "-d 2001:db8:b1::" in c.rule]
        assert len({counter.rule for counter in guarded}) == count
    bundles.apply_rehomed(())
    assert _saved(gateway) == empty
    bundles.apply_rehomed(_pairs(100))
    bundles.remove()
    assert _saved(gateway) == before


def test_what_a_dead_predecessor_left_is_replaced(gateway: str) -> None:
    before = _saved(gateway)
    dead = RuleBundles(settings_of("b"), variant=gateway)  # even of another configuration
    dead.apply()
    dead.apply_rehomed(_pairs(200))
    bundles = RuleBundles(settings_of("a"), variant=gateway)
    bundles.apply()
    text = _saved(gateway)
    assert "beta.example" not in text and "M6PROXY-R-" not in text and bundles.verify() == []
    assert text.count("PREROUTING -m comment") == 2  # one hook in each of the two tables
    RuleBundles(settings_of("b"), variant=gateway).remove()
    assert _saved(gateway) == before


def test_the_hook_goes_back_to_the_first_place(gateway: str) -> None:
    bundles = RuleBundles(settings_of("a"), variant=gateway)
    bundles.apply()
    run(gateway, "-t", "mangle", "-I", "PREROUTING", "1", "-i", "wan9", "-j", "ACCEPT")
    run(gateway, "-t", "raw", "-A", "PREROUTING", "-j", "M6PROXY-IN")
    assert len(bundles.verify()) == 2
    bundles.apply()
    assert bundles.verify() == []
    assert "-A PREROUTING -i wan9 -j ACCEPT" in _saved(gateway)


def test_a_reader_never_sees_half_of_the_rules() -> None:
    """Applied over and over by another thread, each snapshot is complete."""
    with Namespaces() as spaces, inside(spaces.add("g")):
        bundles = RuleBundles(settings_of("a"))
        bundles.apply()
        bundles.apply_rehomed(_pairs(30))
        whole = {_saved()}
        bundles.apply()
        whole.add(_saved())
        done = threading.Event()
        snapshots: list[str] = []

        def watch() -> None:
            while not done.is_set():
                snapshots.append(_saved())

        watcher = threading.Thread(target=watch)  # inherits the namespace
        watcher.start()
        for _ in range(10):
            bundles.apply_rehomed(_pairs(30))
            bundles.apply()
        done.set()
        watcher.join(10)
        assert snapshots and set(snapshots) <= whole


def test_a_refused_bundle_is_one_line_and_changes_nothing() -> None:
    with Namespaces() as spaces, inside(spaces.add("g")):
        bundles = RuleBundles(settings_of("a"))
        bundles.apply()
        run("ip6tables", "-A", "OUTPUT", "-p", "tcp", "-j", "ACCEPT")
        before = _saved()
        with pytest.raises(SetupError) as caught:
            bundles._restore("*mangle\n-F M6PROXY-SITE\n-A M6PROXY-SITE -j NOSUCH\nCOMMIT\n")
        assert "NOSUCH" in str(caught.value) and "\n" not in str(caught.value)
        assert _saved() == before


def test_a_missing_program_is_one_line() -> None:
    with pytest.raises(SetupError, match="is not installed"):
        RuleBundles(settings_of("a"), variant="no-such-ip6tables").apply()


def _options(following: int) -> bytes:
    return bytes([following, 0, 1, 4, 0, 0, 0, 0])


def _fragment(following: int, offset: int) -> bytes:
    return struct.pack("!BBHI", following, 0, offset << 3 | (not offset), 7)


SHIM = bytes([59, 0, 0x80, 0, 0, 0, 0, 1])
CHAINS = {
    "bare": (140, SHIM),
    "hop-by-hop": (0, _options(140) + SHIM),
    "destination": (60, _options(140) + SHIM),
    "routing": (43, bytes([140, 0, 253, 0, 0, 0, 0, 0]) + SHIM),
    "all of them": (
        0,
        _options(60) + _options(43) + bytes([60, 0, 253, 0, 0, 0, 0, 0]) + _options(140) + SHIM,
    ),
    "first fragment": (44, _fragment(140, 0) + SHIM),
    "later fragment": (44, _fragment(140, 5) + SHIM),
    "cut": (140, SHIM[:3]),
    "nothing behind": (140, b""),
}


def test_protocol_140_is_seen_behind_extension_headers_and_never_passes_a_dead_daemon() -> None:
    source, target = address(HOST_B), address(HOST_A)
    with TwoSites() as sites:
        with inside(sites.gateway["b"]):
            sender = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_RAW)
        with sender, inside(sites.gateway["a"]):
            bundles = RuleBundles(settings_of("a"))
            bundles.apply()

            def counted(words: str) -> int:
                rules = [c for c in bundles.counters() if words in c.rule and "wan1" in c.rule]
                return sum(counter.packets for counter in rules)

            for n, (name, (first, body)) in enumerate(CHAINS.items(), start=1):
                header = struct.pack("!IHBB", 0x60000000, len(body), first, 64)
                sender.sendto(header + source + target + body, (HOST_A, 0))
                until(lambda n=n: counted("-p shim6") == n, name)  # type: ignore[misc]
            assert counted("--queue-bypass") == 0
            for first in (51, 59, 139):  # AH ends the search: the shim stands before it
                body = bytes([140, 4]) + bytes(22) + SHIM
                header = struct.pack("!IHBB", 0x60000000, len(body), first, 64)
                sender.sendto(header + source + target + body, (HOST_A, 0))
            until(lambda: counted("--queue-bypass") == 3, "others are not taken for the shim")

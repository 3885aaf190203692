"""Python and C mean the same: structs against the object's BTF, numbers against the header."""

from __future__ import annotations

import re
from enum import IntEnum
from pathlib import Path

import pytest

from m6proxy.dataplane.bpf import layout
from m6proxy.dataplane.bpf.layout import (
    Activity,
    Counter,
    Event,
    EventKind,
    InFlag,
    InFlow,
    Miss,
    MissFlag,
    Mode,
    OutFlag,
    OutFlow,
    PairFlow,
    PrefixFlag,
    Ripe,
    Settings,
    SettingsFlag,
    SitePrefix,
)
from m6proxy.dataplane.bpf.load import read_object
from m6proxy.names import Prefix, address

HEADER = Path(layout.__file__).parent / "src" / "maps.h"
PAIR = bytes(range(1, 33))
PEER = (bytes([0xA1]) * 16, bytes([0xA2]) * 16)
LOCAL = (bytes([0xB1]) * 16,)


def number(value: int, octets: int) -> bytes:
    """A number as the machine has it."""
    return value.to_bytes(octets, "little" if layout.tag_key(Mode.ULIDS, 1)[0] else "big")


OUT = OutFlow(PAIR, Mode.DSTOPT, 0x01020304, 5, 1400, b"1234567", 0x54321, OutFlag.SLOW)
IN = InFlow(PAIR, 0x01020304, PEER, LOCAL, InFlag.COMPLETE)
FLOW = PairFlow(PAIR, 0x01020304, Mode.IDENTIFIER)
SEEN = Activity(*range(11, 19))
MISS = Miss(21, 22, 23, 24, 25, MissFlag.ANSWERED)
MARKS = address("0:0:0:c000::")
PREFIX = SitePrefix(Prefix.parse("2001:db8:a1::/48"), PrefixFlag.SLOW, MARKS)
ALL = Settings(
    (PREFIX,), (7, 8), SettingsFlag.LABELS, 16, 31, 32, 40, 33, 34, 35, 36, 37, 38, 41, 39
)
MASK = b"\xff" * 6 + bytes(10)

STRUCTS: dict[str, tuple[bytes, dict[str, bytes]]] = {
    "out_flow": (
        OUT.pack(),
        {
            "locators": PAIR,
            "tail": b"\x001234567",
            "label": b"\x00\x05\x43\x21",
            "mtu": number(1400, 4),
            "mode": number(4, 1),
            "uplink": number(5, 1),
            "flags": number(1, 2),
            "slot": number(0x01020304, 4),
        },
    ),
    "in_flow": (
        IN.pack(),
        {
            "ulids": PAIR,
            "slot": number(0x01020304, 4),
            "n_peer": number(2, 1),
            "n_local": number(1, 1),
            "flags": number(1, 2),
            "peer": PEER[0] + PEER[1] + bytes(32),
            "local": LOCAL[0] + bytes(48),
        },
    ),
    "pair_flow": (
        FLOW.pack(),
        {"ulids": PAIR, "slot": number(0x01020304, 4), "mode": number(3, 1), "spare": bytes(3)},
    ),
    "sent_key": (
        layout.sent_key(PAIR, 0x54321),
        {"locators": PAIR, "label": b"\x00\x05\x43\x21", "spare": bytes(4)},
    ),
    "activity": (
        SEEN.pack(),
        {
            name: number(value, 8)
            for value, name in enumerate(
                Activity.__slots__,
                start=11,
            )
        },
    ),
    "miss": (
        MISS.pack(),
        {
            "first_ns": number(21, 8),
            "syn_ns": number(22, 8),
            "quiet_until_ns": number(23, 8),
            "octets": number(24, 8),
            "packets": number(25, 8),
            "flags": number(2, 4),
            "spare": bytes(4),
        },
    ),
    "prefix": (
        PREFIX.pack(),
        {
            "network": PREFIX.prefix.network,
            "mask": MASK,
            "marks": MARKS,
            "flags": number(1, 4),
            "spare": bytes(4),
        },
    ),
    "settings": (
        ALL.pack(),
        {
            "prefixes": PREFIX.pack() + bytes(56 * 15),
            "uplinks": number(0, 4) + number(7, 4) + number(8, 4) + bytes(4 * 13),
            "n_prefixes": number(1, 4),
            "flags": number(2, 4),
            "mark_shift": number(16, 4),
            "split_ifindex": number(31, 4),
            "regroup_ifindex": number(32, 4),
            "generation": number(40, 4),
            "after_octets": number(33, 8),
            "after_packets": number(34, 8),
            "after_ns": number(35, 8),
            "ask_again_ns": number(36, 8),
            "wake_ns": number(37, 8),
            "overdue_ns": number(38, 8),
            "attended_until_ns": number(41, 8),
            "express_until_ns": number(39, 8),
        },
    ),
}


@pytest.mark.parametrize("name", STRUCTS)
def test_each_field_is_where_the_compiler_put_it(name: str) -> None:
    packed, fields = STRUCTS[name]
    found = read_object().types.layout(name)
    assert found.size == len(packed)
    assert [field.name for field in found.fields] == list(fields)
    for field in found.fields:
        assert packed[field.offset : field.offset + field.size] == fields[field.name], field.name


def test_what_was_packed_is_unpacked() -> None:
    for value in (OUT, IN, FLOW, SEEN, MISS, PREFIX):
        assert type(value).unpack(value.pack()) == value


def test_the_maps_have_the_names_and_sizes_that_python_uses() -> None:
    maps = read_object().maps
    sizes = {name: (spec.key_size, spec.value_size) for name, spec in maps.items()}
    assert sizes == {
        layout.SETTINGS: (4, Settings.LAYOUT.size),
        layout.OUT: (32, OutFlow.LAYOUT.size),
        layout.TAG: (8, InFlow.LAYOUT.size),
        layout.PAIR: (32, PairFlow.LAYOUT.size),
        layout.SENT: (len(layout.sent_key(PAIR, 0)), 4),
        layout.ACTIVE: (4, Activity.LAYOUT.size),
        layout.MISSES: (32, Miss.LAYOUT.size),
        layout.RECENT: (4, 96),
        layout.EVENTS: (0, 0),
        layout.COUNT: (4, 8),
    }
    assert maps[layout.COUNT].max_entries == len(Counter)
    assert all(len(name) <= 15 for name in sizes)


def numbers(enumeration: str, prefix: str) -> dict[str, int]:
    """The values of an enum of the header, without the prefix of their names."""
    match = re.search(rf"enum {enumeration} {{(.*?)}};", HEADER.read_text(), re.DOTALL)
    assert match is not None
    text = re.sub(r"/\*.*?\*/", "", match[1], flags=re.DOTALL)
    found: dict[str, int] = {}
    for entry in filter(None, (each.strip() for each in text.split(","))):
        name, _, value = (part.strip() for part in entry.partition("="))
        found[name] = int(value) if value else len(found)
    return {name.removeprefix(prefix): value for name, value in found.items()}


@pytest.mark.parametrize(
    ("python", "enumeration", "prefix"),
    [
        (Mode, "mode", "MODE_"),
        (OutFlag, "out_flags", "OUT_"),
        (InFlag, "in_flags", "IN_"),
        (MissFlag, "miss_flags", "MISS_"),
        (PrefixFlag, "prefix_flags", "PREFIX_"),
        (SettingsFlag, "settings_flags", "SETTINGS_"),
        (EventKind, "event_kind", "EVENT_"),
        (Ripe, "ripe", "RIPE_"),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_both_name_the_same_numbers(python: type[IntEnum], enumeration: str, prefix: str) -> None:
    assert numbers(enumeration, prefix) == {each.name: each.value for each in python}


def test_every_counter_is_named_on_both_sides() -> None:
    expected = {each.name: each.value for each in Counter} | {"COUNTERS": len(Counter)}
    assert numbers("counter", "COUNT_") == expected


def test_the_header_says_how_large_the_tables_are() -> None:
    text = HEADER.read_text()
    for name, value in (
        ("PREFIXES_MAX", layout.PREFIXES_MAX),
        ("UPLINKS_MAX", layout.UPLINKS_MAX + 2),
        ("LOCATORS_MAX", layout.LOCATORS_MAX),
        ("DNS_OCTETS_MAX", layout.DNS_OCTETS_MAX),
    ):
        assert f"#define {name} {value}\n" in text


def test_too_much_for_an_entry_is_our_own_mistake() -> None:
    with pytest.raises(ValueError, match="room for 4 locators"):
        InFlow(PAIR, 0, (PEER[0],) * 5, LOCAL)
    with pytest.raises(ValueError, match="16 prefixes, 14 uplinks"):
        Settings((PREFIX,) * 17, ())
    with pytest.raises(ValueError, match="a shift of 0 to 24"):
        Settings((PREFIX,), (1,), mark_shift=25)


def test_an_event_carries_its_datagram() -> None:
    record = Event.LAYOUT.pack(EventKind.DNS, 3, 99, bytes(32), 0, 0) + b"abc" + bytes(9)
    assert Event.unpack(record) == Event(EventKind.DNS, 99, payload=b"abc")

"""Another reader of our octets: tshark.

Debian's tshark 4.0 reads the fixed fields of control messages one octet early (the S bit,
the checksum's value, tags, nonces, options), so those are not compared. Type, length,
checksum status and the payload header it judges rightly.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
from pathlib import Path
from typing import Any

import pytest

from m6proxy.names import address
from m6proxy.wire.ipv6 import NEXT_SHIM, build_packet
from m6proxy.wire.message import encode_message
from m6proxy.wire.payload import payload_header
from tests.vectors import load_vectors
from tests.wire.test_vectors import MESSAGE_VALUES

LINKTYPE_RAW = 101
CHECKSUM_BAD, CHECKSUM_GOOD = "0", "1"
SRC, DST = address("2001:db8:a2::10"), address("2001:db8:b2::20")


@pytest.fixture(scope="module")
def tshark() -> str:
    path = shutil.which("tshark")
    if path is None:
        message = "tshark is not installed: nobody else reads our octets"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    return path


def dissect(tshark: str, folder: Path, packets: list[bytes]) -> list[dict[str, Any]]:
    """Return the layers that tshark sees in each packet."""
    file = folder / "shim.pcap"
    with file.open("wb") as out:
        out.write(struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 0xFFFF, LINKTYPE_RAW))
        for packet in packets:
            out.write(struct.pack("<IIII", 0, 0, len(packet), len(packet)) + packet)
    command = [tshark, "-n", "-r", str(file), "-T", "json", "-x"]
    done = subprocess.run(command, capture_output=True, check=True, timeout=60)
    frames: list[dict[str, Any]] = json.loads(done.stdout)
    return [frame["_source"]["layers"] for frame in frames]


def test_control_messages(tshark: str, tmp_path: Path) -> None:
    octets = {name: encode_message(value) for name, value in MESSAGE_VALUES.items()}
    packets = [build_packet(SRC, DST, NEXT_SHIM, message) for message in octets.values()]
    layers = dissect(tshark, tmp_path, packets)
    assert len(layers) == len(octets)
    for (name, message), layer in zip(octets.items(), layers, strict=True):
        shim = layer["ipv6"]["shim6"]
        assert shim["shim6.nxt"] == "59", name
        assert int(shim["shim6.len"]) == len(message) // 8 - 1, name
        assert int(shim["shim6.type"]) == message[2], name
        assert shim["shim6.checksum.status"] == CHECKSUM_GOOD, name


def test_a_wrong_checksum_is_seen(tshark: str, tmp_path: Path) -> None:
    message = bytearray(load_vectors("messages.txt")["keepalive"])
    message[5] ^= 1
    (layer,) = dissect(tshark, tmp_path, [build_packet(SRC, DST, NEXT_SHIM, bytes(message))])
    assert layer["ipv6"]["shim6"]["shim6.checksum.status"] == CHECKSUM_BAD


def test_payload_header(tshark: str, tmp_path: Path) -> None:
    udp = bytes.fromhex("13881389000c000061626364")
    packet = build_packet(SRC, DST, NEXT_SHIM, payload_header(17, 0x123456789ABC) + udp)
    (layer,) = dissect(tshark, tmp_path, [packet])
    shim = layer["ipv6"]["shim6"]
    assert shim["shim6.nxt"] == "17"
    assert shim["shim6.len"] == "0"
    assert shim["shim6.p"] == "1"
    # The raw form of the tag still has the P bit, its highest.
    assert shim["shim6.ct_raw"][0] == "923456789abc"
    assert layer["udp"]["udp.srcport"] == "5000"

"""The committed corpus: octets that once deserved attention, each with its expected fate.

A file ``corpus/<parser>-<what>.hex`` has a comment that says what is special about it, a
line ``# expect: value`` or ``# expect: REASON pointer``, and hex.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from m6proxy.errors import MalformedMessage
from m6proxy.wire.ipv6 import find_shim, upper_layer
from m6proxy.wire.message import parse_message
from m6proxy.wire.options import parse_options
from m6proxy.wire.payload import parse_payload_header

FILES = sorted((Path(__file__).parent / "corpus").glob("*.hex"))

PARSERS: dict[str, Callable[[bytes], object]] = {
    "message": parse_message,
    "options": parse_options,
    "packet": find_shim,
    "payload": parse_payload_header,
}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_corpus(file: Path) -> None:
    lines = file.read_text(encoding="utf-8").splitlines()
    octets = bytes.fromhex("".join(line for line in lines if not line.startswith("#")))
    (expected,) = (line[10:] for line in lines if line.startswith("# expect: "))
    try:
        PARSERS[file.stem.partition("-")[0]](octets)
        fate = "value"
    except MalformedMessage as error:
        fate = f"{error.reason.name} {error.pointer}"
    assert fate == expected
    upper_layer(octets)


def test_every_parser_has_a_corpus() -> None:
    assert {file.stem.partition("-")[0] for file in FILES} == set(PARSERS)

"""docs/conformance.md is held to the code: what it names exists, and its sums are right.

At the end stand a few tests of statements that no other test shows.
"""

from __future__ import annotations

import ast
import importlib
import re
from collections import Counter
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from m6proxy.daemon.entropy import SystemEntropy
from m6proxy.names import TAG_MASK
from m6proxy.shim.transitions import REAP, Act, ReapEvent, ReapState
from m6proxy.shim.verdict import CONSUMED
from m6proxy.wire.message import I1, R1, R2, I2bis, Probe, ProbeRecord, ProbeState
from m6proxy.wire.options import UlidPairOption
from tests.harness.packets import control, find_messages
from tests.harness.pair import A1, A1_ISP2, B1, Pair
from tests.shim.moved import established, moved

ROOT = Path(__file__).parent.parent
DOCUMENT = "docs/conformance.md"
COLUMNS = ("number", "statement", "strength", "state", "where", "test")
STRENGTHS = {
    *("MUST", "MUST NOT", "SHOULD", "SHOULD NOT", "RECOMMENDED", "MAY"),
    *("must", "should", "should not", "may", "-"),
}
SOURCES = {
    "5533": "RFC 5533 §§5–13",
    "5534": "RFC 5534 §§4–7",
    "fd": "functional-decomposition",
    "l3": "l3-shim-approach",
    "mb": "mobike-design",
}
NUMBER = re.compile(rf"({'|'.join(SOURCES)})-\d+(\.\d+)*-\d+")
LINK = re.compile(r"`([^`]+)`")


@dataclass(frozen=True, slots=True)
class Row:
    """One row; the fields are the cells as they stand in the document."""

    number: str
    statement: str
    strength: str
    state: str
    where: str
    test: str

    @property
    def verdict(self) -> str:
        """yes, partly or no."""
        return self.state.partition(":")[0]

    @property
    def source(self) -> str:
        """The name of what the statement stands in, as the summary has it."""
        return SOURCES[self.number.partition("-")[0]]


def tables(text: str, columns: tuple[str, ...]) -> list[tuple[str, ...]]:
    """All rows of the Markdown tables with these columns."""
    rows: list[tuple[str, ...]] = []
    inside = False
    for line in text.splitlines():
        cells = tuple(cell.strip() for cell in line.strip().strip("|").split("|"))
        if not line.startswith("|"):
            inside = False
        elif cells == columns:
            inside = True
        elif inside and not set(line) <= set("|-: "):
            assert len(cells) == len(columns), f"{len(cells)} cells: {line}"
            rows.append(cells)
    return rows


def read_rows(text: str) -> list[Row]:
    """The rows of all tables of statements."""
    return [Row(*cells) for cells in tables(text, COLUMNS)]


def problems(row: Row) -> list[str]:
    """What is wrong with one row, by itself."""
    found = []
    if not NUMBER.fullmatch(row.number):
        return [f"{row.number!r} is no number of a statement"]
    if not row.statement:
        found.append("no statement")
    if row.strength not in STRENGTHS:
        found.append(f"strength {row.strength!r}")
    if not re.fullmatch(r"yes|(partly|no): .+", row.state):
        found.append(f"state {row.state!r} is not yes, `partly: why` or `no: why`")
    if row.where == "-":
        if row.verdict != "no":
            found.append("no place in the code")
    else:
        found += [why for link in links(row.where) if (why := missing_code(link))]
    if row.test.startswith("-"):
        if row.verdict == "yes":
            found.append("the state is yes and there is no test")
        if not re.fullmatch(r"-: .+", row.test):
            found.append("neither a test nor a reason")
    else:
        found += [why for link in links(row.test) if (why := missing_test(link))]
    return [f"{row.number}: {why}" for why in found]


def links(cell: str) -> list[str]:
    """What stands in backquotes in a cell; something must."""
    found = LINK.findall(cell)
    return found or [cell]


@cache
def missing_code(link: str) -> str | None:
    """Say why ``file.py::name.name`` is nothing of the package, or None."""
    path, _, name = link.partition("::")
    if not path.startswith("m6proxy/") or not (ROOT / path).is_file():
        return f"{path} is no file of the package"
    if not name:
        return None
    importlib.import_module("m6proxy.shim.engine")  # the core is entered by its door
    thing = importlib.import_module(path.removesuffix(".py").replace("/", "."))
    for part in name.split("."):
        if not hasattr(thing, part):
            return f"{path} has no {name}"
        thing = getattr(thing, part)
    return None


@cache
def missing_test(link: str) -> str | None:
    """Say why ``tests/file.py::name`` or ``::Class::name`` is no test, or None."""
    path, _, name = link.partition("::")
    if not path.startswith("tests/") or not (ROOT / path).is_file():
        return f"{path} is no file of the tests"
    return None if name in collected_in(path) else f"{path} has no test {name!r}"


@cache
def collected_in(path: str) -> frozenset[str]:
    """The names that pytest collects from a file, without parameters."""
    body = ast.parse((ROOT / path).read_text(encoding="utf-8")).body
    names = functions(body)
    for node in body:
        if isinstance(node, ast.ClassDef) and node.name.startswith("Test"):
            names |= {f"{node.name}::{name}" for name in functions(node.body)}
    return frozenset(names)


def functions(body: list[ast.stmt]) -> set[str]:
    """The test functions of a module or class."""
    return {
        node.name
        for node in body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.name.startswith("test_")
    }


def summary(rows: list[Row]) -> list[tuple[str, ...]]:
    """What the table at the head must say."""
    counts = Counter((row.source, row.verdict) for row in rows)
    lines = []
    for source in SOURCES.values():
        sums = [counts[source, verdict] for verdict in ("yes", "partly", "no")]
        lines.append((source, *(str(n) for n in (sum(sums), *sums))))
    totals = [sum(int(line[column]) for line in lines) for column in range(1, 5)]
    return [*lines, ("all", *(str(n) for n in totals))]


@pytest.fixture(scope="module")
def text() -> str:
    """The document."""
    return (ROOT / DOCUMENT).read_text(encoding="utf-8")


def test_every_row_names_what_exists(text: str) -> None:
    rows = read_rows(text)
    assert rows
    assert [why for row in rows for why in problems(row)] == []


def test_numbers_do_not_repeat(text: str) -> None:
    counts = Counter(row.number for row in read_rows(text))
    assert [number for number, count in counts.items() if count > 1] == []


def test_no_line_that_looks_like_a_row_is_overlooked(text: str) -> None:
    numbers = re.findall(rf"^\| *((?:{'|'.join(SOURCES)})-\d[^ |]*)", text, re.MULTILINE)
    assert numbers == [row.number for row in read_rows(text)]


def test_the_summary_is_right(text: str) -> None:
    stated = tables(text, ("source", "statements", "yes", "partly", "no"))
    assert stated == summary(read_rows(text))


GOOD = Row(
    "5533-7.9-1",
    "text",
    "MUST",
    "yes",
    "`m6proxy/shim/engine.py::Engine.handle_timer`",
    "`tests/test_conformance.py::test_the_summary_is_right`",
)


@pytest.mark.parametrize(
    ("cell", "value", "why"),
    [
        ("number", "5533-7.9", "no number"),
        ("statement", "", "no statement"),
        ("strength", "MIGHT", "strength"),
        ("state", "maybe", "state 'maybe'"),
        ("state", "partly", "state 'partly'"),
        ("where", "-", "no place"),
        ("where", "`m6proxy/shim/nothing.py::f`", "no file of the package"),
        ("where", "`m6proxy/shim/engine.py::Engine.handle_nothing`", "has no Engine"),
        ("where", "shim/engine.py", "no file of the package"),
        ("test", "-: none", "the state is yes and there is no test"),
        ("test", "`tests/test_conformance.py::test_nothing`", "has no test"),
        ("test", "`tests/test_conformance.py::problems`", "has no test"),
        ("test", "`tests/test_nothing.py::test_it`", "no file of the tests"),
    ],
)
def test_a_bad_row_is_found(cell: str, value: str, why: str) -> None:
    """The check itself is tried: a table that nobody can fail proves nothing."""
    assert problems(GOOD) == []
    cells = {name: getattr(GOOD, name) for name in COLUMNS} | {cell: value}
    assert any(why in found for found in problems(Row(**cells)))


# --- statements that no other test shows -----------------------------------------------------

STATES = {
    "Operational": ReapState.OPERATIONAL,
    "Exploring": ReapState.EXPLORING,
    "InboundOk": ReapState.INBOUND_OK,
}
RFC5534 = """
payload in           | stop S, start K           | probe, start S, Inb       | stop S
payload out          | start S, stop K           |                           | start S
keepalive timer      | keepalive                 |                           |
send timer           | probe, Exp                |                           | probe, Exp
probe timer          |                           | probe                     | probe, start S
Keepalive in         | stop S                    | probe, start S, Inb       | stop S
Probe Exploring in   | probe, stop K, again S, Inb | probe, start S, Inb     | probe, again S
Probe InboundOk in   | probe, again S, stop K    | probe, again S, Ope       | probe, again S, Ope
Probe Operational in | stop S, start K           | stop S, start K, Ope      | stop S, start K, Ope
"""
"""The tables of RFC 5534 §6.1 to §6.9, from the RFC and not from our own table.

Columns are the three states; S and K are the Send and Keepalive Timers, a word with a capital
is the state that follows.
"""
ACTS = {
    "probe": Act.SEND_PROBE,
    "keepalive": Act.SEND_KEEPALIVE,
    "start S": Act.START_SEND,
    "again S": Act.RESTART_SEND,
    "stop S": Act.STOP_SEND,
    "start K": Act.START_KEEPALIVE,
    "stop K": Act.STOP_KEEPALIVE,
}


def test_the_table_of_reachability_is_that_of_the_rfc() -> None:
    follows = {name[:3]: state for name, state in STATES.items()}
    expected = {}
    for line in RFC5534.strip().splitlines():
        event, *cells = [cell.strip() for cell in line.split("|")]
        for state, cell in zip(STATES.values(), cells, strict=True):
            words = cell.split(", ") if cell else []
            after = next((follows[word] for word in words if word in follows), state)
            acts = {ACTS[word] for word in words if word not in follows}
            if acts:
                expected[state, ReapEvent(event)] = (acts, after)
    ours = {cell: (set(acts), after) for cell, (acts, after) in REAP.items()}
    advice = {cell: ours.pop(cell) for cell in tuple(ours) if cell[1] is ReapEvent.PROGRESS}
    assert ours == expected
    for (before, _), told in advice.items():
        assert told == expected[before, ReapEvent.PROBE_OPERATIONAL_IN], "no more than a peer may"


def test_tags_and_nonces_are_drawn_from_their_whole_space() -> None:
    """RFC 5533 §7.1, RFC 5534 §5.2: every bit is random, from the kernel's generator."""
    entropy = SystemEntropy()
    tags = [entropy.tag() for _ in range(300)]
    nonces = [entropy.nonce() for _ in range(300)]
    assert len(set(tags)) == 300
    assert all(0 < tag <= TAG_MASK for tag in tags)
    for drawn, bits in ((tags, 47), (nonces, 32)):
        for bit in range(bits):
            assert 60 < sum(number >> bit & 1 for number in drawn) < 240


def test_an_i1_about_an_established_context() -> None:
    """RFC 5533 §7.9: R2 only when source and tag are those of the context; nothing changes."""
    pair = established()
    context = pair.beta.context
    tag, ulids = context.peer_tag, UlidPairOption(A1, B1)
    stranger = B1[:4] + b"\x77" + B1[5:]
    for source, given, kind in (
        (A1, tag, R2),
        (A1_ISP2, tag, R2),
        (A1, tag ^ 1, R1),
        (stranger, tag, R1),
    ):
        pair.beta.sent.clear()
        packet = control(source, B1, I1(given, 7, (ulids,)))
        assert pair.inject(pair.beta, packet) is CONSUMED
        ((_, _, answer),) = find_messages(pair.beta.sent, object)
        assert isinstance(answer, kind)
        assert isinstance(answer, R1 | R2)
        assert answer.initiator_nonce == 7
    assert pair.beta.context is context
    assert (context.peer_tag, context.reap_state) == (tag, ReapState.OPERATIONAL)


def test_a_recovered_context_has_a_tag_of_its_own() -> None:
    """RFC 5533 §7.20: not the packet tag, and the I2bis names the ULIDs of the moved pair."""
    pair = moved()
    lost_tag = pair.beta.context.local_tag
    pair.restart(pair.beta)
    pair.talk(pair.alpha)
    pair.run(0.5)
    (_, packet, i2bis) = find_messages(pair.alpha.sent, I2bis)[-1]
    assert i2bis.packet_tag == lost_tag
    assert UlidPairOption(A1, B1) in i2bis.options
    assert packet[8:40] != A1 + B1
    assert pair.beta.context.local_tag != lost_tag
    assert pair.alpha.context.peer_tag == pair.beta.context.local_tag


def probe(pair: Pair, state: ProbeState, record: ProbeRecord, *received: ProbeRecord) -> None:
    message = Probe(pair.alpha.context.local_tag, state, (record,), received)
    assert pair.inject(pair.alpha, control(record.src, record.dst, message)) is CONSUMED


def test_records_of_probes_come_back_unchanged() -> None:
    """RFC 5534 §5.2: with nonce and data; earlier probes of our own go along."""
    pair = established()
    records = [ProbeRecord(B1, A1, 50 + number, 0xDA7A0000 + number) for number in range(3)]
    for record in records:
        probe(pair, ProbeState.EXPLORING, record)
    probes = [message for _, _, message in find_messages(pair.alpha.sent, Probe)]
    assert [message.received for message in probes] == [tuple(records[: n + 1]) for n in range(3)]
    assert [len(message.sent) for message in probes] == [1, 2, 3]
    assert probes[2].sent[1:] == (probes[1].sent[0], probes[0].sent[0])
    assert all(message.state is ProbeState.INBOUND_OK for message in probes)


def test_a_probe_that_was_reported_goes_along_no_more() -> None:
    """RFC 5534 §6.1: the recent ones that the peer has not reported."""
    pair = established()
    for number in range(2):
        probe(pair, ProbeState.EXPLORING, ProbeRecord(B1, A1, 50 + number))
    (first, *_) = (message.sent[0] for _, _, message in find_messages(pair.alpha.sent, Probe))
    reporting = Probe(
        pair.alpha.context.local_tag, ProbeState.EXPLORING, (ProbeRecord(B1, A1, 60),), (first,)
    )
    pair.inject(pair.alpha, control(B1, A1, reporting))
    last = find_messages(pair.alpha.sent, Probe)[-1][2]
    assert first not in last.sent
    assert len(last.sent) == 2


def test_only_a_reported_probe_moves_a_context_and_tests_a_locator() -> None:
    """RFC 5534 §6.8, RFC 5533 §7.2: an InboundOk without reports leaves the pair alone."""
    pair = established()
    context = pair.alpha.context
    probe(pair, ProbeState.EXPLORING, ProbeRecord(B1, A1, 1))
    probe(pair, ProbeState.INBOUND_OK, ProbeRecord(B1, A1, 2))
    assert (context.reap_state, context.route) == (ReapState.OPERATIONAL, A1 + B1)
    assert not any(locator.tested for locator in context.peer_locators)
    pair.cut_provider("b", 1)
    pair.stream(8.0, both=True)
    assert context.route[16:] != B1
    assert {x.address for x in context.peer_locators if x.tested} == {context.route[16:]}

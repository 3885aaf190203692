"""Names learned from passing answers."""

from __future__ import annotations

import contextlib
import sys
from types import FrameType
from typing import Any

import dns.flags
import dns.message
import dns.rcode
import dns.rrset
import pytest
from hypothesis import given
from hypothesis import strategies as st

from m6proxy.discovery.names_book import NameBook
from m6proxy.discovery.overheard import parse_answer
from m6proxy.errors import MalformedMessage
from m6proxy.names import address

B1 = address("2001:db8:b1:1::10")
B1_OTHER = address("2001:db8:b2:1::10")
NOW = 50.0


def answer(
    name: str,
    *records: tuple[str, str, str],
    ttl: int = 300,
    rdtype: str = "AAAA",
) -> dns.message.Message:
    """An answer to a question; each record is owner, type and contents."""
    message = dns.message.make_response(dns.message.make_query(name, rdtype))
    for owner, kind, contents in records:
        message.answer.append(dns.rrset.from_text(f"{owner}.", ttl, "IN", kind, contents))
    return message


def direct(name: str, *addresses: str, ttl: int = 300) -> bytes:
    message = answer(name)
    message.answer.append(dns.rrset.from_text(f"{name}.", ttl, "IN", "AAAA", *addresses))
    return message.to_wire()


def test_question_name_and_owner_are_learned() -> None:
    book = NameBook()
    payload = answer(
        "WWW.beta.example",
        ("www.beta.example", "CNAME", "web.beta.example."),
        ("web.beta.example", "CNAME", "b1.beta.example."),
        ("b1.beta.example", "AAAA", "2001:db8:b1:1::10"),
    ).to_wire()
    assert set(book.learn(payload, NOW)) == {
        ("www.beta.example", B1),
        ("b1.beta.example", B1),
    }
    assert book.names_of(B1, NOW) == ("www.beta.example", "b1.beta.example")
    assert book.learn(payload, NOW) == ()


def test_all_addresses_of_an_answer() -> None:
    book = NameBook()
    book.learn(direct("b1.beta.example", "2001:db8:b1:1::10", "2001:db8:b2:1::10"), NOW)
    assert book.names_of(B1, NOW) == book.names_of(B1_OTHER, NOW) == ("b1.beta.example",)


@pytest.mark.parametrize(("ttl", "held_s"), [(0, 60), (300, 300), (2**31 - 1, 86_400)])
def test_ttl_is_bounded(ttl: int, held_s: int) -> None:
    book = NameBook()
    book.learn(direct("b1.beta.example", "2001:db8:b1:1::10", ttl=ttl), NOW)
    assert book.names_of(B1, NOW + held_s - 1) == ("b1.beta.example",)
    assert book.names_of(B1, NOW + held_s) == ()
    assert len(book) == 0
    assert book.learn(direct("b1.beta.example", "2001:db8:b1:1::10"), NOW + held_s)


def test_most_recent_first_and_four_at_most() -> None:
    book = NameBook()
    for number in range(6):
        book.learn(direct(f"n{number}.beta.example", "2001:db8:b1:1::10"), NOW)
    book.learn(direct("n3.beta.example", "2001:db8:b1:1::10"), NOW)
    assert [name[:2] for name in book.names_of(B1, NOW)] == ["n3", "n5", "n4", "n2"]


def test_configured_names_come_first_and_stay() -> None:
    book = NameBook({B1: ("config.beta.example",)})
    book.learn(direct("b1.beta.example", "2001:db8:b1:1::10"), NOW)
    assert book.names_of(B1, NOW) == ("config.beta.example", "b1.beta.example")
    assert book.names_of(B1, NOW + 10**6) == ("config.beta.example",)
    assert book.static_names_of(B1_OTHER) == ()


def test_size_is_bounded() -> None:
    book = NameBook(addresses_max=3)
    for number in range(10):
        book.learn(direct("b1.beta.example", f"2001:db8:b1:1::{number:x}"), NOW)
    assert len(book) == 3
    with pytest.raises(ValueError, match="at least one"):
        NameBook(addresses_max=0)


def _query() -> dns.message.Message:
    message = answer("b1.beta.example", ("b1.beta.example", "AAAA", "2001:db8::1"))
    message.flags &= ~dns.flags.QR
    return message


def _refused() -> dns.message.Message:
    message = answer("b1.beta.example", ("b1.beta.example", "AAAA", "2001:db8::1"))
    message.set_rcode(dns.rcode.REFUSED)
    return message


@pytest.mark.parametrize(
    "message",
    [
        _query(),
        _refused(),
        answer("b1.beta.example"),
        answer("b1.beta.example", ("b1.beta.example", "A", "192.0.2.1"), rdtype="A"),
        answer("b1.beta.example", ("other.example", "AAAA", "2001:db8::1")),
        answer("b1.beta.example", ("b1.beta.example", "AAAA", "fe80::1")),
        answer("b1.beta.example", ("b1.beta.example", "AAAA", "ff02::1")),
        answer("b1.beta.example", ("b1.beta.example", "AAAA", "::1")),
        answer("bad\\ name.example", ("bad\\ name.example", "AAAA", "2001:db8::1")),
        answer("a\\.b.example", ("a\\.b.example", "AAAA", "2001:db8::1")),
        answer("a.example", ("a.example", "CNAME", "a.example.")),
    ],
)
def test_what_teaches_nothing(message: dns.message.Message) -> None:
    book = NameBook()
    assert book.learn(message.to_wire(), NOW) == ()
    assert len(book) == 0


GOOD = direct("b1.beta.example", "2001:db8:b1:1::10")


@given(st.binary(max_size=200) | st.binary(max_size=60).map(lambda tail: GOOD[:12] + tail))
def test_garbage_raises_nothing_else(payload: bytes) -> None:
    with contextlib.suppress(MalformedMessage):
        parse_answer(payload)


@given(st.integers(0, len(GOOD) - 1), st.integers(0, 255), st.integers(0, len(GOOD)))
def test_a_damaged_answer_never_raises(at: int, octet: int, length: int) -> None:
    damaged = bytearray(GOOD)
    damaged[at] = octet
    NameBook().learn(bytes(damaged), NOW)
    NameBook().learn(bytes(damaged[:length]), NOW)


@pytest.mark.parametrize("length", range(len(GOOD)))
def test_every_cut_is_malformed(length: int) -> None:
    with pytest.raises(MalformedMessage):
        parse_answer(GOOD[:length])


def test_long_payloads_are_not_read() -> None:
    with pytest.raises(MalformedMessage):
        parse_answer(GOOD + bytes(4096))


def test_names_that_point_at_themselves_or_forward() -> None:
    header = GOOD[:12]
    for pointer in (b"\xc0\x0c", b"\xc0\x0e", b"\xff\xff", b"\x01a\xc0\x0c"):
        with pytest.raises(MalformedMessage):
            parse_answer(header + pointer + b"\0\x1c\0\x01" + bytes(40))


def test_work_is_bounded() -> None:
    """4 KiB of records under one deep name held a general parser for half a second."""
    question = b"\x01a" * 126 + b"\0\0\x1c\0\x01"
    record = b"\xc0\x0e\0\x05\0\x01\0\0\0\x3c\0\x02\xc0\x0c"
    payload = GOOD[:6] + (200).to_bytes(2) + bytes(4) + question + record * 200
    steps = 0

    def count(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal steps
        steps += event == "line"
        return count

    sys.settrace(count)
    try:
        assert parse_answer(payload) is None
    finally:
        sys.settrace(None)
    assert steps < 32 * 2 * 127 * 12

"""Netlink's octets: what is asked, and what comes back, cut off and flagged as it may be."""

from __future__ import annotations

import errno
import struct

import pytest

from m6proxy import netlink
from m6proxy.netlink import NETFILTER, ROUTE, Asking, attribute, attributes, messages, text_of


def packed(kind: int, payload: bytes, sequence: int = 7) -> bytes:
    header = struct.pack("=IHHII", 16 + len(payload), kind, 0, sequence, 0)
    return header + payload + bytes(-len(payload) % 4)


def test_a_datagram_is_taken_apart_and_what_is_cut_off_left_out() -> None:
    both = packed(16, b"abcde") + packed(3, bytes(4))
    assert list(messages(both)) == [(16, 7, b"abcde"), (3, 7, bytes(4))]
    assert [each.kind for each in messages(both[:-1])] == [16]
    assert list(messages(struct.pack("=IHHII", 15, 1, 0, 0, 0))) == []
    assert list(messages(b"short")) == []


def test_attributes_lose_their_padding_and_flags() -> None:
    octets = attribute(3, b"lan0\0") + attribute(4 | 0x8000, attribute(1, b"\1\2\3\4"))
    (name, nested) = attributes(octets)
    assert (name[0], text_of(name[1])) == (3, "lan0")
    assert nested[0] == 4 and list(attributes(nested[1])) == [(1, b"\1\2\3\4")]
    assert list(attributes(octets[:-1])) == [name]
    assert list(attributes(b"\3\0\1\0")) == []


def test_a_question_has_its_header() -> None:
    question = netlink.message(18, b"\0" * 16, dump=True, sequence=5)
    assert question[:16] == struct.pack("=IHHII", 32, 18, 0x301, 5, 0)


@pytest.mark.netns
def test_the_kernel_answers_lists_and_refuses() -> None:
    link = struct.Struct("=BxHiII")
    with Asking(ROUTE) as asking:
        answer = asking.ask(18, link.pack(0, 0, 1, 0, 0))
        assert text_of(dict(attributes(answer.payload[16:]))[3]) == "lo"
        assert len(asking.dump(18, link.pack(0, 0, 0, 0, 0))) >= 1
        with pytest.raises(OSError) as refused:
            asking.ask(18, link.pack(0, 0, 0x7FFFFFFF, 0, 0))
        assert refused.value.errno == errno.ENODEV
        assert asking.ask(18, link.pack(0, 0, 1, 0, 0)).kind == 16, "and goes on"


@pytest.mark.netns
def test_whoever_hears_announcements_does_not_wait() -> None:
    with netlink.subscribe(NETFILTER, (7,)) as heard, pytest.raises(BlockingIOError):
        heard.recv(1)

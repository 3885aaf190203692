"""The capability record between zone and value."""

from __future__ import annotations

import contextlib
from dataclasses import replace

import dns.rdata
import dns.rdataclass
import dns.rdatatype
import dns.zone
import pytest
from hypothesis import given
from hypothesis import strategies as st

from m6proxy.discovery.capability import Capability, PrefixLocator
from m6proxy.discovery.codec import (
    CODECS,
    TYPE_SVCB,
    Reading,
    encode_text,
    parse_svcb,
    parse_text,
    query_name,
    svcb_zone_line,
)
from m6proxy.errors import MalformedMessage
from m6proxy.names import Prefix
from tests.discovery.values import ALPHA, ALPHA_TEXT

RDATA = bytes.fromhex(
    "0001"  # SvcPriority 1: ServiceMode
    "00"  # TargetName: the owner itself
    "ff1e"  # SvcParamKey 65310
    "0007"  # 7 octets
    "763d312b663d61"  # v=1+f=a
)
ALIAS_RDATA = bytes.fromhex(
    "0000"  # SvcPriority 0: AliasMode
    "085f6d3670726f7879"  # _m6proxy
    "0473697465"  # site
    "076578616d706c65"  # example
    "00"
)


def svcb(text: str) -> dns.rdata.Rdata:
    return dns.rdata.from_text(dns.rdataclass.IN, dns.rdatatype.SVCB, text)


def params(*pairs: tuple[int, bytes], priority: int = 1) -> bytes:
    """RDATA with the SvcParams given, in the order given."""
    body = b"".join(key.to_bytes(2) + len(v).to_bytes(2) + v for key, v in pairs)
    return priority.to_bytes(2) + b"\0" + body


def test_line_is_what_an_operator_can_type() -> None:
    line = svcb_zone_line("A1.alpha.example.", ALPHA, 3600)
    assert line == (f'_m6proxy.a1.alpha.example. 3600 IN SVCB 1 . key65310="{ALPHA_TEXT}"')
    for written in (line, line.replace('"', "")):
        zone = dns.zone.from_text(
            f"@ 60 IN SOA ns h 1 2 3 4 5\n@ 60 IN NS ns\n{written}\n", origin="alpha.example"
        )
        (found,) = zone.iterate_rdatas("SVCB")
        assert parse_svcb([found[2]]) == Reading(ALPHA)


def test_vectors() -> None:
    assert parse_svcb([RDATA]) == Reading(Capability())
    assert parse_svcb([ALIAS_RDATA]) == Reading(alias="_m6proxy.site.example")
    assert parse_svcb([svcb("1 . key65310=v=1+f=a")]) == Reading(Capability())
    assert CODECS[TYPE_SVCB].read([RDATA]) == Reading(Capability())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("v=1", Capability()),
        ("v=1+f=", Capability(accepts=False)),
        ("v=1+f=xyz", Capability(accepts=False)),
        ("v=1+f=za", Capability()),
        (
            "v=1+later=field+p=2001:db8:a1::/48",
            Capability(prefixes=(PrefixLocator(Prefix.parse("2001:db8:a1::/48"), 0),)),
        ),
        ("v=1+s=Alpha.Example.", Capability(site="alpha.example")),
        (ALPHA_TEXT, ALPHA),
        (ALPHA_TEXT + "+m=nsquare@48", replace(ALPHA, mark_at=48)),
        (ALPHA_TEXT + "+m=neutral@48", ALPHA),
        ("v=2", None),
        ("v=10+f=a+!!!", None),
    ],
)
def test_text_of_our_version_and_of_others(text: str, expected: Capability | None) -> None:
    assert parse_text(text.encode()) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "f=a",
        "v=",
        "v=0",
        "v=01",
        "v=-1",
        "f=a+v=1",
        "v=1+",
        "v=1+v=1",
        "v=1+f=a+f=a",
        "v=1+s=a.example+s=b.example",
        "v=1+s=",
        "v=1+s=a b",
        "v=1+=x",
        "v=1+nothing",
        "v=1+p=",
        "v=1+p=2001:db8::1/48",
        "v=1+p=2001:db8::",
        "v=1+p=2001:db8::/129",
        "v=1+p=192.0.2.0/24",
        "v=1+p=2001:db8:a1::/48@256",
        "v=1+p=2001:db8:a1::/48@",
        "v=1+p=2001:db8:a1::/48@-1",
        "v=1+p=::/0",
        "v=1+p=2000::/3",
        "v=1+p=::ffff:0:0/96",
        "v=1+p=fe80::/64",
        "v=1+p=ff02::/64",
        "v=1+p=2001:db8:a1::%eth0/48",
        "v=1+p=2001:db8:a1::/48+m=nsquare@47",
        "v=1+p=2001:db8:a1::/48+m=nsquare@128",
        "v=1+p=2001:db8:a1::/48+m=nsquare@",
        "v=1+p=2001:db8:a1::/48+m=nsquare",
        "v=1+p=2001:db8:a1::/48+m=nsquare@0048",
        "v=1+p=2001:db8:a1::/48+m=nsquare@48+m=nsquare@48",
        "v=1" + "+p=2001:db8:a1::/48" * 17,
        "v=1" + "+x=" * 64,
        "v=1+x=" + "y" * 1024,
        "v=1+s=é.example",
        "v=١",
    ],
)
def test_faults(text: str) -> None:
    with pytest.raises(MalformedMessage):
        parse_text(text.encode())
    assert parse_svcb([params((65310, text.encode()))]) == Reading(malformed=1)


def test_lowest_priority_that_says_something_wins() -> None:
    def of(priority: int, text: str) -> bytes:
        return params((65310, text.encode()), priority=priority)

    later, ours, worse = of(1, "v=2"), of(2, "v=1+s=two.example"), of(3, "v=1+s=three.example")
    reading = parse_svcb([worse, of(1, "nonsense"), later, ours])
    assert reading == Reading(Capability(site="two.example"), malformed=1)
    assert parse_svcb([ours, ALIAS_RDATA]) == Reading(alias="_m6proxy.site.example")
    assert parse_svcb([svcb("0 ."), ours]) == Reading()  # AliasMode to the root: there is none
    assert parse_svcb([]) == Reading()


def test_params_of_others() -> None:
    ours = (65310, b"v=1")
    assert parse_svcb([params((1, b"\x02h2"), ours, (65311, b"?"))]) == Reading(Capability())
    assert parse_svcb([params((0, b"\xff\x1e"), ours)]) == Reading(Capability())
    # a mandatory key that we do not know forbids the whole record (RFC 9460 §8)
    assert parse_svcb([params((0, b"\x00\x03\xff\x1e"), (3, b"\x00\x35"), ours)]) == Reading()
    assert parse_svcb([params((1, b"\x02h2"))]) == Reading()


@pytest.mark.parametrize(
    "rdata",
    [
        b"",
        b"\0",
        RDATA[:2],
        RDATA[:4],
        RDATA[:-1],
        RDATA + b"\0",
        b"\0\1\xc0\x0c" + RDATA[3:],
        ALIAS_RDATA[:-1],
        b"\0\0\3a.b\0",
        b"\0\0\1\xff\0",
        params((65310, b"v=1"), (65310, b"v=1")),
        params((65311, b""), (65310, b"v=1")),
    ],
)
def test_malformed_rdata_is_counted(rdata: bytes) -> None:
    assert parse_svcb([rdata]) == Reading(malformed=1)
    assert parse_svcb([rdata, RDATA]) == Reading(Capability(), malformed=1)


def test_what_cannot_be_published() -> None:
    prefix = PrefixLocator(Prefix.parse("2001:db8:a1::/48"), 1)
    for capability in (
        Capability(version=2),
        Capability(prefixes=(prefix,) * 17),
        Capability(prefixes=(PrefixLocator(Prefix.parse("::/0"), 1),)),
        Capability(prefixes=(PrefixLocator(prefix.prefix, 256),)),
        Capability(site="not a name"),
    ):
        with pytest.raises(ValueError, match=r"published|version|host name"):
            svcb_zone_line("a1.alpha.example", capability, 60)
    with pytest.raises(ValueError, match="TTL"):
        svcb_zone_line("a1.alpha.example", ALPHA, -1)
    long = ".".join(["a" * 61] * 4)
    assert len(long) == 247
    for host in (long, "", "a..b", "a b", '"; evil'):
        with pytest.raises(ValueError, match=r"host name|no place"):
            query_name(host)


@given(
    st.builds(
        Capability,
        accepts=st.booleans(),
        site=st.none() | st.from_regex(r"[a-z]{1,9}(\.[a-z]{1,9}){0,3}", fullmatch=True),
        prefixes=st.lists(
            st.builds(
                lambda bits, length, preference: PrefixLocator(
                    Prefix(
                        ((0x2 << 124 | bits) >> 128 - length << 128 - length).to_bytes(16), length
                    ),
                    preference,
                ),
                st.integers(0, (1 << 124) - 1),
                st.integers(20, 128),
                st.integers(0, 255),
            ),
            max_size=16,
        ).map(tuple),
    )
)
def test_every_capability_comes_back(capability: Capability) -> None:
    text = encode_text(capability)
    assert parse_text(text.encode()) == capability
    assert not set(text) & set(' ",;\\()')
    assert parse_svcb([svcb(f"1 . key65310={text}")]) == Reading(capability)


@given(st.lists(st.binary(max_size=80), max_size=4))
def test_garbage_records_never_raise(rdatas: list[bytes]) -> None:
    assert parse_svcb(rdatas).malformed <= len(rdatas)


@given(st.text(alphabet="v=1+fspa@:/.0248bd\xe9 ", max_size=60).map(lambda s: "v=1+" + s))
def test_garbage_text_never_raises_another_error(text: str) -> None:
    with contextlib.suppress(MalformedMessage):
        parse_text(text.encode())

"""N-square addresses and pre-agreed identifiers: what a host's locators are."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from m6proxy.discovery.addressing import PLAIN, LocatorMap, NeutralMap, NsquareMap, PreagreedMap
from m6proxy.discovery.capability import Capability, NameData, PrefixLocator
from m6proxy.discovery.codec import encode_text, parse_text
from m6proxy.names import Address, Prefix, address

ISP1, ISP2, ISP3 = (Prefix.parse(f"2001:db8:a{n}::/48") for n in (1, 2, 3))
A1, A1_ISP2 = address("2001:db8:a1:1::10"), address("2001:db8:a2:1::10")
OUTSIDE = address("2001:db8:b1:1::10")


@st.composite
def sites(draw: st.DrawFn) -> tuple[NsquareMap, tuple[Prefix, ...]]:
    length = draw(st.integers(20, 64))
    numbers = draw(st.sets(st.integers(0, (1 << 17) - 1), min_size=1, max_size=16))
    prefixes = tuple(
        Prefix((0x2001 << 112 ^ n << 128 - length).to_bytes(16), length) for n in numbers
    )
    mark_at = draw(st.integers(length, 128 - len(prefixes).bit_length()))
    return NsquareMap(prefixes, mark_at), prefixes


def test_each_set_has_one_identifier_and_locators_that_no_host_has() -> None:
    nsquare = NsquareMap((ISP2, ISP1), 48)
    assert nsquare.locator(A1, ISP1) == A1
    assert nsquare.locator(A1, ISP2) == address("2001:db8:a2:4001::10")
    assert nsquare.stand_in(A1) == address("2001:db8:a1:4001::10")
    assert nsquare.locator(A1_ISP2, ISP2) == A1_ISP2
    assert nsquare.locator(A1_ISP2, ISP1) == address("2001:db8:a1:8001::10")
    assert nsquare.stand_in(A1_ISP2) == address("2001:db8:a2:8001::10")
    assert nsquare.is_locator_only(address("2001:db8:a1:c001::10")), "a number that is nobody's"
    for host in (A1, A1_ISP2, OUTSIDE, address("2001:db8:b1:4001::10")):
        assert not nsquare.is_locator_only(host)
    for never in (OUTSIDE, address("2001:db8:a2:4001::10")):
        with pytest.raises(ValueError, match="can be no ULID"):
            nsquare.locator(never, ISP1)


@given(sites(), st.integers(0, (1 << 128) - 1), st.integers(0, (1 << 128) - 1))
def test_no_two_ulids_share_an_address_and_none_is_a_hosts(
    site: tuple[NsquareMap, tuple[Prefix, ...]], first: int, second: int
) -> None:
    nsquare, prefixes = site
    owner: dict[Address, Address] = {}
    ulids = {
        ulid
        for low in (first, second)
        for prefix in prefixes
        if not nsquare.is_locator_only(ulid := prefix.graft(low.to_bytes(16)))
    }
    for ulid in ulids:
        stand_in = nsquare.stand_in(ulid)
        assert nsquare.meant(stand_in) == ulid
        others = {nsquare.locator(ulid, p) for p in prefixes if not p.contains(ulid)}
        for octets in (ulid, stand_in, *others):
            assert owner.setdefault(octets, ulid) == ulid
            assert nsquare.is_locator_only(octets) is (octets != ulid)
            assert sum(prefix.contains(octets) for prefix in prefixes) == 1
        assert all(nsquare.meant(octets) == octets for octets in (ulid, *others))


@given(sites(), st.integers(0, (1 << 128) - 1))
def test_the_patterns_are_the_locator_only_addresses(
    site: tuple[NsquareMap, tuple[Prefix, ...]], low: int
) -> None:
    nsquare, prefixes = site
    for octets in (low.to_bytes(16), *(prefix.graft(low.to_bytes(16)) for prefix in prefixes)):
        assert matches(nsquare, octets) is nsquare.is_locator_only(octets)
        for prefix in prefixes:
            marked = int.from_bytes(octets) & int.from_bytes(nsquare.marks(prefix)) != 0
            assert not prefix.contains(octets) or marked is nsquare.is_locator_only(octets)


def matches(locator_map: LocatorMap, octets: Address) -> bool:
    """Whether an address has one of the patterns."""
    number = int.from_bytes(octets)
    return any(
        number & int.from_bytes(pattern.mask) == int.from_bytes(pattern.bits)
        for pattern in locator_map.patterns()
    )


def test_pre_agreed_identifiers_come_from_one_prefix() -> None:
    agreed = PreagreedMap((ISP1, ISP2, ISP3), ISP1)
    assert agreed.locator(A1, ISP2) == A1_ISP2
    assert agreed.stand_in(A1) is None and agreed.meant(A1_ISP2) == A1_ISP2
    assert agreed.is_locator_only(A1_ISP2) and matches(agreed, A1_ISP2)
    for host in (A1, OUTSIDE):
        assert not agreed.is_locator_only(host) and not matches(agreed, host)
    assert (agreed.marks(ISP1), agreed.marks(ISP2)) == (bytes(16), None)
    assert [str(pattern) for pattern in agreed.patterns()] == [
        "2001:db8:a2::/ffff:ffff:ffff::",
        "2001:db8:a3::/ffff:ffff:ffff::",
    ]


def test_without_a_mapping_every_address_may_be_a_hosts() -> None:
    assert PLAIN.locator(A1, ISP2) == A1_ISP2 and PLAIN.stand_in(A1) is None
    assert not PLAIN.is_locator_only(A1_ISP2) and not PLAIN.patterns()
    assert PLAIN.marks(ISP1) == bytes(16)


@pytest.mark.parametrize("mark_at", [47, 127])
def test_a_mark_needs_room_behind_the_prefix(mark_at: int) -> None:
    with pytest.raises(ValueError, match="2 bits at"):
        NsquareMap((ISP1, ISP2), mark_at)


def data_of(*addresses: Address, mark_at: int | None) -> NameData:
    prefixes = (PrefixLocator(ISP1, 1), PrefixLocator(ISP2, 2))
    return NameData(
        "a1.example", frozenset(addresses), Capability(prefixes=prefixes, mark_at=mark_at)
    )


def test_a_record_with_a_mark_ties_a_locator_to_its_ulid_and_no_other() -> None:
    data = data_of(A1, A1_ISP2, mark_at=48)
    own, anothers = address("2001:db8:a2:4001::10"), address("2001:db8:a2:4001::20")
    assert data.locators_of(A1) == (A1, own)
    assert data.ties(A1, own) and data.ties(A1, A1_ISP2)
    assert data.ties(A1, address("2001:db8:a1:4001::10")), "what stands in for it"
    assert not data.ties(A1, anothers)
    assert not data.ties(A1_ISP2, own)
    assert not data.ties(OUTSIDE, own)
    assert not data.covers(own), "it is never a ULID"


def test_a_locator_only_address_is_no_ulid_even_among_the_aaaa_records() -> None:
    never = address("2001:db8:a2:4001::10")
    data = data_of(never, mark_at=48)
    assert not data.covers(never) and not data.ties(never, A1)
    outside = data_of(OUTSIDE, mark_at=48)
    assert outside.covers(OUTSIDE) and outside.locators_of(OUTSIDE) == (OUTSIDE,)


def ones_sum(octets: Address) -> int:
    """The sum of the eight words modulo 65,535, in which 0xFFFF and 0 are the same."""
    return sum(int.from_bytes(octets[at : at + 2]) for at in range(0, 16, 2)) % 0xFFFF


@st.composite
def neutral_sites(draw: st.DrawFn) -> tuple[NeutralMap, tuple[Prefix, ...]]:
    length = draw(st.integers(20, 64))
    numbers = draw(st.sets(st.integers(0, (1 << length - 4) - 1), min_size=2, max_size=4))
    prefixes = tuple(
        Prefix((2 << 124 | n << 128 - length).to_bytes(16), length) for n in sorted(numbers)
    )
    return NeutralMap(prefixes), prefixes


def test_a_neutral_locator_as_rfc_6296_computes_it() -> None:
    """§3.4's own example: FD01:0203:0405 to 2001:0DB8:0001 turns subnet 1 into 0xD550."""
    inside, outside = Prefix.parse("fd01:203:405::/48"), Prefix.parse("2001:db8:1::/48")
    neutral = NeutralMap((inside, outside))
    assert neutral.locator(address("fd01:203:405:1::1234"), outside) == address(
        "2001:db8:1:d550::1234"
    )
    assert neutral.locator(A1, ISP1) == A1
    two = NeutralMap((ISP1, ISP2))
    assert two.locator(A1, ISP2) == address("2001:db8:a2::10")
    assert not two.patterns() and not two.is_locator_only(A1)


@given(neutral_sites(), st.integers(0, (1 << 128) - 1))
def test_the_sum_is_kept_and_the_way_back_is_the_same_way(
    site: tuple[NeutralMap, tuple[Prefix, ...]], low: int
) -> None:
    neutral, (own, *others) = site
    ulid = own.graft(low.to_bytes(16))
    for prefix in others:
        locator = neutral.locator(ulid, prefix)
        assert prefix.contains(locator)
        words = (6,) if own.length <= 48 else (8, 10, 12, 14)
        if any(ulid[at : at + 2] != b"\xff\xff" for at in words):
            assert ones_sum(locator) == ones_sum(ulid)
            if not any(locator[at : at + 2] in (b"\0\0", b"\xff\xff") for at in words):
                assert neutral.locator(locator, own) == ulid
        else:
            assert locator == prefix.graft(ulid)


@pytest.mark.parametrize(
    ("ulid", "locator"),
    [
        ("fd00:0:0:1:ffff:2::10", "fd00:0:0:2:ffff:1::10"),
        ("fd00:0:0:1:ffff:ffff:ffff:2", "fd00:0:0:2:ffff:ffff:ffff:1"),
        ("fd00:0:0:1:ffff:ffff:ffff:ffff", "fd00:0:0:2:ffff:ffff:ffff:ffff"),
    ],
)
def test_a_word_of_ones_is_passed_over(ulid: str, locator: str) -> None:
    """RFC 6296 §3.5; where there is no other word the sum changes."""
    prefixes = [Prefix.parse(f"fd00:0:0:{n}::/64") for n in (1, 2)]
    assert NeutralMap(prefixes).locator(address(ulid), prefixes[1]) == address(locator)


def test_subnet_ffff_has_the_plain_locator() -> None:
    """RFC 6296 §3.4 drops its packets; here its hosts have a locator like all others."""
    ulid = address("2001:db8:a1:ffff::10")
    assert NeutralMap((ISP1, ISP2)).locator(ulid, ISP2) == address("2001:db8:a2:ffff::10")


def test_behind_a_long_prefix_no_word_is_left() -> None:
    with pytest.raises(ValueError, match="65 bits"):
        NeutralMap([Prefix.parse("2001:db8::/65")])


def test_the_record_says_that_locators_are_neutral() -> None:
    prefixes = (PrefixLocator(ISP1, 1), PrefixLocator(ISP2, 2))
    record = parse_text(encode_text(Capability(prefixes=prefixes, neutral=True)).encode())
    assert record is not None and record.neutral
    found = NameData("a1.alpha.example", frozenset({A1}), record, owns_ulid=True)
    neutral = address("2001:db8:a2::10")
    assert found.locators_of(A1) == (A1, neutral) and found.ties(A1, neutral)

"""Locator sets that do not fit: left out of I2 and R2, told by an Update (RFC 5533 §5.1)."""

from __future__ import annotations

from dataclasses import replace

import pytest

from m6proxy.discovery.capability import Capability, NameData, PrefixLocator
from m6proxy.names import Address, Prefix
from m6proxy.shim.effects import What
from m6proxy.shim.engine import Engine
from m6proxy.shim.locators import LocalSet, Uplink
from m6proxy.wire.message import I2, R2, UpdateAck, UpdateRequest
from m6proxy.wire.options import LocatorList, SenderName, find
from tests.harness.entropy import SeededEntropy
from tests.harness.packets import control, find_messages
from tests.harness.pair import A1, B1, Pair, Site, name_data, uplinks
from tests.shim.exchange import lose_first

LONG_NAME = ".".join(["x" * 60] * 3 + ["example"])
MANY = 58
"""So many locators fit an Update Request, and not an I2 with a long name."""


def many_uplinks(letter: str, count: int) -> tuple[Uplink, ...]:
    """The two uplinks that carry packets, and others that nobody probes."""
    digit = "c" if letter == "a" else "d"
    return uplinks(letter) + tuple(
        Uplink(f"far{n}", Prefix.parse(f"2001:db8:{digit}{n:02x}::/48"), 10 + n)
        for n in range(count - 2)
    )


def make(*sides: str, count: int = MANY, name: str = LONG_NAME) -> Pair:
    """A pair in which some sites have many uplinks and long names."""
    pair = Pair()
    names = pair.names
    for letter in sides:
        site = pair.sites[letter]
        names[site.ulid] = name
        site.settings = replace(site.settings, uplinks=many_uplinks(letter, count))
        site.engine = Engine(site.settings, SeededEntropy(40 + ord(letter)))

    def data(ulid: Address) -> NameData:
        letter = "a" if ulid == A1 else "b"
        found = name_data(names[ulid], ulid, letter)
        far = PrefixLocator(Prefix.parse(f"2001:db8:{'c' if letter == 'a' else 'd'}00::/40"), 9)
        return replace(found, capability=Capability(prefixes=(*prefixes_of(found), far)))

    pair.data = data
    return pair


def prefixes_of(data: NameData) -> tuple[PrefixLocator, ...]:
    """What the record of a name publishes."""
    assert data.capability is not None
    return data.capability.prefixes


def known(site: Site) -> set[Address]:
    """The locators of the peer that a site may use."""
    return {x.address for x in site.context.peer_locators if x.proved and x.listed}


def start(pair: Pair) -> None:
    for _ in range(2):
        pair.talk(pair.alpha)
    pair.run(1.0)


def test_what_an_i2_has_no_room_for_comes_with_an_update() -> None:
    pair = make("a")
    start(pair)
    ((_, packet, i2),) = find_messages(pair.alpha.sent, I2)
    ((_, later, request),) = find_messages(pair.alpha.sent, UpdateRequest)
    assert 1200 < len(packet) <= 1280 and len(later) <= 1280
    some, every = find(i2.options, LocatorList), find(request.options, LocatorList)
    assert some is not None and every is not None
    assert some.locators == every.locators[: len(some.locators)]
    assert some.generation != every.generation
    assert known(pair.beta) == set(every.locators) == set(pair.alpha.context.local_set.locators)
    assert pair.alpha.context.update is None
    assert len(pair.alpha.what(What.SHORTENED)) == 1


def test_what_an_r2_has_no_room_for_comes_with_an_update() -> None:
    pair = make("b")
    start(pair)
    ((_, packet, _),) = find_messages(pair.beta.sent, R2)
    assert len(packet) <= 1280
    assert known(pair.alpha) == set(pair.beta.context.local_set.locators)
    assert pair.beta.context.update is None


@pytest.mark.parametrize("kind", [I2, R2, UpdateRequest, UpdateAck])
def test_both_shortened_and_one_message_lost(kind: type[I2 | R2 | UpdateRequest]) -> None:
    pair = make("a", "b")
    lost = lose_first(pair, kind)
    start(pair)
    for _ in range(30):
        pair.talk(pair.alpha, 10)
        pair.talk(pair.beta, 10)
        pair.run(0.5)
    assert len(lost) == 1
    for site in pair.sites.values():
        assert known(site) == set(pair.other(site).context.local_set.locators)
        assert site.context.update is None


def test_a_set_that_fits_no_message_keeps_the_current_one_and_the_best() -> None:
    pair = make("a", count=200)
    start(pair)
    ((_, packet, request),) = find_messages(pair.alpha.sent, UpdateRequest)
    listed = find(request.options, LocatorList)
    assert listed is not None
    assert len(packet) <= 1280
    told = listed.locators
    assert 55 < len(told) < 64
    assert told == pair.alpha.context.local_set.locators[: len(told)]
    assert len(pair.alpha.what(What.SHORTENED)) == 2, "I2 and the Update; it ends there"
    pair.run(10.0)
    assert len(find_messages(pair.alpha.sent, UpdateRequest)) == 1


def test_the_update_after_the_exchange_has_no_name() -> None:
    pair = make("a")
    start(pair)
    ((_, _, request),) = find_messages(pair.alpha.sent, UpdateRequest)
    assert find(request.options, SenderName) is None
    assert pair.beta.context.peer_name == LONG_NAME


def test_a_late_copy_of_the_i2_takes_nothing_back() -> None:
    """The short list of an I2 that came twice replaced the whole one for ever."""
    pair = make("a")
    start(pair)
    ((_, copy, _),) = find_messages(pair.alpha.sent, I2)
    before = known(pair.beta)
    pair.inject(pair.beta, copy)
    pair.run(1.0)
    assert known(pair.beta) == before
    assert len(find_messages(pair.beta.sent, R2)) == 2


def test_the_places_that_are_told() -> None:
    links = many_uplinks("a", 6)
    broken = (*links[:1], replace(links[1], up=False), *links[2:])
    local = LocalSet(A1, broken, 1)
    assert local.best_places(3, A1) == (0, 2, 3)
    assert local.best_places(2, local.locators[5]) == (0, 5)
    assert local.best_places(1, local.locators[1]) == (1,)
    listed, preferences = local.options((0, 2))
    assert listed.generation == preferences.generation == (1 - 4) & 0xFFFFFFFF
    assert [p.priority for p in preferences.preferences] == [1, 10]


@pytest.mark.parametrize("limit", [64, 7])
def test_more_locators_than_are_kept_are_ignored_and_their_preferences_fit(limit: int) -> None:
    """Preferences alone about a list longer than what is kept were refused with Error 4."""
    pair = Pair(adjust=lambda settings: replace(settings, locators_max=limit))
    start(pair)
    locators = tuple(A1[:15] + bytes((n,)) for n in range(70))
    listed = LocatorList(9, (201,) * 70, locators)
    tag = pair.beta.context.local_tag
    assert pair.inject(pair.beta, control(A1, B1, UpdateRequest(tag, 1, (listed,)))) is not None
    assert len([one for one in pair.beta.context.peer_locators if one.listed]) == limit
    assert pair.beta.context.peer_order == locators

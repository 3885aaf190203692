"""Hypothesis strategies for every option and message; what they give must round-trip."""

from __future__ import annotations

from hypothesis import strategies as st

from m6proxy.names import TAG_MASK, Prefix
from m6proxy.wire.message import (
    I1,
    I2,
    R1,
    R2,
    CapabilityReply,
    CapabilityRequest,
    Close,
    CloseAck,
    ErrorMessage,
    I2bis,
    Keepalive,
    Message,
    Probe,
    ProbeRecord,
    ProbeState,
    R1bis,
    UnknownMessage,
    UpdateAck,
    UpdateRequest,
)
from m6proxy.wire.options import (
    CgaParameters,
    CgaSignature,
    Demux,
    Features,
    ForkedInstance,
    KeepaliveTimeout,
    LocatorDelta,
    LocatorList,
    LocatorPreferences,
    Option,
    ParkTime,
    PayloadCount,
    Preference,
    ResponderValidator,
    Scope,
    SenderName,
    UlidPairOption,
    UnknownOption,
)

u8 = st.integers(0, 0xFF)
u16 = st.integers(0, 0xFFFF)
u32 = st.integers(0, 0xFFFFFFFF)
tags = st.integers(0, TAG_MASK)
addresses = st.binary(min_size=16, max_size=16)
validators = st.builds(ResponderValidator, st.binary(max_size=40))

_labels = st.text("abcdefghijklmnopqrstuvwxyz0123456789-_", min_size=1, max_size=63)
names = st.lists(_labels, min_size=1, max_size=5).map(".".join).filter(lambda n: len(n) <= 253)

_lists = st.builds(
    lambda generation, pairs: LocatorList(
        generation, tuple(method for method, _ in pairs), tuple(octets for _, octets in pairs)
    ),
    u32,
    st.lists(st.tuples(u8, addresses), max_size=9),
)


@st.composite
def _preferences(draw: st.DrawFn) -> LocatorPreferences:
    octets = draw(st.integers(1, 6))
    preference = st.builds(
        Preference,
        u8,
        u8 if octets > 1 else st.just(0),
        u8 if octets > 2 else st.just(0),
        st.binary(min_size=max(0, octets - 3), max_size=max(0, octets - 3)),
    )
    return LocatorPreferences(draw(u32), octets, tuple(draw(st.lists(preference, max_size=9))))


_prefixes = st.builds(
    lambda octets, length: Prefix(
        (int.from_bytes(octets) >> (128 - length) << (128 - length)).to_bytes(16), length
    ),
    addresses,
    st.integers(0, 128),
)

options: st.SearchStrategy[Option] = st.one_of(
    validators,
    _lists,
    _preferences(),
    st.builds(CgaParameters, st.binary(max_size=60)),
    st.builds(CgaSignature, st.binary(max_size=60)),
    st.builds(UlidPairOption, addresses, addresses),
    st.builds(ForkedInstance, u32),
    st.builds(KeepaliveTimeout, u16),
    st.builds(SenderName, names),
    st.builds(Features, u32),
    st.builds(
        LocatorDelta,
        u32,
        u32,
        st.lists(st.tuples(u8, st.builds(Preference, u8, u8, u8), addresses), max_size=5).map(
            tuple
        ),
        st.lists(addresses, max_size=5).map(tuple),
    ),
    st.builds(
        Scope,
        u32,
        u32,
        st.lists(st.tuples(_prefixes, st.builds(Preference, u8, u8, u8)), max_size=3).map(tuple),
        st.lists(st.tuples(tags, tags), max_size=9).map(tuple),
    ),
    st.builds(ParkTime, u32),
    st.builds(PayloadCount, u32),
    st.builds(
        Demux,
        st.integers(0, 255),
        st.integers(0, 0xFFFFF),
        st.none() | st.binary(min_size=16, max_size=16),
    ),
    st.builds(UnknownOption, st.integers(100, 0x3FFF), st.just(False), st.binary(max_size=20)),
)
option_lists = st.lists(options, max_size=3).map(tuple)
_with_validator = st.tuples(validators, option_lists).map(lambda pair: (pair[0], *pair[1]))

_records = st.builds(ProbeRecord, addresses, addresses, u32, u32)
_states = st.sampled_from(ProbeState)
_eight = st.integers(1, 20).flatmap(lambda n: st.binary(min_size=8 * n, max_size=8 * n))

messages: st.SearchStrategy[Message] = st.one_of(
    st.builds(I1, tags, u32, option_lists),
    st.builds(R1, u32, u32, _with_validator),
    st.builds(I2, tags, u32, u32, _with_validator),
    st.builds(R2, tags, u32, option_lists),
    st.builds(R1bis, tags, u32, option_lists),
    st.builds(I2bis, tags, u32, u32, tags, option_lists),
    st.builds(CapabilityRequest, u32, option_lists),
    st.builds(CapabilityReply, u32, option_lists),
    st.builds(UpdateRequest, tags, u32, option_lists),
    st.builds(UpdateAck, tags, u32, option_lists),
    st.builds(Close, tags, u32, tags, option_lists),
    st.builds(CloseAck, tags, u32, tags, option_lists),
    st.builds(Keepalive, tags, option_lists),
    st.builds(
        Probe,
        tags,
        _states,
        st.lists(_records, min_size=1, max_size=8).map(tuple),
        st.lists(_records, max_size=6).map(tuple),
        st.just(()),
    ),
    st.builds(ErrorMessage, st.integers(0, 0x7F), u16, _eight),
    st.builds(
        lambda number, head, rest, specific: UnknownMessage(number, head + rest, specific),
        st.sampled_from([0, 7, 59, 69, 124, 127]),
        st.binary(min_size=2, max_size=2),
        _eight,
        st.integers(0, 0x7F),
    ),
)

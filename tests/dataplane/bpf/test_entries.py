"""Which entries of the maps a context has, and whose those are that a predecessor left."""

from __future__ import annotations

from typing import Any

import pytest

from m6proxy.dataplane.bpf import layout
from m6proxy.dataplane.bpf.entries import (
    Left,
    Place,
    differs_outbound_alone,
    out_value,
    sent_key,
    slot_value,
)
from m6proxy.shim.demux import DemuxMode
from m6proxy.shim.effects import KernelEntry
from tests.harness.pair import A2, Pair

LABELS = (DemuxMode.FLOWLABEL, DemuxMode.EXTHDR)


def before_and_after() -> tuple[Pair, KernelEntry, KernelEntry]:
    """What the kernel is told of a context on its ULIDs, and when it has left them."""
    pair = Pair(kernel=True, demux=LABELS)
    pair.establish()
    ulids = pair.alpha.context.pair
    before = pair.alpha.flows[ulids].kernel
    pair.cut_provider("a", 1)
    pair.stream(8.0, both=True)
    after = pair.alpha.flows[ulids].kernel
    assert before is not None and after is not None and before.addresses != after.addresses
    return pair, before, after


@pytest.mark.parametrize(
    "change",
    [
        {"slot": 9},
        {"slow": True},
        {"tags": ()},
        {"untagged": (bytes(32),)},
        {"local_locators": ()},
        {"peer_locators": (A2,)},
    ],
)
def test_a_re_homing_changes_outbound_entries_alone_unless_more_is_new(
    change: dict[str, Any],
) -> None:
    _, before, after = before_and_after()
    assert differs_outbound_alone(before, after)
    assert not differs_outbound_alone(before, after._replace(**change))


def test_what_a_predecessor_left_is_its_contexts_or_nobodys() -> None:
    pair, _, entry = before_and_after()
    flow = pair.alpha.flows[pair.alpha.context.pair]
    key = flow.ulids.local + flow.ulids.peer
    sent = sent_key(key, entry)
    assert sent is not None
    left = Left()
    left.take_out(key, out_value(key, flow.peer_tag, entry, {"isp2": 2}))
    left.take_sent(sent, slot_value(entry))
    stray = layout.sent_key(bytes(32), 5)
    left.take_sent(stray, slot_value(entry._replace(slot=entry.slot + 1)))
    assert set(left.by_pair[flow.ulids]) == {Place(layout.OUT, key), Place(layout.SENT, sent)}
    assert left.stray == [Place(layout.SENT, stray)]

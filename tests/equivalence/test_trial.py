"""What explain asks the kernel: a second instance says what the first would do, unnoticed."""

from __future__ import annotations

import pytest

from m6proxy.dataplane.bpf import layout
from m6proxy.dataplane.bpf.layout import Counter, EventKind, Miss, MissFlag, Settings
from m6proxy.dataplane.bpf.load import read_object
from m6proxy.dataplane.bpf.ring import RingReader
from m6proxy.dataplane.bpf.trial import Fate, Interface, KernelOutcome, KernelTrial
from tests.equivalence.kernel import DROPPED, LOOPBACK_INDEX, SLOW, KernelSite, Outcome
from tests.equivalence.test_vectors import MODES, rehomed
from tests.equivalence.vectors import B2, inbound, outbound
from tests.harness.packets import udp
from tests.harness.pair import A1, B1

pytestmark = pytest.mark.netns

LOOPBACK = Interface(LOOPBACK_INDEX, bytes(6))
SOURCE = read_object()


def tried(kernel: KernelSite, packet: bytes, *, is_outbound: bool) -> KernelOutcome:
    """What the second instance says."""
    maps = kernel.loaded.maps
    return KernelTrial(SOURCE, maps, packet, LOOPBACK, outbound=is_outbound).run()


def as_outcome(told: KernelOutcome) -> Outcome:
    """The same in the words of the first instance."""
    if told.fate in (Fate.PYTHON, Fate.LEFT):
        return SLOW
    return DROPPED if told.fate is Fate.DROPPED else told.packet


def contents(kernel: KernelSite) -> dict[str, object]:
    """All that is in the live maps."""
    found: dict[str, object] = {}
    for name, each in kernel.loaded.maps.items():
        if name != layout.EVENTS:
            found[name] = dict(each.items())
    reader = RingReader(kernel.loaded.maps[layout.EVENTS])
    found[layout.EVENTS] = reader.read()
    reader.close()
    return found


@pytest.mark.parametrize("direction", ["out", "in"])
@MODES
def test_a_trial_says_what_the_programs_do_and_changes_nothing(mode: str, direction: str) -> None:
    pair, kernel = rehomed(mode)
    is_outbound = direction == "out"
    vectors = list(outbound(pair.alpha.context) if is_outbound else inbound(pair))
    chosen = [each for each in vectors if len(each.packet) >= 40][:: 7 if is_outbound else 19]
    contents(kernel)
    before = contents(kernel)
    told = {each.name: tried(kernel, each.packet, is_outbound=is_outbound) for each in chosen}
    assert contents(kernel) == before
    ask = kernel.outbound if is_outbound else kernel.inbound
    for vector in chosen:
        assert as_outcome(told[vector.name]) == ask(vector.packet), vector.name
    fates = {outcome.fate for outcome in told.values()}
    assert {Fate.SENT if is_outbound else Fate.PAST, Fate.PYTHON} <= fates


def test_it_says_why_and_what_python_would_hear() -> None:
    pair, kernel = rehomed("exthdr")
    told = tried(kernel, udp(A1, B1), is_outbound=True)
    assert (told.fate, told.uplink, told.counters) == (Fate.SENT, 2, (Counter.REWRITTEN,))
    assert told.flow is not None and told.flow.locators == pair.alpha.context.route
    kernel.configure(after_packets=2)
    assert tried(kernel, udp(A1, B2), is_outbound=True).events == ()
    kernel.loaded.maps[layout.MISSES].update(A1 + B2, Miss(packets=1).pack())
    told = tried(kernel, udp(A1, B2), is_outbound=True)
    assert (told.fate, told.events) == (Fate.PAST, (EventKind.RIPE,))
    kernel.loaded.maps[layout.MISSES].update(A1 + B2, Miss(flags=MissFlag.SLOW).pack())
    told = tried(kernel, udp(A1, B2), is_outbound=True)
    assert (told.fate, told.counters) == (Fate.PYTHON, (Counter.SLOW_POLICY,))
    assert tried(kernel, udp(B1, B2), is_outbound=True).fate is Fate.LEFT


def test_settings_are_read_as_they_were_written() -> None:
    _, kernel = rehomed("exthdr")
    written = kernel.loaded.maps[layout.SETTINGS].lookup(bytes(4))
    assert written is not None
    read = Settings.unpack(written)
    assert read.pack() == written
    assert (read.prefixes, read.uplinks[:3]) == (kernel.settings.prefixes, (1, 1, 0))

"""Programs in the kernel: relocations, trial runs, and what the verifier says."""

from __future__ import annotations

import struct
from dataclasses import replace

import pytest

from m6proxy.dataplane.bpf.load import Loaded, load
from m6proxy.dataplane.bpf.programs import ProgramRefused, SkBuff
from m6proxy.errors import SetupError
from tests.dataplane.bpf.trial import ETHERNET, trial_object
from tests.dataplane.bpf.trial import trial as trial

pytestmark = pytest.mark.netns

PASS_ON = -1
PAIR = bytes(range(32))
PACKET = ETHERNET + bytes.fromhex("6000000000141140") + PAIR + bytes(20)


def test_a_program_finds_its_maps_and_constants(trial: Loaded) -> None:
    mark_pair = trial.programs["mark_pair"]
    assert mark_pair.trial(PACKET).verdict == PASS_ON
    trial.maps["pairs"].update(PAIR, struct.pack("=IHBBQ", 100, 0, 2, 0, 0))
    done = mark_pair.trial(PACKET, SkBuff(mark=1))
    assert (done.verdict, done.mark, done.packet) == (0, 133, PACKET)
    value = trial.maps["pairs"].lookup(PAIR)
    assert value is not None
    assert struct.unpack("=IHBBQ", value)[4] > 0


def test_maps_can_be_given_and_sized_at_load() -> None:
    first = load(trial_object(), max_entries={"pairs": 7})
    assert first.maps["pairs"].spec.max_entries == 7
    second = load(trial_object(), given={"seen": first.maps["seen"]})
    second.programs["count_all"].trial(PACKET)
    assert first.maps["seen"].lookup(bytes(4)) == struct.pack("=Q", 1)
    first.close()
    second.close()


def test_a_refused_program_is_named_with_the_verifiers_last_words() -> None:
    source = trial_object()
    spec = source.programs["count_all"]
    no_verdict_set = bytes.fromhex("9500000000000000")
    broken = replace(spec, instructions=no_verdict_set, references=())
    with pytest.raises(ProgramRefused) as refused:
        load(replace(source, programs={"count_all": broken}))
    said = str(refused.value)
    assert "\n" not in said
    assert said.startswith("BPF program count_all: the kernel refuses it: ")
    assert "fast_path: off" in said
    assert any("R0" in line for line in refused.value.log)
    assert isinstance(refused.value, SetupError)

"""The judgement on sessions: pure functions on samples."""

from __future__ import annotations

import pytest

from m6proxy.errors import SetupError
from m6proxy.lab.story import (
    MEBI_OCTETS,
    Progress,
    Script,
    SessionResult,
    judge,
    longest_gap_s,
    succeeded,
    throughput,
)


def _judge(
    times_s: list[float], *, ended_s: float, fault: str | None = None, sum_ok: bool = True
) -> SessionResult:
    progress = Progress(times_s, [10] * len(times_s))
    return judge(
        name="file", protocol="tcp/http", progress=progress, began_s=0.0, ended_s=ended_s,
        fault=fault, sum_ok=sum_ok, give_up_s=20.0,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("times_s", "start_s", "end_s", "gap_s"),
    [
        ([], 0.0, 5.0, 5.0),
        ([1.0, 2.0, 4.5], 0.0, 5.0, 2.5),
        ([1.0], 0.0, 9.0, 8.0),
        ([3.0, 3.1], 0.0, 3.2, 3.0),
        ([1.0, 2.0], 2.5, 2.0, 0.0),
    ],
)
def test_longest_gap(times_s: list[float], start_s: float, end_s: float, gap_s: float) -> None:
    assert longest_gap_s(times_s, start_s, end_s) == pytest.approx(gap_s)


def test_a_session_with_an_outage_survives_when_it_goes_on() -> None:
    result = _judge([1.0, 2.0, 6.5, 7.0], ended_s=7.0)
    assert result.survived
    assert result.longest_gap_s == 4.5
    assert result.octets == 40


def test_a_fault_of_the_program_is_no_survival() -> None:
    result = _judge([1.0], ended_s=2.0, fault="curl ended with 56")
    assert not result.survived
    assert result.why == "curl ended with 56"


def test_altered_octets_are_no_survival() -> None:
    assert not _judge([1.0], ended_s=2.0, sum_ok=False).survived


def test_silence_for_as_long_as_the_patience_is_no_survival() -> None:
    assert not _judge([1.0, 21.0], ended_s=21.5).survived
    assert _judge([1.0, 20.9], ended_s=21.5).survived


def test_the_demo_succeeds_only_if_all_survive_and_the_control_breaks() -> None:
    good = _judge([1.0], ended_s=1.5)
    bad = _judge([1.0], ended_s=30.0)
    assert succeeded([good, good], [bad, bad])
    assert not succeeded([good, bad], [bad, bad])
    assert not succeeded([good, good], [bad, good])
    assert not succeeded([], [bad])
    assert not succeeded([good], [])


def test_throughput_counts_octets_per_bin() -> None:
    progress = Progress([0.1, 0.2, 1.4, 9.0], [100, 50, 30, 999])
    assert throughput(progress, 0.5, 1.5) == [(0.25, 300.0), (0.75, 0.0), (1.25, 60.0)]


def test_a_script_whose_transfer_ends_before_the_second_cut_is_refused() -> None:
    assert Script().cuts() == ((8.0, "alpha.isp1"), (20.0, "beta.isp1"))
    with pytest.raises(SetupError, match="before the second cut"):
        Script(size_octets=64 * MEBI_OCTETS)
    with pytest.raises(SetupError, match="before its second"):
        Script(first_cut_s=21.0)
    with pytest.raises(SetupError, match="above zero"):
        Script(rate_octets_s=0)

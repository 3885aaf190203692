"""Who gets programs in the kernel: what the configuration says and what the kernel takes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from m6proxy.daemon import fastpath
from m6proxy.daemon.config import Config, parse_config
from m6proxy.daemon.fastpath import FastPath, open_fast_path
from m6proxy.errors import SetupError
from tests.daemon.test_config import CONTRACT

CONFIG = parse_config(CONTRACT, "f.yaml")


class Kernel:
    """Takes programs, or refuses them; knows what was taken out."""

    def __init__(self, *, refuses: bool = False, is_lasting: bool = True) -> None:
        self.refuses, self.is_lasting = refuses, is_lasting
        self.wanted: list[Any] = []
        self.taken_out: list[Path] = []

    def site(self, wanted: Any, folder: Path) -> Kernel:
        if self.refuses:
            raise SetupError("no BPF here")
        self.wanted.append(wanted)
        return self


def opened(monkeypatch: pytest.MonkeyPatch, kernel: Kernel, config: Config) -> FastPath:
    monkeypatch.setattr(fastpath, "BpfSite", kernel.site)
    monkeypatch.setattr(fastpath, "remove_leftovers", kernel.taken_out.append)
    return open_fast_path(config)


@pytest.mark.parametrize("is_lasting", [True, False])
def test_where_the_kernel_takes_them(monkeypatch: pytest.MonkeyPatch, is_lasting: bool) -> None:
    kernel = Kernel(is_lasting=is_lasting)
    site, why = opened(monkeypatch, kernel, CONFIG)
    assert site is not None and not kernel.taken_out
    (wanted,) = kernel.wanted
    assert wanted.lan == CONFIG.lan and wanted.mark_shift == CONFIG.mark_shift
    assert [one.name for one in wanted.uplinks] == [one.name for one in CONFIG.uplinks]
    assert ("a restart begins anew" in why) is not is_lasting


def test_off_takes_out_what_a_predecessor_left(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel, config = Kernel(), replace(CONFIG, fast_path="off")
    assert opened(monkeypatch, kernel, config) == (None, "fast_path is off")
    assert (kernel.wanted, kernel.taken_out) == ([], [config.bpf_folder])


@pytest.mark.parametrize(
    ("change", "refuses", "why"),
    [
        ({}, True, "no BPF here"),
        ({"manage_routes": False}, False, "routing.manage is false"),
        ({"uplinks": CONFIG.uplinks * 8}, False, "marks for 14 uplinks, and there are 16"),
    ],
)
def test_where_they_cannot_be_all_goes_by_nfqueue_unless_the_operator_insists(
    monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], refuses: bool, why: str
) -> None:
    kernel, config = Kernel(refuses=refuses), replace(CONFIG, **change)
    site, told = opened(monkeypatch, kernel, config)
    assert site is None and why in told
    assert kernel.taken_out == [config.bpf_folder] and not kernel.wanted
    with pytest.raises(SetupError, match=why):
        opened(monkeypatch, kernel, replace(config, fast_path="bpf"))
    assert len(kernel.taken_out) == 1, "what is there stays there"

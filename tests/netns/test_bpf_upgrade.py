"""A release with other maps takes over from this one on a gateway whose traffic goes on.

The next release is this package, copied, with wider entries for packets of either direction and
the way from ours to its own.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import m6proxy
from hatch_build import compile_bpf
from m6proxy.dataplane.bpf.load import OBJECT_NAME
from m6proxy.lab.build import Lab, pins_path
from m6proxy.lab.topology import ALPHA
from tests.harness.gateway import A1, B1, running
from tests.harness.netns import lab as lab
from tests.harness.stream import grows, is_whole, streaming
from tests.netns.rehomed_pair import bpf, on_isp2

pytestmark = pytest.mark.netns

WIDER = "{key: lambda octets, value: (octets, bytes(8) + value) for key in _FIRST}"
CHANGES = {
    "dataplane/bpf/src/maps.h": [
        ("struct out_flow {\n", "struct out_flow {\n\t__u64 news;\n"),
        ("struct in_flow {\n", "struct in_flow {\n\t__u64 news;\n"),
    ],
    "dataplane/bpf/layout.py": [
        ('"m6p_out_v1"', '"m6p_out_v2"'),
        ('"m6p_tag_v1"', '"m6p_tag_v2"'),
        ('Struct("=32sx7s4sIBBHI")', 'Struct("=8x32sx7s4sIBBHI")'),
        ('Struct(f"=32sIBBH', 'Struct(f"=8x32sIBBH'),
    ],
    "dataplane/bpf/migrations.py": [
        ("Final[Migrations] = {}", f"Final[Migrations] = {WIDER}"),
        ("MIGRATIONS:", '_FIRST = [("m6p_out", 1), ("m6p_tag", 1)]\nMIGRATIONS:'),
    ],
}


def next_release(folder: Path) -> Path:
    """Make it; return where its package is."""
    package, ours = folder / "m6proxy", Path(m6proxy.__file__).parent
    shutil.copytree(ours.parent / "rules", folder / "rules")
    shutil.copytree(
        ours,
        package,
        ignore=shutil.ignore_patterns("__pycache__", OBJECT_NAME),
    )
    for name, changes in CHANGES.items():
        text = (package / name).read_text()
        for old, new in changes:
            assert text.count(old) == 1, f"{name} has no {old!r} any more, or more than one"
            text = text.replace(old, new)
        (package / name).write_text(text)
    for header in (package / "dataplane/bpf/src").glob("*.h"):
        text = header.read_text()
        header.write_text(
            text.replace("m6p_out_v1", "m6p_out_v2").replace("m6p_tag_v1", "m6p_tag_v2")
        )
    source = package / "dataplane/bpf/src/m6proxy.bpf.c"
    compile_bpf(source, package / "dataplane/bpf" / OBJECT_NAME)
    return folder


def test_a_stream_lives_on_while_a_release_with_other_maps_takes_over(
    lab: Lab, tmp_path: Path
) -> None:
    """In the mode that has entries in every map."""
    mode = "flowlabel"
    heard = tmp_path / "heard"
    newer = {"PYTHONPATH": str(next_release(tmp_path / "next")), "PYTHONSAFEPATH": "1"}
    with (
        on_isp2(lab, mode, fast=True) as (alpha, _),
        streaming(lab, heard),
    ):
        grows(heard, 50)
        known = alpha.context(A1, B1)
        alpha.kill()
        with running(lab, ALPHA, changes=bpf(mode), environment=newer) as (again,):
            grows(heard, 100)
            taken = again.context(A1, B1)
            assert known is not None and taken is not None
            for key in ("local_tag", "peer_tag", "local_locator", "peer_locator", "demux"):
                assert taken[key] == known[key], key
            (told,) = again.events("maps copied")
            assert "m6p_out_v2 with 1 entries" in told["detail"]
            assert "m6p_tag_v2 with" in told["detail"] and " not" not in told["detail"]
            maps = {path.name for path in (pins_path(lab) / "alpha").iterdir()}
            assert "map_m6p_out_v2" in maps and "map_m6p_out_v1" not in maps
            packets = again.ask("/v1/status")["packets"]
            grows(heard, 100)
            later = again.ask("/v1/status")["packets"]
            assert later["kernel_rewritten"] > packets["kernel_rewritten"] + 50
            assert is_whole(heard), "one was lost"
            assert again.stop() == 0

"""A successor takes over, a newer layout copies, a stop leaves nothing, and sites are strangers."""

from __future__ import annotations

import itertools
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from m6proxy.dataplane.bpf import pins, syscall
from m6proxy.dataplane.bpf.btf import MapSpec
from m6proxy.dataplane.bpf.links import Side
from m6proxy.dataplane.bpf.load import BpfObject
from m6proxy.dataplane.bpf.maps import Map
from m6proxy.dataplane.bpf.pins import PinFolder, mount_of, mounts
from m6proxy.dataplane.bpf.takeover import Entry, install, remove_leftovers
from m6proxy.errors import SetupError
from tests.dataplane.bpf.trial import (
    COUNT_ALL,
    COUNT_ALL_AGAIN,
    needs_tcx,
    object_file,
    trial_object,
)
from tests.steering.namespaces import Namespaces, inside, run, run_line, until

pytestmark = pytest.mark.netns

ROOT = Path(__file__).parents[3]
PORT = 33533
LOOPBACK = 1
_folders = itertools.count()


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder of its own, mounted before any process of the test starts; empty at the end."""
    path = Path(f"/run/m6t-{os.getpid()}-{next(_folders)}")
    PinFolder.claim(path).release()
    yield path
    remove_leftovers(path)


class Link:
    """Two namespaces, near and far, joined by a veth pair; the far one's is ``wan0``."""

    def __init__(self, namespaces: Namespaces) -> None:
        self.near, self.far = namespaces.add("near"), namespaces.add("far")
        namespaces.link((self.near, "eth0"), (self.far, "wan0"))
        for name, interface, address in (
            (self.near, "eth0", "2001:db8:f::1/64"),
            (self.far, "wan0", "2001:db8:f::2/64"),
        ):
            run_line(f"ip -n {name} addr add {address} dev {interface} nodad")
        run("ip", "netns", "exec", self.near, "ping", "-n", "-c", "1", "2001:db8:f::2")


@pytest.fixture
def link() -> Iterator[Link]:
    with Namespaces() as namespaces:
        yield Link(namespaces)


@pytest.mark.parametrize("use_tcx", [True, False])
def test_only_who_stands_behind_our_program_is_counted(
    link: Link, folder: Path, use_tcx: bool
) -> None:
    if use_tcx:
        needs_tcx()
    with inside(link.far):
        installed = install(trial_object(), folder, use_tcx=use_tcx)
        try:
            index = socket.if_nametoindex("wan0")
            assert installed.behind(index, Side.INGRESS) == 0
            installed.attach("count_all", index, Side.INGRESS)
            assert installed.behind(index, Side.INGRESS) == 0
            if not use_tcx:
                words = "protocol ipv6 prio 139 u32 match u32 0 0"
                run_line(f"tc filter add dev wan0 ingress {words}")
                assert installed.behind(index, Side.INGRESS) == 0, "it sees packets before us"
            program = installed._programs["count_all_again"].descriptor
            other = syscall.link_create(program, index, 46) if use_tcx else None
            assert installed.behind(index, Side.INGRESS) == (1 if use_tcx else 0)
            if use_tcx:
                run_line("tc qdisc add dev wan0 clsact")
            run_line("tc filter add dev wan0 ingress protocol ipv6 prio 200 u32 match u32 0 0")
            assert installed.behind(index, Side.INGRESS) > (1 if use_tcx else 0)
            if other is not None:
                os.close(other)
            run_line("tc filter del dev wan0 ingress prio 200")
            assert installed.behind(index, Side.INGRESS) == 0
            assert installed.behind(index, Side.EGRESS) == 0
        finally:
            installed.remove()


class Holder:
    """A running ``holder.py`` in a namespace, as ``ip netns exec`` starts it."""

    def __init__(self, namespace: str, folder: Path, program: str, way: str) -> None:
        if way == "tcx":
            needs_tcx()
        module = "tests.dataplane.bpf.holder"
        self._process = subprocess.Popen(
            [
                *("ip", "netns", "exec", namespace, sys.executable, "-m", module),
                *(str(object_file()), str(folder), program, "wan0", way),
            ],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        self.said = self._process.stdout.readline().split()
        assert self.said[:1] == ["ready"], self.said

    def kill(self) -> None:
        self._process.send_signal(signal.SIGKILL)
        self._process.wait(10)

    def end(self, word: str) -> None:
        self._process.communicate(word + "\n", timeout=10)
        assert self._process.returncode == 0


class Stream:
    """Numbered datagrams from near to far, as fast as two small threads can."""

    def __init__(self, link: Link) -> None:
        with inside(link.far):
            self._to = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
            self._to.bind(("2001:db8:f::2", PORT))
            self._to.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
            self._to.settimeout(0.5)
        with inside(link.near):
            self._from = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
            self._from.connect(("2001:db8:f::2", PORT))
        self.sent = 0
        self.received: list[int] = []
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=work) for work in (self._send, self._receive)]

    def __enter__(self) -> Stream:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(10)
        self._from.close()
        self._to.close()

    def go_on(self, count: int) -> None:
        """Wait until so many more were sent."""
        enough = self.sent + count
        until(lambda: self.sent >= enough, f"{count} packets more")

    def _send(self) -> None:
        while not self._stop.is_set():
            self._from.send(struct.pack("=Q", self.sent))
            self.sent += 1
            time.sleep(0.0002)

    def _receive(self) -> None:
        while True:
            try:
                self.received.append(struct.unpack("=Q", self._to.recv(64))[0])
            except TimeoutError:
                if self._stop.is_set():
                    return


def counted(folder: Path) -> tuple[int, int]:
    """Packets that count_all and count_all_again saw, read from the pinned map."""
    held = PinFolder.claim(folder)
    descriptor = held.get("map_seen")
    assert descriptor is not None
    seen = Map.opened(descriptor, "seen")
    values = [seen.lookup(each) or b"" for each in (COUNT_ALL, COUNT_ALL_AGAIN)]
    seen.close()
    held.release()
    first, second = (int.from_bytes(value, sys.byteorder) for value in values)
    return first, second


@pytest.mark.parametrize("way", ["tcx", "clsact"])
def test_no_packet_passes_without_its_program_while_holders_die(
    link: Link, folder: Path, way: str
) -> None:
    """Killed and replaced four times in a stream: every packet met exactly one program."""
    holder = Holder(link.far, folder, "count_all", way)
    with Stream(link) as stream:
        for program in ["count_all_again", "count_all"] * 2:
            holder.kill()
            holder = Holder(link.far, folder, program, way)
            assert holder.said == ["ready", "5", "True"]
            stream.go_on(50)
    holder.kill()
    first, second = counted(folder)
    assert stream.received == list(range(stream.sent))
    assert first + second == stream.sent
    assert min(first, second) > 100


@pytest.mark.parametrize("way", ["tcx", "clsact"])
def test_a_stop_leaves_nothing_and_touches_nobody_elses(link: Link, folder: Path, way: str) -> None:
    """Somebody else has a filter at the same interface."""
    filters = f"tc -n {link.far} filter show dev wan0 ingress"
    run_line(f"tc -n {link.far} qdisc add dev wan0 clsact")
    run_line(f"tc -n {link.far} filter add dev wan0 ingress prio 7 protocol ip u32 match u32 0 0")
    before = run_line(filters)
    Holder(link.far, folder, "count_all", way).end("remove")
    assert run_line(filters) == before
    assert not folder.exists()
    assert str(folder) not in {mount.at for mount in mounts()}


def test_the_fallback_takes_its_own_qdisc_away(link: Link, folder: Path) -> None:
    holder = Holder(link.far, folder, "count_all", "clsact")
    qdiscs = f"tc -n {link.far} qdisc show dev wan0"
    assert "clsact" in run_line(qdiscs)
    holder.end("remove")
    assert "clsact" not in run_line(qdiscs)


@pytest.mark.parametrize("way", ["tcx", "clsact"])
def test_what_a_killed_process_left_is_taken_away_by_name(
    link: Link, folder: Path, way: str
) -> None:
    Holder(link.far, folder, "count_all", way).kill()
    with inside(link.far):
        remove_leftovers(folder)
        assert "m6" not in run_line("tc filter show dev wan0 ingress")
        assert "clsact" not in run_line("tc qdisc show dev wan0")
        installed = install(trial_object(), folder)
        assert installed.heritage.taken_over == ()
        installed.remove()
    assert not folder.exists()
    remove_leftovers(folder)


def test_two_sites_of_one_machine_do_not_meet(folder: Path) -> None:
    """Same programs, same interface indexes, other namespaces: one stops, one goes on."""
    with Namespaces() as namespaces:
        one, other = Link(namespaces), Link(namespaces)
        folders = folder / "one", folder / "other"
        holders = [
            Holder(each.far, path, "count_all", "tcx")
            for each, path in zip((one, other), folders, strict=True)
        ]
        holders[0].end("remove")
        with Stream(other) as stream:
            stream.go_on(50)
        holders[1].kill()
        assert counted(folders[1]) == (stream.sent, 0)
        remove_leftovers(folders[1])


def test_only_one_process_holds_a_folder(folder: Path) -> None:
    held = PinFolder.claim(folder)
    with pytest.raises(SetupError, match="another process holds it"):
        PinFolder.claim(folder)
    held.remove()


def test_a_link_whose_interface_went_is_made_again(folder: Path) -> None:
    with Namespaces() as namespaces:
        link = Link(namespaces)
        Holder(link.far, folder, "count_all", "tcx").kill()
        run_line(f"ip -n {link.far} link del wan0")
        namespaces.link((link.near, "eth0"), (link.far, "wan0"))
        holder = Holder(link.far, folder, "count_all", "tcx")
        assert holder.said == ["ready", "5", "False"]
        holder.end("remove")


def versioned(source: BpfObject, version: int, *, value_size: int) -> BpfObject:
    """Return the object as if its map ``seen`` had versions and this value size."""
    programs = {"pass_early": source.programs["pass_early"]}
    spec = MapSpec(f"m6p_t_v{version}", 1, 4, value_size, 16)
    return replace(source, programs=programs, maps={spec.name: spec}, rodata={})


def key(number: int) -> bytes:
    return number.to_bytes(4, sys.byteorder)


def leave_ten_entries(folder: Path) -> None:
    first = install(versioned(trial_object(), 1, value_size=4), folder)
    first.maps["m6p_t_v1"].update_batch([key(n) for n in range(10)], [key(n) for n in range(10)])
    first.release()


def test_a_newer_layout_is_filled_from_the_older_step_by_step(folder: Path) -> None:
    leave_ten_entries(folder)

    def widen(old_key: bytes, old_value: bytes) -> Entry | None:
        return None if old_key == key(3) else (old_key, old_value + bytes(4))

    def mark(old_key: bytes, old_value: bytes) -> Entry | None:
        return old_key, old_value[:4] + b"mark"

    second = install(
        versioned(trial_object(), 3, value_size=8),
        folder,
        migrations={("m6p_t", 1): widen, ("m6p_t", 2): mark},
    )
    assert second.heritage.copied == (("m6p_t_v3", 9),)
    assert second.heritage.left_out == 1
    assert dict(second.maps["m6p_t_v3"].items()) == {
        key(n): key(n) + b"mark" for n in range(10) if n != 3
    }
    second.settle()
    second.release()
    third = install(versioned(trial_object(), 3, value_size=8), folder)
    assert third.heritage.taken_over == ("m6p_t_v3",)
    third.remove()


def test_another_size_keeps_what_fits(folder: Path) -> None:
    leave_ten_entries(folder)
    second = install(
        versioned(trial_object(), 1, value_size=4), folder, max_entries={"m6p_t_v1": 7}
    )
    assert second.heritage.copied == (("m6p_t_v1", 7),)
    assert second.heritage.left_out == 3
    second.remove()


def test_a_layout_without_a_way_to_ours_is_forgotten(folder: Path) -> None:
    leave_ten_entries(folder)
    second = install(versioned(trial_object(), 2, value_size=8), folder)
    assert second.heritage.forgotten == ("m6p_t_v1",)
    assert list(second.maps["m6p_t_v2"].items()) == []
    second.remove()


def test_a_refused_installation_leaves_the_predecessors_at_work(folder: Path) -> None:
    first = install(trial_object(), folder)
    first.attach("count_all", LOOPBACK, Side.INGRESS)
    first.release()
    source = trial_object()
    broken = replace(source.programs["tell"], instructions=bytes.fromhex("95" + "00" * 7))
    with pytest.raises(SetupError):
        install(replace(source, programs={"tell": replace(broken, references=())}), folder)
    second = install(source, folder)
    assert second.attach("count_all", LOOPBACK, Side.INGRESS)
    second.remove()


CLAIM = """
import sys, pathlib, m6proxy.dataplane.bpf.pins as pins
folder = pins.PinFolder.claim(pathlib.Path(sys.argv[1]))
print(folder.is_lasting, *folder.names())
folder.note("word")
folder.remove() if sys.argv[2:] else folder.release()
"""


@pytest.mark.parametrize(
    "above", [["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"], []]
)
def test_a_process_in_a_mount_namespace_of_its_own_leaves_its_pins_to_the_next(
    tmp_path: Path, above: list[str]
) -> None:
    """Nobody mounted the folder beforehand: it is mounted where process 1 or the parent is."""
    alone = 'unshare --mount "$0" -c "$1" "$2"'
    script = f'{alone} && {alone} && {alone} remove && test ! -e "$2"'
    done = subprocess.run(
        [*above, "sh", "-c", script, sys.executable, CLAIM, str(tmp_path / "pins")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (done.stdout, done.stderr, done.returncode) == ("True\nTrue word\nTrue word\n", "", 0)


def test_a_mount_that_ends_with_us_does_not_claim_to_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """We may look neither at process 1 nor at our parent, as in a strict container."""
    ours = {"self": Path("mnt:[1]")}
    monkeypatch.setattr(pins, "_mounts_of", ours.get)
    held = PinFolder.claim(tmp_path / "pins")
    assert not held.is_lasting
    held.remove()
    assert not (tmp_path / "pins").exists()


def test_the_mount_of_a_folder_is_found_through_hidden_ones(tmp_path: Path) -> None:
    table = tmp_path / "mountinfo"
    table.write_text(
        "20 1 0:1 / / rw - ext4 /dev/vda rw\n"
        "21 20 0:2 / /run rw shared:5 - tmpfs tmpfs rw\n"
        "22 21 0:3 / /run/m6\\040proxy rw - tmpfs none rw\n"
        "23 22 0:4 / /run/m6\\040proxy rw - bpf m6proxy rw\n"
    )
    found = mounts(table)
    held = mount_of(Path("/run/m6 proxy/alpha"), found)
    assert held is not None
    assert (held.kind, held.source) == ("bpf", "m6proxy")
    above = mount_of(Path("/run/other"), found)
    assert above is not None
    assert above.kind == "tmpfs"

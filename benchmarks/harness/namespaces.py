"""A gateway between two namespaces of our own, for the NFQUEUE benchmark, and what it counts.

    gen [lan0] ---- [lan0] gw [wan0] ---- [wan0] out

Everything that comes out of the queue is routed to ``out``, where it ends. The counters of
wan0 say how many packets had their verdict, whatever the reader of the queue knows of itself.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from m6proxy.errors import SetupError

GATEWAY_MAC = "02:00:00:00:00:01"
GENERATOR_MAC = "02:00:00:00:00:02"
COMMAND_DEADLINE_S = 20.0
STOP_DEADLINE_S = 5.0


def run(*words: str, text: str | None = None) -> str:
    """Run a tool and return its output. Raises SetupError with its words."""
    done = subprocess.run(
        words, input=text, capture_output=True, text=True, timeout=COMMAND_DEADLINE_S
    )
    if done.returncode:
        raise SetupError(f"{' '.join(words)}: {done.stderr.strip() or done.returncode}")
    return done.stdout


class Gateway:
    """The three namespaces, as a context manager; the queue rule is set by ``divert``."""

    def __init__(self) -> None:
        if os.geteuid() != 0:
            raise SetupError("network namespaces need root")
        prefix = f"m6b-{os.getpid()}"
        self._gen, self._gw, self._out = (f"{prefix}-{word}" for word in ("gen", "gw", "out"))

    def __enter__(self) -> Gateway:
        try:
            self._build()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for name in (self._gen, self._gw, self._out):
            if Path("/run/netns", name).exists():
                subprocess.run(["ip", "netns", "delete", name], check=False)

    def _build(self) -> None:
        gen, gw, out = self._gen, self._gw, self._out
        lines = [f"netns add {name}" for name in (gen, gw, out)]
        lines += [
            f"link add lan0 netns {gw} address {GATEWAY_MAC} "
            f"type veth peer name lan0 netns {gen} address {GENERATOR_MAC}",
            f"link add wan0 netns {gw} type veth peer name wan0 netns {out}",
        ]
        run("ip", "-batch", "-", text="".join(f"{line}\n" for line in lines))
        for name in (gen, gw, out):
            words = ["net.ipv6.conf.all.accept_dad=0", "net.ipv6.conf.default.accept_dad=0"]
            if name == gw:
                words.append("net.ipv6.conf.all.forwarding=1")
            run("ip", "netns", "exec", name, "sysctl", "-qw", *words)
        for name, interface in ((gen, "lan0"), (gw, "lan0"), (gw, "wan0"), (out, "wan0")):
            run("ip", "-n", name, "link", "set", interface, "up")
        run("ip", "-n", gw, "-6", "neigh", "add", "fe80::1", "dev", "wan0",
            "lladdr", "02:00:00:00:00:03", "nud", "permanent")  # fmt: skip
        run("ip", "-n", gw, "-6", "route", "add", "default", "via", "fe80::1", "dev", "wan0")

    def divert(self, queue: int, table: str) -> None:
        """Send what comes from the generator to the queue, from PREROUTING of ``table``."""
        rules = (
            "*raw\n-F\nCOMMIT\n*mangle\n-F\nCOMMIT\n"
            f"*{table}\n-A PREROUTING -i lan0 -p 17 -j NFQUEUE --queue-num {queue}\n"
            f"-A PREROUTING -i lan0 -p 140 -j NFQUEUE --queue-num {queue}\nCOMMIT\n"
        )
        run("ip", "netns", "exec", self._gw, "ip6tables-restore", "--noflush", text=rules)

    @contextlib.contextmanager
    def in_gateway(self, command: Sequence[str]) -> Iterator[subprocess.Popen[str]]:
        """A program in the gateway, with its output piped to us, stopped in the end."""
        with _running(self._gw, command) as child:
            yield child

    @contextlib.contextmanager
    def in_generator(self, command: Sequence[str]) -> Iterator[subprocess.Popen[str]]:
        """A program where the packets come from."""
        with _running(self._gen, command) as child:
            yield child


@contextlib.contextmanager
def _running(namespace: str, command: Sequence[str]) -> Iterator[subprocess.Popen[str]]:
    words = ["ip", "netns", "exec", namespace, *command]
    with subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True) as it:
        try:
            yield it
        finally:
            # A reader that never leaves the C loop of its queue hears nothing but SIGKILL.
            it.send_signal(signal.SIGKILL)
            it.wait(STOP_DEADLINE_S)


def transmitted(pid: int, interface: str) -> int:
    """Packets that an interface has sent, in the namespace of a process."""
    for line in Path(f"/proc/{pid}/net/dev").read_text().splitlines():
        name, _, counters = line.partition(":")
        if name.strip() == interface:
            return int(counters.split()[9])
    raise SetupError(f"no interface {interface}")


def queue_row(pid: int, queue: int) -> tuple[int, int, int]:
    """Waiting, dropped because the queue was full, dropped because its socket was."""
    text = Path(f"/proc/{pid}/net/netfilter/nfnetlink_queue").read_text()
    for row in map(str.split, text.splitlines()):
        if int(row[0]) == queue:
            return int(row[2]), int(row[5]), int(row[6])
    raise SetupError(f"no process reads queue {queue}")

"""The demo's sessions: what unmodified programs on the hosts do, and what came through of it.

Each session runs real programs inside the hosts' namespaces, notes what arrives and when,
and checks what arrived against what was sent. It never judges itself: ``story`` does.
"""

from __future__ import annotations

import abc
import asyncio
import contextlib
import hashlib
import os
import sys
import time
from asyncio.subprocess import DEVNULL, PIPE, Process
from pathlib import Path

from m6proxy.lab import traffic
from m6proxy.lab.build import Lab
from m6proxy.lab.story import Progress, SessionResult, judge

LINE_PERIOD_S = 0.2
STREAM_PORT = 5004
STOP_DEADLINE_S = 3.0
READ_OCTETS = 65536
STREAM_TAIL_S = 1.0
"""A stream whose last packet is older than this when its sender stops did not survive."""


class Stopwatch:
    """Seconds since the sessions began."""

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        """Begin again at 0."""
        self.zero_s = time.monotonic()
        """On the monotonic clock."""
        self.zero_wall_s = time.time()
        """In UNIX time."""

    def now_s(self) -> float:
        """Return the seconds since the start."""
        return time.monotonic() - self.zero_s


class Programs:
    """Child processes in nodes of one lab; all of them end with ``stop``."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._children: list[Process] = []

    async def start(
        self, node: str, *command: str, log: Path | None = None, piped: bool = False
    ) -> Process:
        """Start a command in a node; ``piped`` joins its input and output to us.

        Its own words go to ``log``, or nowhere.
        """
        with contextlib.ExitStack() as files:
            words = files.enter_context(log.open("ab")) if log else DEVNULL
            child = await asyncio.create_subprocess_exec(
                *self._lab.inside(node, command),
                stdin=PIPE if piped else DEVNULL,
                stdout=PIPE if piped else words,
                stderr=words,
                start_new_session=True,
                env=python_environment(),
            )
        self._children.append(child)
        return child

    async def read(self, node: str, *command: str) -> str:
        """Run a short command in a node and return its output."""
        child = await self.start(node, *command, piped=True)
        output, _ = await child.communicate()
        self._children.remove(child)
        return output.decode()

    async def stop(self) -> None:
        """End every child that still runs, politely first, and collect it."""
        for child in reversed(self._children):
            await end(child)
        self._children.clear()


def python_environment() -> dict[str, str]:
    """Return the environment in which a child Python finds this package."""
    here = str(Path(__file__).resolve().parents[2])
    path = os.environ.get("PYTHONPATH")
    return {**os.environ, "PYTHONPATH": f"{here}:{path}" if path else here}


async def end(child: Process) -> None:
    """End one child: SIGTERM, and SIGKILL after 3 s."""
    if child.returncode is not None:
        return
    with contextlib.suppress(ProcessLookupError):
        child.terminate()
    try:
        await asyncio.wait_for(child.wait(), STOP_DEADLINE_S)
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            child.kill()
        await child.wait()


class Session(abc.ABC):
    """One session of an ordinary host, from ``begin`` to ``conclude`` or ``abandon``."""

    protocol: str

    def __init__(self, name: str, programs: Programs, watch: Stopwatch, log: Path) -> None:
        self.name = name
        self.progress = Progress.empty()
        self.began_s = 0.0
        self.ended_s: float | None = None
        self.fault: str | None = None
        self._programs = programs
        self._watch = watch
        self._log = log
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def is_over(self) -> bool:
        """Whether it ended, well or not."""
        return self.ended_s is not None

    def silent_s(self) -> float:
        """Return for how long nothing has come through until now or its end."""
        until_s = self.ended_s if self.ended_s is not None else self._watch.now_s()
        return until_s - self.progress.last_s(self.began_s)

    async def begin(self) -> None:
        """Start the programs of the session."""
        self.began_s = self._watch.now_s()
        await self._open()

    @abc.abstractmethod
    async def _open(self) -> None: ...

    @abc.abstractmethod
    async def conclude(self, patience_s: float) -> None:
        """Let the session do the rest of its work and end; give up after ``patience_s``."""

    @abc.abstractmethod
    def sum_ok(self) -> bool:
        """Whether SHA-256 over what arrived is that over what was sent."""

    async def abandon(self, why: str) -> None:
        """The session is lost: note why and stop its programs."""
        self._over(why)
        await self._stop()

    def result(self, give_up_s: float) -> SessionResult:
        """Return the judgement; the session must be over."""
        ended_s = self.ended_s if self.ended_s is not None else self._watch.now_s()
        return judge(
            name=self.name,
            protocol=self.protocol,
            progress=self.progress,
            began_s=self.began_s,
            ended_s=ended_s,
            fault=self.fault,
            sum_ok=self.sum_ok(),
            give_up_s=give_up_s,
        )

    def _over(self, fault: str | None) -> None:
        if self.ended_s is None:
            self.ended_s = self._watch.now_s()
            self.fault = fault

    def _arrived(self, octets: int) -> None:
        self.progress.note(self._watch.now_s(), octets)

    async def _stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._programs.stop()

    async def _exit_fault(self, program: str, child: Process) -> str | None:
        code = await child.wait()
        return None if code == 0 else f"{program} ended with {code}: {_last_line(self._log)}"


class HttpFetch(Session):
    """curl fetches a file by name; the server limits the rate."""

    protocol = "tcp/http"

    def __init__(
        self,
        name: str,
        programs: Programs,
        watch: Stopwatch,
        log: Path,
        *,
        node: str,
        url: str,
        sha256: str,
    ) -> None:
        super().__init__(name, programs, watch, log)
        self._node = node
        self._url = url
        self._expected = sha256
        self._sum = hashlib.sha256()

    async def _open(self) -> None:
        child = await self._programs.start(
            self._node,
            "curl", "--silent", "--show-error", "--fail", "--no-buffer", "--noproxy", "*",
            self._url,
            log=self._log, piped=True,
        )  # fmt: skip
        self._tasks.append(asyncio.create_task(self._receive(child)))

    async def _receive(self, child: Process) -> None:
        assert child.stdout is not None
        while block := await child.stdout.read(READ_OCTETS):
            self._sum.update(block)
            self._arrived(len(block))
        self._over(await self._exit_fault("curl", child))

    async def conclude(self, patience_s: float) -> None:
        done, _ = await asyncio.wait(self._tasks, timeout=patience_s)
        if not done:
            await self.abandon(f"not complete after {patience_s:g} s more")

    def sum_ok(self) -> bool:
        return self._sum.hexdigest() == self._expected


class LineDialogue(Session):
    """A person at a terminal: one line every 0.2 s, and the far end answers with the same."""

    def __init__(
        self,
        name: str,
        programs: Programs,
        watch: Stopwatch,
        log: Path,
        *,
        node: str,
        command: list[str],
        protocol: str,
    ) -> None:
        super().__init__(name, programs, watch, log)
        self.protocol = protocol
        self._node = node
        self._command = command
        self._child: Process | None = None
        self._typing: asyncio.Task[None] | None = None
        self._sent = hashlib.sha256()
        self._came = hashlib.sha256()

    async def _open(self) -> None:
        self._child = await self._programs.start(
            self._node, *self._command, log=self._log, piped=True
        )
        self._typing = asyncio.create_task(self._type(self._child))
        self._tasks = [asyncio.create_task(self._read(self._child)), self._typing]

    async def _type(self, child: Process) -> None:
        assert child.stdin is not None
        number = 0
        while True:
            line = b"line %d at %.3f s\n" % (number, self._watch.now_s())
            self._sent.update(line)
            try:
                child.stdin.write(line)
                await child.stdin.drain()
            except (BrokenPipeError, ConnectionResetError):
                return
            number += 1
            await asyncio.sleep(LINE_PERIOD_S)

    async def _read(self, child: Process) -> None:
        assert child.stdout is not None
        while line := await child.stdout.readline():
            self._came.update(line)
            self._arrived(len(line))
        self._over(await self._exit_fault(self._command[0], child))

    async def conclude(self, patience_s: float) -> None:
        assert self._child is not None and self._child.stdin is not None
        assert self._typing is not None
        self._typing.cancel()
        await asyncio.gather(self._typing, return_exceptions=True)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._child.stdin.close()
        done, _ = await asyncio.wait([self._tasks[0]], timeout=patience_s)
        if not done:
            await self.abandon(f"did not end within {patience_s:g} s")

    def sum_ok(self) -> bool:
        return bool(self.progress.times_s) and self._sent.digest() == self._came.digest()


class UdpStream(Session):
    """50 numbered packets a second, as a call would send them; gaps are seen by the receiver."""

    protocol = "udp"

    def __init__(
        self,
        name: str,
        programs: Programs,
        watch: Stopwatch,
        log: Path,
        *,
        sender: str,
        receiver: str,
        receiver_address: str,
        receiver_name: str,
    ) -> None:
        super().__init__(name, programs, watch, log)
        self._from = sender
        self._to = receiver
        self._to_address = receiver_address
        self._to_name = receiver_name
        self._receiver: Process | None = None
        self._sender: Process | None = None
        self._expected = hashlib.sha256()
        self._came = hashlib.sha256()

    async def _open(self) -> None:
        module = [sys.executable, "-m", traffic.__name__]
        self._receiver = await self._programs.start(
            self._to, *module, "receive", self._to_address, str(STREAM_PORT),
            log=self._log, piped=True,
        )  # fmt: skip
        assert self._receiver.stdout is not None
        await self._receiver.stdout.readline()
        self.began_s = self._watch.now_s()
        self._tasks = [asyncio.create_task(self._read(self._receiver))]
        self._sender = await self._programs.start(
            self._from, *module, "send", self._to_name, str(STREAM_PORT), log=self._log
        )

    async def _read(self, receiver: Process) -> None:
        assert receiver.stdout is not None
        while line := await receiver.stdout.readline():
            sequence, at_s, octets, digest = line.decode().split()
            self._came.update(bytes.fromhex(digest))
            self._expected.update(hashlib.sha256(traffic.payload(max(0, int(sequence)))).digest())
            self.progress.note(float(at_s) - self._watch.zero_s, int(octets))
        self._over("the receiver ended early")

    async def conclude(self, patience_s: float) -> None:
        assert self._sender is not None
        fault = None
        if self._sender.returncode is not None:
            fault = f"the sender ended early: {_last_line(self._log)}"
        elif self.silent_s() > STREAM_TAIL_S:
            fault = f"nothing came in the last {self.silent_s():.1f} s"
        self._over(fault)
        await self._stop()

    def sum_ok(self) -> bool:
        return bool(self.progress.times_s) and self._expected.digest() == self._came.digest()


def _last_line(path: Path) -> str:
    lines = path.read_text(errors="replace").splitlines() if path.exists() else []
    return lines[-1] if lines else "it said nothing"

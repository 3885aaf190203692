"""The data plane over two NFQUEUE queues, read in the asyncio loop.

A packet's way: rule -> kernel queue -> the queue's socket -> ``deliver`` -> sink -> verdict
-> kernel. ``deliver`` is the hottest function of the daemon; it is a closure over local
names, and a ``try`` costs nothing in Python 3.11 unless something is raised.

What the netfilterqueue package does not do for us:
- its ``run`` reads until the socket is empty, which under load is never: the loop's timers
  and control socket would starve. ``deliver`` raises after a number of packets, each with
  its verdict given, and the loop comes back by itself as the socket is still readable;
- its buffer is 4096 octets, and a message with 4016 octets of packet and all attributes of
  today's kernels does not fit: the packet would stay in the queue for ever. Less is asked
  for, and a packet that the queue cut is never written back.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final, Protocol

import structlog
from netfilterqueue import COPY_PACKET, NetfilterQueue

from m6proxy.dataplane.port import Sink
from m6proxy.dataplane.rawsend import RawSender
from m6proxy.errors import SetupError
from m6proxy.shim.effects import InstallFlow, RemoveFlow

_log = structlog.get_logger(__name__)

COPY_OCTETS: Final = 3840
"""How much of a packet the queue delivers; 256 octets of its buffer are left for attributes."""
MAX_QUEUED: Final = 8192
"""Packets that wait in the kernel for their verdict, per direction."""
RECEIVE_BUFFER_OCTETS: Final = 16 << 20
"""The queue's socket buffer, before the kernel doubles it; forced above the sysctl limit."""
TURN_PACKETS: Final = 256
"""Packets per turn of the loop and direction."""
_LOG_INTERVAL_S = 10.0

_QUEUE_STATISTICS = Path("/proc/thread-self/net/netfilter/nfnetlink_queue")
_FULL, _SOCKET_FULL = 5, 6
"""Columns (from 0): dropped because the queue was full, dropped because the socket was."""


class FlowGuard(Protocol):
    """What keeps re-homed pairs from passing unrewritten (``steering.flows.RehomedChain``)."""

    def apply_flows(self, changes: Iterable[InstallFlow | RemoveFlow]) -> None:
        """Take the changes over; never block."""

    def losses(self) -> dict[str, int]:
        """Count by name."""


class _TurnOver(Exception):
    """Enough packets for this turn of the loop."""


class NfqueueDataPlane:
    """Delivers packets from two queues and sends through a raw socket.

    Lives in the network namespace of the thread that opens it, in its running event loop.
    """

    def __init__(
        self,
        *,
        queue_outbound: int,
        queue_inbound: int,
        flows: FlowGuard,
        mark_bits: int = 0,
        max_queued: int = MAX_QUEUED,
        receive_buffer_octets: int = RECEIVE_BUFFER_OCTETS,
        turn_packets: int = TURN_PACKETS,
    ) -> None:
        self._numbers = (queue_outbound, queue_inbound)
        self._flows = flows
        self._mark_bits = mark_bits
        """Which bits of a packet's mark are ours, 32 bits: nobody needs them after us."""
        self._max_queued = max_queued
        self._receive_buffer_octets = receive_buffer_octets
        self._turn_packets = turn_packets
        self._queues: list[Any] = []
        self._sender: RawSender | None = None
        self._losses: Counter[str] = Counter(sink_failed=0, cut_by_queue=0)
        self._last_log_s: dict[str, float] = {}

    def open(self, *, outbound: Sink, inbound: Sink) -> None:
        """Start delivering. Raises SetupError when the kernel refuses, as for a queue in use."""
        loop = asyncio.get_running_loop()
        self._sender = RawSender()
        try:
            for number, sink in zip(self._numbers, (outbound, inbound), strict=True):
                queue = self._bind(number, sink)
                self._queues.append(queue)
                loop.add_reader(queue.get_fd(), self._reader(queue))
        except SetupError:
            self.close()
            raise

    def close(self) -> None:
        """Stop delivering; safe to call twice. Packets in the queues are dropped."""
        for queue in self._queues:
            asyncio.get_running_loop().remove_reader(queue.get_fd())
            queue.unbind()
        self._queues.clear()
        if self._sender is not None:
            self._sender.close()

    def send(self, packet: bytes) -> None:
        """Send one IPv6 packet of ours. Never raises for the network; failures are counted."""
        if self._sender is not None:
            self._sender.send(packet)

    def apply_flows(self, changes: Iterable[InstallFlow | RemoveFlow]) -> None:
        """Hand the changes to the guard, which follows in its own time."""
        self._flows.apply_flows(changes)

    def losses(self) -> dict[str, int]:
        """Packets that died before or after us, by name.

        The queues' own numbers are the kernel's since the queue was bound; packets cut by
        the queue count although the sink had seen them (Reason.CUT_BY_QUEUE).
        """
        sent = self._sender.losses() if self._sender is not None else {}
        return {**self._losses, **sent, **_queue_losses(self._numbers), **self._flows.losses()}

    def _bind(self, number: int, sink: Sink) -> Any:
        queue = NetfilterQueue()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", RuntimeWarning)  # a smaller buffer is no fault
                queue.bind(
                    number,
                    self._deliverer(sink),
                    max_len=self._max_queued,
                    mode=COPY_PACKET,
                    range=COPY_OCTETS,
                    sock_len=self._receive_buffer_octets,
                )
        except OSError:
            raise SetupError(
                f"NFQUEUE {number} cannot be opened: another process has it "
                "(is m6proxy running already?), or CAP_NET_ADMIN is missing"
            ) from None
        return queue

    def _reader(self, queue: Any) -> Callable[[], None]:
        run = queue.run

        def read() -> None:
            try:
                run(False)
            except _TurnOver:
                pass
            except OSError as failed:
                self._note("queue socket failed", failed)

        return read

    def _deliverer(self, sink: Sink) -> Callable[[Any], None]:
        turn_packets, mark_bits = self._turn_packets, self._mark_bits
        left = turn_packets

        def deliver(packet: Any) -> None:
            nonlocal left
            octets = packet.get_payload()
            if mark_bits and (mark := packet.get_mark()) & mark_bits:
                packet.set_mark(mark & ~mark_bits)
            try:
                verdict = sink(octets)
            except Exception as fault:  # our own mistake must not stop the traffic of the others
                packet.drop()
                self._losses["sink_failed"] += 1
                self._note("a packet was dropped by a fault of ours", fault)
            else:
                if verdict is None:
                    packet.accept()
                elif type(verdict) is not bytes:
                    packet.drop()
                elif len(octets) >= COPY_OCTETS and _is_cut(octets):
                    packet.drop()
                    self._losses["cut_by_queue"] += 1
                else:
                    packet.set_payload(verdict)
                    packet.accept()
            left -= 1
            if not left:
                left = turn_packets
                raise _TurnOver

        return deliver

    def _note(self, event: str, fault: Exception) -> None:
        """Log a fault, the same kind at most once in ten seconds."""
        now = time.monotonic()
        kind = f"{event} {type(fault).__name__}"
        if now - self._last_log_s.get(kind, -_LOG_INTERVAL_S) >= _LOG_INTERVAL_S:
            self._last_log_s[kind] = now
            _log.error(event, exc_info=fault)


def _is_cut(octets: bytes) -> bool:
    """Tell whether the header promises more than there is; a jumbogram promises 0."""
    promised = int.from_bytes(octets[4:6])
    return not promised or promised + 40 > len(octets)


def _queue_losses(numbers: tuple[int, int]) -> dict[str, int]:
    losses: dict[str, int] = {}
    rows: dict[int, list[str]] = {}
    with contextlib.suppress(OSError, ValueError, IndexError):
        text = _QUEUE_STATISTICS.read_text(encoding="ascii")
        rows = {int(line.split()[0]): line.split() for line in text.splitlines() if line.strip()}
    for number, side in zip(numbers, ("outbound", "inbound"), strict=True):
        row = rows.get(number)
        if row is not None and len(row) > _SOCKET_FULL:
            losses[f"queue_full_{side}"] = int(row[_FULL])
            losses[f"queue_socket_full_{side}"] = int(row[_SOCKET_FULL])
    return losses

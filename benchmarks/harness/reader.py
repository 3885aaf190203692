"""One reader of the queue: ``python -m benchmarks.harness.reader WHICH QUEUE``, in the gateway.

Writes ``ready`` when the queue is bound and reads until killed. It counts nothing: the
gateway's interface does.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Iterable
from typing import Any

from netfilterqueue import COPY_PACKET, NetfilterQueue

from benchmarks.harness.rehomed import alpha_loop, rehomed_pair
from m6proxy.dataplane.nfqueue import (
    COPY_OCTETS,
    MAX_QUEUED,
    RECEIVE_BUFFER_OCTETS,
    NfqueueDataPlane,
)
from m6proxy.shim.effects import InstallFlow, RemoveFlow

UNUSED_QUEUE = 901


class _NoFlows:
    """The kernel's list of re-homed pairs is no part of this."""

    def apply_flows(self, changes: Iterable[InstallFlow | RemoveFlow]) -> None:
        """Nothing follows."""

    def losses(self) -> dict[str, int]:
        """Nothing is lost."""
        return {}


def _bare(queue: int) -> object:
    """The least that reads a queue: a callback that only accepts."""
    bound: Any = NetfilterQueue()
    bound.bind(
        queue,
        lambda packet: packet.accept(),
        max_len=MAX_QUEUED,
        mode=COPY_PACKET,
        range=COPY_OCTETS,
        sock_len=RECEIVE_BUFFER_OCTETS,
    )
    asyncio.get_running_loop().add_reader(bound.get_fd(), lambda: bound.run(False))
    return bound


def _plane(outbound: int, inbound: int) -> NfqueueDataPlane:
    return NfqueueDataPlane(queue_outbound=outbound, queue_inbound=inbound, flows=_NoFlows())


async def read(which: str, queue: int) -> None:
    """Read for ever. ``which``: bare, plane, rewrite or restore."""
    keep: object
    if which == "bare":
        keep = _bare(queue)
    elif which == "plane":
        plane = keep = _plane(queue, UNUSED_QUEUE)
        plane.open(outbound=lambda packet: None, inbound=lambda packet: None)
    else:
        numbers = (queue, UNUSED_QUEUE) if which == "rewrite" else (UNUSED_QUEUE, queue)
        keep = loop = alpha_loop(rehomed_pair(), _plane(*numbers))
        loop.start()
    print("ready", flush=True)
    await asyncio.Event().wait()
    del keep


if __name__ == "__main__":
    os.sched_setaffinity(0, {int(sys.argv[3])})
    asyncio.run(read(sys.argv[1], int(sys.argv[2])))

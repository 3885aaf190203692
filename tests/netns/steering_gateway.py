"""A gateway process for tests that kill it: rules, routes and an accepting data plane.

Run inside the gateway's namespace with the side (``a`` or ``b``); pairs to guard follow as
LOCAL PEER. Writes ``ready`` when everything is in place, then waits to be killed.
"""

from __future__ import annotations

import asyncio
import itertools
import sys

from m6proxy.dataplane.nfqueue import NfqueueDataPlane
from m6proxy.names import UlidPair, address
from m6proxy.steering.apply import RuleBundles
from m6proxy.steering.flows import RehomedChain
from m6proxy.steering.routes import SourceRouting
from tests.steering.namespaces import settings_of


async def stay(side: str, words: list[str]) -> None:
    """Set everything up and wait for ever."""
    settings = settings_of(side)
    bundles = RuleBundles(settings)
    plane = NfqueueDataPlane(
        queue_outbound=settings.queue_outbound,
        queue_inbound=settings.queue_inbound,
        flows=RehomedChain(bundles.apply_rehomed),
    )
    plane.open(outbound=lambda packet: None, inbound=lambda packet: None)
    SourceRouting(settings).apply()
    bundles.apply()
    ulids = [address(word) for word in words]
    pairs = itertools.starmap(UlidPair, zip(ulids[::2], ulids[1::2], strict=True))
    bundles.apply_rehomed(tuple(pairs))
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(stay(sys.argv[1], sys.argv[2:]))

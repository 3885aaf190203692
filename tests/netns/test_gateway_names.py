"""The daemon's own questions, when the provider of the gateway's default route is dead."""

from __future__ import annotations

import socket

import pytest

from m6proxy.lab import faults
from m6proxy.lab.build import Lab
from tests.harness.gateway import A1, B1, PLANES, both
from tests.harness.netns import eventually
from tests.harness.netns import lab as lab
from tests.steering.namespaces import inside

pytestmark = pytest.mark.netns


@pytest.mark.parametrize("plane", PLANES)
def test_a_session_begins_though_the_default_provider_was_dead_before(lab: Lab, plane: str) -> None:
    """Questions died with the default route, and with them all that needs an answer."""
    with both(lab, PLANES[plane]) as (alpha, _), inside(lab.namespace("b1")):
        server = socket.create_server((B1, 4711), family=socket.AF_INET6)
        faults.cut(lab, "alpha.isp1")
        with server, inside(lab.namespace("a1")):
            session = socket.create_connection((B1, 4711), timeout=20)
        with session:
            eventually(lambda: bool(alpha.events("capability found")), deadline_s=1, what="name")
            found = alpha.context(A1, B1)
            assert found is not None and found["local_locator"] != A1

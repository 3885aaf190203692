"""A daemon that is stopped closes its contexts, so that its peers send plain packets again."""

from __future__ import annotations

from functools import partial

import pytest

from m6proxy.lab import faults
from m6proxy.lab.build import Lab
from tests.harness.gateway import A1, A1_ISP2, B1, QUICK, both, established, ping, rehomed
from tests.harness.netns import eventually
from tests.harness.netns import lab as lab

pytestmark = pytest.mark.netns


def test_a_stopped_gateway_takes_the_peers_context_with_it(lab: Lab) -> None:
    """beta went on sending payload headers to a gateway that restored none any more.

    After isp1 came back, the pair stayed dead until beta's context had been idle for minutes.
    """
    with both(lab, QUICK) as (alpha, beta):
        established(lab, alpha, beta)
        faults.cut(lab, "alpha.isp1")
        rehomed(lab, alpha, (A1_ISP2, B1))
        eventually(lambda: ping(lab, "a1", B1), deadline_s=10, what="answers again")
        assert beta.locators(B1, A1) == (B1, A1_ISP2)
        assert alpha.stop() == 0
        eventually(
            lambda: beta.context(B1, A1) is None, deadline_s=2, what="beta has no context any more"
        )
        assert "Close" in {event["detail"] for event in beta.events("context removed")}
        faults.restore(lab, "alpha.isp1")
        eventually(partial(ping, lab, "a1", B1), deadline_s=5, what="the pair works on its ULIDs")
        assert ping(lab, "b1", A1)
        assert beta.context(B1, A1) is None

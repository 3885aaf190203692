"""What can happen to a provider: silence, silence one way, loss, no carrier; and its end.

A provider has one fault of the silent kinds at a time: a new one takes the place of the
last. Nothing but what the provider forwards is touched, so that its link stays up and its
own addresses answer: the failure that no router notices.
"""

from __future__ import annotations

from m6proxy.errors import SetupError
from m6proxy.lab import plan
from m6proxy.lab.build import Lab, configure, feed
from m6proxy.lab.topology import provider_by_target

DIRECTIONS = ("in", "out", "both")


def cut(lab: Lab, target: str) -> None:
    """Drop silently everything that the provider forwards. ``target``: ``p1`` or ``alpha.isp1``."""
    _apply(lab, target, ["-j DROP"])


def blackhole(lab: Lab, target: str, direction: str) -> None:
    """Drop silently what goes to the site (``in``), comes from it (``out``), or both."""
    rules = {
        "in": [f"-o {plan.CUSTOMER} -j DROP"],
        "out": [f"-i {plan.CUSTOMER} -j DROP"],
        "both": ["-j DROP"],
    }
    if direction not in rules:
        raise SetupError(f"direction {direction!r}: one of {', '.join(DIRECTIONS)}")
    _apply(lab, target, rules[direction])


def loss(lab: Lab, target: str, percent: float) -> None:
    """Drop this share of what the provider forwards, either way, packet by packet at random."""
    if not 0 <= percent <= 100:
        raise SetupError(f"loss of {percent:g} percent: from 0 to 100")
    chance = f"{percent / 100:.6f}"
    _apply(lab, target, [f"-m statistic --mode random --probability {chance} -j DROP"])


def restore(lab: Lab, target: str) -> None:
    """End every fault of the provider: silence, loss and a link that is down."""
    _apply(lab, target, [])
    link(lab, target, is_up=True)


def link(lab: Lab, target: str, *, is_up: bool) -> None:
    """Take the carrier from the site's uplink, or give it back with the provider's routes."""
    provider = _provider(target)
    batch = [f"link set {plan.CUSTOMER} {'up' if is_up else 'down'}"]
    if is_up:
        batch += plan.customer_side(provider)
    configure(lab, provider, "".join(f"{line}\n" for line in batch))


def fault_rules(lab: Lab, provider: str) -> list[str]:
    """Return the rules of the fault now in force in a provider, empty when it is well."""
    chain = plan.FAULT_CHAIN
    text = feed(lab.inside(provider, ["ip6tables", "-S", chain]), "")
    return [line.removeprefix(f"-A {chain} ") for line in text.splitlines() if "-A " in line]


def _apply(lab: Lab, target: str, rules: list[str]) -> None:
    provider = _provider(target)
    lab.require_up()
    feed(lab.inside(provider, ["ip6tables-restore", "--noflush"]), plan.fault(rules))


def _provider(target: str) -> str:
    try:
        return provider_by_target(target)
    except KeyError as error:
        raise SetupError(str(error.args[0])) from error

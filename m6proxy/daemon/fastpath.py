"""Which data plane a gateway gets: programs in the kernel, or NFQUEUE for all."""

from __future__ import annotations

import contextlib
from typing import NamedTuple

from m6proxy.daemon.config import Config
from m6proxy.dataplane.bpf import auxiliary
from m6proxy.dataplane.bpf.layout import UPLINKS_MAX
from m6proxy.dataplane.bpf.site import BpfSettings, BpfSite, BpfUplink
from m6proxy.dataplane.bpf.takeover import remove_leftovers
from m6proxy.errors import SetupError


class FastPath(NamedTuple):
    """The maps and programs, if there are any, and why, or why not."""

    site: BpfSite | None
    why: str


def open_fast_path(config: Config) -> FastPath:
    """Load the programs where the configuration wants them and the kernel can.

    No packet meets them yet. What a predecessor left in the kernel is taken over, or taken out.
    Raises SetupError when the configuration insists and the kernel refuses.
    """
    if config.fast_path == "off":
        remove_leftovers(config.bpf_folder)
        return FastPath(None, "fast_path is off")
    try:
        if not config.manage_routes:
            raise SetupError("the fast path routes by marks, and routing.manage is false")
        if too_many := too_many_uplinks(config):
            raise SetupError(too_many)
        site = BpfSite(_wanted(config), config.bpf_folder)
    except SetupError as refused:
        if config.fast_path == "bpf":
            raise
        with contextlib.suppress(SetupError):
            remove_leftovers(config.bpf_folder)
        return FastPath(None, str(refused))
    why = "the kernel takes the programs"
    if not site.is_lasting:
        why += f", but {config.bpf_folder} goes with us: a restart begins anew"
    return FastPath(site, why)


def too_many_uplinks(config: Config) -> str:
    """Say that the programs have no mark for some of the uplinks; empty when they have."""
    if len(config.uplinks) <= UPLINKS_MAX:
        return ""
    return f"the fast path has marks for {UPLINKS_MAX} uplinks, and there are {len(config.uplinks)}"


def remove_remains(config: Config) -> None:
    """Without programs nobody needs what a killed predecessor had for them, beside its folder.

    Not before the queues are ours: until then another daemon may live that needs it.
    """
    auxiliary.remove()
    config.memos.unlink(missing_ok=True)


def _wanted(config: Config) -> BpfSettings:
    return BpfSettings(
        lan=config.lan,
        uplinks=tuple(
            BpfUplink(one.name, one.interface, one.prefix, config.locator_map.marks(one.prefix))
            for one in config.uplinks
        ),
        establish=config.establish,
        mark_shift=config.mark_shift,
        max_contexts=config.max_contexts,
    )

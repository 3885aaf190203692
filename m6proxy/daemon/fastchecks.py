"""What ``m6proxy check`` says about the fast path: the kernel, the programs, the interfaces.

Nothing here is essential: what cannot go by programs in the kernel goes through NFQUEUE.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from m6proxy.daemon.config import Config
from m6proxy.daemon.express import interfaces
from m6proxy.daemon.fastpath import too_many_uplinks
from m6proxy.dataplane.bpf import auxiliary
from m6proxy.dataplane.bpf.features import Offer, probe, try_programs
from m6proxy.dataplane.bpf.load import BpfObject, read_object
from m6proxy.dataplane.offloads import harms, read_offloads
from m6proxy.discovery.addressing import MapKind
from m6proxy.errors import SetupError
from m6proxy.shim.demux import DemuxMode
from m6proxy.steering.bystanders import look_once
from m6proxy.steering.checks import Finding, Level
from m6proxy.steering.marks import mark_writers

_SLOWLY = "all packets go through NFQUEUE"


def check_fast_path(
    config: Config, offer: Offer | None = None, read: Callable[[], BpfObject] = read_object
) -> list[Finding]:
    """Try what the kernel offers, and look at the offloads of the uplinks. Changes nothing."""
    offer = offer or probe()
    findings = [_kernel(offer)]
    if findings[0].level is Level.OK:
        findings.append(_programs(read))
    is_in_kernel = findings[-1].level is Level.OK
    if is_in_kernel:
        findings.append(_choice(config))
        is_in_kernel = findings[-1].detail.startswith("bpf")
        if is_in_kernel:
            findings.append(_express(config))
            findings += _marks(config)
        if is_in_kernel and DemuxMode.EXTHDR in config.demux:
            findings += _large_packets(offer)
    elif config.fast_path == "bpf":
        findings[-1] = replace(findings[-1], level=Level.FAILURE)
    if not offer.jit:
        findings.append(
            Finding(
                "eBPF compiler",
                Level.WARNING,
                "it is off, programs are interpreted",
                "sysctl -w net.core.bpf_jit_enable=1",
            )
        )
    for uplink in config.uplinks:
        findings += _offloads(uplink.interface, config, is_in_kernel=is_in_kernel)
    return findings


def _kernel(offer: Offer) -> Finding:
    what = "eBPF in the kernel"
    if offer.refusal:
        return Finding(
            what,
            Level.WARNING,
            f"bpf(2): {offer.refusal}, {_SLOWLY}",
            "run it as root, or with CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN; a container's "
            "seccomp profile may forbid it too",
        )
    there = ", ".join(name for name, has in offer.named.items() if has)
    lacking = ", ".join(name for name, has in offer.named.items() if not has)
    if offer.missing:
        return Finding(
            what,
            Level.WARNING,
            f"no {', no '.join(offer.missing)}, {_SLOWLY}",
            "use a kernel from Linux 5.15 on with BPF_SYSCALL, NET_CLS_BPF and NET_SCH_INGRESS",
        )
    return Finding(what, Level.OK, there + (f"; without {lacking}" if lacking else ""))


def _programs(read: Callable[[], BpfObject]) -> Finding:
    try:
        count = try_programs(read())
    except SetupError as refused:
        return Finding("eBPF programs", Level.WARNING, str(refused), _SLOWLY)
    return Finding("eBPF programs", Level.OK, f"the kernel takes all {count}")


def _choice(config: Config) -> Finding:
    """Which data plane will be used where the kernel takes the programs."""
    what = "data plane"
    level = Level.FAILURE if config.fast_path == "bpf" else Level.WARNING
    if config.fast_path == "off":
        return Finding(what, Level.OK, "NFQUEUE, because fast_path is off")
    if not config.manage_routes:
        why = "NFQUEUE, because bpf routes by marks and routing.manage is false"
        return Finding(what, level, why, "set routing.manage, or fast_path: off")
    if too_many := too_many_uplinks(config):
        why = f"NFQUEUE, because {too_many}"
        return Finding(what, level, why, "have fewer uplinks, or set fast_path: off")
    return Finding(what, Level.OK, "bpf for usual packets, NFQUEUE for the others")


def _express(config: Config) -> Finding:
    """Whether packets could go past the IPv6 stack now; that they cannot is no fault."""
    what = "express"
    if config.express == "off":
        return Finding(what, Level.OK, "off, as the configuration says")
    try:
        in_the_way = look_once(interfaces(config))
    except OSError as refused:
        return Finding(what, Level.WARNING, f"nobody can tell who else is here: {refused}")
    if not in_the_way:
        return Finding(what, Level.OK, "nobody else would see packets, they go past the IPv6 stack")
    return Finding(
        what, Level.OK, f"off, packets go the ordinary way, because of {'; '.join(in_the_way)}"
    )


def _marks(config: Config) -> Iterator[Finding]:
    """Rules that undo what the programs decided."""
    marking = replace(config.steering, mark_shift=config.mark_shift)
    for rule in mark_writers(marking):
        yield Finding(
            "packet marks",
            Level.WARNING,
            f"a rule of table mangle writes our bits of it, {marking.mark_bits:#x}, and "
            f"re-homed packets lose their way: {rule}",
            "give that rule a mask without them, or move ours with routing.mark_shift",
        )


def _large_packets(offer: Offer) -> Iterator[Finding]:
    """Mode exthdr needs a veth pair of ours for them."""
    why = auxiliary.obstacle() if offer.veth else "the kernel has no veth driver"
    if why:
        remedy = "modprobe veth" if not offer.veth else "rename that interface"
        detail = f"those in mode exthdr go through Python: {why}"
        yield Finding("large packets", Level.WARNING, detail, remedy)


def _offloads(interface: str, config: Config, *, is_in_kernel: bool) -> Iterator[Finding]:
    found = read_offloads(interface)
    if found is None:
        return
    are_neutral = config.locators.kind is MapKind.NEUTRAL
    wrong = list(harms(found, config.demux, is_in_kernel=is_in_kernel, are_neutral=are_neutral))
    for harm in wrong:
        yield Finding(f"{harm.setting} of {interface}", Level.WARNING, harm.detail, harm.remedy)
    if not wrong:
        modes = ", ".join(mode.name.lower() for mode in config.demux)
        also = ", with peers whose locators are neutral too" if are_neutral else ""
        yield Finding(f"offloads of {interface}", Level.OK, f"right for {modes}{also}")

"""The list of hooks as kernels with CONFIG_NETFILTER_NETLINK_HOOK give it, octet by octet."""

from __future__ import annotations

import errno

import pytest

from m6proxy.netlink import Asking, Message, attributes, text_of
from m6proxy.steering.hooks import occupants, registered

HEAD = "0a000002"
"""nfgenmsg: family ip6, version 0, resource: hook 2."""
FORWARD = "08000100 00000002"
"""NFNLA_HOOK_HOOKNUM 2."""


def message(*parts: str) -> Message:
    return Message(12 << 8, 1, bytes.fromhex(" ".join([HEAD, *parts])))


def text(kind: int, words: str) -> str:
    octets = words.encode() + b"\0"
    length = 4 + len(octets)
    return (
        length.to_bytes(2, "little")
        + kind.to_bytes(2, "little")
        + octets
        + bytes(-length % 4)
    ).hex()  # fmt: skip


TRACKING = message(
    text(4, "ipv6_conntrack_in"),  # NFNLA_HOOK_FUNCTION_NAME
    text(5, "nf_conntrack"),  # NFNLA_HOOK_MODULE_NAME
    FORWARD,
    "08000200 ffffff38",  # NFNLA_HOOK_PRIORITY -200
)
CHAIN = message(
    text(4, "nft_do_chain_inet"),
    "2c000680",  # NFNLA_HOOK_CHAIN_INFO
    "08000200 00000001",  # NFNLA_HOOK_INFO_TYPE: a chain of nftables
    "20000180",  # NFNLA_HOOK_INFO_DESC
    text(1, "filter"),
    text(3, "FORWARD"),
    "05000200 01000000",
    FORWARD,
)
PROGRAM = message(
    text(4, "nf_hook_run_bpf"),
    "18000680",  # NFNLA_HOOK_CHAIN_INFO
    "08000200 00000002",  # NFNLA_HOOK_INFO_TYPE: a program
    "0c000180 08000100 0000002a",  # NFNLA_HOOK_INFO_DESC: NFNLA_HOOK_BPF_ID 42
    FORWARD,
)
IDLE = message(text(4, "apparmor_ip_postroute"), FORWARD)
LEGACY = message(text(4, "ip6t_do_table [ip6_tables]"), text(5, "ip6_tables"), FORWARD)


def test_each_is_named_by_its_function() -> None:
    assert list(occupants([TRACKING, PROGRAM, LEGACY], "forward")) == [
        "connection tracking: ipv6_conntrack_in of nf_conntrack (forward)",
        "a hook of the kernel: nf_hook_run_bpf (forward)",
        "a hook of the kernel: ip6t_do_table of ip6_tables (forward)",
    ]


def test_chains_are_looked_at_elsewhere_and_who_lets_all_pass_is_nobody() -> None:
    assert list(occupants([CHAIN, IDLE], "forward")) == []


def test_a_hook_without_a_name_is_somebody() -> None:
    assert list(occupants([message(FORWARD)], "prerouting")) == [
        "a hook of the kernel: a function (prerouting)"
    ]


class Kernel(Asking):
    """Has a list of hooks, by family, number and device."""

    def __init__(self, listed: dict[tuple[int, int, str], list[Message] | int]) -> None:
        self.listed = listed
        """What stands there, or with which error number the kernel refuses."""

    def dump(self, kind: int, content: bytes) -> list[Message]:
        assert kind == 12 << 8
        found = dict(attributes(content[4:]))
        asked = (content[0], int.from_bytes(found[1]), text_of(found.get(3, b"")))
        answer = self.listed.get(asked, [])
        if isinstance(answer, int):
            raise OSError(answer, "refused")
        return answer


PREROUTING, POSTROUTING, LAN = (10, 0, ""), (10, 4, ""), (5, 0, "lan0")


def test_every_hook_that_a_forwarded_packet_passes_is_asked_for() -> None:
    kernel = Kernel({PREROUTING: [TRACKING], POSTROUTING: [IDLE, PROGRAM], LAN: [LEGACY]})
    assert registered(kernel, ["lan0", "wan1"]) == [
        "connection tracking: ipv6_conntrack_in of nf_conntrack (prerouting)",
        "a hook of the kernel: nf_hook_run_bpf (postrouting)",
        "a hook of the kernel: ip6t_do_table of ip6_tables (ingress of lan0)",
    ]


@pytest.mark.parametrize("refusal", [errno.ENODEV, errno.EOPNOTSUPP])
def test_an_interface_that_is_gone_hides_no_other(refusal: int) -> None:
    kernel = Kernel({LAN: refusal, (5, 0, "wan1"): [PROGRAM]})
    assert registered(kernel, ["lan0", "wan1"]) == [
        "a hook of the kernel: nf_hook_run_bpf (ingress of wan1)"
    ]


@pytest.mark.parametrize("refusal", [errno.EINVAL, errno.EOPNOTSUPP])
def test_a_kernel_without_the_list_names_nobody(refusal: int) -> None:
    assert registered(Kernel({PREROUTING: refusal}), ["lan0"]) == []


@pytest.mark.parametrize("place", [PREROUTING, LAN])
def test_a_refusal_for_another_reason_is_no_answer(place: tuple[int, int, str]) -> None:
    with pytest.raises(PermissionError):
        registered(Kernel({place: errno.EPERM}), ["lan0"])

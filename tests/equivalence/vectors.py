"""Packets in both directions between a1 and b1: the usual, the unusual, the malicious.

A packet has a name for people and says whether a program may leave it to Python.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from m6proxy.names import Address, address
from m6proxy.shim import forward
from m6proxy.shim.context import Context
from m6proxy.shim.demux import UNTAGGED
from m6proxy.wire.dstopt import option_tail
from m6proxy.wire.ipv6 import build_packet
from m6proxy.wire.message import Keepalive
from tests.harness.packets import control, icmp_error, rewritten, tcp, udp
from tests.harness.pair import A1, A1_ISP2, A2, B1, B1_ISP2, Pair
from tests.harness.upper import upper_layers

STRANGER = address("2001:db8:66::1")
B2 = address("2001:db8:b1:1::20")
LABEL = 0x54321
HOP_BY_HOP = b"\x3c\x00\x01\x04\x00\x00\x00\x00"
ROUTING = b"\x11\x00\x04\x00\x00\x00\x00\x00"
OPTIONS = b"\x11\x00\x01\x04\x00\x00\x00\x00"
JUMBO = b"\x3b\x00\xc2\x04\x00\x01\x00\x00"


@dataclass(frozen=True, slots=True)
class Vector:
    """One packet."""

    name: str
    packet: bytes
    is_fast: bool = True
    """The program itself must say what becomes of it."""


def outbound(context: Context) -> Iterator[Vector]:
    """What a host of alpha may send, in a context that is re-homed."""
    bare = context.wire_label == UNTAGGED
    inserts = not context.wire_label
    walks = inserts or bare
    for name, (protocol, octets) in upper_layers(A1, B1).items():
        fits = not inserts or 48 + len(octets) <= context.mtu
        is_fast = "fragment" not in name and not (walks and protocol == 60) and fits
        yield Vector(name, build_packet(A1, B1, protocol, octets, flow_label=LABEL), is_fast)
    for protocol in (0, 43, 60):
        chained = build_packet(A1, B1, protocol, ROUTING + udp(A1, B1)[40:])
        yield Vector(f"chain with {protocol}", chained, not walks)
    head = {0: 60, 60: 43}
    chain = build_packet(A1, B1, 0, HOP_BY_HOP + b"\x2b" + OPTIONS[1:] + ROUTING + bytes(8))
    assert head[0] == chain[40]
    yield Vector("chain with all of them", chain, not walks)
    for count in (8, 9, 40):
        long = build_packet(A1, B1, 60, OPTIONS.replace(b"\x11", b"\x3c", 1) * count + OPTIONS)
        yield Vector(f"{count} headers before the last", long, not walks)
    room = context.mtu - 40 - (8 if inserts else 0)
    segment = tcp(A1, B1, bytes(context.mtu))
    size = context.mtu - (forward.room_octets(segment, context.wire_kind) if inserts else 0)
    yield Vector("TCP that just fits", _shortened(segment, size))
    yield Vector("TCP that is one octet too long", _shortened(segment, size + 1), False)
    yield Vector("just fits", build_packet(A1, B1, 17, bytes(room)))
    yield Vector("one octet too long", build_packet(A1, B1, 17, bytes(room + 1)), False)
    yield Vector("much too long", build_packet(A1, B1, 17, bytes(3000)), False)
    yield Vector("a shim header of the host", rewritten(A1, B1, 5, 17, bytes(40)), not bare)
    yield Vector("a jumbogram", build_packet(A1, B1, 0, JUMBO), not walks)
    yield Vector("header only", build_packet(A1, B1, 59, b""))
    yield Vector("seven octets", build_packet(A1, B1, 253, bytes(7)))
    yield Vector("eight octets", build_packet(A1, B1, 253, bytes(8)))
    yield Vector("no context", udp(A1, B2, bytes(30)))
    taken = udp(*_halves(context.route))
    label = context.wire_label if context.wire_label > 0 else LABEL
    yield Vector("plain, as if re-homed", forward.with_label(taken, label), inserts)
    yield from _without_meaning(A1, B1)


def inbound(pair: Pair) -> Iterator[Vector]:
    """What may come in from an uplink of alpha, whose context is re-homed."""
    context = pair.alpha.context
    is_bare = context.wire_label == UNTAGGED
    for name, (protocol, octets) in upper_layers(B1, A1).items():
        plain = build_packet(B1, A1, protocol, octets, flow_label=LABEL)
        yield Vector(f"on ULIDs: {name}", plain)
        yield from _tagged(context, plain, name)
    body = bytes(16)
    tag = context.local_tag
    yield Vector("no such tag", rewritten(B1_ISP2, A1_ISP2, tag ^ 1, 17, body), False)
    yield Vector("a stranger with the tag", rewritten(STRANGER, A1_ISP2, tag, 17, body), False)
    yield Vector("to another host", rewritten(B1_ISP2, A2, tag, 17, body), False)
    yield Vector("between ULIDs", rewritten(B1, A1, tag, 17, body))
    yield Vector("one of each", rewritten(B1, A1_ISP2, tag, 17, body))
    longer = bytearray(rewritten(B1_ISP2, A1_ISP2, tag, 17, body))
    longer[41] = 1
    yield Vector("a payload header of 16 octets", bytes(longer), False)
    yield Vector("a control message", control(B1_ISP2, A1_ISP2, Keepalive(tag)), False)
    yield Vector("a cut shim header", build_packet(B1_ISP2, A1_ISP2, 140, bytes(7)), False)
    inner = build_packet(B1_ISP2, A1_ISP2, 17, body)
    option = forward.rewrite(inner, B1_ISP2 + A1_ISP2, option_tail(tag ^ 1), forward.OPTION)
    yield Vector("no such option tag", option, False)
    yield Vector("to a locator without a tag", udp(B1_ISP2, A1_ISP2))
    yield Vector("to a locator from a stranger", udp(STRANGER, A1_ISP2), not is_bare)
    for label in filter(None, (context.label, context.peer_label, LABEL)):
        for source, destination in ((B1, A1), (B1_ISP2, A1_ISP2), (STRANGER, A1), (B1, A1_ISP2)):
            name = f"label {label:#x} from {source[4:6].hex()} to {destination[4:6].hex()}"
            yield Vector(name, forward.with_label(udp(source, destination), label), not is_bare)
    yield from _errors(pair)
    for octets, end in ((OPTIONS, "udp"), (OPTIONS.replace(b"\x11", b"\x06", 1), "tcp")):
        chain = build_packet(B1, A1, 60, octets + bytes(20))
        yield Vector(f"options before {end}", chain)
    for source, destination in ((B1, A1), (B1_ISP2, A1_ISP2)):
        for behind in (HOP_BY_HOP, ROUTING.replace(b"\x11", b"\x3c", 1)):
            kind = 0 if behind is HOP_BY_HOP else 43
            shim = (17).to_bytes() + context.shim_tail[:1] + b"\x80" + tag.to_bytes(6)[1:]
            octets = behind + b"\x8c" + OPTIONS[1:] + shim + bytes(16)
            chain = build_packet(source, destination, kind, octets)
            yield Vector(f"shim behind {kind} and options", chain, False)
    for kind, header in ((0, HOP_BY_HOP), (43, ROUTING), (60, OPTIONS)):
        # the kernel sent these to the host as they were, if it walked past the tag
        octets = b"\x3c" + header[1:] + b"\x11" + option_tail(tag) + bytes(16)
        chain = build_packet(B1_ISP2, A1_ISP2, kind, octets)
        yield Vector(f"an option tag behind {kind}", chain, False)
    for count in (7, 8, 9, 40):
        octets = OPTIONS.replace(b"\x11", b"\x3c", 1) * count + OPTIONS + bytes(16)
        yield Vector(f"{count} headers before the last", build_packet(B1, A1, 60, octets), False)
    yield Vector("a jumbogram", build_packet(B1, A1, 0, JUMBO))
    yield from _without_meaning(B1_ISP2, A1_ISP2)


def _tagged(context: Context, plain: bytes, name: str) -> Iterator[Vector]:
    """The packet as the peer sends it re-homed, in each mode."""
    wire = B1_ISP2 + A1_ISP2
    tail = b"\0" + (1 << 47 | context.local_tag).to_bytes(6)
    modes: dict[str, Callable[[], bytes]] = {
        "exthdr": lambda: forward.rewrite(plain, wire, tail),
        "dstopt": lambda: forward.rewrite(
            plain, wire, option_tail(context.local_tag), forward.OPTION
        ),
    }
    if context.label:
        modes["flowlabel"] = lambda: forward.relabel(plain, wire, context.label)
    if context.wire_label == UNTAGGED:
        modes["identifier"] = lambda: forward.readdress(plain, wire)
    for mode, make in modes.items():
        is_fast = mode in _modes(context) and (mode, plain[6]) != ("identifier", 60)
        yield Vector(f"{mode}: {name}", make(), is_fast)


def _modes(context: Context) -> set[str]:
    asked = {"exthdr"}
    if context.label:
        asked.add("flowlabel")
    if context.demux in {"dstopt", "identifier"}:
        asked.add(context.demux)
    return asked


def _errors(pair: Pair) -> Iterator[Vector]:
    """ICMPv6 errors that quote what alpha sent."""
    router = STRANGER
    for name, make in (("udp", udp), ("tcp", tcp)):
        verdict = pair.alpha.engine.handle_outbound(make(A1, B1, bytes(100)), pair.clock.now)
        assert isinstance(verdict, bytes)
        for kind, code, word in ((1, 0, 0), (2, 0, 1400), (3, 0, 0), (4, 1, 6)):
            for size in (len(verdict), 48, 47, 40):
                packet = icmp_error(router, A1_ISP2, kind, code, word, verdict[:size])
                yield Vector(f"error {kind} about {size} octets of {name}", packet, False)
    yield Vector("an error about a stranger", icmp_error(router, A1, 1, 0, 0, udp(A1, B2)), False)


def _shortened(packet: bytes, size: int) -> bytes:
    return packet[:4] + (size - 40).to_bytes(2) + packet[6:size]


def _halves(route: bytes) -> tuple[Address, Address]:
    return route[:16], route[16:]


def _without_meaning(source: Address, destination: Address) -> Iterator[Vector]:
    whole = udp(source, destination, bytes(60))
    for size in (1, 20, 39, 40, 41, 47, 48, 60, len(whole) - 1):
        yield Vector(f"cut after {size} octets", whole[:size], False)
    yield Vector("another version", b"\x40" + whole[1:], False)
    yield Vector("all ones", b"\x6f" + b"\xff" * 99, False)
    for protocol in (0, 43, 60, 140):
        for length in (0, 1, 255):
            octets = bytes((protocol, length)) + bytes(14)
            packet = build_packet(source, destination, protocol, octets)
            yield Vector(f"header {protocol} that claims {length}", packet, False)

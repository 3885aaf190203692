"""``m6proxy explain``."""

from __future__ import annotations

import socket
import struct
from pathlib import Path
from typing import Any
from urllib.parse import quote

import click

from m6proxy.cli.control import ask
from m6proxy.cli.options import control_option, json_option
from m6proxy.errors import SetupError
from m6proxy.names import Address, address
from m6proxy.wire.checksum import upper_checksum
from m6proxy.wire.ipv6 import build_packet

_PORT = 40_000
_TIMEOUT_S = 30.0
"""The verifier has to look at the programs anew, which on a busy machine takes seconds."""
_SYN = 0x02
_ECHO_REQUEST = 128


@click.command()
@click.option("--in", "interface", required=True, metavar="IF", help="Where it comes in.")
@click.option("--packet", "octets", metavar="HEX", help="The IPv6 packet, from its first octet.")
@click.option("--from", "source", metavar="ADDRESS", help="Instead: where it comes from ...")
@click.option("--to", "destination", metavar="ADDRESS", help="... where it goes ...")
@click.option(
    "--proto",
    type=click.Choice(["tcp", "udp", "icmpv6"]),
    default="tcp",
    show_default=True,
    help="... and what it is: a first segment, a datagram, an echo request.",
)
@click.option("--port", type=click.IntRange(1, 65_535), default=443, show_default=True)
@control_option
@json_option
def explain(
    interface: str,
    octets: str | None,
    source: str | None,
    destination: str | None,
    proto: str,
    port: int,
    control: Path | None,
    as_json: bool,
) -> None:
    """What would happen to a packet: by the engine, and by the programs in the kernel.

    Where these would not do the same it says so. Nothing is sent, and nothing changes.
    """
    from m6proxy.cli.screen import show_json, show_lines

    if (octets is None) == (source is None or destination is None):
        raise SetupError("give --packet HEX, or --from and --to")
    if octets is None:
        assert source is not None and destination is not None
        packet = _packet(_address(source), _address(destination), proto, port)
    else:
        packet = _octets(octets)
    path = f"/v1/explain?in={quote(interface)}&packet={packet.hex()}"
    answer = ask(control, path, _TIMEOUT_S)
    if as_json:
        show_json(answer)
    else:
        show_lines(_lines(answer))


def _lines(answer: dict[str, Any]) -> list[tuple[str, object]]:
    engine, kernel = answer["engine"], answer["kernel"]
    lines: list[tuple[str, object]] = [(answer["direction"], _shape(answer["before"]))]
    lines += _half("engine", engine)
    context = engine.get("context")
    if context is not None:
        lines.append(("context", f"{context['pair']}, {context['state']}"))
        lines.append(("locators", f"{context['locators']}, {context['demux']}"))
    lines += _half("kernel", kernel)
    if answer["agree"] is not None:
        no = "no: the kernel and the engine would not do the same"
        lines.append(("agree", "yes" if answer["agree"] else no))
    return lines


def _half(name: str, half: dict[str, Any]) -> list[tuple[str, object]]:
    reason = f" ({half['reason']})" if "reason" in half else ""
    lines: list[tuple[str, object]] = [(name, f"{half['verdict']}: {half['why']}{reason}")]
    if "after" in half:
        lines.append(("becomes", _shape(half["after"])))
    return lines + [("also", text) for text in half.get("effects", ())]


def _shape(shape: dict[str, Any]) -> str:
    label = f", flow label {shape['flow_label']:05x}" if shape["flow_label"] else ""
    return (
        f"{shape['source']} to {shape['destination']}, "
        f"next header {shape['next_header']}, {shape['octets']} octets{label}"
    )


def _address(text: str) -> Address:
    try:
        return address(text)
    except ValueError:
        raise SetupError(f"{text!r} is not an IPv6 address") from None


def _octets(text: str) -> bytes:
    try:
        return bytes.fromhex(text)
    except ValueError:
        raise SetupError("--packet takes pairs of hexadecimal digits: 600000000014...") from None


def _packet(source: Address, destination: Address, proto: str, port: int) -> bytes:
    """The least packet of that kind, its checksum right."""
    if proto == "tcp":
        number, at = socket.IPPROTO_TCP, 16
        upper = struct.pack("!HHIIBBHHH", _PORT, port, 0, 0, 5 << 4, _SYN, 0xFFFF, 0, 0)
    elif proto == "udp":
        number, at = socket.IPPROTO_UDP, 6
        upper = struct.pack("!HHHH", _PORT, port, 8, 0)
    else:
        number, at = socket.IPPROTO_ICMPV6, 2
        upper = struct.pack("!BBHHH", _ECHO_REQUEST, 0, 0, _PORT, 1)
    total = upper_checksum(source, destination, number, upper) or 0xFFFF
    return build_packet(
        source, destination, number, upper[:at] + total.to_bytes(2) + upper[at + 2 :]
    )

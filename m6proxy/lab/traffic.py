"""The two ends of the demo's UDP stream and line dialogue: ``python -m m6proxy.lab.traffic``.

They run inside the hosts' namespaces and know nothing of m6proxy. The receiver writes one
line per packet to its output: sequence number, arrival on the monotonic clock in seconds
(the same clock everywhere on the machine), octets, and SHA-256 of the payload.
"""

from __future__ import annotations

import hashlib
import socket
import socketserver
import struct
import sys
import time

PAYLOAD_OCTETS = 200
PACKETS_PER_S = 50
_SEQUENCE = struct.Struct("!Q")


def payload(sequence: int) -> bytes:
    """Return the payload of the packet with this number: 200 octets that depend on it."""
    seed = hashlib.sha256(b"m6proxy demo %d" % sequence).digest()
    body = seed * (PAYLOAD_OCTETS // len(seed) + 1)
    return _SEQUENCE.pack(sequence) + body[: PAYLOAD_OCTETS - _SEQUENCE.size]


def send_stream(host: str, port: int) -> None:
    """Send 50 numbered packets per second to a named host until killed.

    A refusal that ICMPv6 brings back is ignored: a stream goes on.
    """
    found = socket.getaddrinfo(host, port, socket.AF_INET6, socket.SOCK_DGRAM)
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
        sock.connect(found[0][4])
        start_s = time.monotonic()
        sequence = 0
        while True:
            try:
                sock.send(payload(sequence))
            except OSError as error:
                _say(f"# packet {sequence}: {error}")
            sequence += 1
            time.sleep(max(0.0, start_s + sequence / PACKETS_PER_S - time.monotonic()))


def receive_stream(address: str, port: int) -> None:
    """Receive the stream and write one line per packet until killed."""
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
        sock.bind((address, port))
        _say("# ready")
        while True:
            packet = sock.recv(65535)
            sequence = _SEQUENCE.unpack_from(packet)[0] if len(packet) >= _SEQUENCE.size else -1
            digest = hashlib.sha256(packet).hexdigest()
            _say(f"{sequence} {time.monotonic():.6f} {len(packet)} {digest}")


class _Echo(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        for line in self.rfile:
            self.wfile.write(line)


class _EchoServer(socketserver.ThreadingTCPServer):
    address_family = socket.AF_INET6
    allow_reuse_address = True
    daemon_threads = True


def serve_dialogue(address: str, port: int) -> None:
    """Echo lines over TCP until killed: the dialogue where OpenSSH is absent."""
    with _EchoServer((address, port), _Echo) as server:
        _say("# ready")
        server.serve_forever()


def hold_dialogue(host: str, port: int) -> None:
    """Join standard input and output to the dialogue at a named host, line by line."""
    with socket.create_connection((host, port)) as sock, sock.makefile("rwb") as lines:
        for line in sys.stdin.buffer:
            lines.write(line)
            lines.flush()
            answer = lines.readline()
            if not answer:
                raise SystemExit("the dialogue ended early")
            _say(answer.decode().rstrip("\n"))


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


ROLES = {
    "send": send_stream,
    "receive": receive_stream,
    "serve-lines": serve_dialogue,
    "lines": hold_dialogue,
}


def main(arguments: list[str]) -> None:
    """Run one role: ``ROLE HOST PORT``."""
    role, host, port = arguments
    ROLES[role](host, int(port))


if __name__ == "__main__":
    main(sys.argv[1:])

"""Sends one Ethernet frame over and over: ``python -m benchmarks.harness.generator IF HEX``.

A packet socket and sendmmsg, 64 frames a call: the packets are put into the gateway's queue
on the core where this runs, and nothing of that is taken from the reader of the queue.
"""

from __future__ import annotations

import ctypes
import os
import socket
import sys

BATCH = 64


class _Vector(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("octets", ctypes.c_size_t))


class _Header(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_void_p),
        ("name_octets", ctypes.c_uint32),
        ("vectors", ctypes.POINTER(_Vector)),
        ("vector_count", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("control_octets", ctypes.c_size_t),
        ("flags", ctypes.c_int),
    )


class _Message(ctypes.Structure):
    _fields_ = (("header", _Header), ("sent_octets", ctypes.c_uint32))


def flood(interface: str, frame: bytes) -> None:
    """Send the frame until killed."""
    library = ctypes.CDLL(None, use_errno=True)
    buffer = ctypes.create_string_buffer(frame, len(frame))
    vector = _Vector(ctypes.addressof(buffer), len(frame))
    batch = (_Message * BATCH)()
    for message in batch:
        message.header.vectors = ctypes.pointer(vector)
        message.header.vector_count = 1
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sock:
        sock.bind((interface, 0))
        number = sock.fileno()
        while True:
            if library.sendmmsg(number, batch, BATCH, 0) < 0:
                raise OSError(ctypes.get_errno(), "sendmmsg")


if __name__ == "__main__":
    os.sched_setaffinity(0, {int(sys.argv[3])})
    flood(sys.argv[1], bytes.fromhex(sys.argv[2]))

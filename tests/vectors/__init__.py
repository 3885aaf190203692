"""Octets written by hand from the pictures of the RFCs, with a comment for each field.

A file has sections: ``[name]``, then lines of ``hex  # comment``. Blank lines and lines of
comment alone are skipped. Nothing here was printed by our own encoder.
"""

from __future__ import annotations

from pathlib import Path

_FOLDER = Path(__file__).parent


def parse_vectors(text: str) -> dict[str, bytes]:
    """Return the octets by section name. Raises ValueError for hex outside a section."""
    vectors: dict[str, bytes] = {}
    name: str | None = None
    for raw in text.splitlines():
        line = raw.partition("#")[0].strip()
        if line.startswith("["):
            name = line.strip("[]")
            if name in vectors:
                raise ValueError(f"section {name!r} stands twice")
            vectors[name] = b""
        elif line:
            if name is None:
                raise ValueError(f"{line!r} stands before any section")
            vectors[name] += bytes.fromhex(line)
    return vectors


def load_vectors(file_name: str) -> dict[str, bytes]:
    """Read one file of this folder."""
    return parse_vectors((_FOLDER / file_name).read_text(encoding="utf-8"))

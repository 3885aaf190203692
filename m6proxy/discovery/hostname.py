"""DNS names as text that is safe to compare, to log and to put on the wire."""

from __future__ import annotations

import re

NAME_OCTETS_MAX = 253
"""Characters of a name in text form without the final dot (RFC 1035 §3.1)."""

_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_NAME = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")


def parse_name(text: str) -> str:
    """Return a name in lower case, without the final dot.

    Labels of letters, digits, ``-`` and ``_``, 1 to 63 characters, 253 altogether. Raises
    ValueError for anything else: names come from DNS, where every octet is legal.
    """
    name = text.removesuffix(".").lower()
    if len(name) > NAME_OCTETS_MAX or _NAME.fullmatch(name) is None:
        raise ValueError(f"{text!r} is not a host name")
    return name

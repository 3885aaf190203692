"""How answers look to people: narrow tables, ages instead of dates, words when it is empty."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Sequence
from typing import Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

PIPED_WIDTH = 160
"""Columns when the output is not a terminal: room for two pairs of addresses and a state."""


def show_json(value: Any) -> None:
    """Print exactly what the daemon said."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def show_table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, empty: str) -> None:
    """Print a table whose columns marked with ``>`` are right-aligned, or ``empty``."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        right = column.startswith(">")
        table.add_column(
            column.removeprefix(">"), justify="right" if right else "left", overflow="fold"
        )
    for row in rows:
        table.add_row(*(_cell(value) for value in row))
    if not table.row_count:
        click.echo(empty)
        return
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=PIPED_WIDTH)
    console.print(table)


def show_lines(lines: Iterable[tuple[str, object]]) -> None:
    """Print ``name value`` lines, the values aligned."""
    pairs = list(lines)
    width = max((len(name) for name, _ in pairs), default=0)
    for name, value in pairs:
        click.echo(f"{name:<{width}}  {value}")


def age(then: float | None, now: float | None = None) -> str:
    """How long ago a Unix time was, for people; ``-`` for never."""
    if then is None:
        return "-"
    seconds = max(0.0, (time.time() if now is None else now) - then)
    return f"{duration(seconds)} ago"


def duration(seconds: float | None) -> str:
    """A length of time in its two largest units: ``4 s``, ``3 min 20 s``, ``2 h 5 min``."""
    if seconds is None:
        return "-"
    whole = int(seconds)
    for size, unit, smaller, smaller_unit in (
        (86_400, "d", 3_600, "h"),
        (3_600, "h", 60, "min"),
        (60, "min", 1, "s"),
    ):
        if whole >= size:
            rest = whole % size // smaller
            return f"{whole // size} {unit}" + (f" {rest} {smaller_unit}" if rest else "")
    return f"{whole} s"


def _cell(value: object) -> Text:
    # Text, not str: what a peer named itself must not be read as markup
    if value is None:
        return Text("-")
    return Text(f"{value:,}" if isinstance(value, int) and abs(value) > 9_999 else str(value))

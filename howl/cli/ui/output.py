"""Printed results: tables for people, JSON for programs."""

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from types import MappingProxyType
from typing import Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from howl.cli.ui import formats

#: Columns of a table in a file or a pipe, so that it takes the width it needs: a folded line cannot be searched.
UNFOLDED = 1000

COLOURS = {
    "succeeded": "green", "active": "green", "started": "cyan", "retrying": "yellow", "draining": "yellow",
    "failed": "red", "dead": "red", "lost": "red", "cancelled": "dim", "expired": "dim", "offline": "dim",
}  # fmt: skip


@dataclass(frozen=True)
class Column:
    """A column of a table: the value's name, its format, and whether it may fold on short lines."""

    key: str
    title: str
    read: Callable[[Any], str] | None = None
    folds: bool = False
    #: Width of terminal, in columns, below which it is left out.
    width_needed: int = 0


def emit(
    value: Any,
    as_json: bool,
    *,
    columns: Sequence[Column] = (),
    empty: str = "Nothing to show.",
    read: Mapping[str, Callable[[Any], str]] = MappingProxyType({}),
) -> None:
    """Print a list of rows as a table of `columns` (`empty` if there are none), or a dict with a line per name.

    `read` holds formats of a dict's values for people, by name.
    """
    if as_json:
        click.echo(json.dumps(value, default=plain, indent=2))
    elif isinstance(value, list):
        _print_rows(value, columns, empty)
    else:
        _print_facts(value, read)


def plain(value: Any) -> Any:
    """Return times in ISO 8601, for `json.dumps`; raises TypeError for other values."""
    if isinstance(value, datetime):
        return value.isoformat()
    raise TypeError(f"{type(value).__name__} is no JSON")


def _print_rows(rows: Sequence[dict[str, Any]], columns: Sequence[Column], empty: str) -> None:
    console = stdout_console()
    if not rows:
        console.print(formats.visible(empty), highlight=False, markup=False)
        return
    shown = [column for column in columns if console.width >= column.width_needed]
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in shown:
        table.add_column(column.title, no_wrap=not column.folds, overflow="fold")
    for row in rows:
        table.add_row(*(_cell(row.get(column.key), column) for column in shown))
    console.print(table)


def _print_facts(facts: dict[str, Any], read: Mapping[str, Callable[[Any], str]]) -> None:
    """Print names on the left and values on the right; empty values are left out."""
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in facts.items():
        if value not in (None, [], {}):
            table.add_row(name.replace("_", " "), _cell(value, Column(name, name, read.get(name))))
    stdout_console().print(table)


def _cell(value: Any, column: Column) -> Text:
    """Return a cell without interpreting markup: square brackets in a task's result are its own."""
    text = _words(value, column)
    return Text(text, style=COLOURS.get(text, "") if column.key == "status" else "")


def _words(value: Any, column: Column) -> str:
    if value is None:
        return formats.NOTHING
    if column.read is not None:
        return formats.visible(column.read(value))
    if isinstance(value, datetime):
        return formats.stamp(value)
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return formats.visible(", ".join(value)) or formats.NOTHING
    return formats.document(value)


def stdout_console() -> Console:
    """Return a console as wide as the terminal, or in a file or a pipe as wide as lines need."""
    folds = sys.stdout.isatty() or "COLUMNS" in os.environ
    return Console(width=None if folds else UNFOLDED, highlight=False, soft_wrap=False)

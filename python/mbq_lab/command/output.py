"""What the commands print: one JSON object, or tables whose numbers are never cut, and lines."""

import contextlib
import ctypes
import json
import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import typer
from rich.console import Console
from rich.measure import Measurement
from rich.table import Column, Table

_NAMES = _WORDS = 24  # columns of a terminal that names, which are folded, and sentences, which wrap, keep at least


def show(as_json: bool, value: dict, *parts) -> None:
    """Print `value` as one JSON object, or `parts`, tables and lines, for people."""
    if as_json:
        typer.echo(json.dumps(plain(value), indent=2))
        return
    console = Console()
    for part in parts:
        if isinstance(part, Table):
            print_table(part, console)
        elif part:  # a terminal gets whole words, a pipe whole lines
            console.print(part, markup=False, emoji=False, highlight=False, soft_wrap=not console.is_terminal)


@contextlib.contextmanager
def c_stdout_on_stderr() -> Iterator[None]:
    """Send to stderr what compiled libraries print inside the block: HiGHS writes a line to stdout at times, which
    would stand in the JSON."""
    flush = ctypes.CDLL(None).fflush
    sys.stdout.flush()
    flush(None)
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        flush(None)
        os.dup2(kept, 1)
        os.close(kept)


def plain(value):
    """Return `value` in what JSON has: names as text, NaN and infinity as null."""
    if isinstance(value, dict):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value


def print_table(table: Table, console: Console) -> None:
    """Print a table whole: as wide as its content where no terminal limits it, else in parts one below the other."""
    for column in table.columns[1:]:
        column.no_wrap = not _has_words(column)
    if not console.is_terminal:
        console = Console(file=console.file, width=max(console.width, _width(table, console)))
        console.print(table)
        return
    table.columns[0].overflow = "fold"
    for part in parts_of(table, console):
        console.print(part)


def parts_of(table: Table, console: Console) -> list[Table]:
    """Return tables that fit into the console, each with the first column and as many others as there is place for."""
    needed = [_cell_width(table, index, console) for index in range(len(table.columns))]
    names = min(needed[0], _NAMES)
    groups, used = [[]], names
    for index, width in enumerate(needed[1:], start=1):
        width = min(width, _WORDS) if _has_words(table.columns[index]) else width
        if groups[-1] and used + width > console.width - 1:
            groups.append([])
            used = names
        groups[-1].append(index)
        used += width
    return [table] if len(groups) == 1 else [_with_columns(table, [0, *group], group is groups[-1])
                                             for group in groups]


def _with_columns(table: Table, indices: list[int], last: bool) -> Table:
    part = Table(title=table.title, caption=table.caption if last else None)
    columns = [table.columns[index] for index in indices]
    for column in columns:
        part.add_column(column.header, justify=column.justify, no_wrap=column.no_wrap, overflow=column.overflow)
    for row in zip(*(column.cells for column in columns), strict=True):
        part.add_row(*row)
    return part


def _has_words(column: Column) -> bool:
    """Return whether a column holds sentences and not numbers or names."""
    return any(" " in str(cell) for cell in column.cells)


def _cell_width(table: Table, index: int, console: Console) -> int:
    """Return the columns of a terminal that a column of the table takes, with its border and padding."""
    column = table.columns[index]
    cells = [column.header, *column.cells]
    return 3 + max(Measurement.get(console, console.options.update(width=1000), cell).maximum for cell in cells)


def _width(table: Table, console: Console) -> int:
    return 1 + sum(_cell_width(table, index, console) for index in range(len(table.columns)))

"""Rendering: the one place through which all records go out."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from typing import Any, TextIO

from virtintrospect.cli.escape import printable
from virtintrospect.errors import UsageError
from virtintrospect.insight.columns import Column, Record, Table, Unit

FORMATS = ("table", "json", "jsonl", "csv")

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")


def choose(table: Table, columns: str | None, output: str) -> tuple[Column, ...]:
    """The columns to show: those asked for, else the brief ones for people, all for programs."""
    if columns is None or columns == "all":
        brief = columns is None and output == "table"
        return tuple(column for column in table.columns if column.brief or not brief)
    chosen = []
    for name in columns.split(","):
        column = table.column(name.strip())
        if column is None:
            known = ", ".join(column.name for column in table.columns)
            raise UsageError(f"{table.name} has no column {name!r}", hint=f"it has: {known}")
        chosen.append(column)
    return tuple(chosen)


def show(
    table: Table,
    records: Iterable[Record],
    *,
    output: str,
    columns: str | None = None,
    single: bool = False,
    file: TextIO | None = None,
) -> None:
    """Print records.

    :param output: one of :data:`FORMATS`.
    :param columns: comma-separated names, ``all``, or ``None`` for the default ones.
    :param single: the command has a single record: one JSON object, and a list of
        ``field: value`` for people.
    """
    out = sys.stdout if file is None else file
    chosen = choose(table, columns, output)
    if output == "json":
        _json(chosen, records, out, single=single)
    elif output == "jsonl":
        _jsonl(chosen, records, out)
    elif output == "csv":
        _csv(chosen, records, out)
    elif single:
        _fields(chosen, records, out)
    elif out.isatty():
        _rich(chosen, records, out)
    else:
        _plain(chosen, records, out)


# -- values ---------------------------------------------------------------------------------


def plain_value(unit: Unit, value: Any) -> Any:
    """A value for programs: a JSON number, string, boolean or list of strings."""
    if unit is Unit.ADDRESS:
        return f"{value:#x}"
    if unit is Unit.HEX:
        return bytes(value).hex()
    if unit is Unit.LIST:
        return [printable(item) for item in value]
    return printable(value) if isinstance(value, bytes | str) else value


def human_value(unit: Unit, value: Any) -> str:
    """A value for people."""
    if value is None:
        return ""
    formatted = _HUMAN.get(unit)
    if formatted is not None:
        return formatted(value)
    value = plain_value(unit, value)
    return ",".join(value) if isinstance(value, list) else str(value)


def human_size(size: int) -> str:
    """A number of bytes with a binary unit: three digits are enough for a look."""
    amount, unit = float(size), 0
    while abs(amount) >= 1024 and unit < len(_UNITS) - 1:
        amount /= 1024
        unit += 1
    return (
        f"{amount:.0f} {_UNITS[unit]}"
        if unit == 0 or amount >= 100
        else (f"{amount:.1f} {_UNITS[unit]}")
    )


def _epoch(seconds: int) -> str:
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
    except (OverflowError, OSError, ValueError):
        return str(seconds)  # a clock that the guest has set to nonsense


def _milliseconds(milliseconds: int) -> str:
    minutes, rest = divmod(milliseconds, 60_000)
    return f"{minutes}:{rest // 1000:02}.{rest % 1000 // 10:02}"


def _seconds(seconds: float) -> str:
    return f"{seconds:.6f}" if isinstance(seconds, float) else str(seconds)


_HUMAN: dict[Unit, Callable[[Any], str]] = {
    Unit.BYTES: human_size,
    Unit.EPOCH: _epoch,
    Unit.MILLISECONDS: _milliseconds,
    Unit.SECONDS: _seconds,
    Unit.FLAG: lambda flag: "yes" if flag else "no",
}
_RIGHT = {Unit.NUMBER, Unit.BYTES, Unit.MILLISECONDS, Unit.SECONDS}


# -- formats --------------------------------------------------------------------------------


def _objects(columns: Sequence[Column], records: Iterable[Record]) -> Iterable[dict[str, Any]]:
    for record in records:
        yield {
            column.name: plain_value(column.unit, record[column.name])
            for column in columns
            if record.get(column.name) is not None
        }


def _json(
    columns: Sequence[Column], records: Iterable[Record], out: TextIO, *, single: bool
) -> None:
    import json

    objects = list(_objects(columns, records))
    if single:
        out.write(json.dumps(objects[0], ensure_ascii=False, indent=2) + "\n")
        return
    lines = ",\n".join(json.dumps(item, ensure_ascii=False) for item in objects)
    out.write(f"[\n{lines}\n]\n" if lines else "[]\n")


def _jsonl(columns: Sequence[Column], records: Iterable[Record], out: TextIO) -> None:
    import json

    for item in _objects(columns, records):
        out.write(json.dumps(item, ensure_ascii=False) + "\n")


def _csv(columns: Sequence[Column], records: Iterable[Record], out: TextIO) -> None:
    import csv

    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([column.name for column in columns])
    for item in _objects(columns, records):
        values = (item.get(column.name, "") for column in columns)
        writer.writerow([" ".join(value) if isinstance(value, list) else value for value in values])


def _fields(columns: Sequence[Column], records: Iterable[Record], out: TextIO) -> None:
    for record in records:
        shown = [column for column in columns if record.get(column.name) is not None]
        width = max((len(column.name) for column in shown), default=0)
        for column in shown:
            value = human_value(column.unit, record[column.name])
            out.write(f"{column.name + ':':<{width + 1}} {value}\n")


def _plain(columns: Sequence[Column], records: Iterable[Record], out: TextIO) -> None:
    """Aligned columns without borders, complete lines: for pipes, files and logs."""
    rows = [
        [human_value(column.unit, record.get(column.name)) for column in columns]
        for record in records
    ]
    heads = [column.name for column in columns]
    widths = [max(map(len, values)) for values in zip(heads, *rows, strict=True)]
    for row in (heads, *rows):
        cells = (
            cell.rjust(width) if column.unit in _RIGHT else cell.ljust(width)
            for cell, width, column in zip(row, widths, columns, strict=True)
        )
        out.write("  ".join(cells).rstrip() + "\n")


def _rich(columns: Sequence[Column], records: Iterable[Record], out: TextIO) -> None:
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text

    table = RichTable(box=None, pad_edge=False, header_style="bold")
    flexible = columns[-1].name if columns else ""
    for column in columns:
        table.add_column(
            column.name,
            justify="right" if column.unit in _RIGHT else "left",
            no_wrap=not column.wrap,
            overflow="fold" if column.wrap else "ellipsis",
            ratio=1 if column.name == flexible and column.unit is Unit.TEXT else None,
        )
    for record in records:
        # Text, not str: guest strings must not be read as rich's own markup.
        table.add_row(
            *(Text(human_value(column.unit, record.get(column.name))) for column in columns)
        )
    Console(file=out, highlight=False, markup=False, emoji=False).print(table)

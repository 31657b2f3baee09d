"""Rendering: the one place through which all records go out."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from typing import Any, TextIO

from virtintrospect.cli.escape import printable
from virtintrospect.insight.columns import Column, Record, Table, Unit, no_column

FORMATS = ("table", "json", "jsonl", "csv")

#: On a terminal: most characters of a column that is not the last, fewest of the last.
_WIDEST, _NARROWEST = 32, 16
#: In a plain table: most characters that shorter cells are padded to.
_WIDEST_PLAIN = 120

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
            raise no_column(table, name)
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
        _fields(chosen, records, out, table.line)
    else:
        _table(chosen, records, out, all_columns=columns is not None)


class Stream:
    """Records that come bit by bit, each bit shown at once.

    The widths of a table are those of the first bit; longer cells push the rest of their line.

    :param output: one of :data:`FORMATS` but ``json``, which cannot go on.
    :param columns: as of :func:`show`.
    """

    def __init__(
        self, table: Table, *, output: str, columns: str | None = None, file: TextIO | None = None
    ) -> None:
        self._out = sys.stdout if file is None else file
        self._columns = choose(table, columns, output)
        self._output = output
        self._widths: list[int] | None = None
        self._begun = False

    def write(self, records: Iterable[Record]) -> None:
        """Show some records."""
        if self._output == "jsonl":
            _jsonl(self._columns, records, self._out)
        elif self._output == "csv":
            _csv(self._columns, records, self._out, head=not self._begun)
        else:
            rows = [[human_value(c.unit, r.get(c.name)) for c in self._columns] for r in records]
            heads = [column.name for column in self._columns]
            self._widths = self._widths or _widths([heads, *rows])
            _lines(self._columns, rows if self._begun else [heads, *rows], self._widths, self._out)
        self._begun = True
        self._out.flush()


# -- values ---------------------------------------------------------------------------------


def plain_value(unit: Unit, value: Any) -> Any:
    """A value for programs: a JSON number, string, boolean or list of these."""
    return _PLAIN.get(unit, _plain_text)(value)


def _plain_text(value: Any) -> Any:
    return printable(value) if isinstance(value, _TEXT) else value


_TEXT = (bytes, str)
_PLAIN: dict[Unit, Callable[[Any], Any]] = {
    Unit.ADDRESS: "{:#x}".format,
    Unit.MASK: "{:#x}".format,
    Unit.HEX: lambda value: bytes(value).hex(),
    Unit.LIST: lambda items: [item if isinstance(item, int) else printable(item) for item in items],
}


def human_value(unit: Unit, value: Any) -> str:
    """A value for people."""
    if value is None:
        return ""
    formatted = _HUMAN.get(unit)
    if formatted is not None:
        return formatted(value)
    value = plain_value(unit, value)
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


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
    Unit.REAL: lambda number: f"{number:.6f}",
    Unit.FLAG: lambda flag: "yes" if flag else "no",
}
_RIGHT = {Unit.NUMBER, Unit.BYTES, Unit.MILLISECONDS, Unit.SECONDS}


# -- formats --------------------------------------------------------------------------------


def _objects(columns: Sequence[Column], records: Iterable[Record]) -> Iterable[dict[str, Any]]:
    plain = [(column.name, _PLAIN.get(column.unit, _plain_text)) for column in columns]
    for record in records:
        yield {
            name: function(value)
            for name, function in plain
            if (value := record.get(name)) is not None
        }


def _json(
    columns: Sequence[Column], records: Iterable[Record], out: TextIO, *, single: bool
) -> None:
    import json

    objects = iter(_objects(columns, records))
    if single:
        out.write(json.dumps(next(objects), ensure_ascii=False, indent=2) + "\n")
        return
    separator = "[\n"
    encode = json.JSONEncoder(ensure_ascii=False).encode
    for item in objects:
        out.write(separator + encode(item))
        separator = ",\n"
    out.write("[]\n" if separator == "[\n" else "\n]\n")


def _jsonl(columns: Sequence[Column], records: Iterable[Record], out: TextIO) -> None:
    import json

    encode = json.JSONEncoder(ensure_ascii=False).encode
    for item in _objects(columns, records):
        out.write(encode(item) + "\n")


def _csv(
    columns: Sequence[Column], records: Iterable[Record], out: TextIO, *, head: bool = True
) -> None:
    import csv

    writer = csv.writer(out, lineterminator="\n")
    if head:
        writer.writerow([column.name for column in columns])
    for item in _objects(columns, records):
        writer.writerow([_csv_value(item.get(column.name, "")) for column in columns])


def _csv_value(value: Any) -> Any:
    if isinstance(value, bool):
        return "true" if value else "false"
    return " ".join(map(str, value)) if isinstance(value, list) else value


def _fields(columns: Sequence[Column], records: Iterable[Record], out: TextIO, line: str) -> None:
    for record in records:
        shown = [column for column in columns if record.get(column.name) is not None]
        width = max((len(column.name) for column in shown), default=0)
        for column in shown:
            value = human_value(column.unit, record[column.name])
            if line:
                out.write(line.format(name=column.name, value=value) + "\n")
            else:
                out.write(f"{column.name + ':':<{width + 1}} {value}\n")


def _table(
    columns: Sequence[Column], records: Iterable[Record], out: TextIO, *, all_columns: bool
) -> None:
    """A table for people; a column that no row has is left out unless it was asked for."""
    found = list(records)
    shown = [
        column
        for column in columns
        if all_columns or any(record.get(column.name) is not None for record in found)
    ] or list(columns)
    rows = [
        [human_value(column.unit, record.get(column.name)) for column in shown] for record in found
    ]
    (_terminal if out.isatty() else _plain)(shown, rows, out)


def _plain(columns: Sequence[Column], rows: list[list[str]], out: TextIO) -> None:
    """Aligned columns without borders, complete lines: for pipes, files and logs."""
    lines = [[column.name for column in columns], *rows]
    _lines(columns, lines, _widths(lines), out)


def _widths(rows: list[list[str]]) -> list[int]:
    # One absurdly long cell must not make every line as long.
    return [min(max(map(len, values)), _WIDEST_PLAIN) for values in zip(*rows, strict=True)]


def _lines(
    columns: Sequence[Column], rows: list[list[str]], widths: list[int], out: TextIO
) -> None:
    for row in rows:
        cells = (
            cell.rjust(width) if column.unit in _RIGHT else cell.ljust(width)
            for cell, width, column in zip(row, widths, columns, strict=True)
        )
        out.write("  ".join(cells).rstrip() + "\n")


def _terminal(columns: Sequence[Column], rows: list[list[str]], out: TextIO) -> None:
    """The same, fitted to a terminal: the last column takes what is left, and is cut or wrapped."""
    from rich.cells import cell_len
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text

    console = Console(file=out, highlight=False, markup=False, emoji=False)
    heads = [column.name for column in columns]
    widths = [min(max(map(cell_len, values)), _WIDEST) for values in zip(heads, *rows, strict=True)]
    taken = sum(widths[:-1]) + 2 * len(widths[:-1])
    last = max(map(cell_len, (heads[-1], *(row[-1] for row in rows))))
    widths[-1] = min(last, max(console.width - taken, _NARROWEST))
    # A terminal narrower than this breaks lines; rich would crush every column instead.
    console.width = max(console.width, taken + widths[-1])
    table = RichTable(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for column, width in zip(columns, widths, strict=True):
        table.add_column(
            column.name,
            width=width,
            justify="right" if column.unit in _RIGHT else "left",
            no_wrap=not column.wrap,
            overflow="fold" if column.wrap else "ellipsis",
        )
    for row in rows:
        # Text, not str: guest strings must not be read as rich's own markup.
        table.add_row(*map(Text, row))
    console.print(table)

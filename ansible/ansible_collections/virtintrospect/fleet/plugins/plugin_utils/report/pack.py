"""Tables packed by column: what the page of a report carries instead of rows of JSON.

A packed table is a gzip stream: four bytes with the length of a JSON header (little-endian), the
header, and the columns' bytes, to which the header's offsets point. Numbers are unsigned
integers of 1, 2 or 4 bytes, first the lowest byte of all rows, then the next of all rows, which
compresses far better than one number after the other; or IEEE doubles. Text is numbers into a
list of the different texts. ``web/data.js`` reads it.
"""

from __future__ import annotations

import gzip
import json
import re
import sys
from array import array
from collections.abc import Iterable, Mapping
from typing import Any

#: Longest text of a cell, in characters; longer ones end in an ellipsis.
LONGEST = 1000
_EXACT = 1 << 53
_MOST_COLUMNS = 60
#: Names of tables and columns: no formula of a spreadsheet, nothing that a line of CSV is cut at,
#: nothing that every object of JavaScript has.
NAME = re.compile(r"(?!constructor$)[a-z][a-z0-9_]{0,40}")


def printable(text: str) -> str:
    """A stranger's text, without what could move a cursor, turn text around or be invisible.

    The command has escaped what it printed; this is for what came another way.
    """
    if len(text) > LONGEST:
        text = text[: LONGEST - 1] + "…"
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def cell(value: Any) -> Any:
    """A value of JSON as a cell: a number, a text, or ``None`` for nothing."""
    if value is None or isinstance(value, str):
        return printable(value) if value else None
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return value if -_EXACT <= value <= _EXACT else str(value)
    if isinstance(value, float):
        return value if value - value == 0 else None  # neither infinite nor no number
    if isinstance(value, (list, tuple)):
        texts = (item if isinstance(item, str) else json.dumps(item) for item in value)
        return printable(", ".join(texts)) or None
    return printable(json.dumps(value, ensure_ascii=False))


class Table:
    """Rows on their way to the page.

    :param name: what the page calls it.
    :param columns: the columns wanted, in order. Without, each that a row has.
    """

    def __init__(self, name: str, columns: Iterable[str] = ()) -> None:
        self.name = name
        self.rows = 0
        self._fixed = bool(tuple(columns))
        self._columns: dict[str, list[Any]] = {column: [] for column in columns}
        self._texts: dict[str, str] = {}

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns that any row has a value in."""
        return tuple(name for name, values in self._columns.items() if any_value(values))

    def add(self, row: Mapping[str, Any]) -> None:
        """Add a row; what it does not have stays empty."""
        if not self._fixed:
            for name in row:
                if name in self._columns or len(self._columns) >= _MOST_COLUMNS:
                    continue
                if NAME.fullmatch(name):
                    self._columns[name] = [None] * self.rows
        texts = self._texts
        for name, values in self._columns.items():
            value = row.get(name)
            number = isinstance(value, int) and not isinstance(value, bool)
            if not number or not -_EXACT <= value <= _EXACT:
                value = cell(value)
                if isinstance(value, str):
                    value = texts.setdefault(value, value)
            values.append(value)
        self.rows += 1

    def values(self, column: str) -> list[Any]:
        """The cells of a column; none where there is no such column."""
        return self._columns.get(column, [])

    def records(self) -> Iterable[dict[str, Any]]:
        """The rows, each without its empty cells."""
        columns = self._columns.items()
        for index in range(self.rows):
            yield {name: values[index] for name, values in columns if values[index] is not None}

    def drop(self, column: str) -> None:
        """Leave a column out."""
        self._columns.pop(column, None)

    def shorten(self, column: str, length: int) -> None:
        """Cut the texts of a column."""
        values = self._columns.get(column, [])
        for index, value in enumerate(values):
            if isinstance(value, str) and len(value) > length:
                values[index] = self._texts.setdefault(short := value[: length - 1] + "…", short)

    def packed(self) -> bytes:
        """The table as the page reads it."""
        header: list[dict[str, Any]] = []
        body = bytearray()
        for name in self.columns:
            entry, blobs = _column(self._columns[name])
            for key, blob in blobs.items():
                entry[key] = [len(body), len(blob)]
                body += blob
            header.append({"name": name, **entry})
        head = json.dumps({"rows": self.rows, "columns": header}).encode()
        content = len(head).to_bytes(4, "little") + head + bytes(body)
        return gzip.compress(content, 6, mtime=0)


def any_value(values: list[Any]) -> bool:
    """Whether a column has anything to show."""
    return any(value is not None for value in values)


def _column(values: list[Any]) -> tuple[dict[str, Any], dict[str, bytes]]:
    kinds = {type(value) for value in values} - {type(None)}
    if kinds == {int}:
        numbers = [value for value in values if value is not None]
        scale = 1024 if not any(number & 1023 for number in numbers) else 1
        if min(numbers) >= 0 and max(numbers) // scale < 0xFFFFFFFF:
            # Zero is for what is missing.
            codes = [0 if value is None else value // scale + 1 for value in values]
            return {"kind": "int", "scale": scale, **_width(codes)}, {"at": _planes(codes)}
    if kinds <= {int, float}:
        nothing = float("nan")
        doubles = array("d", [nothing if value is None else value for value in values])
        if sys.byteorder == "big":
            doubles.byteswap()
        return {"kind": "float"}, {"at": doubles.tobytes()}
    index: dict[str | None, int] = {None: 0}
    texts = (value if value is None else str(value) for value in values)
    codes = [index.setdefault(text, len(index)) for text in texts]
    listed = json.dumps([text for text in index if text is not None], ensure_ascii=False)
    entry = {"kind": "text", **_width(codes)}
    return entry, {"at": _planes(codes), "texts": listed.encode("utf-8", "backslashreplace")}


def _width(codes: list[int]) -> dict[str, int]:
    most = max(codes, default=0)
    return {"width": 1 if most < 1 << 8 else 2 if most < 1 << 16 else 4}


def _planes(codes: list[int]) -> bytes:
    """All lowest bytes, then all second ones, and so on."""
    width = _width(codes)["width"]
    numbers = array({1: "B", 2: "H", 4: "I"}[width], codes)
    if sys.byteorder == "big":
        numbers.byteswap()
    content = numbers.tobytes()
    return b"".join(content[plane::width] for plane in range(width))

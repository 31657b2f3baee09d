"""What the columns of the tables are: their names are the command contract."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Any, NamedTuple

from virtintrospect.errors import UsageError


class Unit(Enum):
    """What a column's value means; programs get the plain value, people a readable one."""

    TEXT = "text"
    NUMBER = "number"
    #: A kernel address: ``"0x…"`` for programs too, since JSON numbers end at 2^53.
    ADDRESS = "address"
    BYTES = "bytes"
    #: Seconds since the epoch, UTC.
    EPOCH = "epoch"
    SECONDS = "seconds"
    MILLISECONDS = "milliseconds"
    #: A fraction, for people with six decimals, as libvirt's tools print one.
    REAL = "real"
    FLAG = "flag"
    #: Raw bytes, shown as hexadecimal digits.
    HEX = "hex"
    LIST = "list"
    #: A set of bits: ``"0x…"``.
    MASK = "mask"

    #: Each member is one object; Enum would hash its name, in Python, for every cell of a table.
    __hash__ = object.__hash__


class Column(NamedTuple):
    """One column.

    ``brief``: it is in the table that people see unless they choose columns. ``wrap``: on a
    terminal that is too narrow it goes on in the next line instead of being cut.
    """

    name: str
    unit: Unit = Unit.TEXT
    brief: bool = True
    wrap: bool = False


class Table(NamedTuple):
    """A named table: its columns, in order, and the command that shows it.

    A table with a ``source`` becomes a command by itself: the source is the method of
    :class:`~virtintrospect.guests.base.Guest` that gives its records. ``help`` is the command's
    first sentence, ``examples`` are the lines that teach it.
    """

    name: str
    columns: tuple[Column, ...]
    source: str = ""
    help: str = ""
    examples: tuple[str, ...] = ()
    #: The method gives one record instead of a list.
    single: bool = False
    #: How a field of a single record is printed for people; by default aligned ``name: value``.
    line: str = ""
    #: Name of the argument behind TARGET that the method needs: ``"pid"``, or none.
    argument: str = ""
    #: The method takes ``pattern``, a str or ``None`` for all rows: an argument behind TARGET. What
    #: it does.
    pattern: str = ""
    #: The method takes ``pid``, an int or ``None`` for all processes: the option ``--pid``.
    by_pid: bool = False
    #: Further options without a value that the method takes: name and help of each.
    switches: tuple[tuple[str, str], ...] = ()
    #: Method of :class:`~virtintrospect.session.Session` that gives batches of records as they
    #: come: the options ``--follow`` and ``--interval``.
    follow: str = ""

    #: Further options with a text as their value, ``None`` unless given: name and help of each.
    texts: tuple[tuple[str, str], ...] = ()

    def column(self, name: str) -> Column | None:
        """The column of that name."""
        return next((column for column in self.columns if column.name == name), None)


Record = Mapping[str, Any]


def record(table: Table, source: object) -> dict[str, Any]:
    """The fields of a record that a table shows; unknown ones (``None``) are left out."""
    return {
        name: value for name, *_ in table.columns if (value := getattr(source, name)) is not None
    }


def no_column(table: Table, name: str) -> UsageError:
    """What to raise for a column that the table does not have."""
    known = ", ".join(column.name for column in table.columns)
    return UsageError(f"{table.name} has no column {name!r}", hint=f"it has: {known}")

"""Columns of records as numpy arrays."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

from virtintrospect.insight.columns import Table, Unit, no_column

if TYPE_CHECKING:
    import numpy.typing as npt

_OBJECTS = {Unit.TEXT, Unit.LIST, Unit.HEX}


def arrays(
    table: Table, records: Sequence[object], names: Collection[str] | None = None
) -> dict[str, npt.NDArray[Any]]:
    """One array a column, all of the records' length and order.

    Numbers are masked arrays, in which what is unknown is masked: ``uint64`` for addresses,
    ``bool`` for flags, ``float64`` where a value is a float, else ``int64`` (``uint64`` where
    a value needs it). Texts are object arrays of ``bytes`` and ``str``, unknown ones ``None``.

    :param names: which columns; all when not given.
    :raises UsageError: the table has no such column.
    """
    found = {}
    for name in [column.name for column in table.columns] if names is None else names:
        column = table.column(name)
        if column is None:
            raise no_column(table, name)
        values = [getattr(record, name) for record in records]
        found[name] = _objects(values) if column.unit in _OBJECTS else _numbers(values, column.unit)
    return found


def _objects(values: list[Any]) -> npt.NDArray[Any]:
    import numpy as np

    array = np.empty(len(values), dtype=object)
    for index, value in enumerate(values):  # at once, tuples would become a second dimension
        array[index] = value
    return array


def _numbers(values: list[Any], unit: Unit) -> npt.NDArray[Any]:
    import numpy as np

    unknown = [value is None for value in values]
    known = [0 if value is None else value for value in values]
    if unit is Unit.ADDRESS:
        sound = all(0 <= value < 1 << 64 for value in known)
        dtype: Any = np.uint64 if sound else object
    elif unit is Unit.FLAG:
        dtype = np.bool_
    elif any(isinstance(value, float) for value in known):
        dtype = np.float64
    else:
        dtype = _integers(min(known, default=0), max(known, default=0))
    masked: npt.NDArray[Any] = np.ma.MaskedArray(np.array(known, dtype=dtype), mask=unknown)
    return masked


def _integers(low: int, high: int) -> Any:
    """The type that holds numbers of a range; Python's own where numpy has none."""
    import numpy as np

    if low >= -1 << 63 and high < 1 << 63:
        return np.int64
    return np.uint64 if low >= 0 and high < 1 << 64 else object

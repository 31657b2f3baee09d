"""Commands of virsh, answered without an agent or the balloon driver."""

from __future__ import annotations

from typing import Any

from virtintrospect.insight.columns import Column, Table, Unit

_N = Unit.NUMBER

DOMMEMSTAT = Table(
    "dommemstat",
    (
        Column("actual", _N),
        Column("swap_in", _N),
        Column("swap_out", _N),
        Column("major_fault", _N),
        Column("minor_fault", _N),
        Column("unused", _N),
        Column("available", _N),
        Column("usable", _N),
        Column("last_update", _N),
        Column("disk_caches", _N),
        Column("hugetlb_pgalloc", _N),
        Column("hugetlb_pgfail", _N),
        Column("rss", _N),
    ),
    single=True,
    line="{name} {value}",
)


def guestinfo_table(values: dict[str, Any]) -> Table:
    """The table that has the keys of one ``guestinfo`` as its columns, written as virsh does."""
    units = {bool: Unit.FLAG, int: _N, float: Unit.REAL}
    columns = (Column(key, units.get(type(value), Unit.TEXT)) for key, value in values.items())
    return Table("guestinfo", tuple(columns), single=True, line="{name:<20}: {value}")

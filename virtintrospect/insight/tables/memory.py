"""Whole guest memory: who owns its pages, and what is found in it."""

from __future__ import annotations

from virtintrospect.insight.columns import Column, Table, Unit

_A, _B, _N = Unit.ADDRESS, Unit.BYTES, Unit.NUMBER

MAP = Table(
    "map",
    (
        Column("owner"),
        Column("size", _B),
        Column("share", Unit.REAL),
        Column("resident", _B),
        Column("pages", _N),
    ),
)

MAP_PROCESSES = Table(
    "map --processes",
    (
        Column("pid", _N),
        Column("name"),
        Column("anonymous", _B),
        Column("file", _B),
        Column("shared", _B),
        Column("hugetlb", _B, brief=False),
        Column("alone", _B),
        Column("page_tables", _B),
        Column("stack", _B),
    ),
)

MAP_RANGES = Table(
    "map --ranges",
    (Column("start", _A), Column("end", _A), Column("owner"), Column("pid", _N)),
)

SEARCH = Table(
    "search",
    (
        Column("address", _A),
        Column("paddr", _A),
        Column("size", _N),
        Column("match"),
        Column("before", Unit.HEX, brief=False),
        Column("data", Unit.HEX, brief=False),
        Column("after", Unit.HEX, brief=False),
        Column("text"),
    ),
)

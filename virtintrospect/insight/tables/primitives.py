"""Targets, symbols, types and bytes: what the primitives show."""

from __future__ import annotations

from virtintrospect.insight.columns import Column, Table, Unit

_A, _B, _N = Unit.ADDRESS, Unit.BYTES, Unit.NUMBER

#: A target itself, for ``info --target``: one flag for each capability.
TARGET = Table(
    "target",
    (
        Column("transport"),
        Column("live", Unit.FLAG),
        Column("gather", Unit.FLAG),
        Column("view", Unit.FLAG),
        Column("write", Unit.FLAG),
        Column("registers", Unit.FLAG),
        Column("set_registers", Unit.FLAG),
        Column("pause", Unit.FLAG),
        Column("events", Unit.FLAG),
        Column("size", _B),
        Column("regions", Unit.LIST),
    ),
    single=True,
)

SYMBOLS = Table(
    "symbols",
    (Column("address", _A), Column("type"), Column("name"), Column("offset", _N)),
)

IMPORTED = Table(
    "symbols imported",
    (
        Column("kernel"),
        Column("release"),
        Column("holds"),
        Column("count", _N),
        Column("pointer_size", _B, brief=False),
        Column("format"),
        Column("source"),
        Column("imported", Unit.EPOCH),
        Column("banner", brief=False),
    ),
)

TYPES = Table(
    "types",
    (
        Column("name"),
        Column("kind"),
        Column("offset", _N),
        Column("size", _N),
        Column("bit_offset", _N, brief=False),
        Column("bit_size", _N, brief=False),
        Column("type"),
        Column("value", _N),
    ),
)

TRANSLATE = Table(
    "translate",
    (
        Column("vaddr", _A),
        Column("paddr", _A),
        Column("page_size", _B),
        Column("present", Unit.FLAG),
        Column("writable", Unit.FLAG),
        Column("user", Unit.FLAG),
        Column("executable", Unit.FLAG),
        Column("pgd", _A),
        Column("p4d", _A),
        Column("pud", _A),
        Column("pmd", _A),
        Column("pte", _A),
    ),
)

READ = Table("read", (Column("address", _A), Column("data", Unit.HEX), Column("text")))

DUMP = Table(
    "dump",
    (
        Column("file"),
        Column("format"),
        Column("size", _B),
        Column("resident", _B),
        Column("holes", _B),
        Column("unreadable", _B),
        Column("sha256"),
        Column("seconds", _N),
        Column("pause_ms", _N),
        Column("runs", _N),
    ),
    single=True,
)

WRITE = Table(
    "write", (Column("address", _A), Column("before", Unit.HEX), Column("data", Unit.HEX))
)

REGISTERS = Table("registers", (Column("vcpu", _N), Column("register"), Column("value", _A)))

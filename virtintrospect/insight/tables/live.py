"""What changes all the time."""

from __future__ import annotations

from virtintrospect.insight.columns import Column, Table, Unit

_N, _B = Unit.NUMBER, Unit.BYTES

TOP = Table(
    "top",
    (
        Column("time", Unit.EPOCH, brief=False),
        Column("domain"),
        Column("state"),
        Column("cpus", _N),
        Column("cpu_percent", _N),
        Column("running", _N),
        Column("blocked", _N, brief=False),
        Column("memory_total", _B),
        Column("memory_need", _B),
        Column("memory_available", _B),
        Column("pressure_cpu", _N),
        Column("pressure_memory", _N),
        Column("pressure_io", _N),
        Column("refaults", _N),
        Column("error", wrap=True),
    ),
)

TOP_PROCESSES = Table(
    "top",
    (
        Column("time", Unit.EPOCH, brief=False),
        Column("pid", _N),
        Column("name"),
        Column("state"),
        Column("threads", _N),
        Column("cpu_percent", _N),
        Column("resident_size", _B),
        Column("cpu_time", Unit.MILLISECONDS),
        Column("cmdline"),
    ),
)

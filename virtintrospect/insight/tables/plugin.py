"""The plugin's own: domains and sessions."""

from __future__ import annotations

from virtintrospect.insight.columns import Column, Table, Unit

_N = Unit.NUMBER

LIST = Table(
    "list",
    (
        Column("id", _N),
        Column("name"),
        Column("uuid", brief=False),
        Column("state"),
        Column("os"),
        Column("kernel"),
        Column("session"),
    ),
)

SESSIONS = Table(
    "sessions",
    (
        Column("id", _N),
        Column("name"),
        Column("uuid", brief=False),
        Column("state"),
        Column("since", Unit.EPOCH),
        Column("driver"),
        Column("transport", brief=False),
        Column("kernel"),
        Column("cpu_time", Unit.MILLISECONDS),
        Column("looks", _N, brief=False),
        Column("forever", Unit.FLAG, brief=False),
        Column("error", wrap=True),
    ),
)

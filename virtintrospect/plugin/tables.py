"""What the commands of the plugin's own life show."""

from __future__ import annotations

from virtintrospect.insight.columns import Column, Table, Unit

ACTIONS = Table("hooks", (Column("action"), Column("subject"), Column("detail", wrap=True)))

STATUS = Table(
    "hooks status",
    (
        Column("driver"),
        Column("state"),
        Column("seen", Unit.FLAG),
        Column("daemon"),
        Column("last_event", Unit.EPOCH),
        Column("spooled", Unit.NUMBER),
        Column("path"),
        Column("advice", wrap=True),
    ),
)

DOCTOR = Table(
    "doctor",
    (
        Column("check"),
        Column("status"),
        Column("subject"),
        Column("detail", wrap=True),
        Column("advice", wrap=True),
    ),
)

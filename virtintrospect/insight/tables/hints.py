"""Advice."""

from __future__ import annotations

from virtintrospect.insight.columns import Column, Table, Unit

HINTS = Table(
    "hints",
    (
        Column("domain"),
        Column("resource"),
        Column("action"),
        Column("current", Unit.NUMBER),
        Column("recommended", Unit.NUMBER),
        Column("virsh", brief=False),
        Column("reason", wrap=True),
        Column("evidence", Unit.LIST, brief=False),
        Column("confidence", Unit.REAL),
        Column("refuted_by", brief=False),
        Column("after", Unit.NUMBER, brief=False),
        Column("outcome", brief=False),
    ),
)

"""Findings."""

from __future__ import annotations

from virtintrospect.insight.columns import Column, Table

CHECK = Table(
    "check",
    (
        Column("rule"),
        Column("severity"),
        Column("subject"),
        Column("detail", wrap=True),
        Column("evidence", brief=False),
        Column("remedy", brief=False),
    ),
    texts=(
        ("rules", "Ids of rules, separated by commas."),
        ("severity", "Only findings that are at least so severe."),
        ("listening", "Listening sockets that may be there, separated by commas."),
        ("newest_kernel", "The newest kernel that there is."),
    ),
)

RULES = Table(
    "rules",
    (
        Column("rule"),
        Column("severity"),
        Column("title", wrap=True),
        Column("looks_at", brief=False),
        Column("blind", brief=False),
        Column("remedy", brief=False),
        Column("false_positives", brief=False),
        Column("reference", brief=False),
    ),
)

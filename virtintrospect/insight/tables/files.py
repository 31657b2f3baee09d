"""Files and file systems."""

from __future__ import annotations

from virtintrospect.insight.columns import Column, Table, Unit

_N = Unit.NUMBER

FILES = Table(
    "files",
    (
        Column("pid", _N),
        Column("fd", _N),
        Column("path", wrap=True),
        Column("type"),
        Column("flags", _N, brief=False),
        Column("offset", _N, brief=False),
        Column("inode", _N),
        Column("device", brief=False),
    ),
    source="files",
    help="List the open files of TARGET's processes.",
    examples=("files web01", "files web01 --pid 1234", "files web01 | grep '(deleted)'"),
    by_pid=True,
)

MOUNTS = Table(
    "mounts",
    (
        Column("device"),
        Column("path", wrap=True),
        Column("type"),
        Column("flags", wrap=True),
        Column("namespace", _N),
    ),
    source="mounts",
    help="List the mounted file systems of TARGET, in all its mount namespaces.",
    examples=("mounts web01", "mounts web01 -o csv --columns device,path"),
)

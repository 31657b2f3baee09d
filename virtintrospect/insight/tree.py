"""Processes in the order of their family tree."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_INDENT = "  "
#: Deeper levels are not indented any further.
_MAX_DEPTH = 32


def as_tree(rows: Sequence[dict[str, Any]], *, indent: bool) -> list[dict[str, Any]]:
    """Rows of ``ps``, each parent before its children.

    :param indent: put two spaces in front of the name for each generation.

    A process whose parent is not listed, or whose ancestry is a circle, stands at the top.
    """
    children: dict[int, list[dict[str, Any]]] = {}
    listed = {row["pid"] for row in rows}
    for row in rows:
        parent = row.get("parent", 0)
        root = parent not in listed or parent == row["pid"]
        children.setdefault(0 if root else parent, []).append(row)
    ordered: list[dict[str, Any]] = []
    placed: set[int] = set()
    stack = [(row, 0) for row in reversed(children.get(0, []))]
    while stack:
        row, depth = stack.pop()
        ordered.append(_indented(row, depth) if indent else row)
        if row["pid"] not in placed:
            placed.add(row["pid"])
            stack += [(child, depth + 1) for child in reversed(children.get(row["pid"], []))]
    return ordered + [row for row in rows if row["pid"] not in placed]


def _indented(row: dict[str, Any], depth: int) -> dict[str, Any]:
    indent = _INDENT * min(depth, _MAX_DEPTH)
    name = row["name"]  # bytes of a guest, or text that the daemon has made of them
    return row | {"name": (indent.encode() if isinstance(name, bytes) else indent) + name}

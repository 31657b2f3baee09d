"""The report as one HTML page that needs nothing else, neither a server nor the network.

Its script and its style are named by their digest in the page's Content-Security-Policy, which
allows nothing else to run or to be loaded. What came from guests is data of the script, which
makes texts of it, never HTML.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from .fleet import TITLES, Fleet, day
from .pack import Table

#: Bytes that a page may weigh unless told otherwise.
LIMIT = 20_000_000
_HERE = Path(__file__).parent / "web"
_SCRIPTS = ("data.js", "elements.js", "filter.js", "grid.js", "overview.js", "page.js")
_UNITS = {
    "bytes": (
        "resident_size", "total_size", "memory_total", "memory_available", "size",
    ),
    "amount": ("current", "recommended", "gives_back"),
    "duration": ("uptime_seconds",),
    "time": ("start_time", "boot_time", "collected"),
    "id": (
        "pid", "tid", "parent", "uid", "gid", "fd", "local_port", "remote_port", "inode",
        "net_namespace",
    ),
}  # fmt: skip
_LABELS = {
    "psi_cpu": "waits for cpu, %",
    "psi_memory": "waits for memory, %",
    "psi_io": "waits for io, %",
    "virsh": "command",
}
#: Columns that may take the room that others leave; and what is read letter by letter.
_WIDE = ("subject", "detail", "reason", "message", "cmdline", "path", "text")
_CODE = ("evidence", "virsh", "cmdline", "path", "subject", "uuid")


def page(fleet: Fleet, title: str, made: float, limit: int = LIMIT) -> tuple[bytes, list[str]]:
    """The page, and what was left out of it because it would have weighed more than allowed.

    :param made: Unix time that the page names.
    :param limit: bytes that it may weigh.
    """
    tables = {"findings": fleet.findings, "hints": fleet.hints}
    tables |= {"guests": fleet.guests, "hosts": fleet.hosts}
    blocks = {name: _block(table) for name, table in tables.items()}
    rest = limit - sum(map(len, blocks.values())) - 100_000
    more, notes = _fitting(fleet.more, rest)
    blocks |= more
    counts = fleet.counts()
    shown = {name: fleet.more[name] for name in more}
    meta = {
        "counts": counts,
        "notes": notes,
        "rows": {name: table.rows for name, table in (tables | shown).items()},
        "units": {name: unit for unit, names in _UNITS.items() for name in names},
        "labels": _LABELS,
        "wide": _WIDE,
        "code": _CODE,
        "collected": {"findings": fleet.audited, "hints": fleet.advised},
        "more": [_grid(table) for table in shown.values()],
    }
    subtitle = (
        f"{_count(counts['guests'], 'guest')} of {_count(counts['hosts'], 'host')}, {day(made)}"
    )
    data = "".join(
        f'<script type="text/plain" id="data-{html.escape(name)}">{block}</script>\n'
        for name, block in blocks.items()
    )
    script = "(() => {\n" + "".join(_file(name) for name in _SCRIPTS) + "})();\n"
    style = _file("style.css")
    parts = {
        "TITLE": html.escape(title),
        "SUBTITLE": html.escape(subtitle),
        "SUMMARY": html.escape(_summary(counts)),
        "SCRIPT_HASH": _digest(script),
        "STYLE_HASH": _digest(style),
        "SCRIPT": script,
        "STYLE": style,
        "META": _in_script(meta),
        "DATA": data,
    }
    return _filled(_file("page.html"), parts).encode(), notes


def _fitting(tables: Mapping[str, Table], room: int) -> tuple[dict[str, str], list[str]]:
    """The guests' own tables as blocks, with less in them where they would not fit."""
    blocks = {name: _block(table) for name, table in tables.items() if table.rows}
    notes = []
    for column, said, change in _CUTS:
        if sum(map(len, blocks.values())) <= room:
            break
        table = tables.get("ps")
        if table is not None and "ps" in blocks and table.values(column):
            change(table)
            blocks["ps"] = _block(table)
            notes.append(f"So that the page is not too heavy, {said}.")
    while blocks and sum(map(len, blocks.values())) > room:
        heaviest = max(blocks, key=lambda name: len(blocks[name]))
        del blocks[heaviest]
        title = TITLES.get(heaviest, heaviest)
        notes.append(f"So that the page is not too heavy, it does not have the table {title}.")
    return blocks, notes


_CUTS: tuple[tuple[str, str, Callable[[Table], None]], ...] = (
    ("cmdline", "command lines are cut to 80 characters", lambda t: t.shorten("cmdline", 80)),
    ("start_time", "processes are without their start", lambda t: t.drop("start_time")),
    ("cmdline", "processes are without their command lines", lambda t: t.drop("cmdline")),
)


def _grid(table: Table) -> dict[str, Any]:
    """How the page shows a guests' table."""
    numbers = [name for name in ("resident_size", "size") if table.values(name)]
    return {
        "name": table.name,
        "title": TITLES.get(table.name, table.name.replace("_", " ").capitalize()),
        "columns": [name for name in table.columns if name != "uuid"][:10],
        "choices": [name for name in ("state", "protocol", "status") if table.values(name)],
        "sort": [numbers[0], True] if numbers else None,
    }


def _summary(counts: Mapping[str, Any]) -> str:
    severities = ", ".join(f"{number} {name}" for name, number in counts["findings"].items())
    unasked = counts["hosts_unasked"]
    return (
        f"{counts['hosts']} hosts, {counts['hosts_failed']} of them without a result"
        f"{f', {unasked} not asked' if unasked else ''}; "
        f"{counts['guests']} guests, {counts['guests_not_looked_into']} of them not looked into; "
        f"findings: {severities}; guests in trouble: {counts['guests_in_trouble']}."
    )


def _count(number: int, one: str) -> str:
    return f"{number:,} {one}" if number == 1 else f"{number:,} {one}s"


def _block(table: Table) -> str:
    return base64.b64encode(table.packed()).decode()


def _file(name: str) -> str:
    return (_HERE / name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _in_script(value: Any) -> str:
    """JSON that cannot end the script that it is in."""
    return json.dumps(value).replace("<", "\\u003c")


def _filled(template: str, parts: Mapping[str, str]) -> str:
    """The template with its ``@NAME@`` replaced, and nothing in what replaces them."""
    pieces = template.split("@")
    for index in range(1, len(pieces), 2):
        pieces[index] = parts[pieces[index]]
    return "".join(pieces)

"""A report as CSV, JSON, SARIF and OCSF."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from typing import Any

from ansible_collections.virtintrospect.fleet.plugins.module_utils.findings import ocsf, sarif

from .fleet import UNASKED, Fleet
from .pack import Table


def tables(fleet: Fleet) -> dict[str, Table]:
    """All tables of a report, by name."""
    known = {"hosts": fleet.hosts, "guests": fleet.guests}
    return {**known, "findings": fleet.findings, "hints": fleet.hints, **fleet.more}


def as_csv(table: Table) -> bytes:
    """A table for a spreadsheet: a text that would be a formula there gets a quote before it."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(table.columns)
    columns = [table.values(name) for name in table.columns]
    writer.writerows([_harmless(value) for value in row] for row in zip(*columns, strict=True))
    return text.getvalue().encode()


def _harmless(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value[:1] in "=+-@\t\r" else value


def as_json(fleet: Fleet, title: str, made: int) -> bytes:
    """The report as one object, without the rows that come one by one from guests."""
    report: dict[str, Any] = {"title": title, "time": made, "counts": fleet.counts()}
    for name in ("hosts", "guests", "findings", "hints"):
        report[name] = list(tables(fleet)[name].records())
    return _lines(report)


def as_sarif(fleet: Fleet) -> bytes:
    """The findings as a SARIF log; hosts and guests without a whole result are notifications."""
    missing = [
        {"host": row["host"], "name": row.get("guest", "all guests"), "msg": row.get("message", "")}
        for table, column in ((fleet.hosts, "status"), (fleet.guests, "looked_into"))
        for row in table.records()
        if row[column] not in ("ok", "yes", UNASKED)
    ]
    rules = [rule for name, rule in fleet.rules.items() if name]
    return _lines(sarif(_findings(fleet), missing, _version(fleet), rules))


def as_ocsf(fleet: Fleet, made: int) -> bytes:
    """The findings as events of OCSF."""
    return _lines(ocsf(_findings(fleet), _version(fleet), made))


def _findings(fleet: Fleet) -> list[dict[str, Any]]:
    uuids = {
        (row["host"], row["guest"]): row["uuid"]
        for row in fleet.guests.records()
        if row.get("uuid")
    }
    found = []
    for row in fleet.findings.records():
        guest = row.pop("guest", "unknown")
        own: Mapping[str, Any] = {"domain": guest, "uuid": uuids.get((row["host"], guest), "")}
        found.append({**row, **own})
    return found


def _version(fleet: Fleet) -> str | None:
    versions = [str(version) for version in fleet.hosts.values("version") if version]
    return max(versions, default=None)


def _lines(value: Any) -> bytes:
    return (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode("utf-8", "replace")

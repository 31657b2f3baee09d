"""What a fleet's hosts said, as the tables of a report.

One host's part is a JSON object, written by ``report_host``:

* ``host``, ``status`` (``ok``, ``partly``, ``failed``, ``unreachable``), ``message``,
  ``version``, ``time``;
* ``guests``: ``name``, ``uuid``, ``state``, ``tables`` (command's name → its JSON), ``message``
  where it was not looked into, or not wholly, ``notes`` on what could not be checked;
* ``asked``: the modules that were to run; ``findings`` and ``hints``: the commands' rows, with
  ``domain``, absent where they are not known; ``rules``: what the audit's rules are.

Guests wrote much of it. Whatever has another shape than it should costs its row.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from .pack import NAME, Table

SEVERITIES = ("critical", "high", "medium", "low", "info")
#: Status of a host that was left out of a run (``--limit``).
UNASKED = "unasked"

#: Columns of the tables that come row by row from guests; tables not named here have all theirs.
COLUMNS = {
    "ps": ("pid", "parent", "name", "state", "uid", "resident_size", "start_time", "cmdline"),
    "sockets": (
        "protocol", "local_address", "local_port", "pid", "process", "uid", "net_namespace",
    ),
    "modules": ("name", "size", "refcount", "status", "taints"),
}  # fmt: skip
TITLES = {"ps": "Processes", "sockets": "Listening sockets", "modules": "Modules"}
#: Tables of one record, which become columns of the guest's own row.
_RECORDS = {
    "info": ("os", "release", "hostname", "uptime_seconds", "cpus"),
    "memory": ("memory_total", "memory_available"),
}
_FINDING = ("severity", "rule", "host", "guest", "subject", "detail", "evidence", "remedy")
_HINT = (
    "host", "guest", "resource", "action", "current", "recommended", "gives_back", "reason",
    "confidence", "virsh", "evidence", "refuted_by",
)  # fmt: skip
_GUEST = (
    "host", "guest", "state", "looked_into", "message", "not_checked", "worst", "findings",
    "trouble", "os", "release", "hostname", "uptime_seconds", "cpus", "processes", "memory_total",
    "memory_available", "gives_back", "psi_cpu", "psi_memory", "psi_io", "uuid",
)  # fmt: skip
_HOST = (
    "host", "status", "message", "guests", "not_looked_into", "worst", "findings", "trouble",
    "memory_total", "gives_back", "version", "collected",
)  # fmt: skip
#: Parts of the page that are not of one table of guests.
_OWN = ("overview", "hosts", "guests", "findings", "hints")
#: Tables of guests in a report: more than there are commands.
_MOST_TABLES = 64
#: Hints that say that a guest suffers: the action, and of ``watch`` the resource.
_TROUBLE = {"grow", "host", "watch memory", "watch io", "watch tasks"}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _rows(value: Any) -> Iterator[Mapping[str, Any]]:
    """The objects of a list, of one object that one; of anything else none."""
    for row in value if isinstance(value, list) else [value]:
        if isinstance(row, Mapping):
            yield row


def _number(value: Any) -> float:
    fits = isinstance(value, (int, float)) and not isinstance(value, bool)
    return value if fits and 0 <= value < 1 << 62 else 0


def _worst(severities: Iterable[str]) -> str | None:
    found = set(severities)
    return next((severity for severity in SEVERITIES if severity in found), None)


def _looked(into: bool, trouble: bool) -> str:
    """Whether a guest was looked into. Nothing known is not looked into."""
    if not into:
        return "no"
    return "partly" if trouble else "yes"


def _missed(guest: Mapping[str, Any]) -> bool:
    """Whether it was named, and the host does not have it: another host may."""
    known = any(guest.get(key) for key in ("uuid", "tables", "checked"))
    return not known and _text(guest.get("message")).startswith("no_such_target")


class Fleet:
    """Tables of a report in the making, one host's part after the other.

    :param expected: hosts that should have a part; those without one are reported as silent.
    :param unasked: those of them that were left out of this run; they are reported as that.
    """

    def __init__(self, expected: Iterable[str] = (), unasked: Iterable[str] = ()) -> None:
        self.hosts = Table("hosts", _HOST)
        self.guests = Table("guests", _GUEST)
        self.findings = Table("findings", _FINDING)
        self.hints = Table("hints", _HINT)
        #: What the rules are, by id, as the hosts describe them.
        self.rules: dict[str, Mapping[str, Any]] = {}
        #: Whether any host was asked for findings, and for hints.
        self.audited = self.advised = False
        #: Row by row from guests: command's name → table.
        self.more: dict[str, Table] = {}
        self._silent = dict.fromkeys(expected)
        self._unasked = frozenset(unasked)
        #: What guests were called that a host does not have → hosts; and what is on any host.
        self._missed: dict[str, list[str]] = {}
        self._there: set[str] = set()
        self._oversized: set[tuple[str, str]] = set()
        self._vcpus = 0

    def add(self, part: Mapping[str, Any]) -> None:
        """Take in one host's part."""
        host = _text(part.get("host")) or "?"
        self._silent.pop(host, None)
        asked = part.get("asked")
        for name in asked if isinstance(asked, list) else ():
            self.audited |= name == "guest_audit"
            self.advised |= name == "guest_hints"
        for rule in _rows(part.get("rules") or []):
            self.rules.setdefault(_text(rule.get("rule")), rule)
        findings = self._add_findings(host, part)
        hints = self._add_hints(host, part)
        total = Counter[str]()
        for guest in _rows(part.get("guests") or []):
            if _missed(guest):
                self._missed.setdefault(_text(guest.get("name")) or "?", []).append(host)
                continue
            self._there.update(str(guest.get(key)) for key in ("name", "uuid", "id"))
            total += self._add_guest(host, guest, findings, hints)
        row: dict[str, Any] = {
            "host": host,
            "status": _text(part.get("status")) or "failed",
            "message": part.get("message"),
            "version": part.get("version"),
            "collected": part.get("time"),
            "worst": _worst(s for severities in findings.values() for s in severities),
        }
        if row["status"] in ("ok", "partly"):  # else nothing is known, which is not zero
            row["findings"] = sum(map(len, findings.values())) if "findings" in part else None
            row.update({key: total[key] for key in _SUMMED})
        self.hosts.add(row)

    def finish(self) -> None:
        """Add the hosts that said nothing at all, and the guests that no host has."""
        for name, hosts in self._missed.items():
            if name not in self._there:
                where = "here" if len(hosts) == 1 else f"on any of {len(hosts)} hosts"
                message = f"no_such_target: no domain of that name, id or UUID runs {where}"
                self._add_guest(hosts[0], {"name": name, "message": message}, {}, {})
        self._missed.clear()
        for host in list(self._silent):
            if host in self._unasked:
                self.add({"host": host, "status": UNASKED, "message": "it was not asked"})
            else:
                self.add({"host": host, "status": "silent", "message": "it gave no result"})

    def counts(self) -> dict[str, Any]:
        """The report in numbers."""
        severities = Counter(self.findings.values("severity"))
        statuses = Counter(self.hosts.values("status"))
        looked = Counter(self.guests.values("looked_into"))
        return {
            "hosts": self.hosts.rows,
            "hosts_failed": self.hosts.rows
            - statuses["ok"]
            - statuses["partly"]
            - statuses[UNASKED],
            "hosts_partly": statuses["partly"],
            "hosts_unasked": statuses[UNASKED],
            "guests": self.guests.rows,
            "guests_not_looked_into": looked["no"],
            "guests_partly_looked_into": looked["partly"],
            "findings": {severity: severities[severity] for severity in SEVERITIES},
            "guests_in_trouble": sum(1 for text in self.guests.values("trouble") if text),
            "memory_to_give_back": int(sum(v or 0 for v in self.guests.values("gives_back"))),
            "guests_oversized": len(self._oversized),
            "vcpus_to_give_back": self._vcpus,
            "rows": {name: table.rows for name, table in self.more.items()},
        }

    def _add_findings(self, host: str, part: Mapping[str, Any]) -> dict[str, list[str]]:
        """Guest → severities of its findings."""
        found: dict[str, list[str]] = {}
        for row in _rows(part.get("findings") or []):
            guest, severity = _text(row.get("domain")), _text(row.get("severity"))
            severity = severity if severity in SEVERITIES else "critical"
            found.setdefault(guest, []).append(severity)
            self.findings.add({**row, "host": host, "guest": guest, "severity": severity})
        return found

    def _add_hints(self, host: str, part: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        """Guest → what its hints come to."""
        found: dict[str, dict[str, Any]] = {}
        for row in _rows(part.get("hints") or []):
            guest = _text(row.get("domain"))
            resource, action = _text(row.get("resource")), _text(row.get("action"))
            sums = found.setdefault(guest, {"gives_back": 0, "trouble": []})
            now, then = _number(row.get("current")), _number(row.get("recommended"))
            back = max(0, now - then) if action in ("shrink", "reclaim") and then else 0
            if back:
                self._oversized.add((host, guest))
            if resource == "cpu":
                self._vcpus += int(back)
            if resource == "memory":
                # Two hints may be about the same memory.
                sums["gives_back"] = max(sums["gives_back"], back)
            if _TROUBLE & {action, f"{action} {resource}"}:
                sums["trouble"].append(f"{resource}: {action}")
            self.hints.add({**row, "host": host, "guest": guest, "gives_back": back or None})
        return found

    def _add_guest(
        self,
        host: str,
        guest: Mapping[str, Any],
        findings: Mapping[str, list[str]],
        hints: Mapping[str, dict[str, Any]],
    ) -> Counter[str]:
        name = _text(guest.get("name")) or "?"
        tables = guest.get("tables")
        tables = tables if isinstance(tables, Mapping) else {}
        message = _text(guest.get("message"))
        severities = findings.get(name, [])
        hint = hints.get(name, {})
        row: dict[str, Any] = {
            "host": host,
            "guest": name,
            "uuid": guest.get("uuid"),
            "state": guest.get("state"),
            "looked_into": _looked(bool(tables or guest.get("checked")), bool(message)),
            "message": message,
            "not_checked": guest.get("notes"),
            "worst": _worst(severities),
            "findings": len(severities) if severities or guest.get("checked") else None,
            "trouble": ", ".join(dict.fromkeys(hint.get("trouble", ()))),
            "gives_back": hint.get("gives_back") or None,
        }
        for table, columns in _RECORDS.items():
            record = next(_rows(tables.get(table)), {})
            row.update({column: record.get(column) for column in columns})
        for pressure in _rows(tables.get("pressure") or []):
            if pressure.get("kind") == "some":
                row[f"psi_{pressure.get('resource')}"] = pressure.get("avg60")
        if isinstance(tables.get("ps"), list):
            row["processes"] = len(tables["ps"])
        self.guests.add(row)
        self._add_tables(host, name, tables)
        return Counter(
            guests=1,
            not_looked_into=int(row["looked_into"] != "yes"),
            trouble=int(bool(row["trouble"])),
            memory_total=int(_number(row["memory_total"])),
            gives_back=int(_number(row["gives_back"])),
        )

    def _add_tables(self, host: str, guest: str, tables: Mapping[str, Any]) -> None:
        names = {
            process.get("pid"): process.get("name")
            for process in _rows(tables.get("ps") or [])
            if isinstance(process.get("pid"), int)
        }
        for name, rows in tables.items():
            if name in _RECORDS or name == "pressure" or not isinstance(rows, list):
                continue
            if name in _OWN or not NAME.fullmatch(name):
                continue  # names of files and of the page's parts are made of it
            if name not in self.more:
                if len(self.more) >= _MOST_TABLES:
                    continue
                columns = ("host", "guest", *COLUMNS[name]) if name in COLUMNS else ()
                self.more[name] = Table(str(name), columns)
            table = self.more[name]
            for row in _rows(rows):
                own = {"host": host, "guest": guest}
                if name == "sockets":
                    pid = row.get("pid")
                    own["process"] = names.get(pid) if isinstance(pid, int) else None
                table.add({**own, **row, "host": host, "guest": guest})


_SUMMED = ("guests", "not_looked_into", "trouble", "memory_total", "gives_back")


def day(seconds: float) -> str:
    """A Unix time as text, in UTC."""
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(seconds))

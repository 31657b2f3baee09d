"""Who uses a guest: credentials in use, and who is logged in.

Logins are what utmp says, where the guest has one in memory (/run is a tmpfs: it always is), as
far as the process that it names is there; and sessions that only processes know of: those that
carry an audit session (``task_struct.sessionid``, kernel/auditsc.c) or are in a scope of
systemd's logind.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING, Any

from virtintrospect.guests.linux import utmp
from virtintrospect.guests.linux.budget import Budget
from virtintrospect.guests.linux.dcache import Names, names_of
from virtintrospect.guests.linux.paths import PathReader
from virtintrospect.guests.linux.system import boot_time
from virtintrospect.model import Login, User

if TYPE_CHECKING:
    from virtintrospect.guests.linux.guest import LinuxGuest

Row = dict[str, Any]

#: INVALID_UID and AUDIT_SID_UNSET.
_UNSET = 0xFFFF_FFFF
_NANOSECONDS = 1_000_000_000
#: Bytes of /etc/passwd that are read; lines of it.
_MAX_PASSWD, _MAX_LINES = 4 << 20, 1 << 16
#: PID_MAX_LIMIT (include/linux/threads.h).
_MAX_PID = 4 << 20
_UTMP = b"/run/utmp"
_SCOPE = re.compile(rb"/session-([^/]{1,32})\.scope(?:/|$)")

_CREDENTIALS = {
    "pid": "tgid",
    "start": "start_boottime|real_start_time",
    "uid": "real_cred.uid.val",
    "gid": "real_cred.gid.val",
    "euid": "real_cred.euid.val",
    "egid": "real_cred.egid.val",
}
_MEMBERS = {
    "pid": "tgid",
    "start": "start_boottime|real_start_time",
    "uid": "real_cred.uid.val",
    "login": "loginuid.val?",
    "session": "sessionid?",
    "tty": "signal.tty.name",
    "node": "cgroups.dfl_cgrp.kn?",
}


def users(guest: LinuxGuest) -> list[User]:
    """The rows of ``users``, by user id."""
    budget = Budget()
    addresses = guest.tasks.addresses(budget)
    rows = _credentials(guest, addresses)
    if guest.live:
        guest.memory.expire()
        again = _credentials(guest, addresses)
        rows = [row for row, other in zip(rows, again, strict=True) if row == other]
    counts = Counter(row[2:] for row in rows if None not in row and 0 < row[0] <= _MAX_PID)
    found = names_of(guest, budget)
    names = account_names(found[0]) if found else {}
    guest.note_all([budget.problem])
    return [
        User(uid, gid, euid, egid, names.get(uid), counts[uid, gid, euid, egid])
        for uid, gid, euid, egid in sorted(counts)
    ]


def _credentials(guest: LinuxGuest, addresses: list[int]) -> list[tuple[int, ...]]:
    """Pid, start time and credentials of each task."""
    columns = guest.layout("task_struct", _CREDENTIALS, text=()).lists(guest.kernel, addresses, [])
    return list(zip(*columns.values(), strict=True))


def logins(guest: LinuxGuest) -> list[Login]:
    """The rows of ``logins``: those of utmp in its order, then others by their session's leader."""
    budget = Budget()
    found = names_of(guest, budget)
    rows = find_logins(guest, found[0] if found else None, budget)
    guest.note_all([budget.problem])
    return rows


def find_logins(guest: LinuxGuest, names: Names | None, budget: Budget) -> list[Login]:
    """As :func:`logins`, for a table that has looked files up already."""
    tasks = _tasks(guest, budget)
    cached = names.read(_UTMP) if names else None
    accounts = account_names(names) if names else {}
    rows: list[Login] = []
    covered: set[object] = set()
    for record in utmp.records(cached.pieces if cached else ()):
        task = tasks.get(record.pid)
        if task is None:
            continue  # whoever it was has gone without a record of that
        covered.add(_session(task))
        rows.append(
            Login(
                type=record.type,
                user=record.user or None,
                tty=record.tty or None,
                host=record.host or None,
                time=record.seconds + record.microseconds // 1000 / 1000,
                pid=record.pid,
                uid=_known(task["login"]) if record.type == "user" else None,
                session=task["scope"],
                source="utmp",
            )
        )
    return rows + _without_record(guest, tasks, covered, accounts)


def _without_record(
    guest: LinuxGuest, tasks: dict[int, Row], covered: set[object], accounts: dict[int, bytes]
) -> list[Login]:
    """Sessions that only their processes tell of; the oldest of them leads each."""
    leaders: dict[object, Row] = {}
    for task in tasks.values():
        session = _session(task)
        if session is None or session in covered:
            continue
        other = leaders.setdefault(session, task)
        if task["start"] < other["start"]:
            leaders[session] = task
    booted = boot_time(guest)
    rows = []
    for task in leaders.values():
        audit = _known(task["login"])
        uid = task["uid"] if audit is None else audit
        rows.append(
            Login(
                type="user",
                user=accounts.get(uid),
                tty=(task["tty"] or b"").split(b"\0", 1)[0] or None,
                host=None,
                time=None if booted is None else (booted + task["start"]) // 1_000_000 / 1000,
                pid=task["pid"],
                uid=uid,
                session=task["scope"],
                source="cgroup" if audit is None else "audit",
            )
        )
    return rows


def _tasks(guest: LinuxGuest, budget: Budget) -> dict[int, Row]:
    """Processes by their number, with the scope of logind that each is in."""
    addresses = guest.tasks.addresses(budget)
    layout = guest.layout("task_struct", _MEMBERS, text=("tty",))
    columns = layout.lists(guest.kernel, addresses, [])
    rows = [
        dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)
    ]
    rows = [row for row in rows if row["pid"] and 0 < row["pid"] <= _MAX_PID and row["start"]]
    nodes = {row["node"] for row in rows if row["node"]}
    paths = PathReader(guest, budget).cgroups(nodes)
    for row in rows:
        path = paths.get(row["node"]) or b""
        match = _SCOPE.search(path)
        row["scope"] = match[1] if match else None
        # The user's own systemd is a session to the kernel, but nobody who is logged in.
        row["service"] = b"/user@" in path
    return {row["pid"]: row for row in rows}


def _session(task: Row) -> object:
    """What tells one session from another: logind's scope, else the audit session."""
    if task["service"]:
        return None
    return task["scope"] or _known(task["session"])


def _known(number: int | None) -> int | None:
    return None if number == _UNSET else number


def account_names(names: Names) -> dict[int, bytes]:
    """Names of users by their id, as far as /etc/passwd is in memory (passwd(5))."""
    cached = names.read(b"/etc/passwd", limit=_MAX_PASSWD)
    found: dict[int, bytes] = {}
    for offset, data in cached.pieces if cached else ():
        lines = data.split(b"\n", _MAX_LINES)
        for number, line in enumerate(lines):
            cut = (offset and not number) or (number == len(lines) - 1 and line)
            fields = line[:1024].split(b":")
            if not cut and len(fields) >= 7 and fields[2].isdigit() and len(fields[2]) <= 10:
                found.setdefault(int(fields[2]), fields[0])
    return found

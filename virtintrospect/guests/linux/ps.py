"""Processes and threads, as /proc shows them (fs/proc/array.c, fs/proc/base.c).

All rows are made together: a few bulk reads bring every member of every task, further ones
what hangs on them (threads, paths, arguments).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from virtintrospect.guests.linux import system
from virtintrospect.guests.linux.budget import Budget
from virtintrospect.guests.linux.cmdline import Arguments, CommandLine, command_line, foresee
from virtintrospect.guests.linux.cputime import group_times, task_times
from virtintrospect.guests.linux.kthread import ThreadNames
from virtintrospect.guests.linux.lists import LIMIT
from virtintrospect.guests.linux.paths import FilePath, PathReader
from virtintrospect.guests.linux.rss import resident_pages, rss_members
from virtintrospect.guests.linux.state import state_letter
from virtintrospect.guests.linux.tasks import thread_groups
from virtintrospect.model import Process

if TYPE_CHECKING:
    from virtintrospect.guests.linux.guest import LinuxGuest

Row = dict[str, Any]

#: PF_KTHREAD (include/linux/sched.h).
PF_KTHREAD = 0x0020_0000
#: MAX_RT_PRIO and DEFAULT_PRIO (include/linux/sched/prio.h).
_MAX_RT_PRIO, _DEFAULT_PRIO = 100, 120
#: PID_MAX_LIMIT (include/linux/threads.h).
_MAX_PID = 4 << 20

_MEMBERS = {
    "tid": "pid",
    "pid": "tgid",
    "comm": "comm",
    "state": "__state|state",
    "exit_state": "exit_state",
    "flags": "flags",
    "prio": "prio",
    "static_prio": "static_prio",
    "start": "start_boottime|real_start_time",
    "parent": "real_parent.tgid",
    "uid": "real_cred.uid.val",
    "gid": "real_cred.gid.val",
    "euid": "real_cred.euid.val",
    "egid": "real_cred.egid.val",
    "utime": "utime",
    "stime": "stime",
    "runtime": "se.sum_exec_runtime",
    "prev_utime": "prev_cputime.utime",
    "prev_stime": "prev_cputime.stime",
    "signal": "signal",
    "threads": "signal.nr_threads",
    "mm": "mm",
    "pgd": "mm.pgd",
    "total_vm": "mm.total_vm",
    "arg_start": "mm.arg_start",
    "arg_end": "mm.arg_end",
    "env_end": "mm.env_end",
    "exe_mount": "mm.exe_file.f_path.mnt",
    "exe_dentry": "mm.exe_file.f_path.dentry",
    "cwd_mount": "fs.pwd.mnt",
    "cwd_dentry": "fs.pwd.dentry",
    "root_mount": "fs.root.mnt",
    "root_dentry": "fs.root.dentry",
    "cgroup": "cgroups.dfl_cgrp.kn?",
    "kthread": "worker_private|set_child_tid",
}
#: How often a row is read whose structures could not all be read: the guest may have been
#: changing them just then.
_ATTEMPTS = 3
#: What a second look must find again.
_STILL = (
    "tid", "start", "comm", "mm", "arg_start", "exe_mount", "exe_dentry", "cwd_mount",
    "cwd_dentry", "root_mount", "root_dentry", "signal", "parent", "uid", "gid", "euid", "egid",
)  # fmt: skip
_OF_MEMORY = ("path", "cmdline", "resident_size", "total_size")
#: Fields that came from what a member led to.
_HANGS_ON: dict[str, tuple[str, ...]] = {
    "mm": _OF_MEMORY,
    "arg_start": _OF_MEMORY,
    "exe_mount": ("path",),
    "exe_dentry": ("path",),
    "cwd_mount": ("cwd",),
    "cwd_dentry": ("cwd",),
    "root_mount": ("root",),
    "root_dentry": ("root",),
}
#: What each structure costs that cannot be read, or that changed meanwhile.
_DOUBT = 0.2


def processes(guest: LinuxGuest, *, threads: bool = False, details: bool = False) -> list[Process]:
    """The rows of ``ps``."""
    budget = Budget()
    leaders = guest.tasks.addresses(budget)
    addresses = with_threads(guest, leaders, budget) if threads else leaders
    found: dict[int, Process] = {}
    pending = addresses
    for _ in range(_ATTEMPTS if guest.live else 1):
        rows = _read(guest, pending)
        table = _Table(guest, rows, budget, threads=threads, details=details)
        records = table.records()
        if guest.live:
            records = _confirmed(guest, rows, records, table.moved())
        for address in pending:  # what was doubted, and is not there any more, goes
            found.pop(address, None)
        found |= {record.address: record for record in records}
        pending = [record.address for record in records if record.confidence < 1.0]
        table.note_missing(record for record in records if record.confidence == 1.0)
        if not pending or budget.late():
            break
    guest.note_all([budget.problem])
    return [found[address] for address in addresses if address in found]


def with_threads(guest: LinuxGuest, leaders: list[int], budget: Budget) -> list[int]:
    """Every thread, grouped by process, the leader first."""
    layout = guest.layout(
        "task_struct", {"signal": "signal", "threads": "signal.nr_threads"}, text=()
    )
    columns = layout.lists(guest.kernel, leaders, [])
    others = _others(guest, leaders, columns["signal"], columns["threads"], budget)
    addresses: list[int] = []
    room = LIMIT - len(leaders)  # no list of threads takes a leader's place
    for leader, group in zip(leaders, others, strict=True):
        addresses.append(leader)
        addresses += group[: max(room, 0)]
        room -= len(group)
    if room < 0:
        guest.note(f"more than {LIMIT} threads: the rest is left out", leaders[-1])
    return list(dict.fromkeys(addresses))  # a broken list may lead into another's


def _others(
    guest: LinuxGuest,
    leaders: Sequence[int],
    signals: Sequence[int | None],
    counts: Sequence[int | None],
    budget: Budget,
) -> list[list[int]]:
    """The threads of each process besides its leader."""
    several = [
        (index, signal, count)
        for index, (signal, count) in enumerate(zip(signals, counts, strict=True))
        if signal and count and count > 1
    ]
    groups = thread_groups(
        guest, [signal for _, signal, _ in several], [count for _, _, count in several], budget
    )
    others: list[list[int]] = [[] for _ in leaders]
    for (index, _, _), group in zip(several, groups, strict=True):
        others[index] = [thread for thread in group if thread != leaders[index]]
    return others


def _read(guest: LinuxGuest, addresses: list[int]) -> list[Row]:
    layout = guest.layout("task_struct", _MEMBERS | rss_members(guest.types), text=("comm",))
    columns = layout.lists(guest.kernel, addresses, [])
    columns["address"] = list(addresses)
    rows = [
        dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)
    ]
    return [row for row in rows if _plausible(guest, row)]


def _plausible(guest: LinuxGuest, row: Row) -> bool:
    """Whether this can be a task at all; what cannot is noted and left out."""
    if row["tid"] is None or row["comm"] is None or row["state"] is None:
        guest.note("unreadable task", row["address"])
        return False
    if not 0 < row["tid"] <= _MAX_PID or not 0 < row["pid"] <= _MAX_PID:
        guest.note(f"task with the impossible pid {row['tid']}", row["address"])
        return False
    return True


def _confirmed(
    guest: LinuxGuest, rows: list[Row], records: list[Process], moved: set[int]
) -> list[Process]:
    """Look a second time: a task that is no longer the same one is not reported.

    Of a task that has other memory or another directory by now, what was read of the old one
    may be anybody's: it is left out, and the row doubted.
    """
    layout = guest.layout("task_struct", {name: _MEMBERS[name] for name in _STILL}, text=("comm",))
    guest.memory.expire()
    again = layout.lists(guest.kernel, [row["address"] for row in rows], [])
    kept: list[Process] = []
    for index, (row, record) in enumerate(zip(rows, records, strict=True)):
        changed = [name for name in _STILL if again[name][index] != row[name]]
        if "tid" in changed or "start" in changed:
            guest.note(f"task {row['tid']} ended while it was read", row["address"])
        elif changed or index in moved:
            kept.append(_doubted(record, changed))
        else:
            kept.append(record)
    return kept


def _doubted(record: Process, changed: list[str]) -> Process:
    """A record without what can no longer be believed."""
    from dataclasses import replace

    hidden: dict[str, None] = {}
    for name in changed:
        hidden |= dict.fromkeys(_HANGS_ON.get(name, ()))
    less = _DOUBT * max(1, len({_HANGS_ON.get(name) for name in changed}))
    changes: dict[str, Any] = hidden | {"confidence": round(max(0.0, record.confidence - less), 1)}
    return replace(record, **changes)


def _arguments(row: Row) -> Arguments:
    return Arguments(row["arg_start"], row["arg_end"], row["env_end"])


class _Table:
    """All rows of one ``ps``, and what they share."""

    def __init__(
        self,
        guest: LinuxGuest,
        rows: list[Row],
        budget: Budget,
        *,
        threads: bool,
        details: bool,
    ) -> None:
        self._guest = guest
        self._rows = rows
        self._budget = budget
        booted = system.boot_time(guest)
        self._booted = None if booted is None else booted // 1_000_000_000
        self._names = ThreadNames(guest, rows)
        paths = PathReader(guest, budget)
        wanted = {_file(row, kind) for row in rows for kind in ("exe", "cwd", "root")}
        self._files = paths.files(path for path in wanted if path)
        self._cgroups = paths.cgroups(row["cgroup"] for row in rows if row["cgroup"])
        self._resident = resident_pages(guest, rows, budget)
        addresses = [row["address"] for row in rows]
        others = None
        if not threads:
            signals = [row["signal"] for row in rows]
            counts = [row["threads"] for row in rows]
            others = _others(guest, addresses, signals, counts, budget)
        self._times = (
            [task_times(row) for row in rows]
            if others is None
            else group_times(guest, rows, others)
        )
        self._moved: set[int] = set()
        self._details: list[Row] = []
        if details:
            from virtintrospect.guests.linux.details import details_of

            self._details, self._moved = details_of(guest, addresses, others, budget)
        self._arguments: dict[int, CommandLine] = {}
        foresee(guest, [(row["pgd"], _arguments(row)) for row in rows if row["pgd"]])

    def records(self) -> list[Process]:
        return [self._record(index, row) for index, row in enumerate(self._rows)]

    def _record(self, index: int, row: Row) -> Process:
        utime, stime = self._times[index]
        resident = self._resident[index]
        kernel_thread = bool(row["flags"] & PF_KTHREAD)
        user, page = bool(row["mm"]) and not kernel_thread, self._guest.page_size
        return Process(
            pid=row["pid"],
            tid=row["tid"],
            parent=row["parent"],
            name=self._names.name(index),
            state=state_letter(row["state"], row["exit_state"]),
            uid=row["uid"],
            gid=row["gid"],
            euid=row["euid"],
            egid=row["egid"],
            threads=row["threads"],
            nice=row["static_prio"] - _DEFAULT_PRIO,
            priority=row["prio"] - _MAX_RT_PRIO,
            start_time=self._start_time(row),
            user_time=None if utime is None else utime // 1_000_000,
            system_time=None if stime is None else stime // 1_000_000,
            resident_size=None if resident is None or not user else resident * page,
            total_size=row["total_vm"] * page if user and row["total_vm"] is not None else None,
            path=self._file(row, "exe"),
            cmdline=self._kept(self._command_line(row)) if user else None,
            cwd=self._file(row, "cwd"),
            root=self._file(row, "root"),
            cgroup_path=self._kept(self._cgroups.get(row["cgroup"])),
            kernel_thread=kernel_thread,
            address=row["address"],
            confidence=self._confidence(row),
            **(self._details[index] if self._details else {}),
        )

    def _start_time(self, row: Row) -> int | None:
        if self._booted is None:
            return None
        return self._booted + int(row["start"]) // 1_000_000_000

    def _file(self, row: Row, kind: str) -> bytes | None:
        path = _file(row, kind)
        return self._kept(self._files.get(path)) if path else None

    def _kept(self, text: bytes | None) -> bytes | None:
        """A string, as far as the budget goes: shared by many rows, it is shown in each."""
        return text if text is None or self._budget.keep(len(text)) else None

    def moved(self) -> set[int]:
        """Rows whose details changed while they were read."""
        return self._moved

    def note_missing(self, records: Iterable[Process]) -> None:
        """Say of rows that are believed what of their command lines is not in memory."""
        mm_of = {row["address"]: row["mm"] for row in self._rows}
        said: dict[int, int] = {}
        for record in records:
            mm = mm_of[record.address]
            if mm in self._arguments and said.setdefault(mm, record.tid) == record.tid:
                missing = self._arguments[mm].missing
                what = f"{missing} bytes of the command line of process {record.pid}"
                if missing:
                    self._guest.note(f"{what} are not in memory", record.address)

    def _command_line(self, row: Row) -> bytes | None:
        """Read once for all threads of a process: they share their memory."""
        if row["mm"] not in self._arguments:
            where = _arguments(row)
            self._arguments[row["mm"]] = command_line(self._guest, row["pgd"], where, self._budget)
        return self._arguments[row["mm"]].text

    def _confidence(self, row: Row) -> float:
        """1.0, less a fifth for each structure that should be there and cannot be read."""
        broken = sum(row[pointer] is None for pointer in ("parent", "uid", "threads"))
        broken += bool(row["mm"]) and row["pgd"] is None
        return round(max(0.0, 1.0 - _DOUBT * broken), 1)


def _file(row: Row, kind: str) -> FilePath | None:
    mount, dentry = row[f"{kind}_mount"], row[f"{kind}_dentry"]
    return FilePath(mount, dentry) if mount and dentry else None

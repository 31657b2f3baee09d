"""What ``ps`` shows of a task only when asked: identities, limits, namespaces, scheduling, I/O.

As /proc/PID/status, stat, io, ns and attr have it (fs/proc/array.c, fs/proc/base.c,
fs/proc/namespaces.c). Each structure that tasks share is read once for all of them.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from virtintrospect.errors import FaultError, NotFoundError
from virtintrospect.guests.linux import bitmap
from virtintrospect.guests.linux.apparmor import labels
from virtintrospect.guests.linux.capabilities import names

if TYPE_CHECKING:
    from virtintrospect.guests.linux.budget import Budget
    from virtintrospect.guests.linux.guest import LinuxGuest

Row = dict[str, Any]

#: Sets of capabilities: two 32-bit words until 6.2, one of 64 bits since (commit f122a08b197d).
_SETS = ("inheritable", "permitted", "effective", "bounding:cap_bset", "ambient")
#: In ``nsproxy``; the PID and user namespaces of a task are elsewhere.
_NAMESPACES = {
    "cgroup_namespace": "cgroup_ns",
    "ipc_namespace": "ipc_ns",
    "mnt_namespace": "mnt_ns",
    "net_namespace": "net_ns",
    "time_namespace": "time_ns",
    "uts_namespace": "uts_ns",
}
_TASK = {
    "suid": "real_cred.suid.val",
    "sgid": "real_cred.sgid.val",
    "fsuid": "real_cred.fsuid.val",
    "fsgid": "real_cred.fsgid.val",
    "group_info": "real_cred.group_info",
    "security": "real_cred.security?",
    "user_namespace": "real_cred.user_ns.ns.inum",
    "flags": "atomic_flags",
    "seccomp": "seccomp.mode?",
    "filters": "seccomp.filter_count.counter?",
    "struct_pid": "thread_pid",
    "level": "thread_pid.level",
    "tty": "signal.tty.name",
    "tty_index": "signal.tty.index",
    "tty_major": "signal.tty.driver.major",
    "policy": "policy",
    "rt_priority": "rt_priority",
    "cpu": "thread_info.cpu|cpu",
    "cpus": "cpus_ptr|cpus_mask",
    "read": "ioac.read_bytes?",
    "written": "ioac.write_bytes?",
    "minor": "min_flt",
    "major": "maj_flt",
    "voluntary": "nvcsw",
    "involuntary": "nivcsw",
    "oom": "signal.oom_score_adj",
    "loginuid": "loginuid.val?",
    "ptrace": "ptrace",
    "tracer": "parent.pid",
    "ended_read": "signal.ioac.read_bytes?",
    "ended_written": "signal.ioac.write_bytes?",
    "ended_minor": "signal.min_flt",
    "ended_major": "signal.maj_flt",
}
#: What a process is the sum of: its threads', and those of threads that have ended.
_SUMS = ("read", "written", "minor", "major")
#: What must not have changed: by these all is found that tasks share.
_POINTERS = (
    "group_info", "security", "struct_pid", "level", "group_pid", "session_pid", "tty", "cpus",
    "user_namespace", *_NAMESPACES, "suid", "sgid", "fsuid", "fsgid", "cap_effective", "oom",
)  # fmt: skip
_SECCOMP = ("disabled", "strict", "filter")
#: SCHED_* (include/uapi/linux/sched.h).
_POLICIES = {0: "other", 1: "fifo", 2: "rr", 3: "batch", 5: "idle", 6: "deadline", 7: "ext"}
#: PFA_NO_NEW_PRIVS (include/linux/sched.h), a bit of ``atomic_flags``.
_NO_NEW_PRIVS = 1
#: NGROUPS_MAX (include/uapi/linux/limits.h).
_MAX_GROUPS = 65536
#: Groups that are read together: more are rare.
_FEW_GROUPS = 16
#: Characters that one group takes in the output.
_GROUP_WIDTH = 12
#: MAX_PID_NS_LEVEL (include/linux/pid_namespace.h).
_MAX_LEVEL = 32
#: UNIX98_PTY_SLAVE_MAJOR and its count (include/uapi/linux/major.h).
_PTS_MAJORS = range(136, 144)
#: Nobody has logged in: AUDIT_UID_UNSET.
_UNSET = 0xFFFF_FFFF
_MAX_PID = 4 << 20


def details_of(
    guest: LinuxGuest,
    addresses: Sequence[int],
    groups: Sequence[Sequence[int]] | None,
    budget: Budget,
) -> tuple[list[Row], set[int]]:
    """The fields from ``suid`` on of :class:`~virtintrospect.model.Process`, task by task.

    :param groups: where the rows are processes, the other threads of each; they are added up.
    :returns: the fields, and which tasks had others when looked at again.
    """
    rows = _read(guest, addresses)
    then = [[row[name] for name in _POINTERS] for row in rows]
    if groups is not None:
        _add_threads(guest, rows, groups)
    tables: dict[str, Sequence[Any]] = {
        "groups": _groups(guest, rows, budget),
        "apparmor": labels(guest, [row["security"] for row in rows], budget),
        "cpus_allowed": _cpus_allowed(guest, rows),
    }
    _pids(guest, rows)
    moved: set[int] = set()
    if guest.live:
        now = ([row[name] for name in _POINTERS] for row in _read(guest, addresses))
        pairs = enumerate(zip(then, now, strict=True))
        moved = {index for index, (first, second) in pairs if first != second}
    fields = [
        _fields(row) | {name: column[index] for name, column in tables.items()}
        for index, row in enumerate(rows)
    ]
    return fields, moved


def _read(guest: LinuxGuest, addresses: Sequence[int]) -> list[Row]:
    members = dict(_TASK)
    for name in _SETS:
        name, _, member = name.partition(":")
        path = f"real_cred.{member or 'cap_' + name}"
        members |= {f"cap_{name}": f"{path}.val|{path}.cap[0]", f"high_{name}": f"{path}.cap[1]?"}
    for name, member in _NAMESPACES.items():
        members[name] = f"nsproxy.{member}.ns.inum?"
    kinds = guest.types.enumerators("pid_type")
    members |= {
        "group_pid": f"signal.pids[{kinds['PIDTYPE_PGID']}]",
        "session_pid": f"signal.pids[{kinds['PIDTYPE_SID']}]",
    }
    columns = guest.layout("task_struct", members, text=("tty",)).lists(guest.kernel, addresses, [])
    return [
        dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)
    ]


def _fields(row: Row) -> Row:
    found: Row = {
        name: row[name]
        for name in ("suid", "sgid", "fsuid", "fsgid", "user_namespace", *_NAMESPACES)
    }
    for name in _SETS:
        name = name.partition(":")[0]
        low, high = row[f"cap_{name}"], row[f"high_{name}"]
        found[f"cap_{name}"] = None if low is None else low | (high or 0) << 32
    effective = found["cap_effective"]
    policy, ptraced, mode = row["policy"], row["ptrace"], row["seccomp"]
    return found | {
        "capabilities": None if effective is None else names(effective),
        "no_new_privs": None if row["flags"] is None else bool(row["flags"] & _NO_NEW_PRIVS),
        "seccomp": None if mode is None else _SECCOMP[mode] if 0 <= mode < 3 else str(mode),
        "seccomp_filters": row["filters"],
        "pid_namespace": row["pid_namespace"],
        "nspid": row["nspid"],
        "pgroup": row["pgroup"],
        "session": row["session"],
        "tty": _tty(row),
        "policy": None if policy is None else _POLICIES.get(policy, str(policy)),
        "rt_priority": row["rt_priority"],
        "cpu": row["cpu"],
        "disk_bytes_read": row["read"],
        "disk_bytes_written": row["written"],
        "minor_faults": row["minor"],
        "major_faults": row["major"],
        "voluntary_switches": row["voluntary"],
        "involuntary_switches": row["involuntary"],
        "oom_score_adj": row["oom"],
        "loginuid": None if row["loginuid"] == _UNSET else row["loginuid"],
        "tracer": row["tracer"] if ptraced else None,
    }


def _tty(row: Row) -> bytes | None:
    """Name of the controlling terminal: a pseudo-terminal's is a path (``pts/0``)."""
    if row["tty"] is None:
        return None
    if row["tty_major"] in _PTS_MAJORS:
        return b"pts/%d" % row["tty_index"]
    name: bytes = row["tty"].split(b"\0", 1)[0]
    return name


def _add_threads(guest: LinuxGuest, rows: list[Row], groups: Sequence[Sequence[int]]) -> None:
    """Make the counters of leaders those of whole processes (``do_task_stat()``)."""
    layout = guest.layout("task_struct", {name: _TASK[name] for name in _SUMS}, text=())
    threads = [thread for group in groups for thread in group]
    columns = layout.lists(guest.kernel, threads, [])
    position = 0
    for row, group in zip(rows, groups, strict=True):
        for name in _SUMS:
            own, ended = row[name], row[f"ended_{name}"]
            others = columns[name][position : position + len(group)]
            row[name] = (
                None
                if own is None or ended is None
                else own + ended + sum(value for value in others if value is not None)
            )
        position += len(group)


def _groups(guest: LinuxGuest, rows: list[Row], budget: Budget) -> list[tuple[int, ...] | None]:
    """Supplementary groups (``group_info``), which processes share."""
    distinct = list({row["group_info"] for row in rows if row["group_info"]})
    counts = guest.layout("group_info", {"count": "ngroups"}, text=()).lists(
        guest.kernel, distinct, []
    )["count"]
    first = guest.types.offsetof("group_info", "gid")
    faults: list[int] = []
    data = guest.kernel.gather([it + first for it in distinct], 4 * _FEW_GROUPS, faults)
    bad = set(faults)
    found: dict[int, tuple[int, ...]] = {}
    for index, (place, count) in enumerate(zip(distinct, counts, strict=True)):
        if count is None or not 0 <= count <= _MAX_GROUPS:
            guest.note(f"credentials with {count} groups", place)
        elif count <= _FEW_GROUPS and index not in bad:
            found[place] = struct.unpack_from(f"<{count}I", data, index * 4 * _FEW_GROUPS)
        elif budget.follow(count >> 3) == count >> 3 and not budget.late():
            try:
                many = guest.kernel.read(place + first, 4 * count)
                found[place] = struct.unpack(f"<{count}I", many)
            except FaultError as error:
                guest.note("unreadable groups", error.address)
    groups = [found.get(row["group_info"]) for row in rows]
    return [
        them if them is None or budget.keep(_GROUP_WIDTH * len(them)) else None for them in groups
    ]


def _pids(guest: LinuxGuest, rows: list[Row]) -> None:
    """``struct pid``: numbers of a task, its group and its session in a PID namespace.

    Number 0 of ``pid.numbers`` is that of the initial namespace, number ``level`` the task's own.
    """
    first, size = guest.types.offsetof("pid", "numbers"), guest.types.sizeof("upid")
    layout = guest.layout("upid", {"number": "nr", "namespace": "ns.ns.inum"}, text=())
    wanted: list[tuple[Row, str, int]] = []
    for row in rows:
        row |= {"nspid": None, "pgroup": None, "session": None, "pid_namespace": None}
        if row["struct_pid"] and 0 <= (-1 if row["level"] is None else row["level"]) <= _MAX_LEVEL:
            wanted.append((row, "nspid", row["struct_pid"] + first + size * row["level"]))
        for name, pointer in (("pgroup", row["group_pid"]), ("session", row["session_pid"])):
            if pointer:
                wanted.append((row, name, pointer + first))
    places = list({place for _, _, place in wanted})
    columns = layout.lists(guest.kernel, places, [])
    found = dict(zip(places, zip(*columns.values(), strict=True), strict=True))
    for row, name, place in wanted:
        number, namespace = found[place]
        # Number 0 is of what stands outside: the group of the kernel's own threads.
        if number is not None and 0 <= number <= _MAX_PID:
            row[name] = number
            if name == "nspid":
                row["pid_namespace"] = namespace


def _cpus_allowed(guest: LinuxGuest, rows: list[Row]) -> list[str | None]:
    """``cpumask``, as far as there can be CPUs; as a list of ranges, as in /proc/PID/status."""
    try:
        count = max(bitmap.read(guest, "__cpu_possible_mask"), default=-1) + 1
    except (FaultError, NotFoundError) as error:
        guest.note(f"no CPUs: {error}", 0)
        return [None] * len(rows)
    size = -(-count // 64) * 8  # as ``unsigned long`` of either size lie in memory
    distinct = list({row["cpus"] for row in rows if row["cpus"]})
    faults: list[int] = []
    data = guest.kernel.gather(distinct, size, faults)
    bad = set(faults)
    found: dict[int, str] = {}
    for index, place in enumerate(distinct):
        if index not in bad:
            bits = int.from_bytes(data[index * size : (index + 1) * size], "little")
            found[place] = bitmap.spell(bits & ((1 << count) - 1))
    return [found.get(row["cpus"]) for row in rows]

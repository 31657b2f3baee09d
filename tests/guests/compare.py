"""Our tables held against the guest's own /proc, field by field.

The guest goes on running while we look. So its word is taken twice, before and after: what does
not change must be equal, what only grows must lie between, and what changed back and forth in
between (a state, a worker's job) is compared only where both words agree.
"""

from __future__ import annotations

from typing import Any

from virtintrospect.guests.linux.printk import FACILITIES, LEVELS
from virtintrospect.model import LogRecord, Module, Process

from .lab.truth import Process as Truth
from .lab.truth import Snapshot, Task

#: USER_HZ: the unit of times in /proc/PID/stat.
_TICK_MS = 10
#: Pages that a CPU may keep to itself in a percpu_counter: /proc before 6.16 does not see them,
#: we do (percpu_counter_batch: the larger of 32 and two per CPU), for three counters.
_RSS_SLACK = 3 * 32 * 2
#: Fields of /proc/PID/stat, numbered as in proc(5).
_PPID, _PRIORITY, _NICE, _THREADS, _START = 4, 18, 19, 20, 22
_UTIME, _STIME = 14, 15
_PF_WQ_WORKER = 0x20


def processes(ours: list[Process], before: Snapshot, after: Snapshot) -> list[str]:
    """Every difference between ``ps`` and /proc, as a sentence; empty when there is none."""
    mine = {process.pid: process for process in ours}
    first, last = before.processes, after.processes
    stable = {pid for pid in first if pid in last and _same(first[pid], last[pid])}
    found = [f"pid {pid} is missing" for pid in sorted(stable - mine.keys())]
    invented = sorted(mine.keys() - first.keys() - last.keys())
    found += [f"pid {pid} is invented: {mine[pid]}" for pid in invented]
    for pid in sorted(stable & mine.keys()):
        found += _process(mine[pid], first[pid], last[pid], before)
    return found


def threads(ours: list[Process], before: Snapshot, after: Snapshot) -> list[str]:
    """Differences between ``ps --threads`` and /proc/PID/task."""
    mine = {thread.tid: thread for thread in ours}
    found = []
    for pid, process in before.processes.items():
        last = after.processes.get(pid)
        if last is None or not _same(process, last):
            continue
        for tid, thread in process.threads.items():
            if tid not in last.threads:
                continue
            if tid not in mine:
                found.append(f"thread {tid} of {pid} is missing")
                continue
            expected = {"pid": pid, "tid": tid} | _identity(thread)
            found += _differences(f"thread {tid}", mine[tid], expected)
            if thread.stat is not process.stat:  # /proc/PID/stat has the whole process's times
                found += _time(f"thread {tid}", mine[tid], thread, last.threads[tid])
    return found


def _same(first: Task, last: Task) -> bool:
    return first.stat.number(_START) == last.stat.number(_START)


def _process(mine: Process, first: Truth, last: Truth, before: Snapshot) -> list[str]:
    subject = f"pid {mine.pid} ({mine.name!r})"
    expected: dict[str, Any] = {"pid": first.tid, "tid": first.tid} | _identity(first)
    expected |= {
        "threads": first.stat.number(_THREADS),
        "kernel_thread": first.kernel_thread,
        "cwd": first.cwd,
        "root": first.root,
        "path": first.exe,
        "cgroup_path": _cgroup(first),
        "cmdline": _cmdline(first),
        "total_size": None if not first.statm[0] else first.statm[0] * before.page_size,
        "confidence": 1.0,
    }
    for name, again in (("cwd", last.cwd), ("path", last.exe), ("cmdline", _cmdline(last))):
        if expected[name] != again:
            del expected[name]
    if _cgroup(first) is None:
        del expected["cgroup_path"]
    if first.statm[0] != last.statm[0]:
        del expected["total_size"]
    found = _differences(subject, mine, expected)
    found += _state(subject, mine, first, last)
    found += _name(subject, mine, first, last)
    found += _time(subject, mine, first, last)
    found += _start(subject, mine, first, before)
    return found + _resident(subject, mine, first, last, before.page_size)


def _identity(task: Task) -> dict[str, Any]:
    stat = task.stat
    return {
        "uid": task.uids[0],
        "euid": task.uids[1],
        "gid": task.gids[0],
        "egid": task.gids[1],
        "nice": stat.number(_NICE),
        "priority": stat.number(_PRIORITY),
        "parent": stat.number(_PPID),
    }


def _differences(subject: str, mine: Process, expected: dict[str, Any]) -> list[str]:
    return [
        f"{subject}: {name} is {getattr(mine, name)!r}, the guest says {value!r}"
        for name, value in expected.items()
        if getattr(mine, name) != value
    ]


def _cgroup(process: Truth) -> bytes | None:
    """The path in the unified hierarchy; ``None`` where it is not mounted."""
    for line in process.cgroup.splitlines():
        if line.startswith(b"0::"):
            return line[3:].removesuffix(b" (deleted)")
    return None


def _cmdline(process: Truth) -> bytes | None:
    if process.kernel_thread or not process.statm[0]:
        return None
    return process.cmdline.rstrip(b"\0").replace(b"\0", b" ")


def _state(subject: str, mine: Process, first: Task, last: Task) -> list[str]:
    states = {first.stat.state, last.stat.state}
    if len(states) > 1 or mine.state in states:
        return []
    # It ran just then, or waited for something else.
    if mine.state in ("RSDI" if _has_run(first, last) else "RS") and states <= set("RSID"):
        return []
    return [f"{subject}: state is {mine.state}, the guest says {first.stat.state}"]


def _has_run(first: Task, last: Task) -> bool:
    names = ("voluntary_ctxt_switches", "nonvoluntary_ctxt_switches")
    return any(first.status[name] != last.status[name] for name in names)


def _name(subject: str, mine: Process, first: Task, last: Task) -> list[str]:
    names = {first.stat.comm, last.stat.comm}
    if mine.name in names:
        return []
    if first.stat.number(9) & _PF_WQ_WORKER:
        # "kworker/0:1-events": what a worker does changes all the time.
        heads = {name.partition(b"-")[0].partition(b"+")[0] for name in names}
        if mine.name.partition(b"-")[0].partition(b"+")[0] in heads:
            return []
        # Before 6.10 /proc cuts a rescuer's name at 15 bytes; we know all of it.
        if any(len(name) == 15 and mine.name.startswith(name) for name in names):
            return []
    return [f"{subject}: the guest calls it {names}"]


def _time(subject: str, mine: Process, first: Task, last: Task) -> list[str]:
    """The sum of user and system time, and their shares.

    The shares come from sampled ticks, and one tick may shift them either way: what the guest
    would have said between its two words need not lie between them (cputime_adjust() keeps to
    what it told before, which is nothing to who did not ask).
    """
    names = {"user_time": _UTIME, "system_time": _STIME}
    values = [getattr(mine, name) for name in names]
    if None in values:
        return [f"{subject}: user and system time are {values} ms"]
    low = sum(first.stat.number(field) for field in names.values()) * _TICK_MS
    high = (sum(last.stat.number(field) for field in names.values()) + 2) * _TICK_MS
    found = []
    if not low <= sum(values) <= high:
        found.append(f"{subject}: CPU time is {values} ms, the guest says {low} to {high} in all")
    slack = high // 10 + 2 * _TICK_MS
    for (name, field), value in zip(names.items(), values, strict=True):
        least = first.stat.number(field) * _TICK_MS - slack
        most = (last.stat.number(field) + 1) * _TICK_MS + slack
        if not least <= value <= most:
            found.append(f"{subject}: {name} is {value} ms, the guest says {least} to {most}")
    return found


def _start(subject: str, mine: Process, first: Task, before: Snapshot) -> list[str]:
    wanted = before.boot_time + first.stat.number(_START) // 100
    if mine.start_time is not None and abs(mine.start_time - wanted) <= 1:
        return []
    return [f"{subject}: start_time is {mine.start_time}, the guest says {wanted}"]


def _resident(subject: str, mine: Process, first: Truth, last: Truth, page: int) -> list[str]:
    if not first.statm[0]:
        return [] if mine.resident_size is None else [f"{subject}: resident_size without memory"]
    values, slack = (first.statm[1] * page, last.statm[1] * page), _RSS_SLACK * page
    size = mine.resident_size
    if size is not None and min(values) - slack <= size <= max(values) + slack:
        return []
    return [f"{subject}: resident_size is {size}, the guest says {values}"]


def modules(ours: list[Module], truth: Snapshot) -> list[str]:
    """Differences between ``modules`` and /proc/modules, the order included."""
    expected = [
        (m.name.encode(), m.size, tuple(n.encode() for n in m.used_by), m.refcount, m.status,
         m.address, m.taints)
        for m in truth.modules.values()
    ]  # fmt: skip
    mine = [(m.name, m.size, m.used_by, m.refcount, m.status, m.address, m.taints) for m in ours]
    if mine == expected:
        return []
    return [f"modules: {a} is not {b}" for a, b in zip(mine, expected, strict=False) if a != b] + (
        [f"modules: {len(mine)}, the guest has {len(expected)}"]
        if len(mine) != len(expected)
        else []
    )


def log(ours: list[LogRecord], before: Snapshot) -> list[str]:
    """Differences between ``dmesg`` and /dev/kmsg; records that came later may be there too."""
    mine = {record.sequence: record for record in ours}
    found = []
    for record in before.log:
        entry = mine.get(record.sequence)
        if entry is None:
            found.append(f"dmesg {record.sequence} is missing: {record}")
            continue
        expected = (LEVELS[record.level], FACILITIES[record.facility], record.text)
        if (entry.level, entry.facility, entry.text) != expected:
            found.append(f"dmesg {record.sequence}: {entry} is not {expected}")
        if abs(entry.time * 1e6 - record.time) > 1:
            found.append(f"dmesg {record.sequence}: time is {entry.time}, not {record.time} us")
    return found

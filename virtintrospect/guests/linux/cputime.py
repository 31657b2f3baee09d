"""CPU time of tasks and processes (kernel/sched/cputime.c).

Ticks are sampled into ``utime`` and ``stime``; what the scheduler measured exactly is the sum
of both. /proc shows the exact sum, split in the sampled ratio, and never lets a figure fall.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from virtintrospect.guests.linux.guest import LinuxGuest

Times = tuple[int | None, int | None]

_SIGNAL = {
    "utime": "utime",
    "stime": "stime",
    "runtime": "sum_sched_runtime",
    "prev_utime": "prev_cputime.utime",
    "prev_stime": "prev_cputime.stime",
}
_TASK = {"utime": "utime", "stime": "stime", "runtime": "se.sum_exec_runtime"}


def adjust(utime: int, stime: int, runtime: int, prev_utime: int, prev_stime: int) -> Times:
    """``cputime_adjust()``: user and system time that add up to ``runtime``, in nanoseconds."""
    if prev_utime + prev_stime >= runtime:
        return prev_utime, prev_stime
    if stime <= 0:
        system = 0
    elif utime <= 0:
        system = runtime
    else:
        system = min(runtime, stime * runtime // (stime + utime))
    system = max(system, prev_stime)
    user = runtime - system
    if user < prev_utime:
        user = prev_utime
        system = runtime - user
    return user, system


def task_times(row: dict[str, Any]) -> Times:
    """Times of one thread."""
    return adjust(row["utime"], row["stime"], row["runtime"], row["prev_utime"], row["prev_stime"])


def group_times(
    guest: LinuxGuest, rows: Sequence[dict[str, Any]], threads: Sequence[Sequence[int]]
) -> list[Times]:
    """Times of whole processes: their threads', and those of threads that have ended.

    :param threads: of each process those besides the leader.
    """
    signals = [row["signal"] or 0 for row in rows]
    ended = guest.layout("signal_struct", _SIGNAL, text=()).lists(guest.kernel, signals, [])
    others = [thread for group in threads for thread in group]
    columns = guest.layout("task_struct", _TASK, text=()).lists(guest.kernel, others, [])
    position = 0
    totals: list[Times] = []
    for index, (row, group) in enumerate(zip(rows, threads, strict=True)):
        base = {name: column[index] for name, column in ended.items()}
        span = slice(position, position + len(group))
        position += len(group)
        if base["utime"] is None:
            totals.append((None, None))
            continue
        sums = [
            base[key] + row[key] + sum(value or 0 for value in columns[key][span]) for key in _TASK
        ]
        totals.append(adjust(sums[0], sums[1], sums[2], base["prev_utime"], base["prev_stime"]))
    return totals

"""Run queues: what each CPU is running, and what waits for it (kernel/sched/sched.h).

Names and numbers are those of /sys/kernel/debug/sched/debug (kernel/sched/debug.c), which
5.10 has as /proc/sched_debug.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from virtintrospect.guests.linux import percpu, schedclock
from virtintrospect.model import RunQueue

if TYPE_CHECKING:
    from virtintrospect.guests.linux.guest import LinuxGuest

_MEMBERS = {
    "curr": "curr",
    "idle": "idle",
    "clock": "clock",
    "running": "nr_running",
    # Tasks in groups count, too: h_nr_running until 6.13.
    "fair": "cfs.h_nr_queued|cfs.h_nr_running|cfs.nr_running",
    "fair_weight": "cfs.load.weight",
    "load_average": "cfs.avg.load_avg",
    "utilization": "cfs.avg.util_avg",
    "realtime": "rt.rt_nr_running",
    "deadline": "dl.dl_nr_running",
    "uninterruptible": "nr_uninterruptible",
    "iowait": "nr_iowait.counter",
    "switches": "nr_switches",
}
_TASK = {"pid": "tgid", "tid": "pid", "comm": "comm", "arrival": "sched_info.last_arrival?"}


def runqueues(guest: LinuxGuest) -> list[RunQueue]:
    """The rows of ``runqueues``."""
    cpus = percpu.online(guest)
    rows = read(guest, list(cpus.values()))
    moment = schedclock.now(guest)
    found = []
    for cpu, row in zip(cpus, rows, strict=True):
        if None in (row["running"], row["curr"], row["iowait"]):
            guest.note(f"unreadable run queue of CPU {cpu}", guest.symbols.address("runqueues"))
            continue
        idle = row["curr"] == row["idle"]
        comm = row["comm"]
        arrived = None if idle else row["arrival"]
        found.append(
            RunQueue(
                cpu=cpu,
                pid=row["pid"],
                tid=row["tid"],
                name=None if comm is None else comm.split(b"\0", 1)[0],
                idle=idle,
                running_for=_age(moment, arrived),
                clock_age=_age(moment, row["clock"]),
                uninterruptible=signed(row["uninterruptible"]),
                **{name: row[name] for name in _PLAIN},
            )
        )
    return found


_PLAIN = (
    "running", "fair", "realtime", "deadline", "fair_weight", "load_average", "utilization",
    "iowait", "switches",
)  # fmt: skip


def read(guest: LinuxGuest, offsets: list[int]) -> list[dict[str, Any]]:
    """The run queues at these per-CPU offsets, each with its current task."""
    places = percpu.addresses(guest, guest.symbols.address("runqueues"), offsets)
    columns = guest.layout("rq", _MEMBERS, text=()).lists(guest.kernel, places, [])
    layout = guest.layout("task_struct", _TASK, text=("comm",))
    columns |= layout.lists(guest.kernel, [task or 0 for task in columns["curr"]], [])
    return [
        dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)
    ]


def signed(value: int) -> int:
    """An ``unsigned int`` or ``unsigned long`` that goes below zero.

    It is an unsigned long, of which the kernel prints the lower half.
    """
    low = value & 0xFFFF_FFFF
    return low - (1 << 32) if low >> 31 else low


def _age(moment: int, since: int | None) -> int | None:
    """Milliseconds from a moment to another; ``None`` where one is not known."""
    return max(0, moment - since) // 1_000_000 if moment and since else None

"""Control groups, and what is made of them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ControlGroup:
    """One row of ``cgroups``: a control group, as its files below /sys/fs/cgroup describe it.

    A limit that is not set, ``max`` in the guest, is ``None``; the figure it limits is there.
    """

    path: bytes | None
    #: ``unified`` (v2); in v1 the controllers, ``cpu,cpuacct``, or ``name=systemd``.
    hierarchy: bytes
    #: As cgroup.procs lists them, those of groups below not included.
    processes: int
    #: Whether it or a group below it has a task.
    populated: bool | None
    frozen: bool | None
    #: Bytes.
    memory_current: int | None
    memory_max: int | None
    memory_high: int | None
    memory_low: int | None
    memory_min: int | None
    swap_current: int | None
    swap_max: int | None
    #: memory.events: how often it met ``memory_high``, ``memory_max``, had no memory left, and
    #: how many of its processes the kernel killed for it.
    memory_events_high: int | None
    memory_events_max: int | None
    memory_events_oom: int | None
    memory_events_oom_kill: int | None
    #: Microseconds of CPU time, groups below it included.
    usage_usec: int | None
    user_usec: int | None
    system_usec: int | None
    #: Periods in which it ran with a ``cpu_max``, those in which it met it, microseconds lost.
    nr_periods: int | None
    nr_throttled: int | None
    throttled_usec: int | None
    #: Its share where CPUs are scarce: 1 to 10,000, 100 unless set.
    cpu_weight: int | None
    #: Microseconds of CPU time that it may have in each ``cpu_period``.
    cpu_max: int | None
    cpu_period: int | None
    #: Tasks, threads and groups below it included.
    pids_current: int | None
    pids_max: int | None
    #: Virtual address of the ``struct cgroup``.
    address: int

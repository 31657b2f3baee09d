"""The kernel itself: its version, its modules, its log."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SystemInfo:
    """One row of ``info``: which kernel runs, and since when."""

    os: str
    release: bytes
    version: bytes
    machine: bytes
    hostname: bytes | None
    arguments: bytes | None
    #: Seconds since the epoch, UTC, by the guest's own clock.
    boot_time: int | None
    uptime_seconds: int | None
    #: CPUs that are online.
    cpus: int | None
    page_mode: str
    #: Virtual address of ``_text``.
    kernel_base: int
    #: Bytes that KASLR moved the kernel by, virtually.
    kaslr_slide: int | None
    build_id: bytes


@dataclass(frozen=True, slots=True)
class Module:
    """One row of ``modules``."""

    name: bytes
    #: Bytes of code and data.
    size: int
    used_by: tuple[bytes, ...]
    refcount: int
    status: str
    #: Virtual address where the module's code starts.
    address: int
    #: Taint letters, as /proc/modules has them: O out of tree, E unsigned, …
    taints: str


@dataclass(frozen=True, slots=True)
class LogRecord:
    """One row of ``dmesg``."""

    #: Seconds since boot, by the guest's sched_clock.
    time: float
    level: str
    facility: str
    text: bytes
    #: Counts the records of a boot.
    sequence: int
    #: Seconds since the epoch, UTC, when it was logged; off by the time that the guest slept.
    timestamp: int | None = None


@dataclass(frozen=True, slots=True)
class Timer:
    """One row of ``timers``: a timer that waits."""

    #: ``wheel`` (kernel/time/timer.c, in ticks) or ``hrtimer`` (in nanoseconds).
    kind: str
    cpu: int
    #: Of an hrtimer: ``monotonic``, ``realtime``, ``boottime``, ``tai``.
    clock: str | None
    #: What is called then; not known of modules.
    function: str | None
    #: What a delayed work does then.
    work: str | None
    #: Processes that wait for it, as far as that can be told.
    pids: tuple[int, ...]
    #: Seconds of CLOCK_MONOTONIC.
    expires: float | None
    #: Seconds from the guest's last tick.
    expires_in: float | None
    #: ``deferrable``, ``pinned``, ``irqsafe``; ``soft``, ``hard``, ``relative``.
    flags: tuple[str, ...]
    #: Virtual address of the ``timer_list`` or ``hrtimer``.
    address: int


@dataclass(frozen=True, slots=True)
class Sysctl:
    """One row of ``sysctl``: a kernel parameter."""

    #: As sysctl(8) has it: ``net.ipv4.ip_forward``.
    name: bytes
    #: As /proc/sys shows it, but one space between numbers; ``None`` where the kernel computes it
    #: by a function of its own, or shows it to nobody.
    value: bytes | None
    #: The kernel's function that prints it; not known of modules.
    handler: str | None
    #: Permissions, octal.
    mode: str
    #: Inode number of the network namespace, of those that belong to one.
    net_namespace: int | None

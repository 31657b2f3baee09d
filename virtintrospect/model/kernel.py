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
    sequence: int

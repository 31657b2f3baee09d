"""Processes and threads."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Process:
    """One row of ``ps``: a process, or with ``--threads`` one of its threads."""

    #: Thread-group id, in the initial PID namespace.
    pid: int
    tid: int
    parent: int | None
    name: bytes
    #: As /proc/PID/stat has it: R S D T t X Z P I.
    state: str
    uid: int | None
    gid: int | None
    euid: int | None
    egid: int | None
    threads: int | None
    nice: int
    #: As /proc/PID/stat has it: nice + 20, or below zero for real-time tasks.
    priority: int
    #: Seconds since the epoch, UTC.
    start_time: int | None
    #: Milliseconds of CPU time.
    user_time: int | None
    system_time: int | None
    #: Bytes.
    resident_size: int | None
    total_size: int | None
    path: bytes | None
    #: Arguments, separated by single spaces.
    cmdline: bytes | None
    cwd: bytes | None
    root: bytes | None
    cgroup_path: bytes | None
    kernel_thread: bool
    #: Virtual address of the task_struct.
    address: int
    #: 1.0 when a second look confirmed the row; lower when parts could not be read.
    confidence: float

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

    # What follows is there only when the details were asked for.

    #: Saved ids, and those for access to files.
    suid: int | None = None
    sgid: int | None = None
    fsuid: int | None = None
    fsgid: int | None = None
    #: Supplementary groups.
    groups: tuple[int, ...] | None = None
    #: Capability sets, bit n for capability n.
    cap_inheritable: int | None = None
    cap_permitted: int | None = None
    cap_effective: int | None = None
    cap_bounding: int | None = None
    cap_ambient: int | None = None
    #: The effective set by name (``cap_net_admin``).
    capabilities: tuple[str, ...] | None = None
    no_new_privs: bool | None = None
    #: disabled, strict or filter.
    seccomp: str | None = None
    seccomp_filters: int | None = None
    #: Its label in AppArmor, as /proc/PID/attr/current.
    apparmor: bytes | None = None
    #: Inode numbers of its namespaces, as /proc/PID/ns; a zombie has left most of them.
    cgroup_namespace: int | None = None
    ipc_namespace: int | None = None
    mnt_namespace: int | None = None
    net_namespace: int | None = None
    pid_namespace: int | None = None
    time_namespace: int | None = None
    user_namespace: int | None = None
    uts_namespace: int | None = None
    #: Its tid as its own PID namespace counts.
    nspid: int | None = None
    #: Process group and session, in the initial PID namespace.
    pgroup: int | None = None
    session: int | None = None
    #: Controlling terminal, without /dev/; ``None`` without one.
    tty: bytes | None = None
    #: other, fifo, rr, batch, idle, deadline or ext.
    policy: str | None = None
    rt_priority: int | None = None
    #: CPU on which it runs or last ran, and those that it may run on (``0-3,7``).
    cpu: int | None = None
    cpus_allowed: str | None = None
    #: Bytes that it caused to be fetched from, and sent to, storage.
    disk_bytes_read: int | None = None
    disk_bytes_written: int | None = None
    minor_faults: int | None = None
    major_faults: int | None = None
    #: Of this thread; for a process its leading one, as in /proc/PID/status.
    voluntary_switches: int | None = None
    involuntary_switches: int | None = None
    oom_score_adj: int | None = None
    #: Who logged in, for audit; ``None`` where nobody did.
    loginuid: int | None = None
    #: tid of the thread that traces it; ``None`` where none does.
    tracer: int | None = None

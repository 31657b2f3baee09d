"""What a process holds at this moment, as /proc has it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from benchmarks.cycles import descriptors

_KIB = 1024


class Usage(NamedTuple):
    """Of one process."""

    descriptors: int
    threads: int
    children: int
    #: MiB: all that is resident, and what is its own of it (no files, no shared memory).
    resident: float
    own: float

    def __str__(self) -> str:
        held = f"{self.descriptors} descriptors, {self.threads} threads, {self.children} children"
        return f"{held}, {self.resident:.1f} MiB, own {self.own:.1f}"


def usage(pid: int) -> Usage:
    """Ask the kernel (proc_pid_status(5))."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    status = dict(line.split(":", 1) for line in lines if ":" in line)
    resident, own = (int(status[name].split()[0]) / _KIB for name in ("VmRSS", "RssAnon"))
    children = sum(
        len(path.read_text().split()) for path in Path(f"/proc/{pid}/task").glob("*/children")
    )
    return Usage(descriptors(pid), int(status["Threads"]), children, resident, own)


def cpu_seconds(pid: int) -> float:
    """User and system time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

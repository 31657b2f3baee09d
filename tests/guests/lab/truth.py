"""The guest's own /proc, as plain data."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property

Files = dict[bytes, tuple[int, bytes]]


@dataclass(frozen=True)
class Stat:
    """/proc/PID/stat; ``fields`` are numbered from 1 as in proc(5)."""

    pid: int
    comm: bytes
    state: str
    fields: tuple[str, ...]

    @classmethod
    def parse(cls, line: bytes) -> Stat:
        """Parse a line whose comm may hold parentheses, spaces and line feeds."""
        pid, _, rest = line.partition(b" (")
        comm, _, tail = rest.rpartition(b") ")
        numbers = tail.decode().split()
        return cls(int(pid), comm, numbers[0], (pid.decode(), "", *numbers))

    def number(self, field: int) -> int:
        """Field number ``field`` of proc(5), e.g. 4 for ppid, 22 for starttime."""
        return int(self.fields[field - 1])


@dataclass(frozen=True)
class Task:
    """A thread, or a process by its leading thread."""

    tid: int
    stat: Stat
    #: /proc/PID/status: name → value, as the kernel prints them (Name is escaped there).
    status: dict[str, str]

    @property
    def uids(self) -> tuple[int, int, int, int]:
        """Real, effective, saved, file system user id."""
        real, effective, saved, fs = map(int, self.status["Uid"].split())
        return real, effective, saved, fs

    @property
    def gids(self) -> tuple[int, int, int, int]:
        """Real, effective, saved, file system group id."""
        real, effective, saved, fs = map(int, self.status["Gid"].split())
        return real, effective, saved, fs


@dataclass(frozen=True)
class Process(Task):
    """A process."""

    threads: dict[int, Task]
    cmdline: bytes
    #: Pages: size, resident, shared, …
    statm: tuple[int, ...]
    #: Lines of /proc/PID/cgroup.
    cgroup: bytes
    #: Targets of the links, ``None`` where there is none (kernel threads, zombies).
    exe: bytes | None
    cwd: bytes | None
    root: bytes | None

    @property
    def kernel_thread(self) -> bool:
        """PF_KTHREAD (include/linux/sched.h) in field 9, flags."""
        return bool(self.stat.number(9) & 0x00200000)


@dataclass(frozen=True)
class Module:
    """A line of /proc/modules."""

    name: str
    size: int
    refcount: int
    used_by: tuple[str, ...]
    status: str
    address: int
    taints: str


@dataclass(frozen=True)
class Record:
    """A record of /dev/kmsg."""

    level: int
    facility: int
    sequence: int
    #: Microseconds after boot.
    time: int
    flags: str
    #: As logged: the escapes that /dev/kmsg makes are undone.
    text: bytes


class Snapshot:
    """Everything that one pass in the guest gathered.

    ``files`` holds it raw: path → (errno, content).
    """

    def __init__(self, files: Files) -> None:
        self.files = files

    def file(self, path: str) -> bytes:
        """Content of one gathered file, e.g. ``/proc/meminfo``."""
        return self.files[path.encode()][1]

    @cached_property
    def processes(self) -> dict[int, Process]:
        """Every process that was there from the pass's beginning to its end, by pid."""
        threads: dict[int, dict[int, Task]] = {}
        leaders: dict[int, Task] = {}
        for path in self.files:
            match = re.fullmatch(rb"/proc/(\d+)(?:/task/(\d+))?/stat", path)
            if match is None:
                continue
            task = self._task(path.removesuffix(b"/stat"))
            if task is None:
                continue
            if match[2] is None:
                leaders[task.tid] = task
            else:
                threads.setdefault(int(match[1]), {})[task.tid] = task
        return {
            pid: self._process(task, threads.get(pid, {}))
            for pid, task in leaders.items()
            if self.file(f"/proc/{pid}/statm")  # else it ended just behind its status
        }

    @cached_property
    def modules(self) -> dict[str, Module]:
        """/proc/modules by name."""
        found = {}
        for line in self.file("/proc/modules").decode().splitlines():
            name, size, refcount, users, status, address, *taints = line.split()
            used_by = tuple(user for user in users.split(",") if user not in ("-", ""))
            taint = taints[0].strip("()") if taints else ""
            found[name] = Module(
                name, int(size), int(refcount), used_by, status, int(address, 16), taint
            )
        return found

    @cached_property
    def log(self) -> list[Record]:
        """The kernel log, oldest record first."""
        return [_record(text) for text in self.file("/dev/kmsg").split(b"\0") if text]

    @property
    def uptime(self) -> float:
        """Seconds since boot."""
        return float(self.file("/proc/uptime").split()[0])

    @cached_property
    def page_size(self) -> int:
        """Bytes of a page: what the first process has in bytes and in pages (PAGE_SIZE)."""
        first = self.processes[1]
        return (int(first.status["VmSize"].split()[0]) << 10) // first.statm[0]

    @property
    def boot_time(self) -> int:
        """Seconds since 1970 at which the guest booted (btime of /proc/stat)."""
        match = re.search(rb"^btime (\d+)$", self.file("/proc/stat"), re.MULTILINE)
        assert match is not None
        return int(match[1])

    @property
    def meminfo(self) -> dict[str, int]:
        """/proc/meminfo: name → bytes (or a plain count where it has no unit)."""
        found = {}
        for line in self.file("/proc/meminfo").decode().splitlines():
            name, value, *unit = line.replace(":", " ").split()
            found[name] = int(value) * (1024 if unit else 1)
        return found

    def _task(self, folder: bytes) -> Task | None:
        error, stat = self.files[folder + b"/stat"]
        status_error, status = self.files[folder + b"/status"]
        if error or status_error or not stat or not status:
            return None  # it ended during the pass
        lines = (line.split(":", 1) for line in status.decode(errors="replace").splitlines())
        parsed = Stat.parse(stat)
        return Task(parsed.pid, parsed, {name: value.strip() for name, value in lines})

    def _process(self, leader: Task, threads: dict[int, Task]) -> Process:
        folder = f"/proc/{leader.tid}"
        return Process(
            tid=leader.tid,
            stat=leader.stat,
            status=leader.status,
            threads={leader.tid: leader, **threads},
            cmdline=self.file(f"{folder}/cmdline"),
            statm=tuple(map(int, self.file(f"{folder}/statm").split())),
            cgroup=self.file(f"{folder}/cgroup"),
            exe=self._link(f"{folder}/exe"),
            cwd=self._link(f"{folder}/cwd"),
            root=self._link(f"{folder}/root"),
        )

    def _link(self, path: str) -> bytes | None:
        error, target = self.files[path.encode()]
        return None if error else target


def _record(text: bytes) -> Record:
    """Parse a record of /dev/kmsg (Documentation/ABI/testing/dev-kmsg)."""
    prefix, _, rest = text.partition(b";")
    priority, sequence, time, flags = prefix.decode().split(",")[:4]
    line = rest.split(b"\n", 1)[0]  # what follows are the dictionary's lines
    plain = re.sub(rb"\\x([0-9a-f]{2})", lambda match: bytes([int(match[1], 16)]), line)
    level, facility = int(priority) & 7, int(priority) >> 3
    return Record(level, facility, int(sequence), int(time), flags, plain)

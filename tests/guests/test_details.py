"""What ``ps`` shows when asked, against the guest's own /proc, on every guest of the matrix."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

from virtintrospect.guests.linux.capabilities import NAMES
from virtintrospect.guests.linux.guest import LinuxGuest
from virtintrospect.insight.tables import PS_DETAILS
from virtintrospect.model import Process
from virtintrospect.session import open_session

from .lab.domain import Config
from .lab.guest import Guest
from .lab.truth import Snapshot, Task

#: What the tables read does not depend on page tables or on how the host holds RAM.
pytestmark = pytest.mark.once_a_kernel(pti=False)

_START = """
[ -e /tmp/tasks.pids ] && exec cat /tmp/tasks.pids
dd if=/dev/zero of=/tmp/tasks.disk bs=1M count=4 2>/dev/null
losetup /dev/loop7 /tmp/tasks.disk
/tmp/tasks /dev/loop7 </dev/null >/dev/null 2>/tmp/tasks.log &
for i in $(seq 1200); do [ -e /tmp/tasks.pids ] && break; usleep 50000; done
cat /tmp/tasks.log >&2
cat /tmp/tasks.pids
"""
#: Fields of /proc/PID/stat, numbered as in proc(5).
_PGRP, _SESSION, _TTY, _MINOR, _MAJOR, _CPU, _RT, _POLICY = 5, 6, 7, 10, 12, 39, 40, 41
_POLICIES = {0: "other", 1: "fifo", 2: "rr", 3: "batch", 5: "idle", 6: "deadline"}
_SETS = {"inheritable": "Inh", "permitted": "Prm", "effective": "Eff", "bounding": "Bnd",
         "ambient": "Amb"}  # fmt: skip
_NAMESPACES = ("cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts")

Files = dict[str, bytes]


def start(guest: Guest) -> dict[str, int]:
    """The processes of guest/tasks.c by name, started when they are not there yet."""
    guest.install("tasks", "/tmp/tasks")
    answer = guest.execute(_START)
    lines = (line.split() for line in answer.stdout.decode().splitlines())
    pids = {name: int(pid) for name, pid in lines}
    assert len(pids) == 14, answer
    return pids


def look(guest: Guest) -> Files:
    words = guest.run("/tmp/tasks look", 60).split(b"\0")
    return {path.decode(): content for path, content in zip(words[:-1:2], words[1::2], strict=True)}


@pytest.fixture(scope="session")
def tasks(guest: Guest) -> dict[str, int]:
    return start(guest)


class Word:
    """All that the guest says at one moment."""

    def __init__(self, guest: Guest) -> None:
        self.files = look(guest)
        self.snapshot: Snapshot = guest.snapshot()

    def still(self, task: Task, folder: str) -> dict[str, Any]:
        """What does not move by itself."""
        status, stat = task.status, task.stat
        found: dict[str, Any] = {
            "suid": task.uids[2],
            "fsuid": task.uids[3],
            "sgid": task.gids[2],
            "fsgid": task.gids[3],
            "groups": tuple(map(int, status["Groups"].split())),
            "no_new_privs": status["NoNewPrivs"] == "1",
            "seccomp": ("disabled", "strict", "filter")[int(status["Seccomp"])],
            "seccomp_filters": int(status["Seccomp_filters"]),
            "nspid": int(status["NSpid"].split()[-1]),
            "tracer": int(status["TracerPid"]) or None,
            "cpus_allowed": status["Cpus_allowed_list"],
            "pgroup": stat.number(_PGRP),
            "session": stat.number(_SESSION),
            "tty": _tty(stat.number(_TTY)),
            "rt_priority": stat.number(_RT),
            "policy": _POLICIES[stat.number(_POLICY)],
            "oom_score_adj": int(self.files[f"{folder}/oom_score_adj"]),
        }
        for name, short in _SETS.items():
            found[f"cap_{name}"] = int(status[f"Cap{short}"], 16)
        effective = found["cap_effective"]
        found["capabilities"] = tuple(n for i, n in enumerate(NAMES) if effective >> i & 1)
        for name in _NAMESPACES:
            link = self.files.get(f"{folder}/ns/{name}")
            found[f"{name}_namespace"] = int(link.split(b"[")[1][:-1]) if link else None
        login = int(self.files[f"{folder}/loginuid"])
        found["loginuid"] = None if login == 0xFFFF_FFFF else login
        found["apparmor"] = self.files[f"{folder}/attr/current"].rstrip(b"\n")
        return found

    def moving(self, task: Task, folder: str) -> dict[str, int]:
        """Counters."""
        io = dict(line.split(b": ") for line in self.files[f"{folder}/io"].splitlines())
        return {
            "minor_faults": task.stat.number(_MINOR),
            "major_faults": task.stat.number(_MAJOR),
            "voluntary_switches": int(task.status["voluntary_ctxt_switches"]),
            "involuntary_switches": int(task.status["nonvoluntary_ctxt_switches"]),
            "disk_bytes_read": int(io[b"read_bytes"]),
            "disk_bytes_written": int(io[b"write_bytes"]),
        }


def _tty(number: int) -> bytes | None:
    major, minor = number >> 8 & 0xFFF, number & 0xFF
    names = {4: b"ttyS%d" % (minor - 64), 136: b"pts/%d" % minor, 5: b"console"}
    return names[major] if number else None


def compare(row: Process, task: Task, last: Task, folder: str, word: Word, then: Word) -> list[str]:
    found = []
    stable, after = word.still(task, folder), then.still(last, folder)
    for name, value in stable.items():
        if value == after[name] != getattr(row, name):
            found.append(f"{folder}: {name} is {getattr(row, name)!r}, not {value!r}")
    low, high = word.moving(task, folder), then.moving(last, folder)
    for name, value in low.items():
        if not value <= getattr(row, name) <= high[name]:
            found.append(f"{folder}: {name} is {getattr(row, name)}, not {value}..{high[name]}")
    # Who has not run meanwhile is where it was.
    still = all(low[name] == high[name] for name in low if name.endswith("switches"))
    if still and row.cpu not in (last.stat.number(_CPU), 0):
        found.append(f"{folder}: cpu is {row.cpu}")
    return found


def _same(word: Word, then: Word, pid: int) -> bool:
    first, last = word.snapshot.processes.get(pid), then.snapshot.processes.get(pid)
    return bool(first and last and first.stat.number(22) == last.stat.number(22))


def _check(linux: LinuxGuest, guest: Guest) -> dict[int, Process]:
    word = Word(guest)
    rows = {row.pid: row for row in linux.processes(details=True)}
    then = Word(guest)
    found: list[str] = []
    looked = 0
    for pid, row in rows.items():
        folder = f"/proc/{pid}"
        if _same(word, then, pid) and f"{folder}/io" in word.files and f"{folder}/io" in then.files:
            first, last = word.snapshot.processes[pid], then.snapshot.processes[pid]
            found += compare(row, first, last, folder, word, then)
            looked += 1
    assert found == []
    assert looked > 120
    assert linux.take_problems() == []
    return rows


def test_details(linux: LinuxGuest, guest: Guest, tasks: dict[str, int]) -> None:
    rows = _check(linux, guest)

    def of(name: str) -> Process:
        return rows[tasks[name]]

    # The guest agreed; here, that there was something to agree on.
    assert of("few-caps").capabilities == ("cap_net_admin", "cap_bpf")
    assert of("filtered").seccomp_filters == 3
    assert of("filtered").no_new_privs
    assert of("strict").seccomp == "strict"
    assert of("on-terminal").tty == b"pts/0"
    assert of("on-serial-line").tty == b"ttyS0"
    job = next(row for row in rows.values() if row.parent == tasks["on-terminal"])
    assert (job.pgroup, job.session) == (job.pid, tasks["on-terminal"])
    assert len(of("many-groups").groups or ()) == 3000
    assert of("file-ids").fsuid == 1234
    assert of("expendable").oom_score_adj == -517
    assert of("logged-in").loginuid == 1000
    assert (of("disk-user").disk_bytes_written or 0) >= 3 << 17
    assert (of("disk-user").disk_bytes_read or 0) >= 1 << 17
    inner = next(row for row in rows.values() if row.parent == tasks["unsharer"])
    assert inner.nspid == 1
    for kind in _NAMESPACES:
        name = f"{kind}_namespace"
        assert getattr(inner, name) != getattr(rows[1], name) is not None
    assert of("deadline").policy == "deadline"
    traced = next(row for row in rows.values() if row.tracer)
    assert rows[traced.tracer or 0].name == b"tracer"
    zombie = next(row for row in rows.values() if row.name == b"zombie")
    assert zombie.net_namespace is None
    assert zombie.pid_namespace == rows[1].pid_namespace
    assert rows[1].apparmor == b"unconfined"


@pytest.mark.usefixtures("tasks")
def test_details_of_threads(linux: LinuxGuest, guest: Guest) -> None:
    word = Word(guest)
    rows = {row.tid: row for row in linux.processes(threads=True, details=True)}
    then = Word(guest)
    found: list[str] = []
    looked = 0
    for pid, process in word.snapshot.processes.items():
        for tid, thread in process.threads.items():
            folder = f"/proc/{pid}/task/{tid}"
            last = then.snapshot.processes[pid].threads.get(tid) if _same(word, then, pid) else None
            if last is None or tid == pid or f"{folder}/io" not in then.files.keys() & word.files:
                continue
            found += compare(rows[tid], thread, last, folder, word, then)
            looked += 1
    assert found == []
    assert looked >= 6
    assert linux.take_problems() == []


def test_without_details_they_are_unknown(linux: LinuxGuest) -> None:
    row = next(row for row in linux.processes() if row.pid == 1)
    assert {getattr(row, name) for name in PS_DETAILS} == {None}


def test_which_cpus(boot: Callable[[Config], Guest]) -> None:
    guest = boot(Config(vcpus=3))
    pids = start(guest)
    with open_session(guest.name) as session:
        assert isinstance(session.guest, LinuxGuest)
        rows = _check(session.guest, guest)
    assert rows[1].cpus_allowed == "0-2"
    assert rows[pids["half-the-cpus"]].cpus_allowed == "0,2"
    assert rows[pids["half-the-cpus"]].cpu in (0, 2)
    assert re.fullmatch(r"[0-2]", str(rows[1].cpu))

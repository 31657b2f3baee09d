"""Kernel stacks and run queues against the guest's own word, on every guest.

/proc/PID/stack and /proc/PID/wchan are taken before and after: of a task for which both say the
same, and that did not run in between, ours must say the same, too.
"""

from __future__ import annotations

import re
import time

import pytest

from virtintrospect.errors import NoSuchTargetError
from virtintrospect.guests.linux.budget import Budget
from virtintrospect.guests.linux.guest import LinuxGuest
from virtintrospect.guests.linux.stack import StackReader
from virtintrospect.guests.linux.text import KernelText
from virtintrospect.model import RunQueue, StackFrame

from .lab.guest import Guest
from .test_counters import paused

#: Every task's frames, wait channel, place in user mode and switches, each line behind its path.
TASKS = """
cd /proc
grep -H switches [0-9]*/task/[0-9]*/status
grep -H . [0-9]*/task/[0-9]*/wchan [0-9]*/task/[0-9]*/syscall [0-9]*/task/[0-9]*/stack
"""


class Task:
    """What the guest says of one task."""

    def __init__(self) -> None:
        self.lines: dict[str, list[str]] = {"status": [], "wchan": [], "syscall": [], "stack": []}

    @property
    def stack(self) -> list[str]:
        return [line.removeprefix("[<0>] ") for line in self.lines["stack"]]

    @property
    def user(self) -> tuple[int, ...]:
        """Stack and instruction pointer in user mode, of a task in a system call."""
        words = " ".join(self.lines["syscall"]).split()
        pair = tuple(int(word, 16) for word in words[-2:]) if len(words) > 2 else ()
        return pair if any(pair) else ()


def tasks(guest: Guest, pid: int | None = None) -> dict[int, Task]:
    """All of them, or those of one process."""
    command = TASKS if pid is None else TASKS.replace("[0-9]*/task", f"{pid}/task")
    found: dict[int, Task] = {}
    for line in guest.run(command, 120, check=False).decode().splitlines():
        path, _, text = line.partition(":")
        _, _, tid, name = path.split("/")
        found.setdefault(int(tid), Task()).lines[name].append(text)
    return found


def kernel_lines(rows: list[StackFrame], text: KernelText) -> list[str | None]:
    """As /proc/PID/stack prints it: without the scheduler, and without user mode."""
    return [
        row.symbol for row in rows if row.found_by != "user" and not text.is_scheduling(row.address)
    ]


def test_every_stack_is_that_of_the_guest(linux: LinuxGuest, guest: Guest) -> None:
    guest.run("sleep 1")
    before = tasks(guest)
    addresses = [process.address for process in linux.processes(threads=True)]
    reader = StackReader(linux, Budget())
    found = {item.row["tid"]: item for item in reader.stacks(addresses)}
    after = tasks(guest)
    resting = {
        tid
        for tid, task in before.items()
        if tid in after and task.lines == after[tid].lines and task.stack
    }
    assert len(resting) > 50
    assert sum(len(before[tid].stack) > 4 for tid in resting) > 0
    for tid in resting:
        item = found[tid]
        rows = reader.rows(item)
        assert kernel_lines(rows, reader.text) == before[tid].stack, tid
        assert {row.confidence for row in rows} == {1.0}
        assert not item.broken
        if guest.config.kernel != "5.10":  # it follows frame pointers, which are not there
            assert (reader.wait_channel(item) or "0") in (*before[tid].lines["wchan"], "0")
        if before[tid].user and rows[-1].found_by == "user":
            assert (rows[-1].stack_pointer, rows[-1].address) == before[tid].user
    users = [tid for tid in resting if before[tid].user]
    assert len(users) > 30
    assert all(found[tid].frames[-1].found_by == "user" for tid in users)


def test_stacks_in_modules(linux: LinuxGuest, guest: Guest) -> None:
    """The agent waits in virtio_console, which some kernels have as a module."""
    agent = next(process.pid for process in linux.processes() if process.name == b"agent")
    deadline = time.monotonic() + 60
    while True:
        with paused(guest):
            rows = linux.stack(agent)
        if rows:
            break
        assert time.monotonic() < deadline  # it may have been about to
        time.sleep(0.02)
    assert all(row.confidence == 1.0 for row in rows)
    assert rows[-1].found_by == "user"
    modular = b"virtio_console" in guest.get("/proc/modules")
    assert any(row.module == "virtio_console" for row in rows) in (modular, False)


def test_threads_and_pids(linux: LinuxGuest) -> None:
    process = max(linux.processes(), key=lambda process: process.threads or 0)
    assert process.threads
    rows = linux.stack(process.pid, threads=True)
    tids = {thread.tid for thread in linux.processes(threads=True) if thread.pid == process.pid}
    assert len(tids) > 1
    assert {row.tid for row in rows} <= tids
    one = (tids - {process.pid}).pop()
    assert {row.tid for row in linux.stack(one)} <= {one}
    with pytest.raises(NoSuchTargetError):
        linux.stack(99_999)


def test_a_task_that_runs_has_no_stack_to_be_seen(linux: LinuxGuest, guest: Guest) -> None:
    guest.run("(timeout 6 sh -c 'while :; do :; done') >/dev/null 2>&1 </dev/null &")
    with paused(guest):
        busy = [queue.pid for queue in linux.runqueues() if not queue.idle and queue.pid]
        for pid in busy:
            assert linux.stack(pid) == []
    if busy:
        assert "is running on CPU 0" in linux.take_problems()[0].what


# -- run queues -----------------------------------------------------------------------------

#: Field of the record → what /proc/sched_debug calls it, in the CPU's own part and its queues'.
FIELDS = {
    "running": r"cpu#0[^\n]*\n.*?\.nr_running +: (\d+)",
    "switches": r"\.nr_switches +: (\d+)",
    "uninterruptible": r"\.nr_uninterruptible +: (-?\d+)",
    "realtime": r"rt_rq\[0\]:.*?\.rt_nr_running +: (\d+)",
    "deadline": r"dl_rq\[0\]:.*?\.dl_nr_running +: (\d+)",
    "fair_weight": r"cfs_rq\[0\]:/\n.*?\.load +: (\d+)",
    "load_average": r"cfs_rq\[0\]:/\n.*?\.load_avg +: (\d+)",
    "utilization": r"cfs_rq\[0\]:/\n.*?\.util_avg +: (\d+)",
}


#: Three loops, and two seconds in which all of them run. They end with the folder; should that go
#: wrong, after a time.
SPIN = """
mkdir /tmp/spin; for i in 1 2 3; do
timeout 200 sh -c 'touch /tmp/spin/$$; while [ -e /tmp/spin ]; do :; done' \
</dev/null >/dev/null 2>&1 & done
until [ $(ls /tmp/spin | wc -l) = 3 ]; do usleep 50000; done; sleep 2
"""


def scheduler(guest: Guest) -> dict[str, int]:
    text = guest.run(
        "grep -q debugfs /proc/mounts || mount -t debugfs none /sys/kernel/debug;"
        "cat /proc/sched_debug 2>/dev/null || cat /sys/kernel/debug/sched/debug"
    ).decode("utf-8", "replace")
    found = {}
    for name, pattern in FIELDS.items():
        match = re.search(pattern, text, re.DOTALL)
        assert match is not None, name
        found[name] = int(match[1])
    return found


def test_run_queues(linux: LinuxGuest, guest: Guest) -> None:
    before = scheduler(guest)
    with paused(guest):
        (idle,) = linux.runqueues()
        waiting = sum(task.state == "D" for task in linux.processes(threads=True))
    after = scheduler(guest)
    assert idle.cpu == 0
    assert before["switches"] <= idle.switches <= after["switches"]
    # The reader of /proc may have found none of those that wait for a moment.
    words = before["uninterruptible"], after["uninterruptible"], waiting
    assert idle.uninterruptible in words
    guest.run(SPIN)
    try:
        for _ in range(8):
            with paused(guest):
                (busy,) = linux.runqueues()
            during = scheduler(guest)
            if alike(busy, during):
                break
    finally:
        guest.run("rm -r /tmp/spin")
    # Kernels of 32 bits do not scale weights (scale_load()).
    check_busy(busy, during, 1024 if guest.config.arch == "i686" else 1 << 20)
    assert linux.take_problems() == []


def alike(busy: RunQueue, during: dict[str, int]) -> bool:
    """Whether two moments agree: utilization swings, of a hundred looks one was 472 off."""
    same = (busy.realtime, busy.deadline) == (during["realtime"], during["deadline"])
    return same and abs(busy.utilization - during["utilization"]) <= 400


def check_busy(busy: RunQueue, during: dict[str, int], nice_0: int) -> None:
    """Three programs that never sleep; whoever reads /proc is one more."""
    assert not busy.idle
    assert busy.pid
    assert busy.running >= 3
    assert busy.fair >= 3
    assert busy.running_for is not None
    assert busy.running_for < 10_000
    assert alike(busy, during)
    assert busy.fair_weight >= nice_0
    assert during["running"] >= 3

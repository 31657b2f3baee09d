"""Why a guest hangs: who waits without end, which CPU does not come on, what the kernel said.

The kernel's own detector (kernel/hung_task.c) looks for tasks in TASK_UNINTERRUPTIBLE that have
not been switched for 120 seconds, and passes over those that a fatal signal would end. Here all
in state D are shown, with how long ago they last ran: ``se.exec_start``, which the scheduler
sets when a task goes to sleep.
"""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, Any

from virtintrospect.errors import VirtIntrospectError
from virtintrospect.guests.linux import percpu, runqueues, schedclock
from virtintrospect.guests.linux.budget import Budget
from virtintrospect.guests.linux.ps import with_threads
from virtintrospect.guests.linux.stack import StackReader, TaskStack
from virtintrospect.guests.linux.state import state_letter
from virtintrospect.guests.linux.waits import Wait, Waits
from virtintrospect.model import Stall

if TYPE_CHECKING:
    from virtintrospect.guests.linux.guest import LinuxGuest

Row = dict[str, Any]

_NANOSECONDS = 1_000_000_000
#: TASK_WAKEKILL (include/linux/sched.h).
_WAKEKILL = 0x100
#: Tasks whose stacks are shown.
_MOST_TASKS = 4096
#: Lines of the log that are shown.
_MOST_LINES = 40
#: Seconds within which a CPU that runs something must show that time passes for it; it does so
#: every few milliseconds, but a host may be short of CPU.
_PATIENCE = 1.0
_STEP = 0.05

_MEMBERS = {
    "pid": "tgid",
    "tid": "pid",
    "comm": "comm",
    "state": "__state|state",
    "exit_state": "exit_state",
    "cpu": "thread_info.cpu|cpu",
    "iowait": "in_iowait",
    "slept": "se.exec_start",
    "arrival": "sched_info.last_arrival?",
    "blocker": "blocker?",
    "vfork_done": "vfork_done",
}
#: What kernels say when something hangs or breaks (kernel/hung_task.c, watchdog.c,
#: rcu/tree_stall.h, workqueue.c, mm/oom_kill.c, sched/rt.c, block/blk-core.c).
LINES = re.compile(
    rb"blocked for more than \d+ seconds|blocked on |soft lockup|hard lockup|"
    rb"detected stalls? on|self-detected stall|kthread starved|kthread timer wakeup|"
    rb"workqueue lockup|hogged CPU|RT throttling|"
    rb"out of memory|oom-kill:|invoked oom-killer|I/O error|"
    rb"^BUG: |^Oops: |general protection fault|^Kernel panic|Remounting filesystem read-only",
    re.IGNORECASE,
)


def hung(guest: LinuxGuest, seconds: float = 120.0) -> list[Stall]:
    """The rows of ``hung``: CPUs, file systems, tasks (longest wait first), lines of the log."""
    budget = Budget()
    found = _cpus(guest, seconds, budget)
    found += _tasks(guest, seconds, budget)
    found += _log(guest)
    guest.note_all([budget.problem])
    return found


# -- tasks ----------------------------------------------------------------------------------


def _tasks(guest: LinuxGuest, seconds: float, budget: Budget) -> list[Stall]:
    addresses = with_threads(guest, guest.tasks.addresses(budget), budget)
    layout = guest.layout("task_struct", _MEMBERS, text=("comm",))
    columns = layout.lists(guest.kernel, addresses, [])
    columns["address"] = addresses
    rows = [
        dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)
    ]
    everybody = {row["address"]: row for row in rows if row["tid"] is not None}
    waiting = _waiting(guest, list(everybody.values()), seconds)
    if len(waiting) > _MOST_TASKS:
        guest.note(f"only {_MOST_TASKS} of {len(waiting)} waiting tasks are shown", 0)
        del waiting[_MOST_TASKS:]
    waits = Waits(guest, {task: row["vfork_done"] for task, row in everybody.items()}, budget)
    found = [
        Stall(
            kind="filesystem",
            name=frozen.device,
            text=frozen.type + b" is frozen: whoever writes to it waits until it is thawed",
        )
        for frozen in waits.frozen
    ]
    if not waiting:
        return found
    reader = StackReader(guest, budget)
    stacks = {item.task: item for item in reader.stacks([row["address"] for row in waiting])}
    for row in waiting:
        if budget.late():
            break
        item = stacks.get(row["address"])
        if item is not None and item.cpu is not None:
            continue  # it has woken
        if item is not None and item.torn:
            reader.note(item)
        found.append(_task(reader, waits, everybody, row, item))
    return found


def _waiting(guest: LinuxGuest, rows: list[Row], seconds: float) -> list[Row]:
    """Tasks in state D that last ran long enough ago, those that wait longest first."""
    moment = schedclock.now(guest)
    behind = _task_clocks(guest)
    waiting = []
    for row in rows:
        if row["state"] is None or state_letter(row["state"], row["exit_state"]) != "D":
            continue
        since = row["slept"] or row["arrival"]
        row["seconds"] = None
        if moment and since:
            now = moment - behind.get(row["cpu"], 0)
            row["seconds"] = round(max(0, now - since) / _NANOSECONDS, 3)
        if row["seconds"] is None or row["seconds"] >= seconds:
            waiting.append(row)
    return sorted(waiting, key=lambda row: -(row["seconds"] or 0.0))


def _task_clocks(guest: LinuxGuest) -> dict[int, int]:
    """How far the clock that tasks are accounted by is behind, on each CPU.

    It leaves out interrupts and what the host took (``update_rq_clock_task()``).
    """
    cpus = percpu.online(guest)
    layout = guest.layout("rq", {"clock": "clock", "task": "clock_task"}, text=())
    places = percpu.addresses(guest, guest.symbols.address("runqueues"), list(cpus.values()))
    columns = layout.lists(guest.kernel, places, [])
    return {
        cpu: max(0, clock - task)
        for cpu, clock, task in zip(cpus, columns["clock"], columns["task"], strict=True)
        if clock is not None
    }


def _task(
    reader: StackReader,
    waits: Waits,
    everybody: dict[int, Row],
    row: Row,
    item: TaskStack | None,
) -> Stall:
    wait: Wait | None = None
    stack: tuple[str, ...] = ()
    channel = None
    if item is not None:
        stack, channel = reader.symbols(item), reader.wait_channel(item)
        functions = tuple(line.removeprefix("? ").split("+", 1)[0] for line in stack)
        wait = waits.find(item, functions, row["blocker"] or 0)
    owner = everybody.get(wait.owner) if wait and wait.owner else None
    what = wait.what if wait else "I/O" if row["iowait"] else None
    return Stall(
        kind="task",
        pid=row["pid"],
        tid=row["tid"],
        name=_name(row["comm"]),
        cpu=row["cpu"],
        state="D",
        seconds=row["seconds"],
        killable=bool(row["state"] & _WAKEKILL),
        iowait=bool(row["iowait"]),
        wait_channel=channel,
        waits_for=what,
        lock=wait.lock if wait else None,
        owner_pid=owner["tid"] if owner else None,
        owner_name=_name(owner["comm"]) if owner else None,
        stack=stack or None,
    )


def _name(comm: bytes) -> bytes:
    return comm.split(b"\0", 1)[0]


# -- CPUs -----------------------------------------------------------------------------------


def _cpus(guest: LinuxGuest, seconds: float, budget: Budget) -> list[Stall]:
    """CPUs that have run one task for long, and those for which no time passes."""
    cpus = percpu.online(guest)
    first = dict(zip(cpus, runqueues.read(guest, list(cpus.values())), strict=True))
    busy = {cpu for cpu, row in first.items() if row["curr"] and row["curr"] != row["idle"]}
    still = _standing(guest, cpus, first, set(busy)) if guest.live else set()
    moment = schedclock.now(guest)
    found = []
    for cpu in sorted(busy):
        if budget.late():
            break
        row = first[cpu]
        age = (moment - row["arrival"]) / _NANOSECONDS if moment and row["arrival"] else None
        long = age is not None and age >= seconds
        if row["comm"] is None or not (cpu in still or (long and seconds > 0)):
            continue
        text = f"has run this task for {age:.1f} s without a switch" if long else ""
        if cpu in still:
            text = (
                "no time passes for it: the guest is paused, gets no CPU time from its host, or "
                "interrupts are off"
            )
        found.append(
            Stall(
                kind="cpu",
                pid=row["pid"],
                tid=row["tid"],
                name=_name(row["comm"]),
                cpu=cpu,
                state="R",
                seconds=None if age is None else round(max(0.0, age), 3),
                text=text.encode(),
                stack=_stack_of(guest, row["curr"], budget),
            )
        )
    return found


def _standing(
    guest: LinuxGuest, cpus: dict[int, int], first: dict[int, Row], still: set[int]
) -> set[int]:
    """Busy CPUs whose run queue shows no sign of life within :data:`_PATIENCE`."""
    end = time.monotonic() + _PATIENCE
    while still and time.monotonic() < end:
        time.sleep(_STEP)
        numbers = sorted(still)
        rows = runqueues.read(guest, [cpus[cpu] for cpu in numbers])
        for cpu, row in zip(numbers, rows, strict=True):
            if any(row[name] != first[cpu][name] for name in ("clock", "curr", "switches")):
                still.discard(cpu)
    return still


def _stack_of(guest: LinuxGuest, task: int, budget: Budget) -> tuple[str, ...] | None:
    """Stack of a task that is on a CPU, where its registers can be read."""
    if guest.registers is None:
        return None
    reader = StackReader(guest, budget)
    return next((reader.symbols(item) for item in reader.stacks([task])), None) or None


# -- the log --------------------------------------------------------------------------------


def _log(guest: LinuxGuest) -> list[Stall]:
    """What the kernel itself has said about it, the last lines only."""
    try:
        records = guest.dmesg()
    except VirtIntrospectError as error:
        guest.note(f"no log: {error}", getattr(error, "address", 0))
        return []
    # What programs write into the log is no word of the kernel's.
    told = [r for r in records if r.facility == "kern" and LINES.search(r.text)]
    return [Stall(kind="log", time=r.time, text=r.text) for r in told[-_MOST_LINES:]]

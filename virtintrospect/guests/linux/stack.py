"""Kernel stacks of tasks, as /proc/PID/stack has them (kernel/stacktrace.c), and more of them.

A task that sleeps has its stack pointer, and more or less of its other state, in ``thread``. A
task that is on a CPU has its state in the CPU's registers and nowhere else: without them nothing
is certain. What differs between architectures is in the files ``unwind_….py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from virtintrospect.errors import FaultError, NoSuchTargetError, UnsupportedError
from virtintrospect.guests.linux.budget import Budget
from virtintrospect.guests.linux.cpustate import CpuStates
from virtintrospect.guests.linux.tasks import thread_group
from virtintrospect.guests.linux.text import KernelText
from virtintrospect.guests.linux.unwind import CONFIDENCE, Frame, Stack, StackWalker, State
from virtintrospect.model import StackFrame

if TYPE_CHECKING:
    from virtintrospect.guests.linux.guest import LinuxGuest

Row = dict[str, Any]

#: THREAD_SIZE is 16 KiB on x86-64, 32 with KASAN.
_THREAD_SIZES = (8192, 16384, 32768, 65536)
_USUAL_SIZE = 16384
#: Of a task that says it is on a CPU, while no CPU says so: it is being switched just then.
UNKNOWN_CPU = -1
#: How often a stack is read again when its task ran meanwhile.
_ATTEMPTS = 4

_MEMBERS = {
    "pid": "tgid",
    "tid": "pid",
    "comm": "comm",
    "stack": "stack",
    "on_cpu": "on_cpu?",
    "voluntary": "nvcsw",
    "involuntary": "nivcsw",
}
#: What moves when a task has run.
_MOVES = ("sp", "on_cpu", "voluntary", "involuntary")


class TaskStack(NamedTuple):
    """A task's frames, and how they came about."""

    task: int
    row: Row
    frames: list[Frame]
    #: Number of the CPU that the task is on, ``None`` for one that sleeps.
    cpu: int | None
    #: Why the frames end early; empty where they do not.
    broken: str
    #: The task ran while it was looked at, each time.
    torn: bool = False
    #: The stack's copy, which frames lie in.
    copy: Stack | None = None


def stack(guest: LinuxGuest, pid: int, *, threads: bool = False) -> list[StackFrame]:
    """The rows of ``stack``.

    :raises NoSuchTargetError: there is no such process, nor a thread of that number.
    """
    budget = Budget()
    reader = StackReader(guest, budget)
    found = reader.stacks(_tasks(guest, pid, budget, threads=threads))
    for item in found:
        reader.note(item)
    guest.note_all([budget.problem])
    return [row for item in found for row in reader.rows(item)]


def _tasks(guest: LinuxGuest, pid: int, budget: Budget, *, threads: bool) -> list[int]:
    """The task of a process or thread; with ``threads`` all of that process."""
    leaders = guest.tasks.addresses(budget)
    layout = guest.layout("task_struct", {"pid": "pid", "signal": "signal"}, text=())
    pids, signals = layout.lists(guest.kernel, leaders, []).values()
    for leader, number, signal in zip(leaders, pids, signals, strict=True):
        if number == pid:
            return _group(guest, leader, signal, budget) if threads else [leader]
    # No process has this number: perhaps a thread of one.
    budget_left = budget.entries
    for leader, signal in zip(leaders, signals, strict=True):
        if not signal or budget_left <= 0 or budget.late():
            continue
        group = _group(guest, leader, signal, budget)
        budget_left -= len(group)
        if len(group) > 1:
            numbers = layout.lists(guest.kernel, group, [])["pid"]
            if pid in numbers:
                return group if threads else [group[numbers.index(pid)]]
    raise NoSuchTargetError(
        f"the guest has no process or thread {pid}", hint="`ps --threads` shows those it has"
    )


def _group(guest: LinuxGuest, leader: int, signal: int, budget: Budget) -> list[int]:
    group = thread_group(guest, signal, budget) if signal else []
    return [leader, *(task for task in group if task != leader)]


class StackReader:
    """Reads the stacks of many tasks; what they share is read once."""

    def __init__(self, guest: LinuxGuest, budget: Budget) -> None:
        self._guest = guest
        self._budget = budget
        self.text = KernelText(guest, budget)
        self.unwinder = _walker(guest, self.text, budget)
        members = {**_MEMBERS, **self.unwinder.SAVED}
        self._layout = guest.layout("task_struct", members, text=("comm",))
        self._saved_size = self.unwinder.saved_size
        self.size = thread_size(guest)
        self.cpus = CpuStates(guest)

    def stacks(self, tasks: Sequence[int]) -> list[TaskStack]:
        """The stacks of tasks, in their order; a task that cannot be read is left out."""
        found: dict[int, TaskStack] = {}
        doubtful = list(tasks)
        for attempt in range(_ATTEMPTS if self._guest.live else 1):
            if attempt:
                self._guest.memory.expire()
            rows = self._rows(doubtful)
            running = self.cpus.running(fresh=attempt > 0)
            for row in rows:
                if not self._budget.late():
                    found[row["address"]] = self._stack(row, running)
            doubtful = self._moved(rows, found) if self._guest.live else []
            if not doubtful or self._budget.late():
                break
        for task in doubtful:
            if task in found:
                found[task] = found[task]._replace(torn=True)
        return [found[task] for task in tasks if task in found]

    def rows(self, item: TaskStack) -> list[StackFrame]:
        """A stack as records."""
        row = item.row
        doubt = 0.5 if item.torn else 1.0
        records = []
        for number, frame in enumerate(item.frames):
            place = None
            if frame.found_by != "user":
                place = self.text.place(frame.address, returns=frame.returns)
            records.append(
                StackFrame(
                    pid=row["pid"],
                    tid=row["tid"],
                    name=row["comm"].split(b"\0", 1)[0],
                    cpu=item.cpu,
                    frame=number,
                    address=frame.address,
                    symbol=None if place is None else str(place),
                    function=None if place is None else place.function,
                    offset=None if place is None else place.offset,
                    module=place.module or None if place else None,
                    stack_pointer=frame.sp,
                    found_by=frame.found_by,
                    confidence=round(CONFIDENCE[frame.found_by] * doubt, 2),
                )
            )
        return records

    def symbols(self, item: TaskStack, most: int = 64) -> tuple[str, ...]:
        """A stack as lines: kernel frames only, a guess behind ``?`` as the kernel marks them."""
        lines = []
        for frame in item.frames[:most]:
            if frame.found_by != "user":
                place = self.text.place(frame.address, returns=frame.returns)
                name = f"{frame.address:#x}" if place is None else str(place)
                lines.append(f"? {name}" if CONFIDENCE[frame.found_by] < 0.9 else name)
        return tuple(lines)

    def wait_channel(self, item: TaskStack) -> str | None:
        """Where a task waits: its first frame outside of scheduler and locks (``get_wchan()``)."""
        if item.cpu is not None:
            return None
        for frame in item.frames:
            if not self.text.is_scheduling(frame.address) and frame.found_by != "user":
                place = self.text.place(frame.address, returns=frame.returns)
                return place.function if place else None
        return None

    def note(self, item: TaskStack) -> None:
        """Tell what is missing in a stack."""
        name = f"task {item.row['tid']}"
        if item.cpu is not None and not item.frames:
            where = f" on CPU {item.cpu}" if item.cpu != UNKNOWN_CPU else ""
            self._guest.note(
                f"{name} is running{where}: its state is in registers that cannot be read here",
                item.task,
            )
        elif item.torn:
            self._guest.note(f"{name} ran while its stack was read", item.task)
        elif item.broken:
            self._guest.note(f"stack of {name}: {item.broken}", item.row["stack"] or 0)

    def late(self) -> bool:
        """Whether the time for all this is up."""
        return self._budget.late()

    # -- inside -----------------------------------------------------------------------------

    def _rows(self, tasks: Sequence[int]) -> list[Row]:
        columns = self._layout.lists(self._guest.kernel, tasks, [])
        columns["address"] = list(tasks)
        rows = []
        for values in zip(*columns.values(), strict=True):
            row = dict(zip(columns, values, strict=True))
            if None in (row["tid"], row["stack"], row["sp"]):
                self._guest.note("unreadable task", row["address"])
            else:
                rows.append(row)
        return rows

    def _moved(self, rows: list[Row], found: dict[int, TaskStack]) -> list[int]:
        """Tasks that ran while they were read: what is saved of them may be of two moments."""
        # Where time was up before a task's turn, nothing was read of it.
        read = [row for row in rows if row["address"] in found]
        asleep = [row for row in read if found[row["address"]].cpu is None]
        again = self._rows([row["address"] for row in asleep])
        now = {row["address"]: [row[name] for name in _MOVES] for row in again}
        return [
            row["address"]
            for row in asleep
            if now.get(row["address"]) != [row[name] for name in _MOVES]
        ]

    def _stack(self, row: Row, running: dict[int, int]) -> TaskStack:
        task = row["address"]
        if task in running or row["on_cpu"]:
            return self.on_cpu(row, running.get(task, UNKNOWN_CPU))
        bottom, sp = row["stack"], row["sp"]
        if not bottom:
            return TaskStack(task, row, [], None, "it has ended, and has none any more")
        if not bottom <= sp <= bottom + self.size - self._saved_size:
            return TaskStack(task, row, [], None, "its saved stack pointer is not on its stack")
        copy = self.copy(sp, bottom + self.size)
        if len(copy.data) < self._saved_size:
            return TaskStack(task, row, [], None, "the stack cannot be read")
        state = self.unwinder.saved(row, copy)
        frames, broken = self.unwinder.frames(state, [copy])
        return TaskStack(task, row, frames, None, broken, copy=copy)

    def on_cpu(self, row: Row, cpu: int) -> TaskStack:
        """The stack of a task that is on a CPU, by the registers where they can be read."""
        task, bottom = row["address"], row["stack"]
        state = self.cpus.state(cpu)
        if state is None:
            return TaskStack(task, row, [], cpu, "")
        own = self.copy(bottom, bottom + self.size)
        if state.user:
            user = Frame(state.ip, state.sp, "user", returns=False)
            return TaskStack(task, row, [user], cpu, "", copy=own)
        stacks = [own, *(self.copy(start, end) for start, end in self.cpus.stacks(cpu))]
        start = State(state.ip, state.sp, state.bp, state.registers, signal=True)
        frames, broken = self.unwinder.frames(start, stacks, "registers")
        return TaskStack(task, row, frames, cpu, broken, copy=own)

    def copy(self, start: int, end: int) -> Stack:
        """A copy of a stack, as far up as it can be read in one piece."""
        try:
            return Stack(start, self._guest.kernel.read(start, end - start))
        except FaultError:
            pieces = self._guest.kernel.read_available(start, end - start)
        data = b""
        for where, piece in pieces:
            if where != start + len(data):
                break
            data += piece
        return Stack(start, data)


def _walker(guest: LinuxGuest, text: KernelText, budget: Budget) -> StackWalker:
    """What walks this kernel's stacks.

    :raises UnsupportedError: nothing does.
    """
    if guest.machine.name == "i386":
        from virtintrospect.guests.linux.unwind_i386 import BasePointers

        return BasePointers(guest, text)
    if "x86_64" in guest.machine.architectures:
        from virtintrospect.guests.linux.orc import Orc, has_orc
        from virtintrospect.guests.linux.unwind_x86 import Unwinder

        return Unwinder(guest, text, Orc(guest, text, budget) if has_orc(guest) else None)
    if "aarch64" in guest.machine.architectures:
        from virtintrospect.guests.linux.unwind_arm64 import FrameRecords

        return FrameRecords(guest, text)
    if "arm" in guest.machine.architectures:
        from virtintrospect.guests.linux.unwind_arm import UnwindTableWalker

        return UnwindTableWalker(guest, text)
    if "riscv64" in guest.machine.architectures:
        from virtintrospect.guests.linux.unwind_riscv import FrameChain

        return FrameChain(guest, text)
    raise UnsupportedError(f"kernel stacks of {guest.machine.name} cannot be read yet")


def thread_size(guest: LinuxGuest) -> int:
    """THREAD_SIZE, by the stack of the first task (``init_stack``)."""
    for name in ("init_stack", "init_task"):  # the first since 6.10
        start, end = guest.symbols.get(f"__start_{name}"), guest.symbols.get(f"__end_{name}")
        if start is not None and end is not None and end - start in _THREAD_SIZES:
            return end - start
    return _USUAL_SIZE

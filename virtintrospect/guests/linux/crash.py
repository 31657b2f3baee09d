"""Whether a kernel has crashed, and what there is to say about it.

``panic_cpu`` has the number of the CPU that panicked, or -1 (kernel/panic.c). The message is not
kept; it is the line of the log that begins with "Kernel panic - not syncing: ".
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from virtintrospect.errors import VirtIntrospectError
from virtintrospect.guests.linux import percpu, taints
from virtintrospect.guests.linux.budget import Budget
from virtintrospect.guests.linux.counters import number
from virtintrospect.guests.linux.cpustack import running_stacks
from virtintrospect.guests.linux.ps import with_threads
from virtintrospect.guests.linux.stack import StackReader, TaskStack
from virtintrospect.guests.linux.state import state_letter
from virtintrospect.model import Crash, LogRecord

if TYPE_CHECKING:
    from virtintrospect.guests.linux.guest import LinuxGuest

_T = TypeVar("_T")

_PANIC = b"Kernel panic - not syncing: "
#: How kernels begin to tell of an error of their own (arch/x86/kernel/dumpstack.c, mm/fault.c,
#: traps.c, lib/bug.c).
_ERROR = re.compile(
    rb"^(BUG: |Oops\b|general protection fault|kernel BUG at|invalid opcode|divide error|"
    rb"stack segment|double fault|unable to handle|traps: PANIC|Kernel panic|"
    rb"sysrq: Trigger a crash|watchdog: BUG|NMI watchdog: (BUG|Watchdog detected)|rcu: .*stall)",
    re.IGNORECASE,
)
#: Lines of the log that are shown: from the first error, or the last ones.
_MOST_LINES, _LAST_LINES = 100, 20
#: Lines in front of an error, and in front of a panic, where they begin with an error.
_BEFORE, _BEFORE_PANIC = 5, 60
_MOST_BLOCKED = 1000
#: Bytes of a line that are shown, twice as many as the kernel prints at a time.
_LONGEST_LINE = 4096


def crash(guest: LinuxGuest) -> Crash:
    """The record of ``crash``."""
    budget = Budget()
    info = guest.info()
    log = _attempt(guest, "log", guest.dmesg) or []
    mask = _attempt(guest, "taints", lambda: number(guest, "tainted_mask")) or 0
    cpu = _attempt(guest, "CPU that panicked", lambda: number(guest, "panic_cpu", 4, signed=True))
    panicked = cpu is not None and cpu >= 0
    memory = _attempt(guest, "memory", guest.meminfo)
    modules = _attempt(guest, "modules", guest.modules) or []
    message = next((r for r in log if _kernel(r) and r.text.startswith(_PANIC)), None)
    error = next((r for r in log if _kernel(r) and _ERROR.search(r.text)), None)
    stack = _stack(guest, cpu, budget) if panicked and cpu is not None else {}
    tasks, blocked = _tasks(guest, budget)
    guest.note_all([budget.problem])
    return Crash(
        state="panicked" if panicked else "oopsed" if mask >> taints.DIED & 1 else "running",
        message=message.text.removeprefix(_PANIC).split(b"\n", 1)[0] if message else None,
        error=error.text.split(b"\n", 1)[0] if error else None,
        time=(message or error).time if message or error else None,  # type: ignore[union-attr]
        cpu=cpu if panicked else None,
        **({"pid": None, "tid": None, "name": None, "stack": None, "stack_found_by": None} | stack),
        taints=taints.sentences(mask),
        taint_letters=taints.letters(mask),
        tainting_modules=tuple(
            module.name + b"(" + module.taints.encode() + b")"
            for module in modules
            if module.taints
        ),
        panic_on_oops=_flag(guest, "panic_on_oops"),
        panic_timeout=_optional(guest, "panic_timeout"),
        release=info.release,
        version=info.version,
        hostname=info.hostname,
        boot_time=info.boot_time,
        uptime_seconds=info.uptime_seconds,
        # A panic takes all CPUs but its own offline.
        cpus=_attempt(guest, "CPUs", lambda: len(percpu.present(guest))),
        tasks=tasks,
        blocked_tasks=blocked,
        memory_total=memory.memory_total if memory else None,
        memory_available=memory.memory_available if memory else None,
        log=_around(log, error, message),
    )


def _attempt(guest: LinuxGuest, what: str, read: Callable[[], _T]) -> _T | None:
    """A part of the report; a crashed kernel may be damaged anywhere."""
    try:
        return read()
    except VirtIntrospectError as error:
        guest.note(f"no {what}: {error}", getattr(error, "address", 0))
        return None


def _optional(guest: LinuxGuest, symbol: str) -> int | None:
    if symbol not in guest.symbols:
        return None
    return _attempt(guest, symbol, lambda: number(guest, symbol, 4, signed=True))


def _flag(guest: LinuxGuest, symbol: str) -> bool | None:
    value = _optional(guest, symbol)
    return None if value is None else bool(value)


def _kernel(record: LogRecord) -> bool:
    """Programs can write into the log, too, but not as the kernel."""
    return record.facility == "kern"


def _around(
    log: list[LogRecord], error: LogRecord | None, message: LogRecord | None
) -> tuple[bytes, ...]:
    """The lines of the report, with their times, as dmesg prints them.

    An error long before the panic may have nothing to do with it.
    """
    if message is not None:
        end = log.index(message) + _MOST_LINES
        first = max(0, log.index(message) - _BEFORE_PANIC)
        if error is not None:
            first = max(first, log.index(error) - _BEFORE)
    elif error is not None:
        first = max(0, log.index(error) - _BEFORE)
        end = first + _MOST_LINES
    else:
        first, end = max(0, len(log) - _LAST_LINES), len(log)
    return tuple(f"[{r.time:12.6f}] ".encode() + r.text[:_LONGEST_LINE] for r in log[first:end])


def _stack(guest: LinuxGuest, cpu: int, budget: Budget) -> dict[str, Any]:
    """The task that the panicking CPU was running, and its stack."""

    def read() -> dict[str, Any]:
        reader = StackReader(guest, budget)
        for item in running_stacks(reader):
            if item.cpu == cpu:
                return _task(reader, item)
        return {}

    return _attempt(guest, "stack", read) or {}


def _task(reader: StackReader, item: TaskStack) -> dict[str, Any]:
    row = item.row
    return {
        "pid": row["pid"],
        "tid": row["tid"],
        "name": row["comm"].split(b"\0", 1)[0],
        "stack": reader.symbols(item) or None,
        "stack_found_by": item.frames[0].found_by if item.frames else None,
    }


def _tasks(guest: LinuxGuest, budget: Budget) -> tuple[int | None, tuple[str, ...]]:
    """Number of tasks, and those in state D as ``tid (name)``."""
    addresses = with_threads(guest, guest.tasks.addresses(budget), budget)
    members = {"tid": "pid", "comm": "comm", "state": "__state|state", "exit": "exit_state"}
    columns = guest.layout("task_struct", members, text=("comm",)).lists(
        guest.kernel, addresses, []
    )
    blocked = [
        f"{tid} ({comm.split(bytes(1), 1)[0].decode('utf-8', 'backslashreplace')})"
        for tid, comm, state, exit_state in zip(*columns.values(), strict=True)
        if state is not None and state_letter(state, exit_state) == "D"
    ]
    return len(addresses), tuple(blocked[:_MOST_BLOCKED])

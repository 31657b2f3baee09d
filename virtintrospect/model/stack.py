"""Stacks, run queues, and what a guest waits for."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StackFrame:
    """One row of ``stack``: a frame of a task's kernel stack, innermost first."""

    pid: int
    tid: int
    name: bytes
    #: CPU whose registers the stack begins with, where it is running.
    cpu: int | None
    frame: int
    address: int
    #: As the kernel writes it: ``name+0xoffset/0xsize [module]``.
    symbol: str | None
    function: str | None
    offset: int | None
    module: str | None
    #: Stack pointer in that frame.
    stack_pointer: int
    #: saved, registers, orc, frame pointer, user; searched and scan are guesses.
    found_by: str
    #: 1.0 for what the kernel's own tables say, less for guesses.
    confidence: float


@dataclass(frozen=True, slots=True)
class RunQueue:
    """One row of ``runqueues``: a CPU that is online."""

    cpu: int
    #: What it is running; the idle task has pid 0.
    pid: int | None
    tid: int | None
    name: bytes | None
    idle: bool
    #: Milliseconds since the task got the CPU; unknown for the idle task.
    running_for: int | None
    #: Milliseconds since anything was noted on this run queue: a CPU that is idle sleeps that long.
    clock_age: int | None
    #: Tasks that run or want to, and those of them in each scheduling class.
    running: int
    fair: int
    realtime: int
    deadline: int
    #: Weight of the fair tasks (1,048,576 is one of nice 0), and averages, 1024 being one CPU.
    fair_weight: int
    load_average: int
    utilization: int
    #: Tasks that fell asleep here in state D less those that woke here: only the sum over all
    #: CPUs is a number of tasks.
    uninterruptible: int
    iowait: int
    switches: int


@dataclass(frozen=True, slots=True)
class CpuSigns:
    """What wakes a CPU that is online, and what it was doing when it was looked at."""

    cpu: int
    #: Since it came up: interrupts of its timer, ways into idle, and those with the tick stopped.
    timer_interrupts: int | None
    idle_calls: int | None
    idle_sleeps: int | None
    #: Whether it runs a task.
    busy: bool | None
    #: Milliseconds since anything was noted on its run queue.
    clock_age: int | None
    #: As of ``preempt_count()``: above zero, its task cannot be preempted by the guest.
    preempt_count: int | None
    #: Whether it stands in the queue of a spinlock.
    spins: bool | None


@dataclass(frozen=True, slots=True)
class Stall:
    """One row of ``hung``: something that waits, or does not come on."""

    #: task, cpu, filesystem, guest or log.
    kind: str
    pid: int | None = None
    tid: int | None = None
    name: bytes | None = None
    cpu: int | None = None
    state: str | None = None
    #: Seconds: a task's since it last ran, a CPU's since its task got it.
    seconds: float | None = None
    #: Whether a fatal signal would end the wait; the kernel's own detector passes over such tasks.
    killable: bool | None = None
    iowait: bool | None = None
    #: As /proc/PID/wchan.
    wait_channel: str | None = None
    #: What it waits for, where that is certain.
    waits_for: str | None = None
    #: Address of a lock that it waits for.
    lock: int | None = None
    #: Who holds the lock, or whom it waits for.
    owner_pid: int | None = None
    owner_name: bytes | None = None
    #: Of a line of the log: seconds since boot.
    time: float | None = None
    #: What else is to be said; a line of the log.
    text: bytes | None = None
    #: Innermost frame first; guesses begin with ``?``.
    stack: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class Crash:
    """The record of ``crash``."""

    #: running; oopsed (it goes on after an error of its own); panicked.
    state: str
    #: What the kernel panicked for.
    message: bytes | None
    #: The first error that the kernel noted, before or without a panic.
    error: bytes | None
    #: Seconds since boot.
    time: float | None
    #: The CPU that panicked, and the task that it was running.
    cpu: int | None
    pid: int | None
    tid: int | None
    name: bytes | None
    #: Each with its letter and meaning.
    taints: tuple[str, ...]
    taint_letters: str
    #: Modules that taint the kernel: ``name(letters)``.
    tainting_modules: tuple[bytes, ...]
    panic_on_oops: bool | None
    #: Seconds until a panic restarts the guest: 0 never, below 0 at once.
    panic_timeout: int | None
    release: bytes
    version: bytes
    hostname: bytes | None
    boot_time: int | None
    uptime_seconds: int | None
    cpus: int | None
    #: Tasks, threads included, and those of them in state D.
    tasks: int | None
    blocked_tasks: tuple[str, ...]
    memory_total: int | None
    memory_available: int | None
    #: Of the task that panicked, innermost frame first; guesses begin with ``?``.
    stack: tuple[str, ...] | None
    #: registers, or searched: the stack was found in the stack's memory, see ``stack``.
    stack_found_by: str | None
    #: The kernel's last lines, from the first error on where there is one.
    log: tuple[bytes, ...]

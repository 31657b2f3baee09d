"""Reports for people: what tables would tear apart. All text goes out through :func:`_line`."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from virtintrospect.cli.escape import printable
from virtintrospect.cli.output import human_size, human_value
from virtintrospect.errors import VirtIntrospectError
from virtintrospect.insight.columns import Unit

if TYPE_CHECKING:
    from virtintrospect.guests.base import Guest
    from virtintrospect.model import Crash, RunQueue, Stall


def hung_report(guest: Guest, found: Sequence[Stall], seconds: float) -> None:
    """What ``hung`` found, under headings."""
    info = guest.info()
    _line(
        f"{_text(info.hostname)}: Linux {_text(info.release)}, up {_duration(info.uptime_seconds)}"
    )
    for item in _of(found, "guest"):
        _line(f"The guest does not run: {_text(item.text)}.")
    _load(guest)
    _heading("CPUs")
    for queue in guest.runqueues():
        _line(f"  CPU {queue.cpu}: {_doing(queue)}")
    for item in _of(found, "cpu"):
        _line(f"  CPU {item.cpu}: task {item.tid} ({_text(item.name)}): {_text(item.text)}")
        _stack(item.stack)
    systems = _of(found, "filesystem")
    if systems:
        _heading("Frozen file systems")
    for item in systems:
        _line(f"  {_text(item.name)}: {_text(item.text)}")
    _tasks(_of(found, "task"), seconds)
    lines = _of(found, "log")
    if lines:
        _heading("What the kernel said")
    for item in lines:
        _line(f"  [{item.time or 0.0:12.6f}] {_text(item.text)}")


def _of(found: Sequence[Stall], kind: str) -> list[Stall]:
    return [item for item in found if item.kind == kind]


def _load(guest: Guest) -> None:
    try:
        load = guest.load()
        _line(f"load averages {load.load1:.2f} {load.load5:.2f} {load.load15:.2f}")
        waits = [
            f"{row.resource} {row.avg10:.1f} %" for row in guest.pressure() if row.kind == "some"
        ]
        _line(f"time lost in the last 10 s (PSI, some): {', '.join(waits)}")
    except VirtIntrospectError:
        return  # not measured in this kernel


def _doing(queue: RunQueue) -> str:
    if queue.idle:
        what = "idle"
    else:
        what = f"runs task {queue.tid} ({_text(queue.name)})"
        if queue.running_for is not None:
            what += f" for {queue.running_for / 1000:.1f} s"
    return f"{what}; {queue.running} runnable, {queue.iowait} waiting for I/O"


def _tasks(tasks: Sequence[Stall], seconds: float) -> None:
    longer = f" for {seconds:g} s or longer" if seconds else ""
    if not tasks:
        _heading(f"No task waits (state D){longer}")
        return
    _heading(f"{len(tasks)} task{'s' if len(tasks) > 1 else ''} waiting (state D){longer}")
    for item in tasks:
        since = "" if item.seconds is None else f", for {item.seconds:.1f} s"
        where = f", in {item.wait_channel}" if item.wait_channel else ""
        _line(f"  {item.tid} ({_text(item.name)}){since}{where}")
        if item.waits_for:
            _line(f"    waits for: {item.waits_for}{_owner(item)}")
        if item.killable:
            _line("    a fatal signal would end the wait")
        _stack(item.stack)


def _owner(item: Stall) -> str:
    """Who holds what a task waits for."""
    if not item.owner_pid:
        return ""
    who = f"{item.owner_pid} ({_text(item.owner_name)})"
    return f" held by {who}" if item.lock else f" of its child {who}"


def crash_report(crash: Crash, stopped: str) -> None:
    """The record of ``crash``, under headings.

    :param stopped: what libvirt calls a domain that does not run.
    """
    _line(_verdict(crash))
    if stopped:
        _line(f"The domain is {stopped}.")
    _heading("Kernel")
    _fields(
        (
            ("release", _text(crash.release)),
            ("version", _text(crash.version)),
            ("hostname", _text(crash.hostname)),
            ("booted", human_value(Unit.EPOCH, crash.boot_time)),
            ("up", _duration(crash.uptime_seconds)),
            ("tainted", "; ".join(crash.taints) or "no"),
            ("by modules", ", ".join(map(_text, crash.tainting_modules))),
            ("panic on oops", human_value(Unit.FLAG, crash.panic_on_oops)),
            ("CPUs", human_value(Unit.NUMBER, crash.cpus)),
            ("tasks", human_value(Unit.NUMBER, crash.tasks)),
            ("in state D", ", ".join(crash.blocked_tasks)),
            ("memory", _memory(crash)),
        )
    )
    if crash.stack:
        _heading(f"Stack of task {crash.tid} ({_text(crash.name)}) on CPU {crash.cpu}")
        if crash.stack_found_by == "searched":
            _line("  found in the stack's memory: frames inside of the first one are not shown")
        for line in crash.stack:
            _line(f"  {line.removeprefix('? ') if crash.stack_found_by == 'searched' else line}")
    _heading("Log")
    for entry in crash.log:
        _line(f"  {_text(entry)}")


def _verdict(crash: Crash) -> str:
    if crash.state == "running":
        return "The kernel has not crashed."
    at = "" if crash.time is None else f" at {crash.time:.6f} s"
    if crash.state == "oopsed":
        error = f": {_text(crash.error)}" if crash.error else ""
        return f"The kernel has survived an error of its own{at}{error}"
    message = f": {_text(crash.message)}" if crash.message else ""
    return f"The kernel panicked{at} on CPU {crash.cpu}{message}"


def _memory(crash: Crash) -> str:
    if crash.memory_total is None:
        return ""
    free = crash.memory_available
    left = "" if free is None else f", {human_size(free)} available"
    return f"{human_size(crash.memory_total)}{left}"


def _fields(fields: Iterable[tuple[str, str]]) -> None:
    shown = [(name, value) for name, value in fields if value]
    width = max(len(name) for name, _ in shown) + 1
    for name, value in shown:
        _line(f"  {name + ':':<{width}} {value}")


def _stack(lines: tuple[str, ...] | None) -> None:
    for line in lines or ():
        _line(f"      {line}")


def _heading(text: str) -> None:
    _line("")
    _line(text)


def _duration(seconds: int | None) -> str:
    if seconds is None:
        return "for an unknown time"
    days, rest = divmod(seconds, 86_400)
    clock = f"{rest // 3600}:{rest // 60 % 60:02}:{rest % 60:02}"
    return f"{days} days {clock}" if days else clock


def _text(value: bytes | None) -> str:
    return "?" if value is None else printable(value)


def _line(text: str) -> None:
    """One line; whatever a guest had a hand in is made printable."""
    sys.stdout.write(printable(text) + "\n")

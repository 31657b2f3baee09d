"""The ways to a guest's memory, side by side.

CPU time of all who take part: this process or the command, libvirtd and QEMU. They work one after
the other, so on an idle machine it is about what a read takes; on a busy one it says more than
the clock does. What the guest itself does meanwhile is in it.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from benchmarks.figures import Figure, show
from benchmarks.measure import program
from tests.guests.lab.domain import Config
from tests.guests.lab.guest import Guest
from tests.guests.lab.private import Private
from virtintrospect.driver import Access
from virtintrospect.session import open_session

_KERNEL = "6.1"
_SLEEPERS = 170
_RUNS = 7
#: Reads of one kind between two looks at the clocks.
_READS = 20
_MIB = 1 << 20
_TRANSPORTS = ("kvm-mmap", "kvm-process", "peek", "monitor")


def main() -> None:
    """A guest of a libvirtd of our own, of which nobody else wants anything."""
    with (
        Private() as private,
        Guest(Config(_KERNEL, cmdline=f"lab.sleepers={_SLEEPERS}"), private=private) as guest,
    ):
        for transport in _TRANSPORTS:
            title = f"{transport}, kernel {guest.release}; CPU time of all who take part"
            show(title, _of(private, guest, transport))


def _of(private: Private, guest: Guest, transport: str) -> Iterator[Figure]:
    access = Access(transport, taint=transport == "monitor")
    others = (private.pid, guest.pid)
    limit = "(≤ 3000)" if transport == "peek" else ""
    with open_session(guest.name, private.uri, access=access) as session:
        kernel, memory = session.guest, session.memory
        count = len(kernel.processes())
        line = [program(), "-c", private.uri, "--no-daemon", "ps", guest.name, "--columns", "all"]
        line += ["--transport", transport, *(["--allow-taint"] if access.taint else [])]
        spent = _spent(lambda: subprocess.run(line, check=True, capture_output=True), others)
        yield Figure(f"ps of {count} processes, all fields", spent * 1e3, "ms", limit)
        for what, size in (("8 bytes", 8), ("64 KiB", 64 << 10), ("1 MiB", _MIB)):
            reads = _READS if memory.slow else 100 * _READS

            def read(size: int = size, reads: int = reads) -> None:
                for _ in range(reads):
                    memory.expire()
                    memory.read(16 * _MIB, size)

            yield Figure(f"a read of {what}", _spent(read, others) / reads * 1e3, "ms")
        if memory.slow:
            before = memory.calls  # type: ignore[attr-defined]
            memory.expire()
            kernel.processes(details=True)
            made = memory.calls - before  # type: ignore[attr-defined]
            yield Figure("calls for that table", made, "")


def _spent(function: Callable[[], object], others: Sequence[int]) -> float:
    """CPU seconds of this process, its children and others, the median of several runs."""
    function()
    found = []
    for _ in range(_RUNS):
        before = _clock(others)
        function()
        found.append(_clock(others) - before)
    return statistics.median(found)


def _clock(others: Sequence[int]) -> float:
    children = os.times()
    mine = time.process_time() + children.children_user + children.children_system
    return mine + sum(map(_of_process, others))


def _of_process(pid: int) -> float:
    """CPU seconds of a process, of all its threads: /proc/PID/task/TID/schedstat."""
    total = 0
    for thread in Path(f"/proc/{pid}/task").iterdir():
        total += int((thread / "schedstat").read_text().split()[0])
    return total / 1e9

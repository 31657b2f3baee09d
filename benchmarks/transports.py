"""The ways to a guest's memory, side by side: wall-clock time, since others do the work."""

from __future__ import annotations

import statistics
import subprocess
import time
from collections.abc import Callable, Iterator

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
_MIB = 1 << 20
_TRANSPORTS = ("kvm-mmap", "kvm-process", "peek", "monitor")


def main() -> None:
    """A guest of a libvirtd of our own, so that ``nice`` holds for that and for QEMU, too."""
    with (
        Private() as private,
        Guest(Config(_KERNEL, cmdline=f"lab.sleepers={_SLEEPERS}"), private=private) as guest,
    ):
        for transport in _TRANSPORTS:
            title = f"{transport}, kernel {guest.release}; wall-clock time, medians"
            show(title, _of(private.uri, guest.name, transport))


def _of(uri: str, name: str, transport: str) -> Iterator[Figure]:
    access = Access(transport, taint=transport == "monitor")
    limit = "(≤ 3000)" if transport == "peek" else ""
    with open_session(name, uri, access=access) as session:
        guest = session.guest
        count = len(guest.processes())
        yield Figure(
            f"ps of {count} processes, all fields", _command(uri, name, access), "ms", limit
        )
        memory = session.memory
        for what, size in (("8 bytes", 8), ("64 KiB", 64 << 10), ("1 MiB", _MIB)):

            def read(size: int = size) -> None:
                memory.expire()
                memory.read(16 * _MIB, size)

            yield Figure(f"a read of {what}", _median(read) * 1e3, "ms")
        before = getattr(memory, "calls", None)
        if before is not None:
            memory.expire()
            guest.processes(details=True)
            yield Figure("calls for that table in one process", memory.calls - before, "")  # type: ignore[attr-defined]


def _command(uri: str, name: str, access: Access) -> float:
    """Milliseconds of the whole command."""
    line = [program(), "-c", uri, "--no-daemon", "ps", name, "--columns", "all"]
    line += ["--transport", str(access.transport), *(["--allow-taint"] if access.taint else [])]
    return _median(lambda: subprocess.run(line, check=True, capture_output=True)) * 1e3


def _median(function: Callable[[], object]) -> float:
    function()
    took = []
    for _ in range(_RUNS):
        started = time.perf_counter()
        function()
        took.append(time.perf_counter() - started)
    return statistics.median(took)

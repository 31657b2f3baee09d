"""Every table on a guest with thousands of processes, files and sockets."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from benchmarks.figures import Figure, show
from benchmarks.measure import commands, program
from tests.guests.crowd import Load, loaded
from tests.guests.lab.domain import Config
from tests.guests.lab.guest import Guest
from virtintrospect.guests.linux.guest import LinuxGuest
from virtintrospect.insight.tables import COMMANDS
from virtintrospect.session import open_session

#: Ten times as much at each step, up to what every goal is for.
STEPS = (Load(20, 200, 20), Load(200, 2_000, 200), Load(2_000, 20_000, 2_000))
#: CPU seconds that a whole command may take on the last step, by backing; MiB of memory.
_SECONDS = {"memfd": 1, "anonymous": 3}
_MEMORY = 250
_KERNEL = "6.12"
#: Whole processes a figure is the median of; calls within one.
_RUNS, _CALLS = 3, 5


def main() -> None:
    """Boot a guest of each backing and print the figures as they come."""
    for backing, seconds in _SECONDS.items():
        config = Config(
            _KERNEL, backing=backing, ram_mib=2048, cmdline="lab.sleepers=0 lab.oddities=0"
        )
        with Guest(config) as guest:
            title = f"{backing}, kernel {guest.release}"
            for load in STEPS:
                with loaded(guest, load):
                    show(f"{title}: {', '.join(_words(load))}", _rows(guest.name))
                    if load is STEPS[-1]:
                        show("as whole commands, with JSON", _commands(guest.name, seconds))


def _words(load: Load) -> Iterator[str]:
    for name, count in load._asdict().items():
        yield f"{count} {name}"


def _rows(name: str) -> Iterator[Figure]:
    """Cost of one row within one process, of the tables that grow."""
    with open_session(name) as session:
        guest = session.guest
        assert isinstance(guest, LinuxGuest)
        tables: dict[str, Callable[[], list[Any]]] = {
            "ps": guest.processes,
            "ps --threads": partial(guest.processes, threads=True),
            "ps, every column": partial(guest.processes, details=True),
            "files": guest.files,
            "sockets": guest.sockets,
        }
        for what, read in tables.items():
            count = len(read())
            spent = []
            for _ in range(_CALLS):
                start = time.process_time()
                read()
                spent.append(time.process_time() - start)
            seconds = sorted(spent)[_CALLS // 2]
            each = f"{seconds / max(count, 1) * 1e6:.0f} µs a row"
            yield Figure(f"{what}: {count} rows", seconds * 1e3, "ms", "", each)


def _commands(name: str, limit: int) -> Iterator[Figure]:
    """CPU time and peak memory of every table, as its own process with a warm cache."""
    cases = {"ps": ["ps", name], "ps --threads": ["ps", name, "--threads"]}
    for table in COMMANDS:
        cases[table.name] = [table.name, name, *(["1"] if table.argument else [])]
    with tempfile.TemporaryDirectory() as folder:
        environment = {"VIRTINTROSPECT_CACHE": folder}
        commands([program(), "info", name], 1, lambda: environment)
        for what, arguments in cases.items():
            run = commands([program(), "-o", "json", *arguments], _RUNS, lambda: environment)
            goal = f"(≤ {limit}; {_MEMORY})"
            yield Figure(what, run.cpu_seconds, "s", goal, f"{run.peak_mib:.0f} MiB")

"""Clocks: CPU time of whole commands, and of single calls within this process."""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

#: Seconds that one figure may take.
PATIENCE = 0.4


class Run(NamedTuple):
    """What the operating system says of a finished process."""

    cpu_seconds: float
    peak_mib: float


def command(arguments: list[str], environment: Mapping[str, str] | None = None) -> Run:
    """Run a command, its output thrown away; user and system time and peak memory."""
    null = os.open(os.devnull, os.O_RDWR)
    variables = dict(os.environ) | dict(environment or {})
    # Not having compiled our own modules would be measured as their work.
    variables.pop("PYTHONDONTWRITEBYTECODE", None)
    pid = os.posix_spawn(
        arguments[0], arguments, variables,
        file_actions=[(os.POSIX_SPAWN_DUP2, null, 0), (os.POSIX_SPAWN_DUP2, null, 1)],
    )  # fmt: skip
    os.close(null)
    _, status, usage = os.wait4(pid, 0)
    if status:
        sys.exit(f"{' '.join(arguments)} failed")
    return Run(usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


def commands(
    arguments: list[str],
    count: int = 7,
    environment: Callable[[], Mapping[str, str]] | None = None,
) -> Run:
    """The median of several runs, each with its own environment."""
    runs = [command(arguments, environment() if environment else None) for _ in range(count)]
    return Run(
        statistics.median(run.cpu_seconds for run in runs),
        statistics.median(run.peak_mib for run in runs),
    )


def per_call(function: Callable[[], object]) -> float:
    """CPU seconds of one call: the median of seven batches, each long enough to be measured."""
    count = 1
    while (spent := _batch(function, count)) < PATIENCE / 20 and count < 1 << 22:
        count *= 2
    batches = [spent, *(_batch(function, count) for _ in range(6))]
    return statistics.median(batches) / count


def _batch(function: Callable[[], object], count: int) -> float:
    start = time.process_time()
    for _ in range(count):
        function()
    return time.process_time() - start


def program() -> str:
    """``virt-introspect`` of the environment that this runs in."""
    return str(Path(sys.executable).with_name("virt-introspect"))

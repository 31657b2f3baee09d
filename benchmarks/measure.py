"""Clocks: CPU time of whole commands, and of single calls within this process."""

from __future__ import annotations

import os
import statistics
import subprocess
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


#: Runs a command and prints its CPU seconds and peak KiB. A process of its own, and a small one:
#: what a child's parent had in memory at the start counts as the child's peak.
_LAUNCHER = """
import os, sys
null = os.open(os.devnull, os.O_RDWR)
actions = [(os.POSIX_SPAWN_DUP2, null, 0), (os.POSIX_SPAWN_DUP2, null, 1)]
pid = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ, file_actions=actions)
_, status, usage = os.wait4(pid, 0)
print(status, usage.ru_utime + usage.ru_stime, usage.ru_maxrss)
"""


def command(arguments: list[str], environment: Mapping[str, str] | None = None) -> Run:
    """Run a command, its output thrown away; user and system time and peak memory."""
    variables = dict(os.environ) | dict(environment or {})
    # Compiling our own modules anew each time would be measured as their work.
    variables.pop("PYTHONDONTWRITEBYTECODE", None)
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", _LAUNCHER, *arguments],
        env=variables, stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    status, seconds, peak = done.stdout.split()
    if int(status):
        sys.exit(f"{' '.join(arguments)} failed")
    return Run(float(seconds), int(peak) / 1024)


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

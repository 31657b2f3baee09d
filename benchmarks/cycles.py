"""Starts and stops of a domain under a private libvirtd, in several ways that take turns.

Turns, so that a machine that is busy with other things is as busy for all of them. The delay is
the difference of the same quantile of two ways.
"""

from __future__ import annotations

import os
import statistics
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from tests.guests.lab.private import Private

#: Milliseconds that the hook may add to a cycle at the 99th percentile.
LIMIT = 50


class Cycle(NamedTuple):
    """Milliseconds of one start and of the stop that followed."""

    start: float
    stop: float

    @property
    def whole(self) -> float:
        """Both together."""
        return self.start + self.stop


class Arm:
    """One way to run the cycles; entered just before each of its own."""

    def __init__(self, name: str, enter: Callable[[], object]) -> None:
        self.name = name
        self.enter = enter
        self.cycles: list[Cycle] = []
        self.failed = 0

    def run(self, cycle: Callable[[], Cycle]) -> None:
        """Once; a start that fails is counted."""
        import libvirt

        self.enter()
        try:
            self.cycles.append(cycle())
        except libvirt.libvirtError as error:
            self.failed += 1
            print(f"{self.name}: {error}", file=sys.stderr)


def cycle(private: Private, start: Callable[[], Any]) -> Cycle:
    """Start a domain and stop it.

    :param start: gives the domain, running.
    """
    began = time.perf_counter()
    domain = start()
    started = time.perf_counter()
    reap(int((private.folder / f"run/qemu/{domain.name()}.pid").read_text()))
    stopping = time.perf_counter()
    domain.destroy()
    return Cycle((started - began) * 1e3, (time.perf_counter() - stopping) * 1e3)


def firmware_xml(more: str = "") -> str:
    """A guest of 32 MiB that stays in its firmware, with a name of its own."""
    return f"""
<domain type='qemu'><name>vi-bench-{os.urandom(4).hex()}</name><memory unit='MiB'>32</memory>
{more}
<os><type arch='x86_64' machine='q35'>hvm</type></os><devices><memballoon model='none'/>
<controller type='usb' model='none'/></devices></domain>"""


def adopt_orphans() -> None:
    """Become the parent of QEMUs, which libvirt's forks leave without one (prctl(2)).

    libvirt waits until an ended QEMU has been reaped; some containers' init takes seconds.
    """
    import ctypes

    pr_set_child_subreaper = 36
    ctypes.CDLL(None).prctl(pr_set_child_subreaper, 1, 0, 0, 0)


def reap(pid: int) -> None:
    """Take note, in the background, of the end of one of them."""

    def wait() -> None:
        with suppress(ChildProcessError):
            os.waitpid(pid, 0)

    threading.Thread(target=wait, daemon=True).start()


def report(arms: list[Arm]) -> float:
    """Print the arms; the worst delay of a whole cycle at the 99th percentile."""
    counts = "/".join(str(len(arm.cycles)) for arm in arms)
    print(f"{counts} cycles, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}; "
          "milliseconds, in brackets what the hook adds")  # fmt: skip
    print(f"{'':<18}{'start, median':>18}{'stop, median':>18}{'cycle, median':>18}"
          f"{'cycle, 99 %':>18}  {'ratio':>6}")  # fmt: skip
    base, worst = arms[0], 0.0
    for arm in arms:
        cells = []
        for what, share in (("start", 50), ("stop", 50), ("whole", 50), ("whole", 99)):
            value, plain = (_quantile(each, what, share) for each in (arm, base))
            cells.append(f"{value:.1f}" + (f" ({value - plain:+.1f})" if arm is not base else ""))
        worst = max(worst, value - plain)
        ratio = _quantile(arm, "whole", 50) / _quantile(base, "whole", 50)
        print(f"{arm.name:<18}" + "".join(f"{cell:>18}" for cell in cells) + f"  {ratio:>6.3f}")
    return worst


def verdict(arms: list[Arm], worst: float) -> bool:
    """Print what failed, and whether the delay stays within the limit."""
    failed = sum(arm.failed for arm in arms)
    print(f"failed: {failed}; worst delay at the 99th percentile: {worst:.1f} ms (≤ {LIMIT})")
    return not failed and worst <= LIMIT


def _quantile(arm: Arm, what: str, share: int) -> float:
    values: list[float] = [getattr(cycle, what) for cycle in arm.cycles]
    found: float = statistics.quantiles(values, n=100, method="inclusive")[share - 1]
    return found


def descriptors(pid: int) -> int:
    """How many a process has open."""
    return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())

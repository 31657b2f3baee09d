"""Many small guests that do nothing, and the daemon that has a session on each.

Settings are the daemon's defaults, and it begins with an empty cache. The time to a ready
session is from the start of the guest's PID 1 (proc_pid_stat(5)), which as yet is the kernel's
own; it runs /init a few seconds later.
"""

from __future__ import annotations

import os
import platform
import statistics
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

from benchmarks.cycles import adopt_orphans, reap
from benchmarks.daemon.usage import cpu_seconds, usage
from tests.daemon.running import Running, running
from tests.guests.lab.domain import Config
from tests.guests.lab.guest import Guest
from tests.guests.lab.private import Private
from virtintrospect.daemon.config import Libvirt, Sessions

#: Idle percent of one core, MiB and seconds: the goals at fifty guests.
_CPU, _MEMORY, _READY = 2.0, 150, 1.0
_MINUTE = 60.0
_SMALL = Config("6.12", ram_mib=128, cmdline="lab.workload=0")
#: MiB that must remain on the host: a guest takes more than its RAM.
_RESERVE, _EACH = 2048, 350


def main(count: int) -> int:
    """So many guests, or as many as the memory allows."""
    adopt_orphans()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vi-bench-")))
        os.environ["VIRTINTROSPECT_CACHE"] = str(folder / "cache")
        private = stack.enter_context(Private())
        daemon = stack.enter_context(running(folder, private.uri, **_defaults(private.uri)))
        print(f"kernel {platform.release()}, {os.cpu_count()} CPUs\n"
              f"without guests: {usage(daemon.pid)}", flush=True)  # fmt: skip
        guests = list(_boot(min(count, _room()), private, stack))
        delays = [_delay(guest, daemon) for guest in guests]
        print(f"{len(guests)} guests of {_SMALL.ram_mib} MiB; seconds from the first process to a "
              f"ready session: first {delays[0]:.2f}, median {statistics.median(delays):.2f}, "
              f"most {max(delays):.2f} (≤ {_READY:.0f})", flush=True)  # fmt: skip
        percents = []
        for _ in range(2):
            before, began = cpu_seconds(daemon.pid), time.monotonic()
            time.sleep(_MINUTE)
            spent = cpu_seconds(daemon.pid) - before
            percents.append(100 * spent / (time.monotonic() - began))
            print(f"a minute: {percents[-1]:.2f} % of one core; {usage(daemon.pid)}", flush=True)
        memory = usage(daemon.pid).resident
    print(f"idle: {min(percents):.2f} % (≤ {_CPU:.0f}), {memory:.0f} MiB (≤ {_MEMORY})")
    well = min(percents) <= _CPU and memory <= _MEMORY and max(delays) <= _READY
    return 0 if well else 1


def _defaults(uri: str) -> dict[str, dict[str, object]]:
    """What :class:`Running` sets otherwise."""
    return {
        "daemon": {"log_level": "info"},
        "libvirt": asdict(Libvirt()) | {"uri": uri},
        "sessions": {"poll_seconds": Sessions().poll_seconds},
    }


def _room() -> int:
    lines = Path("/proc/meminfo").read_text().splitlines()
    available = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    return max(1, (available // 1024 - _RESERVE) // _EACH)


def _boot(count: int, private: Private, stack: ExitStack) -> Iterator[Guest]:
    """As many at a time as leave a CPU to the daemon for each; the first one alone."""

    def boot(_number: int) -> Guest:
        guest = Guest(_SMALL, private=private)
        reap(guest.pid)
        return guest

    yield stack.enter_context(boot(0))
    with ThreadPoolExecutor(max(1, (os.cpu_count() or 1) // 2)) as pool:
        for guest in pool.map(boot, range(1, count)):
            yield stack.enter_context(guest)


def _delay(guest: Guest, daemon: Running) -> float:
    """Seconds from the guest's first process to its ready session."""
    ready = float(daemon.wait(guest.name)["since"])
    now = time.time()
    uptime = float(guest.get("/proc/uptime").split()[0])
    ticks = int(guest.get("/proc/1/stat").rpartition(b")")[2].split()[19])
    return ready - (now - uptime + ticks / 100)

"""Figures of a guest at one moment: what history is made of, and hints."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection
from functools import lru_cache
from typing import Any

from virtintrospect.driver import SupportsVcpuTimes, SupportsVmmFigures, Target
from virtintrospect.errors import TargetGoneError, VirtIntrospectError
from virtintrospect.guests.base import Guest
from virtintrospect.insight.hostfigures import host_figures

_log = logging.getLogger(__name__)

#: Members of ``memory`` that are kept; all are bytes.
MEMORY = (
    "memory_total", "memory_free", "memory_available", "buffers", "cached", "s_reclaimable",
    "s_unreclaim", "shmem", "swap_total", "swap_free", "active", "inactive", "active_file",
    "inactive_file", "dirty", "writeback", "anon_pages", "committed_as", "balloon",
)  # fmt: skip
#: Members of ``cpu``, summed over all CPUs; milliseconds.
CPU = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal")
#: Members of ``cpu_signs`` that are kept, after the number of the CPU.
SIGNS = (
    "timer_interrupts", "idle_calls", "idle_sleeps", "busy", "clock_age", "preempt_count", "spins",
)  # fmt: skip
LOAD = ("load1", "load5", "load15", "running", "blocked", "total")
#: Counters of ``vmstat`` that are kept; each is the sum of those whose names begin so, since
#: kernels split some by zone or by kind of page.
EVENTS = {
    "swap_in": "pswpin",
    "swap_out": "pswpout",
    "refault_anon": "workingset_refault_anon",
    "refault_file": "workingset_refault_file",
    "refault": "workingset_refault",
    "stalls": "allocstall",
    "oom_kills": "oom_kill",
    "major_faults": "pgmajfault",
    "paged_in": "pgpgin",
    # Pages that the balloon's driver took, and gave back; one less the other is its size.
    "balloon_inflate": "balloon_inflate",
    "balloon_deflate": "balloon_deflate",
}
#: How many of the largest processes and slab caches are named.
_LARGEST = 8
#: File systems in memory are named from this share on.
_FULL_SHARE = 0.25

Sample = dict[str, Any]


def sample(
    guest: Guest, target: Target | None = None, parts: Collection[str] | None = None
) -> Sample:
    """One sample. What this kernel does not measure, or does not show now, is left out.

    :param target: for what this host knows of the guest's vCPUs.
    :param parts: only these of :data:`PARTS`.
    """
    taken: Sample = {"time": round(time.time(), 3)}
    for name in PARTS if parts is None else parts:
        try:
            if figures := PARTS[name](guest):
                taken[name] = figures
        except TargetGoneError:
            raise
        except (VirtIntrospectError, ArithmeticError, LookupError, TypeError, ValueError) as error:
            # A number that makes no sense costs its part; other guests' samples go on.
            _log.debug("no figures of %s: %s", name, error)
    if each := taken.get("each_cpu"):
        sums = [sum(column) for column in zip(*each, strict=True)]
        taken["cpu"] = dict(zip(CPU, sums[1:], strict=True)) | {"cpus": len(each)}
    if isinstance(target, SupportsVcpuTimes) and (times := target.vcpu_times()):
        taken["vcpus"] = [
            [one.vcpu, one.ran // 1_000_000, one.waited // 1_000_000, one.allowed] for one in times
        ]
    if isinstance(target, SupportsVmmFigures) and parts is None:
        taken["vmm"] = target.vmm_figures()
        taken["host"] = host_figures()
    return taken


def _memory(guest: Guest) -> Sample:
    info = guest.meminfo(MEMORY)
    values = {name: getattr(info, name) for name in MEMORY}
    return {name: value for name, value in values.items() if value is not None}


def _each_cpu(guest: Guest) -> list[list[int]]:
    """Of each CPU: its number, then :data:`CPU`."""
    return [[cpu.cpu, *(getattr(cpu, name) for name in CPU)] for cpu in guest.cpu()]


def _load(guest: Guest) -> Sample:
    load = guest.load()
    return {name: getattr(load, name) for name in LOAD}


def _pressure(guest: Guest) -> Sample:
    return {
        f"{row.resource}_{row.kind}": {"avg10": row.avg10, "avg60": row.avg60, "total": row.total}
        for row in guest.pressure()
    }


def _events(guest: Guest) -> Sample:
    found: dict[str, int] = {}
    for row in guest.vmstat([prefix.encode() for prefix in EVENTS.values()]):
        for name in _events_of(row.name):
            found[name] = found.get(name, 0) + row.value
    return found


@lru_cache(maxsize=1024)
def _events_of(counter: bytes) -> tuple[str, ...]:
    """The figures that a counter is a part of."""
    return tuple(name for name, prefix in EVENTS.items() if counter.startswith(prefix.encode()))


def _tasks(guest: Guest) -> Sample:
    """How many there are, and the largest: pid, name, resident bytes, CPU milliseconds."""
    rows = guest.processes()
    users = [row for row in rows if not row.kernel_thread]
    largest = sorted(users, key=lambda row: -(row.resident_size or 0))[:_LARGEST]
    busiest = sorted(users, key=lambda row: -(row.user_time or 0) - (row.system_time or 0))
    return {
        "processes": len(users),
        "threads": sum(row.threads or 1 for row in users),
        "zombies": sum(row.state == "Z" for row in users),
        "waiting": [_text(row.name) for row in rows if row.state == "D"][:_LARGEST],
        "largest": [[row.pid, _text(row.name), row.resident_size or 0] for row in largest],
        "busiest": [
            [row.pid, _text(row.name), (row.user_time or 0) + (row.system_time or 0)]
            for row in busiest[:_LARGEST]
        ],
    }


def _drivers(guest: Guest) -> Sample:
    """Whether the guest has a driver for the balloon: built in, or as a module."""
    loaded = any(module.name == b"virtio_balloon" for module in guest.modules())
    return {"balloon": int(loaded or guest.symbols.get("virtballoon_probe") is not None)}


def _slabs(guest: Guest) -> list[list[Any]]:
    rows = sorted(guest.slabs(), key=lambda row: -(row.size or 0))[:_LARGEST]
    return [[_text(row.name), row.size or 0] for row in rows]


def _cache(guest: Guest) -> Sample:
    """Page cache: used more than once, all of it, not among what is available; bytes.

    Besides, free pages of the CPUs' own, which are not among what is available either, and how
    much of files can have been used.
    """
    use = guest.cache_use()
    known: Sample = {
        "used_again": use.used_again, "total": use.total, "kept": use.kept, "on_cpus": use.on_cpus,
    }  # fmt: skip
    if use.files is not None and use.touched is not None:
        known |= {"files": use.files, "mapped": use.mapped, "touched": use.touched}
        known |= {"uncounted": list(use.uncounted)}
    return known


def _signs(guest: Guest) -> list[list[Any]]:
    """Of each CPU: its number, then :data:`SIGNS`; ``None`` for what is not known."""
    return [[cpu.cpu, *(getattr(cpu, name) for name in SIGNS)] for cpu in guest.cpu_signs()]


def _filesystems(guest: Guest) -> list[list[Any]]:
    """Of file systems in memory that fill up: path, type, bytes, files; 0: no limit.

    Of bytes and files each, those used and the most that there may be.
    """
    return [
        [
            _text(row.path or b""), _text(row.type or b""), row.used, row.size or 0,
            row.files or 0, row.files_most or 0,
        ]
        for row in guest.memory_filesystems(least_share=_FULL_SHARE)[:_LARGEST]
    ]  # fmt: skip


def _text(name: bytes) -> str:
    return name.decode("utf-8", "backslashreplace")


#: What a sample has, besides ``cpu``, which is the sum of ``each_cpu``.
PARTS: dict[str, Callable[[Guest], Any]] = {
    "memory": _memory,
    "each_cpu": _each_cpu,
    "load": _load,
    "pressure": _pressure,
    "events": _events,
    "cache": _cache,
    "tasks": _tasks,
    "slabs": _slabs,
    "drivers": _drivers,
    "signs": _signs,
    "filesystems": _filesystems,
}

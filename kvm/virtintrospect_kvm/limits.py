"""What control groups of this host allow a QEMU: memory, and CPU time for its vCPUs.

Both versions of control groups (Documentation/admin-guide/cgroup-v2.rst, cgroup-v1/memory.rst
and scheduler/sched-bwc.rst). A limit of a group holds for all groups below it.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from virtintrospect_kvm.process import QemuProcess

#: Groups in groups that are looked at, and bytes of one of their files.
_MAX_DEPTH, _MAX_FILE = 32, 4096
#: A limit of version 1 that is none: all that a counter of pages can hold.
_NO_LIMIT = 1 << 60
_MOUNTS = Path("/proc/self/mountinfo")
#: How it writes spaces, tabs, ends of lines and backslashes of a path (mangle_path, fs/seq_file.c).
_ESCAPED = re.compile(r"\\([0-3][0-7]{2})")


class _Hierarchy(NamedTuple):
    """Where a controller's groups are mounted here, and which group that is."""

    place: Path
    root: str
    unified: bool


class Group(NamedTuple):
    """A control group, and whether it is of version 2."""

    name: str
    folder: Path
    unified: bool

    def read(self, file: str) -> str:
        """A file of it; empty where there is none."""
        try:
            with (self.folder / file).open("rb") as opened:
                return opened.read(_MAX_FILE).decode("ascii", "replace").strip()
        except OSError:
            return ""


class _Quota(NamedTuple):
    """CPUs' worth of time, and how often and how long (ms) a group had used it up."""

    cpus: float
    throttled: int
    throttled_ms: int


def limits(process: QemuProcess, vcpus: Collection[int]) -> dict[str, Any]:
    """The tightest limits of a QEMU, those that there are.

    ``memory_max`` and ``memory_used`` (bytes) with the group that has that limit,
    ``memory_group``; ``cpus_max``, the CPUs' worth of time that all vCPUs together get, with
    ``cpu_group``, and how often they were stopped for it: ``throttled`` and ``throttled_ms``,
    which only grow.

    :param vcpus: thread ids of its vCPUs.
    """
    found = _memory(_chain(process, "cgroup", "memory"))
    chains = [list(_chain(process, f"task/{thread}/cgroup", "cpu")) for thread in vcpus]
    return found | _cpu(chains)


def _memory(chain: Iterator[Group]) -> dict[str, Any]:
    tightest: tuple[int, str, int] | None = None
    for group in chain:
        limit = group.read("memory.max" if group.unified else "memory.limit_in_bytes")
        used = group.read("memory.current" if group.unified else "memory.usage_in_bytes")
        if limit.isdigit() and int(limit) < _NO_LIMIT and used.isdigit():
            tightest = min(tightest or (_NO_LIMIT, "", 0), (int(limit), group.name, int(used)))
    if tightest is None:
        return {}
    return dict(zip(("memory_max", "memory_group", "memory_used"), tightest, strict=True))


def _cpu(chains: list[list[Group]]) -> dict[str, Any]:
    quotas: dict[Group, _Quota] = {}
    for group in {group for chain in chains for group in chain}:
        if quota := _quota(group):
            quotas[group] = quota
    if not quotas:
        return {}
    tightest = [
        min((g for g in chain if g in quotas), key=lambda g: quotas[g].cpus, default=None)
        for chain in chains
    ]
    # Of groups that hold all vCPUs, and of those that hold one each (libvirt's vcpu0, vcpu1, …).
    common = set.intersection(*map(set, chains)) & quotas.keys()
    shares = [(quotas[group].cpus, group.name) for group in common]
    if all(group is not None for group in tightest):
        names = [group.name for group in tightest if group]
        shares.append((sum(quotas[group].cpus for group in tightest if group), names[0]))
    found: dict[str, Any] = {
        "throttled": sum(quota.throttled for quota in quotas.values()),
        "throttled_ms": sum(quota.throttled_ms for quota in quotas.values()),
        "cpu_group": min(quotas, key=lambda group: quotas[group].cpus).name,
    }
    if shares:
        cpus, found["cpu_group"] = min(shares)
        found["cpus_max"] = round(cpus, 3)
    return found


def _quota(group: Group) -> _Quota | None:
    if group.unified:
        words = group.read("cpu.max").split()
    else:
        words = [group.read("cpu.cfs_quota_us"), group.read("cpu.cfs_period_us")]
    if len(words) != 2 or not all(word.isdigit() and int(word) for word in words):
        return None  # "max", or -1: none
    pairs = (line.split() for line in group.read("cpu.stat").splitlines())
    counts = {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdigit()}
    spent = counts.get("throttled_usec", 0) // 1000 + counts.get("throttled_time", 0) // 1_000_000
    return _Quota(int(words[0]) / int(words[1]), counts.get("nr_throttled", 0), spent)


def _chain(process: QemuProcess, file: str, controller: str) -> Iterator[Group]:
    """The group that a process or thread is in, and those around it, as far as they are here."""
    lines: list[str] = []
    with suppress(OSError):
        lines = process.read_file(file, 1 << 16).decode("utf-8", "surrogateescape").splitlines()
    found = _place(lines, controller)
    if found is None:
        return
    hierarchy, path = found
    parts = [part for part in path.split("/") if part]
    if ".." in parts:  # outside of our namespace of control groups
        return
    for depth in range(len(parts), max(-1, len(parts) - _MAX_DEPTH), -1):
        folder = hierarchy.place.joinpath(*parts[:depth])
        yield Group("/" + "/".join(parts[:depth]), folder, hierarchy.unified)


def _place(lines: list[str], controller: str) -> tuple[_Hierarchy, str] | None:
    """Where a controller is mounted, and the path below by the lines of /proc/PID/cgroup."""
    for line in lines:
        number, _, rest = line.partition(":")
        names, _, path = rest.partition(":")
        mine = controller in names.split(",")
        # One that version 1 has is none of version 2, and the other way round.
        hierarchy = _mounted(controller) if mine else None
        if hierarchy is None and number == "0" and not names and not _mounted(controller):
            hierarchy = _mounted("")
        if hierarchy is None:
            continue
        if hierarchy.root == "/":
            return hierarchy, path
        if path == hierarchy.root or path.startswith(hierarchy.root + "/"):
            return hierarchy, path[len(hierarchy.root) :]
    return None


def _mounted(controller: str) -> _Hierarchy | None:
    """Where groups of a controller are; of version 2 for an empty name."""
    with suppress(OSError):
        for line in _MOUNTS.read_text(errors="surrogateescape").splitlines():
            before, _, after = line.partition(" - ")
            fields, kind = before.split(), after.split()
            if len(fields) < 5 or len(kind) < 3:
                continue
            unified = kind[0] == "cgroup2"
            wanted = unified if not controller else controller in kind[2].split(",")
            if wanted and kind[0] in ("cgroup", "cgroup2"):
                root, place = (_ESCAPED.sub(_plain, field) for field in fields[3:5])
                return _Hierarchy(Path(place), root, unified)
    return None


def _plain(escaped: re.Match[str]) -> str:
    return chr(int(escaped[1], 8))

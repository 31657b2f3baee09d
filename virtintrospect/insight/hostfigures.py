"""Figures of this host, for guests that run on it: what it has left, and how its memory is run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

#: Lines of /proc/meminfo that are kept, in bytes.
_MEMINFO = {
    "MemTotal": "memory_total",
    "MemAvailable": "memory_available",
    "SwapFree": "swap_free",
    "HugePages_Free": "hugepages_free",
}
_KSM = ("run", "pages_shared", "pages_sharing", "pages_unshared")
_RESOURCES = ("cpu", "memory", "io")
_PAGE = os.sysconf("SC_PAGE_SIZE")
_MAX_FILE = 65536


def host_figures(root: Path = Path("/")) -> dict[str, Any]:
    """What there is, and what is left.

    Bytes of memory; ``cpus`` online and ``nodes`` (NUMA) with memory, of several
    ``node_memory``: rows of number, total and free; ``huge`` and
    ``shmem_huge``, the mode of transparent huge pages; ``ksm``: its switch, and bytes; and
    ``pressure``: microseconds that tasks waited (PSI's ``total``). What this host does not
    measure is left out.

    :param root: where ``proc`` and ``sys`` are.
    """
    found: dict[str, Any] = {"cpus": os.cpu_count() or 1}
    for line in _lines(root / "proc/meminfo"):
        name, _, rest = line.partition(":")
        words = rest.split()
        if name in _MEMINFO and words and words[0].isdigit():
            found[_MEMINFO[name]] = int(words[0]) << (10 if len(words) > 1 else 0)
    pressure = {name: row for name in _RESOURCES for name, row in _pressure(root, name)}
    if pressure:
        found["pressure"] = pressure
    mm = root / "sys/kernel/mm"
    ksm = {name: _number(mm / "ksm" / name) for name in _KSM}
    if ksm["run"] is not None:
        found["ksm"] = {
            name: value * (1 if name == "run" else _PAGE)
            for name, value in ksm.items()
            if value is not None
        }
    for name, file in (("huge", "enabled"), ("shmem_huge", "shmem_enabled")):
        for line in _lines(mm / "transparent_hugepage" / file):
            if "[" in line:
                found[name] = line.partition("[")[2].partition("]")[0]
    nodes = root / "sys/devices/system/node/has_memory"
    if listed := list(_ranges(next(_lines(nodes), ""))):
        found["nodes"] = len(listed)
        if len(listed) > 1:
            found["node_memory"] = [row for n in listed if (row := _node(nodes.parent, n))]
    return found


def _pressure(root: Path, resource: str) -> Iterator[tuple[str, dict[str, int]]]:
    """``some`` and ``full`` of a resource."""
    for line in _lines(root / "proc/pressure" / resource):
        kind, *words = line.split()
        for word in words:
            name, _, value = word.partition("=")
            if name == "total" and value.isdigit():
                yield f"{resource}_{kind}", {"total": int(value)}


def _node(folder: Path, number: int) -> list[int]:
    """A NUMA node's number, its memory and what is free of it, in bytes."""
    found = {}
    for line in _lines(folder / f"node{number}" / "meminfo"):
        words = line.split()  # Node 0 MemFree: 12345 kB
        if len(words) > 3 and words[3].isdigit():
            found[words[2]] = int(words[3]) << 10
    if "MemTotal:" not in found or "MemFree:" not in found:
        return []
    return [number, found["MemTotal:"], found["MemFree:"]]


def _ranges(text: str) -> Iterator[int]:
    """Numbers of a list such as ``0-3,8``."""
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        if first.isdigit() and (last or first).isdigit():
            yield from range(int(first), min(int(last or first), int(first) + 1024) + 1)


def _number(path: Path) -> int | None:
    text = next(_lines(path), "").strip()
    return int(text) if text.isdigit() else None


def _lines(path: Path) -> Iterator[str]:
    with suppress(OSError), path.open("rb") as file:
        yield from file.read(_MAX_FILE).decode("ascii", "replace").splitlines()

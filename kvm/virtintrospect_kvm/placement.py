"""Where and how this host keeps a QEMU's memory: huge pages, NUMA nodes, merged, swapped.

/proc/PID/smaps_rollup, numa_maps and ksm_merging_pages (Documentation/filesystems/proc.rst,
Documentation/admin-guide/mm/ksm.rst).
"""

from __future__ import annotations

import os
import re
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from virtintrospect_kvm.process import QemuProcess

#: The kernel walks all page tables for these files: no more often than so many seconds, and
#: for no more than a hundredth of the time.
_SECONDS, _SHARE = 10.0, 100
#: Bytes of numa_maps: a line for each mapping.
_MAX_FILE = 4 << 20
_PAGE = os.sysconf("SC_PAGE_SIZE")
_NODES = Path("/sys/devices/system/node/online")

#: Our names of the lines of smaps_rollup; those of one name are added up.
_LINES = {
    b"Rss": "resident",
    b"Anonymous": "anonymous",
    b"AnonHugePages": "anon_huge",
    b"ShmemPmdMapped": "shmem_huge",
    b"FilePmdMapped": "shmem_huge",
    b"Shared_Hugetlb": "hugetlb",
    b"Private_Hugetlb": "hugetlb",
    b"Swap": "swapped",
}
_PAGES = re.compile(rb"N([0-9]{1,5})=([0-9]{1,15})")
_UNIT = re.compile(rb"kernelpagesize_kB=([0-9]{1,9})")


class Placement:
    """The memory of one QEMU, looked at from time to time."""

    def __init__(self, process: QemuProcess) -> None:
        self._process = process
        self._found: dict[str, Any] = {}
        self._next = 0.0

    def look(self) -> dict[str, Any]:
        """What there is, in bytes; it may be some seconds old.

        ``resident``, ``anonymous``, ``anon_huge``, ``shmem_huge``, ``hugetlb``, ``swapped``,
        ``merged`` (by KSM), and ``nodes``: pairs of a NUMA node and what it holds, on a host
        that has several. What this kernel does not tell, or not us, is left out.
        """
        start = time.monotonic()
        if start >= self._next:
            self._found = self._look()
            now = time.monotonic()
            self._next = now + max(_SECONDS, _SHARE * (now - start))
        return dict(self._found)

    def _look(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        with suppress(OSError, ValueError):
            found |= parse_rollup(self._process.read_file("smaps_rollup", 8192))
        with suppress(OSError, ValueError):
            merged = int(self._process.read_file("ksm_merging_pages", 64))
            found["merged"] = merged * _PAGE
        if _several_nodes():
            with suppress(OSError, ValueError):
                if nodes := parse_nodes(self._process.read_file("numa_maps", _MAX_FILE)):
                    found["nodes"] = nodes
        return found


def parse_rollup(text: bytes) -> dict[str, int]:
    """The lines of smaps_rollup that we name, in bytes."""
    found: dict[str, int] = {}
    for line in text.splitlines():
        name, _, rest = line.partition(b":")
        if (known := _LINES.get(name)) and rest.endswith(b" kB"):
            found[known] = found.get(known, 0) + (int(rest[:-3]) << 10)
    return found


def parse_nodes(text: bytes) -> list[list[int]]:
    """Bytes on each NUMA node, by its number, from numa_maps."""
    nodes: dict[int, int] = {}
    for line in text.splitlines():
        unit = _UNIT.search(line)
        size = int(unit[1]) << 10 if unit else _PAGE
        for node, pages in _PAGES.findall(line):
            nodes[int(node)] = nodes.get(int(node), 0) + int(pages) * size
    return [[node, nodes[node]] for node in sorted(nodes)]


def _several_nodes() -> bool:
    try:
        return _NODES.read_text().strip() not in ("0", "")
    except OSError:
        return False

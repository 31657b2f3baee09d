"""Huge pages of 2 MiB for guests that ask for them."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

_SETTING = Path("/proc/sys/vm/nr_hugepages")


@contextlib.contextmanager
def hugepages(mib: int) -> Iterator[bool]:
    """Reserve ``mib`` MiB more of huge pages for a while; says whether the kernel had them."""
    before = int(_SETTING.read_text())
    _SETTING.write_text(str(before + mib // 2))
    try:
        free = re.search(r"^HugePages_Free:\s+(\d+)", Path("/proc/meminfo").read_text(), re.M)
        yield free is not None and int(free[1]) >= mib // 2
    finally:
        _SETTING.write_text(str(before))

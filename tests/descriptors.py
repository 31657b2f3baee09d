"""What this process has open: for tests that nothing is left behind."""

from __future__ import annotations

import contextlib
from pathlib import Path


def descriptors() -> set[tuple[str, str]]:
    """Number and target of each open descriptor.

    Tests ask what came on top of an earlier answer, not how many there are: the garbage
    collector may close something of an earlier test at any moment.
    """
    found = set()
    for path in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # that of the folder itself, closed by now
            found.add((path.name, str(path.readlink())))
    return {(number, target) for number, target in found if not target.endswith("/fd")}

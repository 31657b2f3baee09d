"""What this process has open: for tests that nothing is left behind."""

from __future__ import annotations

import contextlib
import gc
import time
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


def left_open(before: set[tuple[str, str]]) -> set[tuple[str, str]]:
    """What was opened since, but for symbols and types of kernels, which stay mapped.

    Where libvirt's event loop runs, it is that which closes sockets, on its next turn; and a
    domain in the traceback of an error that was caught keeps its connection until both are gone.
    """
    for _ in range(100):
        gc.collect()
        opened = {one for one in descriptors() - before if not one[1].endswith(".profile")}
        if not opened:
            break
        time.sleep(0.1)
    return opened

"""Names of tasks: ``comm``, and the longer ones of kernel threads and workqueue workers.

As ``proc_task_name()`` of fs/proc/array.c shows them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from virtintrospect.errors import FaultError

if TYPE_CHECKING:
    from virtintrospect.guests.linux.guest import LinuxGuest

#: include/linux/sched.h.
PF_WQ_WORKER, PF_KTHREAD = 0x0000_0020, 0x0020_0000
_MAX_NAME = 256


class ThreadNames:
    """The names of all rows of a table, kernel threads' read in bulk."""

    def __init__(self, guest: LinuxGuest, rows: Sequence[dict[str, Any]]) -> None:
        self._names: list[bytes] = [row["comm"].split(b"\0", 1)[0] for row in rows]
        kernel = [i for i, row in enumerate(rows) if row["flags"] & PF_KTHREAD and row["kthread"]]
        structs = [rows[index]["kthread"] for index in kernel]
        layout = guest.layout("kthread", {"full_name": "full_name?", "data": "data"}, text=())
        columns = layout.lists(guest.kernel, structs, [])
        workers: dict[int, int] = {}
        for index, full_name, data in zip(kernel, *columns.values(), strict=True):
            if full_name:
                self._names[index] = _full_name(guest, full_name, self._names[index])
            if data and rows[index]["flags"] & PF_WQ_WORKER:
                workers[index] = data
        self._add_work(guest, workers)

    def name(self, index: int) -> bytes:
        """The name of row ``index``."""
        return self._names[index]

    def _add_work(self, guest: LinuxGuest, workers: dict[int, int]) -> None:
        """What a worker does or last did: ``+`` now, ``-`` before (wq_worker_comm())."""
        members = {"desc": "desc", "work": "current_work", "pool": "pool"}
        layout = guest.layout("worker", members, text=("desc",))
        columns = layout.lists(guest.kernel, list(workers.values()), [])
        for index, desc, work, pool in zip(workers, *columns.values(), strict=True):
            what = (desc or b"").split(b"\0", 1)[0]
            if what and pool:
                self._names[index] += (b"+" if work else b"-") + what


def _full_name(guest: LinuxGuest, address: int, comm: bytes) -> bytes:
    """A kernel thread's untruncated name (since 5.17); it begins with what comm holds."""
    try:
        name = guest.kernel.string(address, _MAX_NAME)
    except FaultError:
        return comm
    return name if name.startswith(comm) else comm

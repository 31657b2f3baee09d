"""Which processes have which objects open: ``files_struct`` → ``file`` → ``private_data``.

Of a socket that is the ``struct socket``, which leads to its ``sock``.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

from virtintrospect.errors import FaultError, NoSuchTargetError
from virtintrospect.guests.linux.tasks import thread_group
from virtintrospect.model import Problem

if TYPE_CHECKING:
    from virtintrospect.guests.linux.budget import Budget
    from virtintrospect.guests.linux.guest import LinuxGuest

#: sysctl_nr_open_max is 2^20 unless root raises it (fs/file.c).
_MAX_FDS = 1 << 20
#: Slots, as a power of two, that cost as much as one entry.
_DENSITY = 6
_MAX_PID = 4 << 20
_NO_TABLE = "unreadable table of open files"


class Holder(NamedTuple):
    """A descriptor of a process."""

    pid: int
    fd: int


def holders(
    guest: LinuxGuest, budget: Budget, pid: int | None, unreadable: dict[int, str]
) -> dict[int, list[Holder]]:
    """Address of each open ``struct sock``: the descriptors through which it is open.

    :param pid: only this process's.
    :param unreadable: gets what cannot be read, and what that is.
    :raises NoSuchTargetError: there is no such process.
    """
    found = opened(guest, budget, pid, ("socket_file_ops",), unreadable)
    layout = guest.layout("socket", {"sock": "sk"}, text=())
    socks = layout.lists(guest.kernel, list(found), [])["sock"]
    merged: dict[int, list[Holder]] = {}
    for sock, holding in zip(socks, found.values(), strict=True):
        if sock:
            merged.setdefault(sock, []).extend(holding)
    for many in merged.values():
        many.sort()
    return merged


def opened(
    guest: LinuxGuest,
    budget: Budget,
    pid: int | None,
    operations: tuple[str, ...],
    unreadable: dict[int, str] | None = None,
) -> dict[int, list[Holder]]:
    """What is behind open files of some kinds (``private_data``), and who has it open.

    :param pid: only this process's.
    :param operations: symbols of the ``file_operations`` that tell the kinds.
    :param unreadable: gets what cannot be read, and what that is; noted where not given.
    :raises NoSuchTargetError: there is no such process.
    """
    bad: dict[int, str] = {} if unreadable is None else unreadable
    tables = _file_tables(guest, budget, pid)
    slots: list[tuple[int, int, int]] = []  # files_struct, descriptor, file
    for files, array, count in _arrays(guest, list(tables), bad):
        slots += _slots(guest, files, array, count, budget, bad)
    behind = _behind(guest, list(dict.fromkeys(slot[2] for slot in slots)), operations, bad)
    found: dict[int, list[Holder]] = {}
    for files, fd, file in slots:
        if it := behind.get(file):
            owners = tables[files]
            owners = owners[: budget.follow(len(owners))]
            found.setdefault(it, []).extend(Holder(owner, fd) for owner in owners)
    if unreadable is None:
        guest.note_all(Problem(what, address) for address, what in bad.items())
    return found


def _file_tables(guest: LinuxGuest, budget: Budget, pid: int | None) -> dict[int, list[int]]:
    """Each ``files_struct``: the processes that use it."""
    members = {
        "pid": "tgid",
        "files": "files",
        "signal": "signal",
        "threads": "signal.nr_threads",
    }
    layout = guest.layout("task_struct", members, text=())
    tasks = guest.tasks.addresses(budget)
    columns = layout.lists(guest.kernel, tasks, [])
    if pid is not None and pid not in columns["pid"]:
        raise NoSuchTargetError(f"the guest has no process {pid}", hint="`ps` shows those it has")
    tables: dict[int, list[int]] = {}
    for tgid, files, signal, threads in zip(*columns.values(), strict=True):
        if tgid is None or not 0 < tgid <= _MAX_PID or (pid is not None and tgid != pid):
            continue
        if not files and signal and threads and threads > 1:
            files = _of_threads(guest, signal, budget)
        if files:
            tables.setdefault(files, []).append(tgid)
    return tables


def _of_threads(guest: LinuxGuest, signal: int, budget: Budget) -> int | None:
    """The files of a process whose leading thread has ended."""
    threads = thread_group(guest, signal, budget)
    layout = guest.layout("task_struct", {"files": "files"}, text=())
    found = layout.lists(guest.kernel, threads, [])["files"]
    return next((files for files in found if files), None)


def _arrays(
    guest: LinuxGuest, tables: list[int], unreadable: dict[int, str]
) -> list[tuple[int, int, int]]:
    """Of each ``files_struct`` its array of files, and how many that has."""
    layout = guest.layout("files_struct", {"fd": "fdt.fd", "count": "fdt.max_fds"}, text=())
    columns = layout.lists(guest.kernel, tables, [])
    found = []
    for files, array, count in zip(tables, columns["fd"], columns["count"], strict=True):
        if not array or not count or count > _MAX_FDS:
            unreadable[files] = _NO_TABLE
        else:
            found.append((files, array, count))
    return found


def _slots(
    guest: LinuxGuest,
    files: int,
    array: int,
    count: int,
    budget: Budget,
    unreadable: dict[int, str],
) -> list[tuple[int, int, int]]:
    if not budget.follow(count >> _DENSITY or 1) or budget.late():
        return []
    try:
        words = guest.kernel.pointers(array, count)
    except FaultError as error:
        unreadable[error.address] = _NO_TABLE
        return []
    used = ((files, fd, file) for fd, file in enumerate(words) if file)
    found = list(islice(used, budget.entries + 1))
    return found[: budget.follow(len(found))]


def _behind(
    guest: LinuxGuest, files: list[int], operations: tuple[str, ...], unreadable: dict[int, str]
) -> dict[int, int]:
    """Those of the files that are of a kind: file → its object."""
    kinds = {guest.symbols.address(name) for name in operations}
    layout = guest.layout("file", {"operations": "f_op", "it": "private_data"}, text=())
    columns = layout.lists(guest.kernel, files, [])
    open_: dict[int, int] = {}
    for file, kind, it in zip(files, columns["operations"], columns["it"], strict=True):
        if kind is None:
            unreadable[file] = "unreadable open file"
        elif kind in kinds and it:
            open_[file] = it
    return open_

"""Open files, as /proc/PID/fd and /proc/PID/fdinfo show them (fs/proc/fd.c, fs/file.c)."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any

from virtintrospect.errors import FaultError, NoSuchTargetError
from virtintrospect.guests.linux.budget import Budget
from virtintrospect.guests.linux.device import device_name
from virtintrospect.guests.linux.paths import FilePath, PathReader
from virtintrospect.model import OpenFile, Problem

if TYPE_CHECKING:
    from virtintrospect.guests.linux.guest import LinuxGuest

Row = dict[str, Any]

#: Descriptors of one process that are looked at: the kernel's own default of fs.nr_open.
_MAX_FDS = 1 << 20
#: Tables up to this size are read together: NR_OPEN_DEFAULT of 64-bit kernels (BITS_PER_LONG).
_SMALL = 64
#: Descriptors that are passed over at once where none of them is in use.
_BLOCK = 64
#: O_CLOEXEC (include/uapi/asm-generic/fcntl.h).
_O_CLOEXEC = 0o2000000
#: S_IFMT of ``i_mode`` (include/uapi/linux/stat.h).
_FORMAT = 0o170000
_FORMATS = {
    0o010000: "fifo",
    0o020000: "character",
    0o040000: "directory",
    0o060000: "block",
    0o100000: "regular",
    0o120000: "symlink",
    0o140000: "socket",
}
#: File systems whose files are of one kind, whatever their mode says.
_SYSTEMS = {b"pidfs": "pidfd", b"nsfs": "namespace", b"dmabuf": "dmabuf"}
_ANONYMOUS = b"anon_inode:"
#: Anonymous inodes by name; one that is not among them is an ``anon_inode``.
_KINDS = frozenset(
    {
        "bpf-map", "bpf-prog", "bpf_link", "eventfd", "eventpoll", "fanotify", "fscontext",
        "inotify", "io_uring", "kvm-vcpu", "kvm-vm", "landlock-ruleset", "mount", "perf_event",
        "pidfd", "seccomp", "secretmem", "signalfd", "timerfd", "userfaultfd", "vfio-device",
    }
)  # fmt: skip

_PROCESS = {
    "pid": "tgid",
    "start": "start_boottime|real_start_time",
    "files": "files",
    "max": "files.fdt.max_fds",
    "fd": "files.fdt.fd",
    "open": "files.fdt.open_fds",
    "cloexec": "files.fdt.close_on_exec",
}
_MEMBERS = {
    "flags": "f_flags",
    "offset": "f_pos",
    "mount": "f_path.mnt",
    "dentry": "f_path.dentry",
    "inode": "f_inode.i_ino",
    "mode": "f_inode.i_mode",
    "device": "f_inode.i_sb.s_dev",
    "system": "f_inode.i_sb.s_type.name",
}
#: What tells one file from the next in the same memory.
_IDENTITY = {name: _MEMBERS[name] for name in ("mount", "dentry", "inode")}


#: A descriptor in use: process, descriptor, address of its ``struct file``, and whether exec
#: closes it (``None`` where the table's bitmap cannot be read).
_Slot = tuple[int, int, int, bool | None]


def files(guest: LinuxGuest, pid: int | None = None) -> list[OpenFile]:
    """The rows of ``files``, by process in the order of the task list.

    :param pid: of one process; ``None`` for all.
    :raises NoSuchTargetError: there is no such process.
    """
    budget = Budget()
    addresses = guest.tasks.addresses(budget)
    bad: dict[int, str] = {}
    slots = _slots(guest, _processes(guest, addresses, pid, bad), budget, bad)
    files = _Files(guest, list(dict.fromkeys(file for _, _, file, _ in slots)), budget)
    if guest.live:
        still: dict[int, str] = {}
        processes = _processes(guest, addresses, pid, still, gone=True)
        again = _slots(guest, processes, Budget(), still)
        bad = {address: what for address, what in bad.items() if still.get(address) == what}
        if files.changed or again != slots:  # most often nothing has
            now = set(again)
            slots = [slot for slot in slots if slot in now and slot[2] not in files.changed]
    rows = files.rows
    bad |= {file: "unreadable file" for _, _, file, _ in slots if file not in rows}
    guest.note_all(Problem(what, address) for address, what in bad.items())
    found = [_record(slot, rows[slot[2]], budget) for slot in slots if slot[2] in rows]
    guest.note_all([budget.problem])
    return found


def _processes(
    guest: LinuxGuest,
    addresses: list[int],
    pid: int | None,
    bad: dict[int, str],
    *,
    gone: bool = False,
) -> list[Row]:
    """Descriptor tables of the processes; a process that is ending has none any more.

    :param bad: gets what is wrong, by address: on a live guest it counts only when it stays.
    """
    layout = guest.layout("task_struct", _PROCESS, text=())
    columns = layout.lists(guest.kernel, addresses, [])
    rows = [
        dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)
    ]
    if pid is not None:
        rows = [row for row in rows if row["pid"] == pid]
        if not rows and not gone:
            raise NoSuchTargetError(
                f"the guest has no process {pid}", hint="`ps` shows those it has"
            )
    for address, row in zip(addresses, rows, strict=False) if pid is None else ():
        if row["pid"] is None or (row["files"] and row["fd"] is None):
            bad[address] = "unreadable table of open files"
    rows = [row for row in rows if row["pid"] is not None and row["fd"]]
    for row in rows:
        _check_size(row, bad)
    return rows


def _check_size(row: Row, bad: dict[int, str]) -> None:
    """Two bitmaps of a larger table lie one behind the other (``alloc_fdtable()``, fs/file.c).

    A table that has another size is believed as far as every table goes.
    """
    row["max"] = max(0, row["max"])
    bitmap = ((row["cloexec"] or 0) - (row["open"] or 0)) * 8
    if row["max"] > _SMALL and row["max"] != bitmap:
        bad[row["fd"]] = f"process {row['pid']} claims {row['max']} descriptors"
        row["max"] = _SMALL


def _slots(
    guest: LinuxGuest, processes: list[Row], budget: Budget, noted: dict[int, str]
) -> list[_Slot]:
    """All descriptors in use: small tables in one read, larger ones each by itself."""
    small = [row for row in processes if row["max"] <= _SMALL]
    faults: list[int] = []
    word = guest.kernel.pointer_size
    tables = guest.kernel.gather([row["fd"] for row in small], word * _SMALL, faults)
    unknown: list[int] = []
    bits = guest.kernel.gather([row["cloexec"] or 0 for row in small], _SMALL // 8, unknown)
    bad, without = set(faults), set(unknown)
    found: dict[int, list[_Slot]] = {}
    for index, row in enumerate(small):
        if index in bad:
            noted[row["fd"]] = "unreadable table of open files"
            continue
        if index in without:
            noted[row["cloexec"] or 0] = "unreadable bitmap of open files: no flags"
        table = tables[index * word * _SMALL : (index * _SMALL + row["max"]) * word]
        cloexec = bits[index * _SMALL // 8 : (index + 1) * _SMALL // 8]
        found[index] = list(_used(guest, row, table, None if index in without else cloexec))
    slots: list[_Slot] = []
    number = 0
    for row in processes:
        if row["max"] <= _SMALL:
            mine = found.get(number, [])
            number += 1
        else:
            mine = _large(guest, row, budget, noted)
        slots += mine[: budget.follow(len(mine))]
    return slots


def _large(guest: LinuxGuest, row: Row, budget: Budget, noted: dict[int, str]) -> list[_Slot]:
    count = min(row["max"], _MAX_FDS)
    if count < row["max"]:
        noted[row["fd"]] = f"process {row['pid']} claims {row['max']} descriptors"
    blocks = -(-count // _BLOCK)
    if budget.late() or budget.follow(blocks) < blocks:
        return []
    try:
        table = guest.kernel.read(row["fd"], guest.kernel.pointer_size * count)
    except FaultError as error:
        noted[error.address] = "unreadable table of open files"
        return []
    cloexec = None
    try:
        cloexec = guest.kernel.read(row["cloexec"] or 0, -(-count // 64) * 8)
    except FaultError as error:
        noted[error.address] = "unreadable bitmap of open files: no flags"
    return list(islice(_used(guest, row, table, cloexec), budget.entries))


def _used(guest: LinuxGuest, row: Row, table: bytes, cloexec: bytes | None) -> Iterator[_Slot]:
    pid, word = row["pid"], guest.types.pointer_size
    for start in range(0, len(table), word * _BLOCK):
        block = table[start : start + word * _BLOCK]
        count = -(-len(block.rstrip(b"\0")) // word)
        for fd, file in enumerate(guest.types.words(block[: count * word]), start // word):
            if file:
                closes = None if cloexec is None else bool(cloexec[fd >> 3] >> (fd & 7) & 1)
                yield pid, fd, file, closes


class _Files:
    """Each ``struct file`` once, however many descriptors lead to it."""

    def __init__(self, guest: LinuxGuest, addresses: list[int], budget: Budget) -> None:
        columns = guest.layout("file", _MEMBERS, text=()).lists(guest.kernel, addresses, [])
        paths = PathReader(guest, budget)
        wanted = [
            FilePath(mount, dentry) if mount and dentry else None
            for mount, dentry in zip(columns["mount"], columns["dentry"], strict=True)
        ]
        names = paths.files(path for path in wanted if path)
        systems = _system_names(guest, columns["system"])
        #: Those that can be read, by address: path, type, flags, offset, inode, device.
        self.rows: dict[int, tuple[Any, ...]] = {}
        for address, place, flags, offset, _, _, inode, mode, device, system in zip(
            addresses, wanted, *columns.values(), strict=True
        ):
            if flags is not None:
                path = names.get(place) if place else None
                kind = _type(mode, systems.get(system), path)
                self.rows[address] = path, kind, flags, offset, inode, device_name(device)
        #: Those that a second look found to be others: memory of closed ones is reused.
        self.changed: set[int] = set()
        if guest.live:
            again = guest.layout("file", _IDENTITY, text=()).lists(guest.kernel, addresses, [])
            now = list(zip(*again.values(), strict=True))
            then = list(zip(*(columns[name] for name in _IDENTITY), strict=True))
            self.changed = {
                address
                for address, first, second in zip(addresses, then, now, strict=True)
                if first != second
            }


def _record(slot: _Slot, row: tuple[Any, ...], budget: Budget) -> OpenFile:
    pid, fd, _, closes = slot
    path, kind, flags, offset, inode, device = row
    return OpenFile(
        pid=pid,
        fd=fd,
        path=path if path is None or budget.keep(len(path)) else None,
        type=kind,
        flags=None if closes is None else flags & ~_O_CLOEXEC | (_O_CLOEXEC if closes else 0),
        offset=offset,
        inode=inode,
        device=device,
    )


def _system_names(guest: LinuxGuest, pointers: list[int | None]) -> dict[int | None, bytes]:
    """Names of file system types: few, however many files there are."""
    places = list({pointer for pointer in pointers if pointer})
    names = guest.kernel.strings(places, 32)
    return {place: name for place, name in zip(places, names, strict=True) if name is not None}


def _type(mode: int | None, system: bytes | None, path: bytes | None) -> str | None:
    """What kind of file it is; since 6.16 anonymous inodes call themselves regular."""
    if mode is None:
        return None
    if path is not None and path.startswith(_ANONYMOUS):
        kind = path.removeprefix(_ANONYMOUS).strip(b"[]").decode("ascii", "replace")
        return kind if kind in _KINDS else "anon_inode"
    kind = _FORMATS.get(mode & _FORMAT, "")
    if system in _SYSTEMS:
        return _SYSTEMS[system]
    if kind == "regular" and path is not None and path.startswith(b"/memfd:"):
        return "memfd" if path.endswith(b" (deleted)") else kind
    return kind or "anon_inode"

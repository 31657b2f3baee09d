"""File systems whose files are memory: tmpfs (mm/shmem.c) and ramfs (fs/ramfs/inode.c).

A tmpfs with a limit counts its pages. One without, and ramfs, do not: the pages of their files
are added up, where there are many at all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from virtintrospect.errors import FaultError, NotFoundError
from virtintrospect.guests.linux import mounts, percpu, statfs
from virtintrospect.guests.linux.budget import Budget
from virtintrospect.guests.linux.counters import Counters, number
from virtintrospect.guests.linux.lists import walk_list
from virtintrospect.guests.linux.paths import PathReader

if TYPE_CHECKING:
    from virtintrospect.guests.linux.guest import LinuxGuest
    from virtintrospect.model import MemoryFilesystem

Row = dict[str, Any]

#: More mounted file systems, and files of one, than are looked at.
_MAX_SUPERBLOCKS, _MAX_FILES = 16384, 1 << 16
#: SB_KERNMOUNT (include/linux/fs.h): the kernel's own, mounted nowhere.
_KERNEL_OWN = 1 << 22
#: Files without a limit are looked at where all of their kind take this part of memory (1/50).
_PART = 50
_SECONDS = 2.0

_SUPERBLOCK = {"type": "s_type.name", "flags": "s_flags", "info": "s_fs_info", "ops": "s_op"}
_UNKNOWN = dict.fromkeys(("size", "used", "files", "files_most"))
_KINDS = {"shmem_ops": b"tmpfs", "ramfs_ops": b"ramfs"}


def memory_filesystems(guest: LinuxGuest, *, least_share: float = 0.0) -> list[MemoryFilesystem]:
    """Those that are mounted in some namespace, the fullest first.

    :param least_share: only those that have used this share of what they may, or of the
        guest's memory where nothing limits them.
    """
    budget = Budget(seconds=_SECONDS)
    memory = number(guest, "_totalram_pages") * guest.page_size
    rows = _superblocks(guest, budget)
    limited = [row for row in rows if row["kind"] == b"tmpfs"]
    each = len(percpu.online(guest))  # CPUs count for themselves
    limited = limited[: budget.follow(len(limited) * each) // max(1, each)]
    for row, figures in zip(
        limited, statfs.tmpfs(guest, [row["info"] for row in limited]), strict=True
    ):
        row |= figures
    rows = [row for row in rows if _measure(guest, row, memory, budget)]
    wanted = [row for row in rows if row["share"] >= least_share]
    wanted.sort(key=lambda row: -row["share"])
    places = _paths(guest, {row["address"] for row in wanted}, budget) if wanted else {}
    guest.note_all([budget.problem])
    return [_record(row, places[row["address"]]) for row in wanted if row["address"] in places]


def _superblocks(guest: LinuxGuest, budget: Budget) -> list[Row]:
    """Superblocks of both kinds."""
    offset = guest.types.offsetof("super_block", "s_list")
    head = guest.symbols.address("super_blocks")
    nodes, problem = walk_list(guest.kernel, head, limit=_MAX_SUPERBLOCKS, budget=budget)
    guest.note_all([problem])
    addresses = [node - offset for node in nodes if node >= offset]
    columns = guest.layout("super_block", _SUPERBLOCK, text=()).lists(guest.kernel, addresses, [])
    kinds = {guest.symbols.get(name): kind for name, kind in _KINDS.items()}
    found = []
    for address, *values in zip(addresses, *columns.values(), strict=True):
        row: Row = dict(zip(columns, values, strict=True)) | {"address": address}
        kind = kinds.get(row["ops"]) if row["ops"] else None
        if kind and not (row["flags"] or 0) & _KERNEL_OWN:
            found.append(row | _UNKNOWN | {"kind": kind})
    names = guest.kernel.strings([row["type"] or 0 for row in found], 64)
    return [row | {"name": name or row["kind"]} for row, name in zip(found, names, strict=True)]


def _measure(guest: LinuxGuest, row: Row, memory: int, budget: Budget) -> bool:
    """Add what is used and the share of it to a row; whether that could be done."""
    if row["used"] is None and row["size"] is None:
        try:
            row["used"] = _files(guest, row, memory, budget)
        except (FaultError, NotFoundError) as error:
            guest.note(f"no figures of a file system: {error.message}", row["address"])
    if row["used"] is None:
        return False
    shares = [row["used"] / (row["size"] or max(1, memory))]
    if row["files_most"] and row["files"] is not None:
        shares.append(row["files"] / row["files_most"])
    row["share"] = max(shares)
    return True


def _files(guest: LinuxGuest, row: Row, memory: int, budget: Budget) -> int | None:
    """Bytes of a file system's files; unknown where that cannot be much."""
    # Those of ramfs cannot be reclaimed (mapping_set_unevictable() in ramfs_get_inode()).
    counter = "NR_SHMEM" if row["kind"] == b"tmpfs" else "NR_UNEVICTABLE"
    most = Counters(guest)[counter] * guest.page_size
    if most * _PART < memory:
        return None
    types = guest.types
    head = row["address"] + types.offsetof("super_block", "s_inodes")
    offset = types.offsetof("inode", "i_sb_list")
    nodes, problem = walk_list(guest.kernel, head, limit=_MAX_FILES, budget=budget)
    guest.note_all([problem])
    inodes = [node - offset for node in nodes if node >= offset]
    layout = guest.layout("inode", {"pages": "i_data.nrpages"}, text=())
    pages = layout.lists(guest.kernel, inodes, [])["pages"]
    # No more than there is of that kind, whatever the files say.
    return min(most, sum(count or 0 for count in pages) * guest.page_size)


def _paths(guest: LinuxGuest, wanted: set[int], budget: Budget) -> dict[int, bytes | None]:
    """Where superblocks are mounted: the first place that some namespace has."""
    places = mounts.places(guest, wanted, budget)
    names = PathReader(guest, budget).files(places.values())
    return {superblock: names.get(place) for superblock, place in places.items()}


def _record(row: Row, path: bytes | None) -> MemoryFilesystem:
    from virtintrospect.model import MemoryFilesystem

    return MemoryFilesystem(
        path=path,
        type=row["name"],
        size=row["size"],
        used=row["used"],
        files=row["files"],
        files_most=row["files_most"],
    )

"""How full a file system is, as statfs(2) says it, where its superblock in memory tells.

ext2, ext3 and ext4: ``ext4_statfs()`` of fs/ext4/super.c. tmpfs: ``shmem_statfs()`` of
mm/shmem.c.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from virtintrospect.errors import VirtIntrospectError
from virtintrospect.guests.linux import percpu
from virtintrospect.symbols.layout import Layout

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from virtintrospect.guests.linux.guest import LinuxGuest
    from virtintrospect.symbols.types import Types

#: Bytes of a CPU's part of a ``percpu_counter``.
_S32 = 4
#: EXT4_MOUNT_MINIX_DF (``minixdf``); EXT4_FEATURE_INCOMPAT_64BIT.
_MINIX_DF, _64BIT = 0x80, 0x80
#: Largest block size of any file system here, as a power of two; largest cluster.
_MAX_BLOCK_BITS, _MAX_CLUSTER_BITS = 16, 32


class Usage(NamedTuple):
    """Bytes of a file system."""

    total: int
    free: int
    #: Free for others than root.
    available: int


def usage(guest: LinuxGuest, kind: bytes, superblock: int) -> Usage | None:
    """How full it is; ``None`` where nothing here knows this kind of file system.

    :param kind: type of the file system.
    :param superblock: address of its ``struct super_block``.
    """
    known = _KINDS.get(kind)
    if known is None:
        return None
    try:
        return known(guest, superblock)
    except VirtIntrospectError as error:
        guest.note(f"no figures of a file system: {error.message}", superblock)
        return None


def _ext4(guest: LinuxGuest, superblock: int) -> Usage | None:
    outer = guest.layout(
        "super_block", {"info": "s_fs_info", "bits": "s_blocksize_bits"}, text=()
    ).read(guest.kernel, superblock)
    types = guest.types if "ext4_sb_info" in guest.types else guest.module_types("ext4")
    members = {
        "overhead": "s_overhead",
        "options": "s_mount_opt",
        "bits": "s_cluster_bits",
        "reserved": "s_resv_clusters.counter",
        "blocks_lo": "s_es.s_blocks_count_lo",
        "blocks_hi": "s_es.s_blocks_count_hi",
        "root_lo": "s_es.s_r_blocks_count_lo",
        "root_hi": "s_es.s_r_blocks_count_hi",
        "features": "s_es.s_feature_incompat",
    }
    row = Layout(types, "ext4_sb_info", members, text=()).read(guest.kernel, outer["info"])
    sound = 0 <= outer["bits"] <= _MAX_BLOCK_BITS and 0 <= row["bits"] <= _MAX_CLUSTER_BITS
    if not sound:
        return None
    wide = row["features"] & _64BIT  # without it the upper halves mean nothing
    blocks = row["blocks_lo"] | (row["blocks_hi"] << 32 if wide else 0)
    root = row["root_lo"] | (row["root_hi"] << 32 if wide else 0)
    info = outer["info"]
    free = _sum(guest, types, info, "s_freeclusters_counter")
    free -= _sum(guest, types, info, "s_dirtyclusters_counter")
    free = max(0, free) << row["bits"]
    root += row["reserved"] << row["bits"]
    total = blocks - (0 if row["options"] & _MINIX_DF else row["overhead"])
    if not 0 <= free <= total:
        guest.note("file system with more free blocks than it has", superblock)
        return None
    size = outer["bits"]
    return Usage(total << size, free << size, max(0, free - root) << size)


#: BOGO_INODE_SIZE of mm/shmem.c, in which inodes are counted since 6.6.
_INODE = 1024


_TMPFS = {
    "blocks": "max_blocks",
    "inodes": "max_inodes",
    "space": "free_ispace?",
    "free": "free_inodes?",
    "count": "used_blocks.count",
    "parts": "used_blocks.counters",
}


def tmpfs(guest: LinuxGuest, infos: Sequence[int]) -> list[dict[str, int | None]]:
    """``size``, ``used`` (bytes), ``files`` and ``files_most`` of each; ``None``: no limit.

    :param infos: addresses of their ``struct shmem_sb_info``.
    :returns: nothing known of one that cannot be read.
    """
    layout = guest.layout("shmem_sb_info", _TMPFS, text=())
    columns = layout.lists(guest.kernel, infos, [])
    cpus = list(percpu.online(guest).values())
    places = [
        place for parts in columns["parts"] for place in percpu.addresses(guest, parts or 0, cpus)
    ]
    held = memoryview(guest.kernel.gather(places, _S32, [])).cast("i")
    found: list[dict[str, int | None]] = []
    for index, values in enumerate(zip(*columns.values(), strict=True)):
        row = dict(zip(columns, values, strict=True))
        if row["count"] is None:
            found.append(dict.fromkeys(("size", "used", "files", "files_most")))
            continue
        used = max(0, row["count"] + sum(held[index * len(cpus) : (index + 1) * len(cpus)]))
        free = row["free"] if row["space"] is None else row["space"] // _INODE
        files = row["inodes"] - free if row["inodes"] and free is not None else -1
        found.append(
            {
                "size": row["blocks"] * guest.page_size or None,
                # Nothing is counted where nothing is limited.
                "used": used * guest.page_size if row["blocks"] else None,
                "files": files if files >= 0 else None,
                "files_most": row["inodes"] or None,
            }
        )
    return found


def _sum(guest: LinuxGuest, types: Types, structure: int, member: str) -> int:
    """``percpu_counter_sum_positive()``."""
    members = {"count": f"{member}.count", "parts": f"{member}.counters"}
    row = Layout(types, "ext4_sb_info", members, text=()).read(guest.kernel, structure)
    places = percpu.addresses(guest, row["parts"], list(percpu.online(guest).values()))
    parts = memoryview(guest.kernel.gather(places, _S32)).cast("i")
    return max(0, int(row["count"]) + sum(parts))


_KINDS: dict[bytes, Callable[[LinuxGuest, int], Usage | None]] = {
    b"ext2": _ext4,
    b"ext3": _ext4,
    b"ext4": _ext4,
}

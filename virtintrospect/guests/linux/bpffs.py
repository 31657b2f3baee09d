"""Files of bpf file systems: they keep eBPF objects without a process (kernel/bpf/inode.c)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from virtintrospect.guests.linux.chains import walk_chains
from virtintrospect.guests.linux.paths import FilePath, PathReader

if TYPE_CHECKING:
    from virtintrospect.guests.linux.budget import Budget
    from virtintrospect.guests.linux.guest import LinuxGuest


def pinned(guest: LinuxGuest, budget: Budget) -> dict[int, bytes | None]:
    """Address of each object that has a file: the path of one; ``None`` where it is not mounted."""
    symbols, types = guest.symbols, guest.types
    if "bpf_fs_type" not in symbols:
        return {}
    members = {"super": "fs_supers.first"}
    first = guest.layout("file_system_type", members, text=()).lists(
        guest.kernel, [symbols.address("bpf_fs_type")], []
    )["super"]
    node_at = types.offsetof("super_block", "s_instances")
    links = walk_chains(guest, first, budget)
    supers = [link.node - node_at for link in links if link.node >= node_at]
    mounts = _mounts(guest, supers)
    head_at, inode_at = (
        types.offsetof("super_block", "s_inodes"),
        types.offsetof("inode", "i_sb_list"),
    )
    layout = guest.layout("super_block", {"inodes": "s_inodes.next"}, text=())
    starts = layout.lists(guest.kernel, supers, [])["inodes"]
    links = walk_chains(guest, starts, budget, ends=[it + head_at for it in supers])
    links = [link for link in links if link.node >= inode_at]
    members = {"kind": "i_op", "object": "i_private", "alias": "i_dentry.first"}
    columns = guest.layout("inode", members, text=()).lists(
        guest.kernel, [link.node - inode_at for link in links], []
    )
    kinds = {symbols.get(name) for name in ("bpf_prog_iops", "bpf_map_iops")}
    alias = "d_alias" if types.has("dentry", "d_alias") else "d_u.d_alias"
    alias_at = types.offsetof("dentry", alias)
    wanted: dict[int, FilePath | None] = {}
    for link, kind, it, dentry in zip(links, *columns.values(), strict=True):
        if it and kind in kinds:
            mount = mounts[link.chain]
            wanted[it] = FilePath(mount, dentry - alias_at) if mount and dentry else None
    paths = PathReader(guest, budget).files(path for path in wanted.values() if path)
    return {it: paths.get(path) if path else None for it, path in wanted.items()}


def _mounts(guest: LinuxGuest, supers: list[int]) -> list[int | None]:
    """A ``vfsmount`` of each file system, ``None`` where it has none."""
    types = guest.types
    inside = types.offsetof("mount", "mnt")
    if types.has("super_block", "s_mounts.next"):  # until 6.18
        head_at = types.offsetof("super_block", "s_mounts")
        node_at = types.offsetof("mount", "mnt_instance")
        path = "s_mounts.next"
    else:
        head_at, node_at, path = 0, 0, "s_mounts"
    layout = guest.layout("super_block", {"first": path}, text=())
    firsts = layout.lists(guest.kernel, supers, [])["first"]
    return [
        first - node_at + inside if first and first > node_at and first != it + head_at else None
        for it, first in zip(supers, firsts, strict=True)
    ]

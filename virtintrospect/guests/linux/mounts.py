"""Mounted file systems, as /proc/PID/mounts shows them (fs/proc_namespace.c, fs/namespace.c).

A mount namespace holds its mounts in a list until Linux 6.7, in a red-black tree since.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

from virtintrospect.guests.linux.budget import Budget
from virtintrospect.guests.linux.lists import walk_list
from virtintrospect.guests.linux.paths import MAX_DEPTH, FilePath, PathReader
from virtintrospect.guests.linux.rbtree import walk_rbtree

if TYPE_CHECKING:
    from virtintrospect.guests.linux.guest import LinuxGuest
    from virtintrospect.model import Mount

Row = dict[str, Any]

#: SB_RDONLY and those of ``show_sb_opts()`` (include/linux/fs.h).
_SB_READ_ONLY = 0x1
_SUPERBLOCK = ((0x10, "sync"), (0x80, "dirsync"), (0x40, "mand"), (0x200_0000, "lazytime"))
#: MNT_READONLY and those of ``show_mnt_opts()`` (include/linux/mount.h).
_MNT_READ_ONLY = 0x40
_MOUNT = (
    (0x01, "nosuid"),
    (0x02, "nodev"),
    (0x04, "noexec"),
    (0x08, "noatime"),
    (0x10, "nodiratime"),
    (0x20, "relatime"),
    (0x80, "nosymfollow"),
)
#: MNT_CURSOR: a reader's place in the list of Linux 5.8 to 6.7, no mount.
_CURSOR = 0x1000_0000
#: Most mounts of a namespace: the kernel's own default of fs.mount-max.
_MAX_MOUNTS = 100_000
#: Longest device, and longest type of a file system, that is shown.
_MAX_DEVICE, _MAX_TYPE = 4096, 64

_PROCESS = {
    "pid": "tgid",
    "namespace": "nsproxy.mnt_ns",
    "root_mount": "fs.root.mnt",
    "root_dentry": "fs.root.dentry",
}
_MEMBERS = {
    "device": "mnt_devname",
    "parent": "mnt_parent",
    "mountpoint": "mnt_mountpoint",
    "root": "mnt.mnt_root",
    "flags": "mnt.mnt_flags",
    "superblock": "mnt.mnt_sb",
    "sb_flags": "mnt.mnt_sb.s_flags",
    "type": "mnt.mnt_sb.s_type.name",
    "subtype": "mnt.mnt_sb.s_subtype",
}


class _Namespace(NamedTuple):
    """A mount namespace, as the process sees it that was in it first."""

    address: int
    inode: int | None
    root: FilePath


def mounts(guest: LinuxGuest) -> list[Mount]:
    """The rows of ``mounts``: init's namespace first, each in the kernel's order.

    Paths are those that a namespace's first process sees; mounts that it cannot reach, such as
    the one below the root of a container, are left out, as /proc/PID/mounts leaves them out.
    """
    budget = Budget()
    found = [(space, _members(guest, space, budget)) for space in _namespaces(guest, budget)]
    rows = _read(guest, [mount for _, members in found for mount in members])
    inner = guest.types.offsetof("mount", "mnt")
    points = {address: _point(address, row, inner) for address, row in rows.items()}
    paths = PathReader(guest, budget)
    names = paths.files([*points.values(), *(space.root for space, _ in found)])
    texts = _texts(guest, rows.values(), budget)
    records = []
    for space, members in found:
        base = names.get(space.root)
        for address in members:
            row = rows.get(address)
            if row is None or not _reachable(address + inner, space.root.mount, rows, inner):
                continue
            path = names.get(points[address])
            seen = path if base is None or path is None else _below(path, base)
            if seen is None and path is not None:
                continue
            if seen is not None and not budget.keep(len(seen)):
                seen = None
            records.append(_record(row, seen, space.inode, texts))
    guest.note_all([budget.problem])
    return records


def first_namespace(guest: LinuxGuest, budget: Budget) -> tuple[FilePath, dict[int, Row]] | None:
    """Root directory of the first process, and the mounts of its namespace by their address.

    ``parent`` and ``mountpoint`` of a row are those of ``struct mount``; a ``FilePath`` needs
    the address of the ``vfsmount`` within.
    """
    spaces = _namespaces(guest, budget)
    if not spaces:
        return None
    return spaces[0].root, _read(guest, _members(guest, spaces[0], budget))


def places(guest: LinuxGuest, superblocks: set[int], budget: Budget) -> dict[int, FilePath]:
    """Where superblocks are mounted: the first mount of each that some namespace has."""
    found: dict[int, FilePath] = {}
    inner = guest.types.offsetof("mount", "mnt")
    for space in _namespaces(guest, budget):
        if superblocks <= found.keys() or budget.late():
            break
        for address, row in _read(guest, _members(guest, space, budget)).items():
            if row["superblock"] in superblocks:
                found.setdefault(row["superblock"], _point(address, row, inner))
    return found


def place_of(guest: LinuxGuest, address: int, row: Row) -> FilePath:
    """Where a mount of :func:`first_namespace` is mounted."""
    return _point(address, row, guest.types.offsetof("mount", "mnt"))


def _namespaces(guest: LinuxGuest, budget: Budget) -> list[_Namespace]:
    """Namespaces of all processes, in the order of the task list: init's comes first."""
    addresses = guest.tasks.addresses(budget)
    columns = guest.layout("task_struct", _PROCESS, text=()).lists(guest.kernel, addresses, [])
    roots: dict[int, FilePath] = {}
    for _, namespace, mount, dentry in zip(*columns.values(), strict=True):
        if namespace and mount and dentry and namespace not in roots:
            roots[namespace] = FilePath(mount, dentry)
    layout = guest.layout("mnt_namespace", {"inode": "ns.inum"}, text=())
    inodes = layout.lists(guest.kernel, list(roots), [])["inode"]
    return [
        _Namespace(address, inode, root)
        for (address, root), inode in zip(roots.items(), inodes, strict=True)
    ]


def _members(guest: LinuxGuest, space: _Namespace, budget: Budget) -> list[int]:
    """Addresses of a namespace's ``struct mount``."""
    types = guest.types
    if types.has("mnt_namespace", "mounts.rb_node"):
        # Commit 2eea9ce4310d (6.8) made the list a tree.
        layout = guest.layout("mnt_namespace", {"root": "mounts.rb_node"}, text=())
        root = layout.lists(guest.kernel, [space.address], [])["root"][0]
        nodes, problem = walk_rbtree(guest, root or 0, budget)
        offset = types.offsetof("mount", "mnt_node")
    else:
        head = space.address + types.offsetof("mnt_namespace", "list")
        nodes, problem = walk_list(guest.kernel, head, limit=_MAX_MOUNTS, budget=budget)
        offset = types.offsetof("mount", "mnt_list")
    guest.note_all([problem])
    return [node - offset for node in nodes if node >= offset]


def _read(guest: LinuxGuest, addresses: list[int]) -> dict[int, Row]:
    columns = guest.layout("mount", _MEMBERS, text=()).lists(guest.kernel, addresses, [])
    listed = not guest.types.has("mnt_namespace", "mounts.rb_node")
    rows: dict[int, Row] = {}
    for address, *values in zip(addresses, *columns.values(), strict=True):
        row = dict(zip(columns, values, strict=True))
        if row["flags"] is None:
            guest.note("unreadable mount", address)
        elif not (listed and row["flags"] & _CURSOR):
            rows[address] = row
    return rows


def _point(address: int, row: Row, inner: int) -> FilePath:
    """Where it is mounted; the topmost mount of a namespace is its own parent."""
    if row["parent"] == address:
        return FilePath(address + inner, row["root"])
    return FilePath(row["parent"] + inner, row["mountpoint"])


def _reachable(mount: int, root: int, rows: dict[int, Row], inner: int) -> bool:
    """Whether the way up from a mount leads through the mount of a root directory."""
    for _ in range(MAX_DEPTH):
        if mount == root:
            return True
        row = rows.get(mount - inner)
        if row is None or row["parent"] + inner == mount:
            return False
        mount = row["parent"] + inner
    return False


def _below(path: bytes, base: bytes) -> bytes | None:
    """A path as seen from ``base``; ``None`` where it is not below it."""
    if base == b"/":
        return path
    if path == base:
        return b"/"
    return path[len(base) :] if path.startswith(base + b"/") else None


def _texts(guest: LinuxGuest, rows: Iterable[Row], budget: Budget) -> dict[int, bytes]:
    """Strings of all rows: devices, types and subtypes, each pointer once."""
    limits: dict[int, int] = {}
    for row in rows:
        for column in ("type", "subtype", "device"):
            limits[row[column] or 0] = _MAX_DEVICE if column == "device" else _MAX_TYPE
    limits.pop(0, None)
    texts: dict[int, bytes] = {}
    for pointer, limit in limits.items():
        if budget.late():
            break
        found = guest.kernel.strings([pointer], limit)[0]
        if found is not None and budget.keep(len(found)):
            texts[pointer] = found
    return texts


def _record(row: Row, path: bytes | None, namespace: int | None, texts: dict[int, bytes]) -> Mount:
    from virtintrospect.model import Mount

    kind, subtype = texts.get(row["type"] or 0), texts.get(row["subtype"] or 0)
    if kind is not None and subtype:
        kind += b"." + subtype
    return Mount(
        device=texts.get(row["device"]) if row["device"] else b"none",
        path=path,
        type=kind,
        flags=_flags(row["flags"], row["sb_flags"] or 0),
        namespace=namespace,
    )


def _flags(mount: int, superblock: int) -> str:
    read_only = mount & _MNT_READ_ONLY or superblock & _SB_READ_ONLY
    names = ["ro" if read_only else "rw"]
    names += (name for bit, name in _SUPERBLOCK if superblock & bit)
    names += (name for bit, name in _MOUNT if mount & bit)
    return ",".join(names)

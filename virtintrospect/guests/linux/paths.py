"""Paths of files and of cgroups: chains of dentries, mounts and kernfs nodes.

Follows ``prepend_path()`` of fs/d_path.c and ``kernfs_path_from_node()`` of fs/kernfs/dir.c,
many chains at a time: one bulk read a level for all of them together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from virtintrospect.errors import FaultError
from virtintrospect.guests.linux.dnames import made_up_names
from virtintrospect.model import Problem

if TYPE_CHECKING:
    from virtintrospect.guests.linux.budget import Budget
    from virtintrospect.guests.linux.guest import LinuxGuest
    from virtintrospect.symbols.layout import Layout

#: Deepest chain followed: PATH_MAX of one-character names.
MAX_DEPTH = 2048
#: NAME_MAX; memfd and other anonymous files may have somewhat longer ones.
MAX_NAME = 512
#: PATH_MAX (include/uapi/linux/limits.h).
MAX_PATH = 4096
#: Paths of directories that are kept for the next file: bounded, as each may have MAX_PATH.
_DIRECTORIES = 4096
#: Paths put together between two looks at the clock.
_STRIDE = 256
#: How often dentries are read again that changed meanwhile.
_ATTEMPTS = 3
#: Bytes of a name read along with all others; longer names are rare and read one by one.
_SHORT_NAME = 40


class FilePath(NamedTuple):
    """``struct path``: addresses of a ``vfsmount`` and of a ``dentry``."""

    mount: int
    dentry: int


_Start = TypeVar("_Start", FilePath, int)


class _Dentry(NamedTuple):
    parent: int
    name: bytes
    hashed: bool


class _Mount(NamedTuple):
    root: int
    parent: int
    mountpoint: int


class PathReader:
    """Reads paths and keeps what it read of dentries and mounts: make one for each table.

    :param budget: what is left for that table; a path that it does not allow is ``None``.
    """

    def __init__(self, guest: LinuxGuest, budget: Budget) -> None:
        self._guest = guest
        self._budget = budget
        self._dentries: dict[int, _Dentry | None] = {}
        self._mounts: dict[int, _Mount | None] = {}
        self._nodes: dict[int, tuple[int, bytes] | None] = {}
        self._made_up: dict[int, bytes] = {}
        self._directories: dict[FilePath, bytes | None] = {}

    def files(self, wanted: Iterable[FilePath]) -> dict[FilePath, bytes | None]:
        """The path of each file, seen from the root of its mount namespace.

        A file whose last link is gone ends in `` (deleted)``, as in /proc/PID/exe; pipes,
        sockets and the like are shown as in /proc/PID/fd. ``None`` where the chain is broken.
        """
        paths = set(wanted)
        self._load_mounts({path.mount for path in paths})
        starts = {path.dentry for path in paths}
        starts |= {mount.mountpoint for mount in self._mounts.values() if mount}
        self._load_dentries(starts)
        self._make_up_names(paths)
        return self._kept(paths, self._file)

    def dentries(self, wanted: Iterable[int]) -> dict[int, bytes | None]:
        """The path of each dentry within its own file system, as in /proc/PID/mountinfo."""
        starts = set(wanted)
        self._load_dentries(set(starts))
        return self._kept(starts, self._dentry)

    def cgroups(self, nodes: Iterable[int]) -> dict[int, bytes | None]:
        """The path of each ``kernfs_node`` of a cgroup, the root of its hierarchy being ``/``."""
        wanted = set(nodes)
        self._load_nodes(wanted)
        return self._kept(wanted, self._cgroup)

    # -- putting chains together --------------------------------------------------------------

    def _kept(
        self, wanted: set[_Start], whole: Callable[[_Start], bytes | None]
    ) -> dict[_Start, bytes | None]:
        """The paths of all that is wanted, as far as the budget goes."""
        paths: dict[_Start, bytes | None] = {}
        for number, start in enumerate(wanted):
            if not number % _STRIDE and self._budget.late():
                break
            path = whole(start)
            paths[start] = path if path is None or self._budget.keep(len(path)) else None
        return paths

    def _file(self, path: FilePath) -> bytes | None:
        mount, dentry = self._mounts.get(path.mount), self._dentries.get(path.dentry)
        if mount is None or dentry is None:
            return None
        made_up = self._made_up.get(path.dentry)
        if made_up is not None and path.dentry != mount.root:
            return made_up
        at_root = dentry.parent == path.dentry
        if at_root or path.dentry == mount.root:
            whole = self._directory(path)
        else:
            above = self._directory(FilePath(path.mount, dentry.parent))
            whole = None if above is None else b"%s/%s" % (above, dentry.name)
        if whole is None or len(whole) > MAX_PATH:
            return None
        whole = whole or b"/"
        return whole if dentry.hashed or at_root else whole + b" (deleted)"

    def _directory(self, place: FilePath) -> bytes | None:
        """The path of a directory, empty for the root: many files share theirs."""
        known = self._directories
        if place not in known:
            names = self._names(place)
            if len(known) >= _DIRECTORIES:
                known.clear()
            known[place] = None if names is None else b"".join(b"/" + n for n in reversed(names))
        return known[place]

    def _dentry(self, address: int) -> bytes | None:
        names: list[bytes] = []
        length = 0
        for _ in range(MAX_DEPTH):
            found = self._dentries.get(address)
            if found is None or length > MAX_PATH:
                return None
            if found.parent == address:
                return b"/" + b"/".join(reversed(names))
            names.append(found.name)
            length += len(found.name) + 1
            address = found.parent
        return None

    def _make_up_names(self, paths: set[FilePath]) -> None:
        """Name the files that no directory holds; a mounted one has its mount's path."""
        names: dict[int, bytes] = {}
        for path in paths:
            mount, dentry = self._mounts.get(path.mount), self._dentries.get(path.dentry)
            if mount and dentry and dentry.parent == path.dentry != mount.root:
                names[path.dentry] = dentry.name
        made_up = made_up_names(self._guest, list(names), list(names.values()))
        self._made_up.update(zip(names, made_up, strict=True))

    def _names(self, path: FilePath) -> list[bytes] | None:
        """Names from the file up to its namespace's root."""
        names: list[bytes] = []
        mount_address, address, length = path.mount, path.dentry, 0
        for _ in range(MAX_DEPTH):
            mount, dentry = self._mounts.get(mount_address), self._dentries.get(address)
            if mount is None or dentry is None:
                return None
            if address == mount.root:
                if mount.parent == mount_address:
                    return names
                mount_address, address = mount.parent, mount.mountpoint
                continue
            if dentry.parent == address:
                return names  # outside of its mount: what the kernel shows as far as it goes
            names.append(dentry.name)
            length += len(dentry.name) + 1
            if length > MAX_PATH:
                return None
            address = dentry.parent
        return None

    def _cgroup(self, node: int) -> bytes | None:
        names: list[bytes] = []
        length = 0
        for _ in range(MAX_DEPTH):
            found = self._nodes.get(node)
            if found is None or length > MAX_PATH:
                return None
            parent, name = found
            if not parent:
                return b"/" + b"/".join(reversed(names))
            names.append(name)
            length += len(name) + 1
            node = parent
        return None

    # -- reading a level at a time ------------------------------------------------------------

    def _load_mounts(self, frontier: set[int]) -> None:
        """Mounts and those that they hang on; addresses are those of the inner ``vfsmount``."""
        inner = self._guest.types.offsetof("mount", "mnt")
        layout = self._guest.layout(
            "mount",
            {"root": "mnt.mnt_root", "parent": "mnt_parent", "mountpoint": "mnt_mountpoint"},
            text=(),
        )
        for _ in range(MAX_DEPTH):
            new = self._new(address for address in frontier if address not in self._mounts)
            if not new:
                return
            columns = layout.lists(self._guest.kernel, [a - inner for a in new], [])
            frontier = set()
            for address, root, parent, point in zip(new, *columns.values(), strict=True):
                if root is None:
                    self._mounts[address] = None
                    continue
                self._mounts[address] = _Mount(root, parent + inner, point)
                frontier.add(parent + inner)

    def _load_dentries(self, frontier: set[int]) -> None:
        for _ in range(MAX_DEPTH):
            new = self._new(address for address in frontier if address not in self._dentries)
            if not new:
                return
            frontier = set()
            for address, dentry in zip(new, self._steady_dentries(new), strict=True):
                self._dentries[address] = dentry
                if dentry is not None:
                    frontier.add(dentry.parent)

    def _steady_dentries(self, addresses: list[int]) -> list[_Dentry | None]:
        """Dentries, none of them in the middle of a rename.

        On a live guest each is looked at again when its name was read: ``d_seq`` counts renames
        and is odd during one, ``hash_len`` is another when the memory is another dentry's.
        """
        layout = self._dentry_layout
        unreadable: dict[int, int] = {}
        columns = layout.lists(self._guest.kernel, addresses, [])
        found = self._named(columns, unreadable)
        pending = list(range(len(addresses)))
        for attempt in range(_ATTEMPTS if self._guest.live else 0):
            again = layout.lists(self._guest.kernel, [addresses[i] for i in pending], [])
            changed = _changed(columns, again)
            if not changed:
                break
            pending = [pending[position] for position in changed]
            columns = layout.lists(self._guest.kernel, [addresses[i] for i in pending], [])
            last = attempt == _ATTEMPTS - 1
            for pointer in columns["name"]:
                unreadable.pop(pointer or 0, None)
            for index, dentry in zip(pending, self._named(columns, unreadable), strict=True):
                found[index] = None if last else dentry
        self._guest.note_all(Problem("unreadable name", place) for place in unreadable.values())
        return found

    @cached_property
    def _dentry_layout(self) -> Layout:
        members = {
            "parent": "d_parent",
            "length": "d_name.len",
            "name": "d_name.name",
            "hash": "d_hash.pprev",
            "hash_len": "d_name.hash",
            "seq": "d_seq.seqcount.sequence|d_seq.sequence?",
        }
        return self._guest.layout("dentry", members, text=())

    def _named(
        self, columns: dict[str, list[Any]], unreadable: dict[int, int]
    ) -> list[_Dentry | None]:
        parents, lengths, pointers, hashes, *_ = columns.values()
        names = self._read_names(pointers, lengths, unreadable)
        return [
            None if parent is None or name is None else _Dentry(parent, name, bool(hashed))
            for parent, name, hashed in zip(parents, names, hashes, strict=True)
        ]

    def _load_nodes(self, frontier: set[int]) -> None:
        # kernfs_node.parent became __parent when it went under RCU (6.15).
        layout = self._guest.layout(
            "kernfs_node", {"parent": "parent|__parent", "name": "name"}, text=()
        )
        for _ in range(MAX_DEPTH):
            new = self._new(address for address in frontier if address not in self._nodes)
            if not new:
                return
            parents, pointers = layout.lists(self._guest.kernel, new, []).values()
            lengths = [None if p is None else MAX_NAME for p in pointers]
            unreadable: dict[int, int] = {}
            names = self._read_names(pointers, lengths, unreadable)
            self._guest.note_all(Problem("unreadable name", a) for a in unreadable.values())
            frontier = set()
            for address, parent, name in zip(new, parents, names, strict=True):
                if parent is None or (name is None and parent):
                    self._nodes[address] = None
                    continue
                self._nodes[address] = (parent, name or b"")
                frontier.add(parent)

    def _new(self, addresses: Iterable[int]) -> list[int]:
        """Those of the addresses that may still be followed; null is none."""
        if self._budget.late():
            return []
        new = [address for address in addresses if address]
        return new[: self._budget.follow(len(new))]

    def _read_names(
        self, pointers: list[int | None], lengths: list[int | None], unreadable: dict[int, int]
    ) -> list[bytes | None]:
        """Names at many pointers, of at most the given lengths, cut at their NUL.

        :param unreadable: gets, for each pointer to none, where reading failed.
        """
        kernel = self._guest.kernel
        faults: list[int] = []
        data = kernel.gather([pointer or 0 for pointer in pointers], _SHORT_NAME, faults)
        bad = set(faults)
        names: list[bytes | None] = []
        for index, (pointer, length) in enumerate(zip(pointers, lengths, strict=True)):
            if pointer is None or length is None:
                names.append(None)
                continue
            start = index * _SHORT_NAME
            name = data[start : start + _SHORT_NAME].split(b"\0", 1)[0]
            if index in bad or len(name) == _SHORT_NAME:
                name = self._long_name(pointer, min(length, MAX_NAME), unreadable)
            names.append(name[: min(length, MAX_NAME)])
        return names

    def _long_name(self, pointer: int, length: int, unreadable: dict[int, int]) -> bytes:
        try:
            return self._guest.kernel.string(pointer, length)
        except FaultError as error:
            unreadable[pointer] = error.address
            return b"?"


def _changed(before: dict[str, list[Any]], after: dict[str, list[Any]]) -> list[int]:
    """Positions at which two looks at dentries differ, or at which a rename is under way."""
    if before == after and not any(seq & 1 for seq in after["seq"] if seq is not None):
        return []
    rows = zip(*before.values(), strict=True), zip(*after.values(), strict=True), after["seq"]
    return [
        position
        for position, (first, second, seq) in enumerate(zip(*rows, strict=True))
        if first != second or (seq or 0) & 1
    ]

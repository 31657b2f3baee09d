"""Files by their path, as far as the guest has it in its cache of names (fs/dcache.c, fs/namei.c).

A directory's dentry has those of its entries that the kernel has looked up, and on tmpfs all of
them. Nothing is read from disks: a file that no process has used lately is not found.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from virtintrospect.errors import FaultError
from virtintrospect.guests.linux.lists import walk_list
from virtintrospect.guests.linux.mounts import Row, first_namespace, place_of
from virtintrospect.guests.linux.pagecache import LIMIT, CachedFile, read_inode
from virtintrospect.guests.linux.paths import FilePath

if TYPE_CHECKING:
    from virtintrospect.guests.linux.budget import Budget
    from virtintrospect.guests.linux.guest import LinuxGuest

#: Entries of one directory that are looked at, and symbolic links that are followed on the way
#: to a file (MAXSYMLINKS).
_MAX_ENTRIES, _MAX_LINKS = 1 << 16, 40
#: Names of a path, those that links bring in included.
_MAX_STEPS = 512
#: PATH_MAX; NAME_MAX.
_MAX_PATH, _MAX_NAME = 4096, 255
#: S_IFMT and S_IFLNK (include/uapi/linux/stat.h).
_FORMAT, _LINK = 0o170000, 0o120000


class Entry(NamedTuple):
    """What a path leads to."""

    place: FilePath
    #: Address of its ``struct inode``; 0 where the guest knows that there is no such file.
    inode: int


class Mounted(NamedTuple):
    """The topmost directory of a mount."""

    mount: int
    root: int


def names_of(guest: LinuxGuest, budget: Budget) -> tuple[Names, dict[int, Row]] | None:
    """Files as the first process sees them, and the mounts of its namespace by their address."""
    found = first_namespace(guest, budget)
    if found is None:
        return None
    root, rows = found
    inner = guest.types.offsetof("mount", "mnt")
    mounts = {
        place_of(guest, address, row): Mounted(address + inner, row["root"])
        for address, row in rows.items()
        if row["parent"] != address
    }
    return Names(guest, budget, root, mounts), rows


class Names:
    """Looks paths up below a root directory.

    :param root: where ``/`` is, and nothing is above it.
    :param mounts: what is mounted where, of the namespace that the root is in.
    """

    def __init__(
        self,
        guest: LinuxGuest,
        budget: Budget,
        root: FilePath,
        mounts: Mapping[FilePath, Mounted],
    ) -> None:
        self._guest = guest
        self._budget = budget
        self._root = root
        self._mounts = mounts
        self._above = {mounted.mount: place for place, mounted in mounts.items()}
        self._tops = {mounted.mount: mounted.root for mounted in mounts.values()}

    def find(self, path: bytes, *, follow: bool = True) -> Entry | None:
        """The file of that path; ``None`` where the guest's memory does not tell.

        :param follow: a symbolic link at its very end is followed, too.
        """
        place = self._root
        steps = [step for step in path[:_MAX_PATH].split(b"/") if step][::-1]
        entry: Entry | None = None
        links = 0
        for _ in range(_MAX_STEPS):
            if not steps:
                return entry or Entry(place, self._inode(place))
            if self._budget.late():
                return None
            step = steps.pop()
            entry = self._step(place, step)
            if entry is None or not entry.inode:
                return entry
            target = self.link(entry.inode) if steps or follow else None
            if target is None:
                place = entry.place
                continue
            links += 1
            if links > _MAX_LINKS or not target:
                return None
            steps += [part for part in target.split(b"/") if part][::-1]
            entry = None
            if target.startswith(b"/"):
                place = self._root
        return None

    def link(self, inode: int) -> bytes | None:
        """What a symbolic link says; ``None`` for other files, empty where it cannot be read."""
        layout = self._guest.layout("inode", {"mode": "i_mode", "text": "i_link"}, text=())
        columns = layout.lists(self._guest.kernel, [inode], [])
        mode, text = columns["mode"][0], columns["text"][0]
        if mode is None or mode & _FORMAT != _LINK:
            return None
        try:
            if text:
                return self._guest.kernel.string(text, _MAX_PATH)
        except FaultError as error:
            self._guest.note("unreadable symbolic link", error.address)
            return b""
        content = read_inode(self._guest, inode, self._budget, limit=_MAX_PATH).whole
        return (content or b"").split(b"\0", 1)[0]

    def read(self, path: bytes, *, limit: int = LIMIT) -> CachedFile | None:
        """What is in memory of the file of that path; ``None`` where it is not found at all."""
        entry = self.find(path)
        if entry is None or not entry.inode:
            return None
        return read_inode(self._guest, entry.inode, self._budget, limit=limit)

    def _step(self, place: FilePath, name: bytes) -> Entry | None:
        if name == b".":
            return Entry(place, self._inode(place))
        if name == b"..":
            above = self._up(place)
            return Entry(above, self._inode(above))
        found = self._child(place.dentry, name)
        if found is None:
            return None
        below = self._top(FilePath(place.mount, found), self._mounts)
        return Entry(below, self._inode(below))

    def _up(self, place: FilePath) -> FilePath:
        for _ in range(_MAX_STEPS):
            if place == self._root:
                return place
            if self._tops.get(place.mount) != place.dentry:
                layout = self._guest.layout("dentry", {"parent": "d_parent"}, text=())
                parent = layout.lists(self._guest.kernel, [place.dentry], [])["parent"][0]
                return FilePath(place.mount, parent or place.dentry)
            place = self._above.get(place.mount, self._root)
        return self._root

    @staticmethod
    def _top(place: FilePath, mounts: Mapping[FilePath, Mounted]) -> FilePath:
        """What is mounted there, or on that, and so on (``follow_down()``)."""
        for _ in range(_MAX_LINKS):
            mounted = mounts.get(place)
            if mounted is None:
                break
            place = FilePath(mounted.mount, mounted.root)
        return place

    def _inode(self, place: FilePath) -> int:
        layout = self._guest.layout("dentry", {"inode": "d_inode"}, text=())
        found: int | None = layout.lists(self._guest.kernel, [place.dentry], [])["inode"][0]
        return found or 0

    def _child(self, parent: int, name: bytes) -> int | None:
        """The dentry of an entry of a directory, the newest where there are several."""
        children = _children(self._guest, parent, self._budget)
        members = {
            "parent": "d_parent",
            "length": "d_name.len",
            "name": "d_name.name",
            "hashed": "d_hash.pprev",
        }
        columns = self._guest.layout("dentry", members, text=()).lists(
            self._guest.kernel, children, []
        )
        fits: list[tuple[int, int]] = [
            (child, text)
            for child, above, length, text, hashed in zip(children, *columns.values(), strict=True)
            if above == parent and length == len(name) <= _MAX_NAME and hashed
        ]
        faults: list[int] = []
        data = self._guest.kernel.gather([text for _, text in fits], len(name), faults)
        for index, (child, _) in enumerate(fits):
            here = data[index * len(name) : (index + 1) * len(name)]
            if here == name and index not in faults:
                return child
        return None


def _children(guest: LinuxGuest, parent: int, budget: Budget) -> list[int]:
    """Dentries below one: a list until Linux 6.7, one without a tail since (da549bdd15c2)."""
    types = guest.types
    if not types.has("dentry", "d_children"):
        head, at = parent + types.offsetof("dentry", "d_subdirs"), "d_child"
        nodes, problem = walk_list(guest.kernel, head, limit=_MAX_ENTRIES, budget=budget)
        guest.note_all([problem])
    else:
        head, at = parent + types.offsetof("dentry", "d_children"), "d_sib"
        nodes = _hlist(guest, head, budget)
    offset = types.offsetof("dentry", at)
    return [node - offset for node in nodes if node >= offset]


def _hlist(guest: LinuxGuest, head: int, budget: Budget) -> list[int]:
    """Nodes of a ``struct hlist_head``, whose first word is ``next`` as of each node."""
    nodes: dict[int, None] = {}
    read, limit = guest.kernel.read_pointer, min(_MAX_ENTRIES, budget.entries)
    try:
        node = read(head)
        while node and node not in nodes and len(nodes) < limit:
            nodes[node] = None
            node = read(node)
    except FaultError:
        guest.note("directory with an unreadable entry", head)
        node = 0
    if node:
        guest.note("directory with a cycle, or too many entries", head)
    budget.follow(len(nodes))
    return list(nodes)

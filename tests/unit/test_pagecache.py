"""The cache of names and the page cache, laid out by hand and bent (synthetic)."""

from __future__ import annotations

import struct
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from tests.unit.images import BuiltMemory
from tests.unit.symbols.btf_blob import PTR, Blob
from virtintrospect.arch import X86_64_4LEVEL
from virtintrospect.errors import CorruptDataError
from virtintrospect.guests.linux.budget import Budget
from virtintrospect.guests.linux.dcache import Mounted, Names
from virtintrospect.guests.linux.machine.x86 import X86_64
from virtintrospect.guests.linux.pagecache import CachedFile, read_inode
from virtintrospect.guests.linux.paths import FilePath
from virtintrospect.space import AddressSpace
from virtintrospect.symbols.btf import Btf
from virtintrospect.symbols.layout import Layout
from virtintrospect.translation import LinearRange

BASE = 0xFFFF_8880_0000_0000
SIZE = 4 << 20
VMEMMAP, PAGE_STRUCT = BASE + (1 << 20), 64
#: struct inode: mode, size, mapping, link; struct address_space: i_pages.xa_head.
LINK, DIRECTORY, REGULAR = 0o120777, 0o040755, 0o100644
UPTODATE = 1 << 2


def _types(*, hlist: bool) -> Btf:
    blob = Blob()
    u8, u16 = blob.integer("u8", 1), blob.integer("u16", 2)
    u32, s64 = blob.integer("u32", 4), blob.integer("s64", 8, signed=True)
    void, u64 = blob.add(PTR), blob.integer("u64", 8)
    xarray = blob.struct("xarray", 16, [("xa_head", void, 64, 0)])
    space = blob.struct("address_space", 32, [("i_pages", xarray, 64, 0)])
    mapping = blob.add(PTR, word=space)
    blob.struct(
        "inode", 64,
        [("i_mode", u16, 0, 0), ("i_size", s64, 64, 0), ("i_mapping", mapping, 128, 0),
         ("i_link", void, 192, 0)],
    )  # fmt: skip
    blob.struct("page", PAGE_STRUCT, [("flags", u64, 0, 0), ("mapping", void, 64, 0)])
    blob.enum("pageflags", {"PG_locked": 0, "PG_uptodate": 2})
    slots = blob.array(void, 64)
    blob.struct(
        "xa_node", 576, [("shift", u8, 0, 0), ("offset", u8, 8, 0), ("slots", slots, 320, 0)]
    )
    qstr = blob.struct("qstr", 16, [("len", u32, 0, 0), ("name", void, 64, 0)])
    bl = blob.struct("hlist_bl_node", 16, [("next", void, 0, 0), ("pprev", void, 64, 0)])
    pair = blob.struct("list_head", 16, [("next", void, 0, 0), ("prev", void, 64, 0)])
    names = ("d_children", "d_sib") if hlist else ("d_subdirs", "d_child")
    blob.struct(
        "dentry", 128,
        [("d_hash", bl, 0, 0), ("d_parent", void, 128, 0), ("d_name", qstr, 192, 0),
         ("d_inode", void, 320, 0), (names[0], pair, 384, 0), (names[1], pair, 512, 0)],
    )  # fmt: skip
    return Btf.parse(blob.build())


class Disk:
    """Builds dentries, inodes and pages into memory."""

    def __init__(self, *, hlist: bool, page: int = 4096) -> None:
        self.memory = BuiltMemory(SIZE)
        self.hlist = hlist
        self._next = 0x1000
        self._page = page
        self._frame = (2 << 20) // page  # page frames from 2 MiB up
        self._children: dict[int, list[int]] = {}
        types = _types(hlist=hlist)
        kernel = AddressSpace(
            self.memory, X86_64_4LEVEL, 0, linear=[LinearRange(BASE, BASE + SIZE, 0)]
        )
        self.problems: list[tuple[str, int]] = []
        self.guest: Any = SimpleNamespace(
            memory=self.memory,
            page_size=page,
            kernel=kernel,
            types=types,
            symbols={"vmemmap_base": 0},
            machine=X86_64,
            pointer=lambda _: VMEMMAP,
            layout=lambda name, members, text=None: Layout(types, name, members, text),
            note=lambda what, address: self.problems.append((what, address)),
            note_all=lambda problems: self.problems.extend((p.what, 0) for p in problems if p),
        )

    def take(self, size: int) -> int:
        address = BASE + self._next
        self._next += (size + 63) & -64
        return address

    def put(self, address: int, *values: int) -> None:
        self.memory.write_u64(address - BASE, *values)

    def inode(self, mode: int = REGULAR, size: int = 0, root: int = 0, link: bytes = b"") -> int:
        inode, mapping = self.take(64), self.take(64)
        text = self.take(len(link) + 1) if link else 0
        if link:
            self.memory.write(text - BASE, link + b"\0")
        self.put(inode, mode, size, mapping, text)
        self.put(mapping + 16, root)
        return inode

    def page(self, content: bytes, *, flags: int = UPTODATE) -> tuple[int, int]:
        """A page with this content: its ``struct page``, and where that says whose it is."""
        frame, self._frame = self._frame, self._frame + 1
        self.memory.write(frame * self._page, content)
        page = VMEMMAP + frame * PAGE_STRUCT
        self.put(page, flags)
        return page, page + 8

    def file(self, pages: dict[int, bytes], size: int, *, flags: int = UPTODATE) -> int:
        """An inode whose page cache has these pages."""
        node = self.take(576)
        inode = self.inode(size=size, root=node | 2)
        mapping = self.mapping(inode)
        for index, content in pages.items():
            page, owner = self.page(content, flags=flags)
            self.put(owner, mapping)
            self.put(node + 40 + 8 * index, page)
        return inode

    def mapping(self, inode: int) -> int:
        return struct.unpack_from("<Q", self.memory.data, inode - BASE + 16)[0]  # type: ignore[no-any-return]

    def dentry(self, parent: int, name: bytes, inode: int, *, hashed: int = 1) -> int:
        dentry, text = self.take(128), self.take(len(name) + 1)
        self.memory.write(text - BASE, name + b"\0")
        self.put(dentry, 0, hashed, parent or dentry, len(name), text, inode)
        self._children.setdefault(parent, []).append(dentry)
        self._children.setdefault(dentry, [])
        return dentry

    def finish(self) -> None:
        """Write the lists of children."""
        for parent, children in self._children.items():
            if not parent:
                continue
            nodes = [child + 64 for child in children]
            if self.hlist:
                for place, node in zip([parent + 48, *nodes], [*nodes, 0], strict=True):
                    self.put(place, node)
            else:
                ring = [parent + 48, *nodes]
                for place, node in zip(ring, [*ring[1:], ring[0]], strict=True):
                    self.put(place, node)
                    self.put(node + 8, place)


@pytest.fixture(params=[False, True], ids=["lists", "hlists"])
def disk(request: pytest.FixtureRequest) -> Disk:
    return Disk(hlist=request.param)


def read(disk: Disk, inode: int, limit: int = 1 << 20) -> CachedFile:
    return read_inode(disk.guest, inode, Budget(), limit=limit)


def test_whole_and_partial_files(disk: Disk) -> None:
    whole = disk.file({0: b"a" * 4096, 1: b"bcd"}, 4099)
    assert read(disk, whole).whole == b"a" * 4096 + b"bcd"
    assert read(disk, whole, limit=100).whole is None
    assert read(disk, whole, limit=100).pieces == ((0, b"a" * 100),)
    hole = disk.file({0: b"a" * 4096, 2: b"c" * 4096, 3: b"d"}, 3 * 4096 + 1)
    assert read(disk, hole).whole is None
    assert read(disk, hole).pieces == ((0, b"a" * 4096), (8192, b"c" * 4096 + b"d"))
    assert read(disk, disk.inode()).whole == b""
    assert read(disk, disk.inode(size=5)).whole is None
    assert not disk.problems


@pytest.mark.parametrize("page", [16 << 10, 64 << 10])
def test_larger_pages(page: int) -> None:
    """Of kernels with another PAGE_SIZE (synthetic; of 16 KiB there is a real one)."""
    disk = Disk(hlist=True, page=page)
    whole = disk.file({0: b"a" * page, 1: b"bcd"}, page + 3)
    assert read(disk, whole).whole == b"a" * page + b"bcd"
    hole = disk.file({0: b"a" * page, 2: b"c"}, 2 * page + 1)
    assert read(disk, hole).pieces == ((0, b"a" * page), (2 * page, b"c"))


def test_pages_that_are_being_read_are_not_there(disk: Disk) -> None:
    assert read(disk, disk.file({0: b"old"}, 3, flags=0)).pieces == ()


def test_a_folio_of_several_pages(disk: Disk) -> None:
    inode = disk.file({0: b"a" * 4096}, 4 * 4096)
    node = struct.unpack_from("<Q", disk.memory.data, disk.mapping(inode) - BASE + 16)[0] - 2
    for index in (1, 2, 3):
        disk.put(node + 40 + 8 * index, 2)  # sibling of slot 0
        disk.page(bytes([97 + index]) * 4096)
    assert read(disk, inode).whole == b"".join(bytes([97 + n]) * 4096 for n in range(4))


def test_a_head_that_is_there_for_each_of_its_pages(disk: Disk) -> None:
    """How huge pages were kept before Linux 5.17."""
    inode = disk.file({0: b"a" * 4096}, 2 * 4096)
    node = struct.unpack_from("<Q", disk.memory.data, disk.mapping(inode) - BASE + 16)[0] - 2
    head = struct.unpack_from("<Q", disk.memory.data, node - BASE + 40)[0]
    disk.put(node + 48, head)
    disk.page(b"b" * 4096)
    assert read(disk, inode).whole == b"a" * 4096 + b"b" * 4096


@pytest.mark.parametrize(
    "entry", [VMEMMAP + 512 * 64 + 8, VMEMMAP - 64, 0xDEAD_BEE0, BASE + 64, (1 << 64) - 64]
)
def test_entries_that_are_no_pages(disk: Disk, entry: int) -> None:
    inode = disk.file({0: b"a" * 4096}, 4096)
    node = struct.unpack_from("<Q", disk.memory.data, disk.mapping(inode) - BASE + 16)[0] - 2
    disk.put(node + 40, entry)
    assert read(disk, inode).pieces == ()
    assert disk.problems


def test_a_page_outside_of_memory(disk: Disk) -> None:
    inode = disk.file({0: b"a" * 4096}, 4096)
    node = struct.unpack_from("<Q", disk.memory.data, disk.mapping(inode) - BASE + 16)[0] - 2
    far = VMEMMAP + 8192 * PAGE_STRUCT
    disk.put(far, UPTODATE, disk.mapping(inode))
    disk.put(node + 40, far)
    assert read(disk, inode).pieces == ()
    assert disk.problems


@pytest.mark.parametrize("size", [1 << 62, (1 << 63) - 1, 1 << 63, (1 << 64) - 1])
def test_absurd_sizes(disk: Disk, size: int) -> None:
    inode = disk.file({0: b"a" * 4096}, size)
    found = read(disk, inode)
    assert found.whole is None
    assert sum(len(data) for _, data in found.pieces) <= 4096


def test_no_more_than_the_budget(disk: Disk) -> None:
    inode = disk.file({index: bytes(4096) for index in range(10)}, 40960)
    budget = Budget(size=10000)
    assert len(read_inode(disk.guest, inode, budget).pieces[0][1]) == 8192
    assert budget.problem is not None


@pytest.mark.parametrize("size", [1 << 20, 16, 68])
def test_absurd_struct_page(disk: Disk, size: int) -> None:
    inode = disk.file({0: b"a"}, 1)
    disk.guest.types.sizeof = lambda _: size
    with pytest.raises(CorruptDataError):
        read(disk, inode)


# -- paths ----------------------------------------------------------------------------------

Tree = tuple[Names, dict[str, FilePath]]


@pytest.fixture
def tree(disk: Disk) -> Callable[[], Tree]:
    """/etc/os-release → ../usr/lib/os-release; /run is a mount, /var/run → /run."""
    directory = disk.inode(DIRECTORY)
    root = disk.dentry(0, b"/", directory)
    etc, usr = disk.dentry(root, b"etc", directory), disk.dentry(root, b"usr", directory)
    lib, var = disk.dentry(usr, b"lib", directory), disk.dentry(root, b"var", directory)
    places = {"lib": lib, "etc": etc, "root": root, "var": var}
    places["real"] = disk.dentry(lib, b"os-release", disk.file({0: b"ID=debian\n"}, 10))
    disk.dentry(etc, b"os-release", disk.inode(LINK, link=b"../usr/lib/os-release"))
    disk.dentry(etc, b"loop", disk.inode(LINK, link=b"/etc/loop"))
    disk.dentry(etc, b"gone", disk.inode(), hashed=0)
    disk.dentry(etc, b"nothing", 0)
    slow = disk.file({0: b"/usr/lib"}, 8)
    disk.put(slow, LINK)
    disk.dentry(root, b"lib", slow)
    disk.dentry(var, b"run", disk.inode(LINK, link=b"/run"))
    below = disk.dentry(root, b"run", directory)
    top = disk.dentry(0, b"/", directory)
    places["utmp"] = disk.dentry(top, b"utmp", disk.file({0: b"who"}, 3))
    mounts = {FilePath(1, below): Mounted(2, top)}

    def finish() -> Tree:
        disk.finish()
        found = {name: FilePath(2 if name == "utmp" else 1, at) for name, at in places.items()}
        return Names(disk.guest, Budget(), FilePath(1, root), mounts), found

    return finish


@pytest.mark.parametrize(
    ("path", "place"),
    [
        (b"/usr/lib/os-release", "real"),
        (b"/etc/os-release", "real"),
        (b"//etc/./../etc/os-release", "real"),
        (b"/lib/os-release", "real"),
        (b"/run/utmp", "utmp"),
        (b"/var/run/utmp", "utmp"),
        (b"/run/../../../run/utmp", "utmp"),
        (b"/etc", "etc"),
        (b"/lib", "lib"),
        (b"/", "root"),
        (b"/..", "root"),
    ],
)
def test_paths(tree: Callable[[], Tree], path: bytes, place: str) -> None:
    names, places = tree()
    entry = names.find(path)
    assert entry is not None
    assert entry.place == places[place]
    assert entry.inode


@pytest.mark.parametrize(
    "path", [b"/etc/gone", b"/etc/other", b"/etc/loop", b"/etc/os-release/x", b"/a" * 4000]
)
def test_paths_that_lead_nowhere(tree: Callable[[], Tree], path: bytes) -> None:
    assert tree()[0].find(path) is None
    assert tree()[0].read(path) is None


def test_what_is_known_not_to_be(tree: Callable[[], Tree]) -> None:
    entry = tree()[0].find(b"/etc/nothing")
    assert entry is not None
    assert entry.inode == 0
    assert tree()[0].read(b"/etc/nothing") is None


def test_content_by_path(tree: Callable[[], Tree]) -> None:
    cached = tree()[0].read(b"/etc/os-release")
    assert cached is not None
    assert cached.whole == b"ID=debian\n"


def test_directory_with_a_cycle(disk: Disk, tree: Callable[[], Tree]) -> None:
    names, places = tree()
    node = places["lib"].dentry + 64
    disk.put(node, node)
    assert names.find(b"/usr/lib/os-release") is not None
    assert names.find(b"/usr/lib/other") is None
    assert disk.problems


def test_mounts_that_are_mounted_on_themselves(disk: Disk) -> None:
    root = disk.dentry(0, b"/", disk.inode(DIRECTORY))
    disk.dentry(root, b"x", disk.inode())
    disk.finish()
    mounts = {FilePath(1, root): Mounted(1, root)}
    assert Names(disk.guest, Budget(), FilePath(1, root), mounts).find(b"/x/../y") is None

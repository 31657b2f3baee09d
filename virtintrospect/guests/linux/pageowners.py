"""Who owns each page of guest-physical memory.

:mod:`~virtintrospect.guests.linux.pageframes` has what ``struct page`` tells. Here is added
what only page tables know: which processes map a page, and which pages the kernel maps one by
one.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

from virtintrospect.arch.leaves import Leaves, Tables, leaves
from virtintrospect.errors import FaultError, UnsupportedError
from virtintrospect.guests.linux.budget import Budget
from virtintrospect.guests.linux.pageframes import KIND, Frames
from virtintrospect.guests.linux.process import PF_KTHREAD
from virtintrospect.guests.linux.stack import thread_size
from virtintrospect.guests.linux.tasks import thread_groups
from virtintrospect.model.pages import PAGE_KINDS, PageOwners, ProcessPages

if TYPE_CHECKING:
    import numpy.typing as npt

    from virtintrospect.arch.paging import PagingMode
    from virtintrospect.guests.linux.guest import LinuxGuest

    Array = npt.NDArray[Any]

#: Most frames that arrays are made for: 4 TiB of guest, 17 GiB of arrays.
_MAX_FRAMES = 1 << 30
#: Tables that one look reads at least, and one for so many frames: a page table maps 512.
_FEWEST_TABLES, _FRAMES_A_TABLE = 1 << 12, 8
#: Frames that are looked at together, and how often all of them may be mapped.
_AT_ONCE, _MOST_MAPPED = 1 << 20, 256
#: PID_MAX_LIMIT (include/linux/threads.h).
_PIDS = 4 << 20
_LEADER = {"pid": "tgid", "name": "comm", "signal": "signal", "threads": "signal.nr_threads"}
_THREAD = {"flags": "flags", "mm": "mm", "pgd": "mm.pgd", "stack": "stack"}


class _Process(NamedTuple):
    """A process, its threads' kernel stacks, and its top page table if it has one of its own."""

    pid: int
    name: bytes
    stacks: list[int]
    root: int


def page_owners(guest: LinuxGuest) -> PageOwners:
    """Look at every page frame.

    :raises UnsupportedError: the guest has more than 4 TiB, or its kernel no array of pages.
    """
    page = guest.page_size
    count = guest.memory.end // page
    if count > _MAX_FRAMES:
        raise UnsupportedError(
            f"the guest's memory reaches up to {guest.memory.end:#x}",
            hint=f"owners are found for up to {_MAX_FRAMES * page >> 40} TiB",
        )
    return _Owners(guest, count, page).all()


class _Owners:
    """The arrays while they are made."""

    def __init__(self, guest: LinuxGuest, count: int, page: int) -> None:
        import numpy as np

        self._guest = guest
        self._page = page
        self._shift = page.bit_length() - 1
        self._budget = Budget()
        self._tables = _FEWEST_TABLES + count // _FRAMES_A_TABLE
        self._frames_left = _MOST_MAPPED * count
        self._frames = Frames(guest, count)
        self._kind = self._frames.kind
        self._pid = np.zeros(count, dtype=np.int32)
        self._mappings = np.zeros(count, dtype=np.uint32)
        self._processes = self._find_processes()
        self._users = [process for process in self._processes if process.root]
        #: Pages that each of these processes maps, by kind; of its tables; of everyone's stacks.
        self._sums = np.zeros((len(self._users), len(PAGE_KINDS)), dtype=np.int64)
        self._own_tables = np.zeros(len(self._users), dtype=np.int64)
        #: The table page that was claimed last, and by whom.
        self._claimed = (-1, -1)
        self._own_stacks = np.zeros(len(self._processes), dtype=np.int64)

    def all(self) -> PageOwners:
        """Go through everything."""
        self._image()
        self._kernel_maps()
        self._stacks()
        single = self._user_maps()
        self._guest.note_all([self._budget.problem])
        rows = self._rows(single)
        return PageOwners(
            self._page, self._kind, self._pid, self._mappings, self._frames.flags, tuple(rows)
        )

    def _find_processes(self) -> list[_Process]:
        """All processes; the page tables of two that share memory belong to the first."""
        guest = self._guest
        layout = guest.layout("task_struct", _LEADER, text=("name",))
        columns = layout.lists(guest.kernel, guest.tasks.addresses(), [])
        signals = [signal or 0 for signal in columns["signal"]]
        counts = [count or 0 for count in columns["threads"]]
        groups = thread_groups(guest, signals, counts, self._budget)
        tasks = [task for group in groups for task in group]
        threads = guest.layout("task_struct", _THREAD, text=()).lists(guest.kernel, tasks, [])
        rows = zip(*(threads[name] for name in _THREAD), strict=True)
        found, seen = [], set()
        for pid, name, group in zip(columns["pid"], columns["name"], groups, strict=True):
            root, stacks = 0, []
            for flags, mm, pgd, stack in islice(rows, len(group)):
                stacks += [stack & guest.kernel.last] if stack else []
                # A leader that has ended has no memory any more; its threads go on.
                if not root and pgd and mm not in seen and not flags & PF_KTHREAD:
                    seen.add(mm)
                    root = self._root(pid, pgd)
            if pid is None:
                continue
            if 0 <= pid < _PIDS:
                found.append(_Process(pid, bytes(name).split(b"\0")[0], stacks, root))
            else:
                guest.note(f"a process with pid {pid}", 0)
        return found

    def _root(self, pid: int, pgd: int) -> int:
        try:
            return self._guest.kernel.translate(pgd)
        except FaultError as error:
            self._guest.note(f"process {pid} has no page tables", error.address)
            return 0

    # -- the kernel's own -------------------------------------------------------------------

    def _image(self) -> None:
        """The image, and the array of pages: reserved at boot, both of them."""
        import numpy as np

        guest = self._guest
        start = guest.mapping.image.paddr // self._page
        end = start + (guest.mapping.image.end - guest.mapping.image.start) // self._page
        part = self._kind[start:end]
        part[part == KIND["reserved"]] = KIND["image"]
        memmap = self._inside(self._frames.memmap)
        usual = [KIND[name] for name in ("reserved", "kernel", "free_percpu")]
        self._kind[memmap[np.isin(self._kind[memmap], usual)]] = KIND["memmap"]

    def _kernel_maps(self) -> None:
        """What the kernel maps page by page: vmalloc(), modules.

        That is all that lies neither in the direct map, nor in the image or the array of pages.
        """
        kernel, image = self._guest.kernel, self._guest.mapping.image
        if all(linear.paddr == image.paddr for linear in kernel.linear):
            return  # the direct map is not where it should be: all would look like vmalloc()
        array = self._frames.place
        known = [*((linear.start, linear.end) for linear in kernel.linear), image[:2], array]
        start, room = _kernel_start(self._guest), self._guest.machine.modules_room(self._guest)
        for first, end in [*sorted(known), (1 << 64, 1 << 64)]:
            kind = "modules" if start in room else "vmalloc"
            for _, found in self._leaves([kernel.root], kernel.mode, start, first):
                for frames, _ in self._expanded(found):
                    mine = frames[self._kind[frames] == KIND["kernel"]]
                    self._kind[mine] = KIND[kind]
            start = max(start, end)

    def _stacks(self) -> None:
        """Kernel stacks of all threads."""
        import numpy as np

        guest, processes = self._guest, self._processes
        stacks = [stack for process in processes for stack in process.stacks]
        numbers = [number for number, each in enumerate(processes) for _ in each.stacks]
        pids = np.array([process.pid for process in processes], dtype=np.int32)
        pages = np.arange(0, thread_size(guest), self._page, dtype=np.uint64)
        found = guest.kernel.translate_many(
            (np.array(stacks, dtype=np.uint64)[:, None] + pages).ravel()
        )
        frames = found // np.uint64(self._page)
        owners = np.repeat(np.array(numbers, dtype=np.int64), len(pages))
        good = frames < len(self._kind)
        frames, owners = frames[good], owners[good]
        mine = np.isin(self._kind[frames], [KIND["kernel"], KIND["vmalloc"]])
        self._kind[frames[mine]] = KIND["stack"]
        self._pid[frames[mine]] = pids[owners[mine]]
        self._own_stacks += np.bincount(owners[mine], minlength=len(processes))

    # -- processes --------------------------------------------------------------------------

    def _user_maps(self) -> Array:
        """Which processes map which pages; gives the frames that one process alone has."""
        import numpy as np

        roots = [process.root for process in self._users]
        pids = np.array([process.pid for process in self._users], dtype=np.int32)
        mode = self._guest.machine.user_mode(self._guest.kernel.mode)
        end = min(1 << (mode.virtual_bits - 1), _kernel_start(self._guest))
        first = np.full(len(self._kind), len(roots), dtype=np.int32)
        several = np.zeros(len(self._kind), dtype=bool)
        sizes = {level.name: mode.entry_size << level.bits for level in mode.levels}
        for tables, found in self._leaves(roots, mode, 0, end):
            self._claim(tables, pids, sizes[tables.level])
            for frames, owners in self._expanded(found):
                np.add.at(self._mappings, frames, 1)
                cells = owners * len(PAGE_KINDS) + self._kind[frames]
                sums = np.bincount(cells, minlength=self._sums.size)
                self._sums += sums.reshape(self._sums.shape)
                before = first[frames]
                np.minimum.at(first, frames, owners.astype(np.int32))
                several[frames] |= (before != len(roots)) & (before != owners)
                several[frames] |= first[frames] != owners
        mapped = np.flatnonzero(first < len(roots))
        usual = [KIND[name] for name in ("anonymous", "file", "shared", "hugetlb")]
        mapped = mapped[np.isin(self._kind[mapped], usual)]
        self._pid[mapped] = pids[first[mapped]]
        alone = mapped[~several[mapped]]
        return np.bincount(first[alone], minlength=len(roots))

    def _claim(self, tables: Tables, pids: Array, size: int) -> None:
        """Page tables belong to the process whose they are; top ones have no type before 6.14.

        On 32-bit ARM a top table has four pages, or is a small part of one that holds other
        things, too; and of the lowest tables two are in one page, one behind the other.
        """
        import numpy as np

        first = (tables.paddr // np.uint64(self._page)).astype(np.int64)
        each = max(1, size // self._page)  # there may be no table at all: no division
        frames = (first[:, None] + np.arange(each)).ravel()
        roots = np.repeat(tables.root, each)
        good = frames < len(self._kind)
        frames, roots = frames[good], roots[good]
        if not len(frames):
            return
        again = np.zeros(len(frames), dtype=bool)
        again[1:] = (frames[1:] == frames[:-1]) & (roots[1:] == roots[:-1])
        again[0] = self._claimed == (frames[0], roots[0])
        self._claimed = (int(frames[-1]), int(roots[-1]))
        untyped = frames[self._kind[frames] == KIND["kernel"]] if size >= self._page else frames[:0]
        self._kind[untyped] = KIND["page_tables"]
        mine = self._kind[frames] == KIND["page_tables"]
        self._pid[frames[mine]] = pids[roots[mine]]
        counts = np.bincount(roots[mine & ~again], minlength=len(self._own_tables))
        self._own_tables += counts

    def _leaves(self, roots: list[int], mode: PagingMode, start: int, end: int) -> Any:
        """Pages of address spaces, as long as the budget for tables and time lasts."""
        guest = self._guest
        if start >= end:
            return
        for tables, found in leaves(guest.memory, mode, roots, start, end, self._tables + 1):
            self._tables -= len(tables.paddr)
            if self._tables < 0:
                guest.note("more page tables than there can be; the rest is left out", 0)
                return
            if self._budget.late():
                return
            yield tables, found

    def _expanded(self, found: Leaves) -> Iterator[tuple[Array, Array]]:
        """The page frames of pages of all sizes, and the index of the address space of each.

        Piece by piece: a forged table may have large pages only, each of a million frames.
        """
        import numpy as np

        first = found.paddr >> np.uint64(self._shift)
        inside = first < len(self._kind)
        first, roots = first[inside].astype(np.int64), found.root[inside]
        counts = np.int64(1) << (found.shift[inside].astype(np.int64) - self._shift)
        counts = np.minimum(counts, len(self._kind) - first)
        ends = np.cumsum(counts)
        start = 0
        while start < len(first):
            taken = ends[start - 1] if start else 0
            stop = max(int(np.searchsorted(ends, taken + _AT_ONCE, side="right")), start + 1)
            part = counts[start:stop]
            total = int(ends[stop - 1] - taken)
            self._frames_left -= total
            if self._frames_left < 0 or self._budget.late():
                self._guest.note("pages are mapped more often than can be; the rest is left out", 0)
                return
            within = np.arange(total) - np.repeat(np.cumsum(part) - part, part)
            yield np.repeat(first[start:stop], part) + within, np.repeat(roots[start:stop], part)
            start = stop

    def _inside(self, frames: Array) -> Array:
        return frames[frames < len(self._kind)]

    def _rows(self, alone: Array) -> list[ProcessPages]:
        number = {id(process): index for index, process in enumerate(self._users)}
        rows = []
        for process, stack in zip(self._processes, self._own_stacks.tolist(), strict=True):
            index = number.get(id(process))
            pages = [0] * len(PAGE_KINDS) if index is None else self._sums[index].tolist()
            rows.append(
                ProcessPages(
                    pid=process.pid,
                    name=process.name,
                    anonymous=pages[KIND["anonymous"]] * self._page,
                    file=pages[KIND["file"]] * self._page,
                    shared=pages[KIND["shared"]] * self._page,
                    hugetlb=pages[KIND["hugetlb"]] * self._page,
                    alone=0 if index is None else int(alone[index]) * self._page,
                    page_tables=0 if index is None else int(self._own_tables[index]) * self._page,
                    stack=stack * self._page,
                )
            )
        return rows


def _kernel_start(guest: LinuxGuest) -> int:
    """First address of the kernel's part; of 32 bits that of its direct map, or of modules."""
    if guest.types.pointer_size == 8:
        return 1 << 63
    starts = [linear.start for linear in guest.kernel.linear]
    start = min(starts, default=guest.machine.lowest_code)
    room = guest.machine.modules_room(guest)
    return min(start, room.start) if room else start

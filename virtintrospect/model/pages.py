"""Who owns each page of guest-physical memory."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

#: What a page may be used for, by its number in :attr:`PageOwners.kind`.
PAGE_KINDS = (
    "absent",  # no RAM, or none that the kernel manages
    "free",  # on the free lists of a zone
    "free_percpu",  # free, on the lists that each CPU keeps for itself
    "anonymous",  # of processes: heap, stack, private pages that were written
    "file",  # page cache: content of files, buffers of block devices
    "shared",  # tmpfs, shared memory, memfd
    "hugetlb",  # the pool of huge pages, used or not
    "slab",  # kernel objects
    "page_tables",
    "stack",  # kernel stacks of tasks
    "vmalloc",  # mapped into the kernel's address space page by page
    "modules",
    "image",  # the kernel's own code and data
    "memmap",  # the array of all struct page
    "reserved",  # set aside at boot: firmware, early allocations
    "offline",  # given back by a balloon, or taken offline
    "poisoned",  # broken memory
    "kernel",  # other pages that the kernel has allocated
)


@dataclass(frozen=True, slots=True)
class ProcessPages:
    """Bytes that one process maps, by what they are; a page counts once a mapping."""

    pid: int
    name: bytes
    anonymous: int
    file: int
    shared: int
    hugetlb: int
    #: Of all these, pages that nobody else maps.
    alone: int
    #: Its page tables.
    page_tables: int
    #: Kernel stacks of its threads.
    stack: int


@dataclass(frozen=True, slots=True)
class PageOwners:
    """Arrays by page frame number: the page at guest-physical ``pfn * page_size``.

    They take 17 bytes a page: 4.25 MiB for each GiB below the end of RAM.
    """

    page_size: int
    #: Index in :data:`PAGE_KINDS`.
    kind: npt.NDArray[np.uint8]
    #: Thread group of a process that maps the page, or has it as page table or kernel stack; 0
    #: where there is none. Of several processes the first in the task list.
    pid: npt.NDArray[np.int32]
    #: How often processes map it, as /proc/kpagecount has it.
    mappings: npt.NDArray[np.uint32]
    #: ``page->flags`` as they stand in memory; the guest's ``enum pageflags`` names the bits.
    flags: npt.NDArray[np.uint64]
    #: What each process maps, in the order of the task list.
    processes: tuple[ProcessPages, ...]

    def pages(self, kind: str) -> int:
        """How many pages are of a kind.

        :param kind: one of :data:`PAGE_KINDS`.
        """
        import numpy as np

        return int(np.count_nonzero(self.kind == PAGE_KINDS.index(kind)))

    def within(self, ranges: Iterable[tuple[int, int]]) -> npt.NDArray[np.bool_]:
        """A mask of the pages that lie in some ranges of guest-physical addresses.

        ``owners.within(guest.memory.resident())`` are those that the host holds memory for. A
        page of which some lies in a range counts as a whole: pages of 16 or 64 KiB may be held
        in part.

        :param ranges: ``(start, end)``, in bytes.
        """
        import numpy as np

        mask = np.zeros(len(self.kind), dtype=np.bool_)
        for start, end in ranges:
            mask[start // self.page_size : -(-end // self.page_size)] = True
        return mask

    def of(self, *kinds: str) -> npt.NDArray[np.bool_]:
        """A mask of the pages that are of one of these kinds."""
        import numpy as np

        return np.isin(self.kind, [PAGE_KINDS.index(kind) for kind in kinds])

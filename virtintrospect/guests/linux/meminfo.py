"""Memory as /proc/meminfo has it (fs/proc/meminfo.c, mm/show_mem.c, mm/hugetlb.c).

A field is named as osquery's table memory_info names it: what meminfo calls ``MemTotal`` is
``memory_total``. All others are meminfo's own name in snake case: ``AnonHugePages`` is
``anon_huge_pages``, ``Active(anon)`` is ``active_anon``, ``DirectMap4k`` is ``direct_map_4k``.
All are bytes, in whole KiB, but for ``huge_pages_…``, which /proc counts in pages as well.

A line that this kernel does not have is left out; lines that the kernel itself prints as a
constant zero (``NFS_Unstable``, ``VmallocChunk`` …) are zero here, too.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from virtintrospect.errors import CorruptDataError, FaultError, NotFoundError
from virtintrospect.guests.linux import percpu
from virtintrospect.guests.linux.budget import Budget
from virtintrospect.guests.linux.counters import Counters, number
from virtintrospect.guests.linux.lists import walk_list
from virtintrospect.model import MemoryInfo

if TYPE_CHECKING:
    from virtintrospect.guests.linux.guest import LinuxGuest

#: HUGE_MAX_HSTATE is 2 on x86-64, at most 4 elsewhere.
_MAX_HSTATES = 16
#: Pages of a huge page, as a power of two: 1 GiB has 18.
_MAX_ORDER = 30
#: MAX_SWAPFILES is at most 32; each has a ``struct address_space`` for every 64 MiB.
_MAX_SWAPFILES, _MAX_SPACES, _MAX_SPACE_SIZE = 32, 1 << 17, 4096
#: SWP_USED, SWP_WRITEOK (include/linux/swap.h).
_SWP_USED, _SWP_WRITEOK = 1, 2
#: SWAP_USAGE_OFFLIST_BIT of ``inuse_pages`` (mm/swapfile.c, 6.13).
_SWAP_OFFLIST = 1 << 30
#: x86 alone counts the pages of its direct map.
_DIRECT = "direct_pages_count"
#: Pages above what 32-bit kernels map for good (CONFIG_HIGHMEM): their number, and what the
#: kernel counts them with where it keeps none (6.12).
_HIGH = ("_totalhigh_pages", "__totalhigh_pages")
#: CPUs add their part of ``percpu_counter`` as signed 32-bit numbers.
_S32 = 4


def meminfo(guest: LinuxGuest, names: Collection[str] | None = None) -> MemoryInfo:
    """The record of ``memory``; what cannot be read is left out and noted.

    :param names: only these fields are read; the others are ``None``.
    """
    source = Memory(guest)
    found: dict[str, int | None] = dict.fromkeys(_LINES)
    for name in _LINES if names is None else names:
        line = _LINES[name]
        try:
            found[name] = line(source)
        except (FaultError, NotFoundError, CorruptDataError) as error:
            found[name] = None
            guest.note(f"no {name}: {error.message}", getattr(error, "address", 0))
    return MemoryInfo(**found)


class _HugePages(NamedTuple):
    """A ``struct hstate``: one size of huge pages."""

    order: int
    total: int
    free: int
    reserved: int
    surplus: int


class Memory:
    """What the lines are made of; each part is read once, when a line first asks for it."""

    def __init__(self, guest: LinuxGuest) -> None:
        self.guest = guest
        self.counters = Counters(guest)
        #: Bytes of a page.
        self.page: int = guest.page_size

    def has(self, symbol: str) -> bool:
        """Whether this kernel has a variable."""
        return symbol in self.guest.symbols

    def number(self, symbol: str, size: int = 0) -> int:
        """The integer that a variable holds."""
        return number(self.guest, symbol, size)

    def pages(self, *names: str) -> int | None:
        """Bytes of counters of pages, summed; ``None`` where this kernel has not all of them."""
        values = [self.counters.get(name) for name in names]
        known = [value for value in values if value is not None]
        return sum(known) * self.page if len(known) == len(values) else None

    @cached_property
    def total(self) -> int:
        """Pages that the kernel manages (totalram_pages())."""
        name = "_totalram_pages" if self.has("_totalram_pages") else "totalram_pages"
        return self.number(name)

    @property
    def high(self) -> int:
        """Pages among them that are not mapped for good (totalhigh_pages())."""
        return self.number(_HIGH[0]) if self.has(_HIGH[0]) else self.counters.high_managed

    @cached_property
    def buffers(self) -> int:
        """Pages of block devices' own cache (nr_blockdev_pages(), block/bdev.c)."""
        guest, types, budget = self.guest, self.guest.types, Budget()
        head = guest.pointer("blockdev_superblock") + types.offsetof("super_block", "s_inodes")
        nodes, problem = walk_list(guest.kernel, head, budget=budget)
        offset = types.offsetof("inode", "i_sb_list")
        layout = guest.layout("inode", {"pages": "i_mapping.nrpages"}, text=())
        columns = layout.lists(guest.kernel, [node - offset for node in nodes], [])
        guest.note_all([problem, budget.problem])
        return sum(pages or 0 for pages in columns["pages"])

    @cached_property
    def swap_cached(self) -> int:
        """Pages that are in the swap cache: a counter since 5.12 (commit b6038942480e)."""
        counted = self.counters.get("NR_SWAPCACHE")
        if counted is not None or not self.has("swapper_spaces"):
            return counted or 0
        guest = self.guest
        size = guest.types.sizeof("address_space")
        if not 0 < size <= _MAX_SPACE_SIZE:
            raise CorruptDataError(f"a struct address_space of {size} bytes", 0)
        spaces: list[int] = []
        for index in range(min(self.number("nr_swapfiles", 4), _MAX_SWAPFILES)):
            at = guest.symbols.address("nr_swapper_spaces") + 4 * index
            count = int.from_bytes(guest.kernel.read(at, 4), "little")
            first = guest.kernel.read_pointer(
                guest.symbols.address("swapper_spaces") + guest.kernel.pointer_size * index
            )
            if first and len(spaces) + count <= _MAX_SPACES:
                spaces += range(first, first + count * size, size)
        layout = guest.layout("address_space", {"pages": "nrpages"}, text=())
        return sum(pages or 0 for pages in layout.lists(guest.kernel, spaces, [])["pages"])

    @cached_property
    def cached(self) -> int:
        """Pages of files that are in memory."""
        return max(0, self.counters["NR_FILE_PAGES"] - self.swap_cached - self.buffers)

    @cached_property
    def leaving_swap(self) -> int:
        """Pages in use of swap that swapoff empties right now (si_swapinfo())."""
        guest = self.guest
        count = min(self.number("nr_swapfiles", 4), _MAX_SWAPFILES)
        table = guest.symbols.address("swap_info")
        pointers = guest.kernel.pointers(table, count)
        members = {"flags": "flags", "used": "inuse_pages.counter|inuse_pages"}
        layout = guest.layout("swap_info_struct", members, text=())
        columns = layout.lists(guest.kernel, [pointer for pointer in pointers if pointer])
        return sum(
            used & ~_SWAP_OFFLIST
            for flags, used in zip(*columns.values(), strict=True)
            if flags & _SWP_USED and not flags & _SWP_WRITEOK
        )

    @cached_property
    def available(self) -> int:
        """si_mem_available(): pages that can be had without swapping."""
        low = sum(zone.low for zone in self.counters.zones)
        free = self.counters["NR_FREE_PAGES"] - self.number("totalreserve_pages")
        cache = self.counters["NR_ACTIVE_FILE"] + self.counters["NR_INACTIVE_FILE"]
        slab = self.counters["NR_SLAB_RECLAIMABLE_B"] + (
            self.counters.get("NR_KERNEL_MISC_RECLAIMABLE") or 0
        )
        return max(0, free + cache - min(cache // 2, low) + slab - min(slab // 2, low))

    @cached_property
    def hugepages(self) -> list[_HugePages]:
        """Every size of huge pages (for_each_hstate())."""
        guest = self.guest
        count = min(self.number("hugetlb_max_hstate", 4), _MAX_HSTATES)
        first, size = guest.symbols.address("hstates"), guest.types.sizeof("hstate")
        members = {
            "order": "order",
            "total": "nr_huge_pages",
            "free": "free_huge_pages",
            "reserved": "resv_huge_pages",
            "surplus": "surplus_huge_pages",
        }
        layout = guest.layout("hstate", members, text=())
        columns = layout.lists(guest.kernel, [first + index * size for index in range(count)])
        found = [_HugePages(*row) for row in zip(*columns.values(), strict=True)]
        for index, state in enumerate(found):
            if not 0 <= state.order <= _MAX_ORDER:
                raise CorruptDataError(f"huge pages of 2^{state.order} pages", first + index * size)
        return found

    @cached_property
    def default_hugepages(self) -> _HugePages | None:
        """The size that /proc/meminfo is about; ``None`` where there is none."""
        if not self.has("default_hstate_idx"):
            return None
        index = self.number("default_hstate_idx", 4)
        return self.hugepages[index] if index < len(self.hugepages) else None

    @cached_property
    def hugetlb(self) -> int:
        """Bytes of huge pages of all sizes."""
        if not self.has("hstates"):
            return 0
        return sum(state.total * (self.page << state.order) for state in self.hugepages)

    def commit_limit(self) -> int:
        """vm_commit_limit() of mm/util.c, in pages."""
        kilobytes = self.number("sysctl_overcommit_kbytes")
        if kilobytes:
            allowed = kilobytes * 1024 // self.page
        else:
            ratio = self.number("sysctl_overcommit_ratio", 4)
            allowed = (self.total - self.hugetlb // self.page) * ratio // 100
        return max(0, allowed) + self.number("total_swap_pages")

    def committed(self) -> int:
        """vm_memory_committed(): a percpu_counter and what the CPUs hold of it, in pages."""
        guest = self.guest
        row = guest.read_global("vm_committed_as", {"count": "count", "counters": "counters"})
        places = percpu.addresses(guest, row["counters"], list(percpu.online(guest).values()))
        parts = memoryview(guest.kernel.gather(places, _S32)).cast("i")
        return max(0, int(row["count"]) + sum(parts))

    def direct_map(self, level: str, size: int) -> int:
        """Bytes of the direct map by pages of one size (arch/x86/mm/pat/set_memory.c)."""
        index = self.guest.types.enumerators("pg_level").get(level, 0)
        kernel = self.guest.kernel
        at = self.guest.symbols.address("direct_pages_count") + kernel.pointer_size * (index & 7)
        return kernel.read_pointer(at) * size

    def zswap(self) -> int | None:
        """Bytes that zswap takes: a variable once, since 6.8 the sum of its pools."""
        if self.has("zswap_pool_total_size"):
            return _kib(self.number("zswap_pool_total_size"))
        if not self.has("zswap_pools"):
            return None
        guest, types, budget = self.guest, self.guest.types, Budget()
        head = guest.symbols.address("zswap_pools")
        nodes, problem = walk_list(guest.kernel, head, budget=budget)
        guest.note_all([problem, budget.problem])
        if not nodes and problem is None:
            return 0
        if not types.has("zswap_pool", "zs_pool.pages_allocated"):
            return None  # any allocator behind struct zpool: its module alone can tell
        offset = types.offsetof("zswap_pool", "list")
        layout = guest.layout("zswap_pool", {"pages": "zs_pool.pages_allocated.counter"}, text=())
        columns = layout.lists(guest.kernel, [node - offset for node in nodes], [])
        return sum(pages or 0 for pages in columns["pages"]) * self.page

    def memtest(self) -> int | None:
        """Bytes that memtest found bad, where it ran (memtest_report_meminfo(), 6.3)."""
        if not self.has("early_memtest_done") or not self.number("early_memtest_done", 1):
            return None
        size = self.number("early_memtest_bad_size")
        return max(1024, _kib(size)) if size else 0


def _kib(size: int) -> int:
    """As far as /proc shows it: whole KiB."""
    return size // 1024 * 1024


def _counter(*names: str) -> Callable[[Memory], int | None]:
    return lambda memory: memory.pages(*names)


def _or_zero(name: str) -> Callable[[Memory], int]:
    """A line that stayed when its counter went."""
    return lambda memory: memory.pages(name) or 0


def _if(symbol: str, line: Callable[[Memory], int | None]) -> Callable[[Memory], int | None]:
    """A line of kernels that were built with what ``symbol`` belongs to."""
    return lambda memory: line(memory) if memory.has(symbol) else None


def _if_high(line: Callable[[Memory], int]) -> Callable[[Memory], int | None]:
    """A line of kernels with memory above what they map for good."""
    return lambda memory: line(memory) if any(map(memory.has, _HIGH)) else None


def _hugepages(field: str) -> Callable[[Memory], Any]:
    return lambda m: None if m.default_hugepages is None else getattr(m.default_hugepages, field)


def _hugepage_size(memory: Memory) -> int | None:
    state = memory.default_hugepages
    return None if state is None else memory.page << state.order


def _vmalloc_total(memory: Memory) -> int | None:
    guest = memory.guest
    size = guest.machine.vmalloc_size(guest)
    return None if size is None else _kib(size)


def _vmalloc_used(memory: Memory) -> int | None:
    """nr_vmalloc_pages(): a variable once, a node's counter since 7.0."""
    if memory.has("nr_vmalloc_pages"):
        return memory.number("nr_vmalloc_pages") * memory.page
    return memory.pages("NR_VMALLOC")


def _large_direct_map(size: int) -> Callable[[Memory], int | None]:
    """The line of the size that a page middle directory maps."""

    def line(memory: Memory) -> int | None:
        if not memory.has(_DIRECT) or memory.counters.huge_page * memory.page != size:
            return None
        return memory.direct_map("PG_LEVEL_2M", size)

    return line


#: The fields in the order of /proc/meminfo. ``None``: this kernel has no such line.
_LINES: dict[str, Callable[[Memory], int | None]] = {
    "memory_total": lambda m: m.total * m.page,
    "memory_free": _counter("NR_FREE_PAGES"),
    "memory_available": lambda m: m.available * m.page,
    "buffers": lambda m: m.buffers * m.page,
    "cached": lambda m: m.cached * m.page,
    "swap_cached": lambda m: m.swap_cached * m.page,
    "active": _counter("NR_ACTIVE_ANON", "NR_ACTIVE_FILE"),
    "inactive": _counter("NR_INACTIVE_ANON", "NR_INACTIVE_FILE"),
    "active_anon": _counter("NR_ACTIVE_ANON"),
    "inactive_anon": _counter("NR_INACTIVE_ANON"),
    "active_file": _counter("NR_ACTIVE_FILE"),
    "inactive_file": _counter("NR_INACTIVE_FILE"),
    "unevictable": _counter("NR_UNEVICTABLE"),
    "mlocked": _counter("NR_MLOCK"),
    "high_total": _if_high(lambda m: m.high * m.page),
    "high_free": _if_high(lambda m: m.counters.high_free * m.page),
    "low_total": _if_high(lambda m: (m.total - m.high) * m.page),
    "low_free": _if_high(lambda m: (m.counters["NR_FREE_PAGES"] - m.counters.high_free) * m.page),
    "swap_total": lambda m: (m.number("total_swap_pages") + m.leaving_swap) * m.page,
    "swap_free": lambda m: (m.number("nr_swap_pages") + m.leaving_swap) * m.page,
    "zswap": lambda m: m.zswap(),
    "zswapped": _if("zswap_stored_pages", lambda m: m.number("zswap_stored_pages", 4) * m.page),
    "dirty": _counter("NR_FILE_DIRTY"),
    "writeback": _counter("NR_WRITEBACK"),
    "anon_pages": _counter("NR_ANON_MAPPED"),
    "mapped": _counter("NR_FILE_MAPPED"),
    "shmem": _counter("NR_SHMEM"),
    "k_reclaimable": _counter("NR_SLAB_RECLAIMABLE_B", "NR_KERNEL_MISC_RECLAIMABLE"),
    "slab": _counter("NR_SLAB_RECLAIMABLE_B", "NR_SLAB_UNRECLAIMABLE_B"),
    "s_reclaimable": _counter("NR_SLAB_RECLAIMABLE_B"),
    "s_unreclaim": _counter("NR_SLAB_UNRECLAIMABLE_B"),
    "kernel_stack": lambda m: m.counters["NR_KERNEL_STACK_KB"] * 1024,
    "page_tables": _counter("NR_PAGETABLE"),
    "sec_page_tables": _counter("NR_SECONDARY_PAGETABLE"),
    "nfs_unstable": lambda _: 0,
    "bounce": _or_zero("NR_BOUNCE"),
    "writeback_tmp": _or_zero("NR_WRITEBACK_TEMP"),
    "commit_limit": lambda m: m.commit_limit() * m.page,
    "committed_as": lambda m: m.committed() * m.page,
    "vmalloc_total": _vmalloc_total,
    "vmalloc_used": _vmalloc_used,
    "vmalloc_chunk": lambda _: 0,
    "percpu": lambda m: m.number("pcpu_nr_populated", 4) * m.number("pcpu_nr_units", 4) * m.page,
    "early_memtest_bad": lambda m: m.memtest(),
    "hardware_corrupted": _if(
        "num_poisoned_pages", lambda m: m.number("num_poisoned_pages") * m.page
    ),
    "anon_huge_pages": _if("transparent_hugepage_flags", _counter("NR_ANON_THPS")),
    "shmem_huge_pages": _if("transparent_hugepage_flags", _counter("NR_SHMEM_THPS")),
    "shmem_pmd_mapped": _if("transparent_hugepage_flags", _counter("NR_SHMEM_PMDMAPPED")),
    "file_huge_pages": _if("transparent_hugepage_flags", _counter("NR_FILE_THPS")),
    "file_pmd_mapped": _if("transparent_hugepage_flags", _counter("NR_FILE_PMDMAPPED")),
    "cma_total": _if("cma_areas", lambda m: m.number("totalcma_pages") * m.page),
    "cma_free": _if("cma_areas", _counter("NR_FREE_CMA_PAGES")),
    "unaccepted": _counter("NR_UNACCEPTED"),
    "balloon": _counter("NR_BALLOON_PAGES"),
    "gpu_active": _counter("NR_GPU_ACTIVE"),
    "gpu_reclaim": _counter("NR_GPU_RECLAIM"),
    "huge_pages_total": _hugepages("total"),
    "huge_pages_free": _hugepages("free"),
    "huge_pages_rsvd": _hugepages("reserved"),
    "huge_pages_surp": _hugepages("surplus"),
    "hugepagesize": _hugepage_size,
    "hugetlb": lambda m: m.hugetlb if m.default_hugepages else None,
    "direct_map_4k": _if(_DIRECT, lambda m: m.direct_map("PG_LEVEL_4K", 4 << 10)),
    "direct_map_2m": _large_direct_map(2 << 20),
    "direct_map_4m": _large_direct_map(4 << 20),
    "direct_map_1g": _if(
        _DIRECT,
        lambda m: m.direct_map("PG_LEVEL_1G", 1 << 30) if m.number("direct_gbpages", 4) else None,
    ),
}

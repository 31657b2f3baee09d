"""32-bit ARM: where its kernels' page tables and image are in physical memory.

The kernel maps low memory linearly from PAGE_OFFSET on, and its image is a part of that. Its top
table, ``swapper_pg_dir``, lies right before the image (arch/arm/kernel/head.S, ``pg_dir``), and
the image near the start of RAM. So pages are tried as that table: it maps itself, and what is
behind it is the image. Once the kernel has booted, ``_stext`` to ``__init_begin`` cannot be
written (mark_rodata_ro(), arch/arm/mm/init.c); a table without that is not accepted.

1. **A page table near the start of RAM**: a fixed number of pages is looked at.
2. **A page table anywhere**: as 1, everywhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING

from virtintrospect.arch import PagingMode, walk
from virtintrospect.arch.arm import ARM_LPAE, ARM_SHORT, ARM_SHORT_LINUX
from virtintrospect.driver import Target
from virtintrospect.errors import CorruptDataError, FaultError
from virtintrospect.guests.linux.machine.base import KernelMapping, Machine, joined
from virtintrospect.guests.linux.machine.scan import pieces
from virtintrospect.memory import PhysicalMemory
from virtintrospect.space import AddressSpace
from virtintrospect.translation import LinearRange

if TYPE_CHECKING:
    from virtintrospect.guests.linux.guest import LinuxGuest
    from virtintrospect.symbols.table import Symbols

#: CONFIG_PAGE_OFFSET, the usual one first (arch/arm/Kconfig, VMSPLIT_…).
_SPLITS = (0xC000_0000, 0xB000_0000, 0x8000_0000, 0x4000_0000)
#: PG_DIR_SIZE: with LPAE, four tables of the second level follow the page that leads to them.
_TABLE_SIZES = {ARM_LPAE.name: 0x5000, ARM_SHORT.name: 0x4000}
#: TEXT_OFFSET is less (arch/arm/Makefile).
_FARTHEST_ROOT = 4 << 20
#: No 32-bit image is larger; the least that its code and constants have.
_LARGEST_IMAGE, _SMALLEST_IMAGE = 64 << 20, 2 << 20
#: How far from the start of RAM the first way looks.
_NEAR = 160 << 20
#: Pages that look like a top table that are tried.
_MAX_ROOTS = 1 << 12
_PAGE = 4096
#: VMALLOC_END, and VMALLOC_OFFSET, the gap below (arch/arm/include/asm/pgtable.h).
_VMALLOC_END, _VMALLOC_OFFSET = 0xFF80_0000, 8 << 20
#: Room for modules below PAGE_OFFSET (MODULES_VADDR, arch/arm/include/asm/memory.h).
_MODULES = 16 << 20


class _Arm(Machine):
    """Kernels with short descriptors and with LPAE."""

    name = "ARM"
    architectures = frozenset({"arm"})
    quick_ways = "page tables near the start of RAM"
    thorough_ways = "every resident page as a page table"
    ram_starts = (1 << 30,)
    #: Modules are up to 16 MiB below PAGE_OFFSET.
    lowest_code = 0x3F00_0000

    def quick(self, target: Target) -> Iterator[KernelMapping]:
        """A page table near the start of RAM."""
        yield from by_page_table(target.memory, _NEAR)

    def thorough(self, target: Target) -> Iterator[KernelMapping]:
        """A page table anywhere."""
        yield from by_page_table(target.memory, 1 << 40)

    def maps(self, memory: PhysicalMemory, mapping: KernelMapping) -> bool:
        """Whether the image still begins and ends there, and cannot be written."""
        return kernel_image(memory, mapping.mode, mapping.root) == mapping.image

    def read_only_data(self, memory: PhysicalMemory, mapping: KernelMapping) -> list[LinearRange]:
        """``__start_rodata`` to ``__init_begin``, rounded to sections; else all of the image."""
        image, mode = mapping.image, mapping.mode
        found = []
        for vaddr in _sections(mode, image.start, image.end):
            step = walk(memory, mode, mapping.root, vaddr)
            if step.paddr is not None and not step.writable and not step.executable:
                end = min(vaddr + _section(mode), image.end)
                found.append(LinearRange(vaddr, end, step.paddr))
        return joined(found) or [image]

    def direct_map(
        self, symbols: Symbols, image: AddressSpace, mapping: KernelMapping
    ) -> LinearRange | None:
        """Low memory: from PAGE_OFFSET up to ``high_memory``."""
        memory = image.memory
        base = page_offset(memory, mapping.mode, mapping.root)
        if base is None:
            return None
        offset = mapping.image.start - mapping.image.paddr
        end = min(memory.end + offset, _VMALLOC_END)
        if "high_memory" in symbols:
            noted = image.read_pointer(symbols.address("high_memory"))
            if mapping.image.end <= noted <= end:
                end = noted
        return LinearRange(base, end, base - offset)

    def page_array(self, guest: LinuxGuest, size: int) -> int:
        """``mem_map``, less the pages before RAM: one array (CONFIG_FLATMEM, PHYS_PFN_OFFSET)."""
        if "mem_map" not in guest.symbols:
            raise CorruptDataError("the kernel has its pages in several arrays", 0)
        return guest.pointer("mem_map") - self.first_frame(guest) * size

    def first_frame(self, guest: LinuxGuest) -> int:
        """PHYS_PFN_OFFSET: the frame that low memory begins with."""
        image = guest.mapping.image
        return (_low_memory(guest) - image.start + image.paddr) // _PAGE

    def modules_room(self, guest: LinuxGuest) -> range:
        """MODULES_VADDR to PAGE_OFFSET, where programs' addresses end (TASK_SIZE)."""
        base = _low_memory(guest)
        return range(base - _MODULES, base)

    def user_mode(self, mode: PagingMode) -> PagingMode:
        """With short descriptors, the tables that Linux keeps beside those of the processor."""
        return ARM_SHORT_LINUX if mode is ARM_SHORT else mode

    def vmalloc_size(self, guest: LinuxGuest) -> int | None:
        """From the next 8 MiB behind ``high_memory`` to VMALLOC_END."""
        if "high_memory" not in guest.symbols:
            return None
        start = (guest.pointer("high_memory") + _VMALLOC_OFFSET) & -_VMALLOC_OFFSET
        return max(0, _VMALLOC_END - start)


ARM = _Arm()


def by_page_table(memory: PhysicalMemory, most: int) -> Iterator[KernelMapping]:
    """Try pages as the kernel's top table, those of the first ``most`` bytes of RAM."""
    likely = (found for piece in pieces(memory, most) for found in _likely(memory, piece))
    for mode, root in islice(likely, _MAX_ROOTS):
        try:
            image = kernel_image(memory, mode, root)
        except FaultError:
            continue
        if image is not None:
            yield KernelMapping(mode, root, image, "a page table found in RAM", ARM)


def _likely(memory: PhysicalMemory, piece: range) -> Iterator[tuple[PagingMode, int]]:
    """Which of the pages may be ``swapper_pg_dir``.

    With LPAE the four entries lead to the four pages behind it. Else, 16 KiB with two sections of
    the direct map that follow each other.
    """
    import numpy as np

    pages = np.arange(piece.start, piece.stop, piece.step).astype(np.uint64)
    fourth = memory.gather_u64(pages + np.uint64(24))
    hits = fourth & np.uint64(ARM_LPAE.frame | 3) == pages + np.uint64(0x4003)
    for page in pages[hits].tolist():
        yield ARM_LPAE, page
    pages = pages[pages & np.uint64(0x3FFF) == 0]
    found: set[int] = set()
    for base in _SPLITS:
        # Entries of the third and fourth MiB, which are of one kind.
        pair = memory.gather_u64(pages + np.uint64((base >> 20) * 4 + 8))
        low, high = pair & np.uint64(0xFFFF_FFFF), pair >> np.uint64(32)
        section = (low & np.uint64(2) != 0) & (high & np.uint64(2) != 0)
        follows = (high >> np.uint64(20)) == (low >> np.uint64(20)) + np.uint64(1)
        found.update(pages[section & follows].tolist())
    for page in sorted(found):
        yield ARM_SHORT, page


def page_offset(memory: PhysicalMemory, mode: PagingMode, root: int) -> int | None:
    """Where low memory begins (PAGE_OFFSET), ``None`` where it has not the table itself.

    :raises FaultError: a table lies outside of memory.
    """
    for base in _SPLITS:
        first = walk(memory, mode, root, base).paddr
        if first is None or not 0 <= root - first < _FARTHEST_ROOT:
            continue
        if walk(memory, mode, root, base + root - first).paddr == root:
            return base
    return None


def _low_memory(guest: LinuxGuest) -> int:
    base = page_offset(guest.memory, guest.mapping.mode, guest.mapping.root)
    if base is None:
        raise CorruptDataError("the kernel's page tables have no low memory", guest.mapping.root)
    return base


def kernel_image(memory: PhysicalMemory, mode: PagingMode, root: int) -> LinearRange | None:
    """``_text`` to ``__init_begin``, if the table is ``swapper_pg_dir`` of a booted kernel.

    :raises FaultError: a table lies outside of memory.
    """
    base = page_offset(memory, mode, root)
    if base is None:
        return None
    paddr = root + _TABLE_SIZES[mode.name]
    first = walk(memory, mode, root, base).paddr or 0
    text = base + paddr - first
    end = None
    for vaddr in _sections(mode, text, text + _LARGEST_IMAGE):
        found = walk(memory, mode, root, vaddr)
        if found.paddr == vaddr - base + first and not found.writable:
            end = vaddr + _section(mode)
        elif end is not None or vaddr - text > _FARTHEST_ROOT:
            break
    if end is None or end - text < _SMALLEST_IMAGE:
        return None
    return LinearRange(text, end, paddr)


def _section(mode: PagingMode) -> int:
    """SECTION_SIZE: what an entry maps that leads to no table of the last level."""
    return 1 << mode.levels[-2].shift


def _sections(mode: PagingMode, start: int, end: int) -> range:
    """The sections of a range, the one that it begins in included."""
    size = _section(mode)
    return range(start // size * size, min(end, 1 << 32), size)

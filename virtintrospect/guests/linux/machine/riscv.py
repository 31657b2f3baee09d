"""RISC-V of 64 bits: where its kernels' page tables and image are in physical memory.

The image is mapped in the last 2 GiB of addresses, its code executable and not writable once the
kernel has booted (arch/riscv/mm/init.c); every top table has that part, processes' tables, too.
Ways in:

1. **Registers**: ``satp`` of any vCPU, where the target can read it.
2. **A page table near the start of RAM**: ``swapper_pg_dir`` lies in the image, and a boot loader
   that is not told otherwise puts that there. A fixed number of pages is looked at.
3. **A page table anywhere**: as 2, everywhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any

from virtintrospect.arch import PagingMode, walk
from virtintrospect.arch.riscv import SV39, SV48, SV57
from virtintrospect.driver import SupportsRegisters, Target, registers_of
from virtintrospect.errors import FaultError
from virtintrospect.guests.linux.machine.base import KernelMapping, Machine, joined, noted
from virtintrospect.guests.linux.machine.leaves import leaves
from virtintrospect.guests.linux.machine.scan import pages
from virtintrospect.memory import PhysicalMemory
from virtintrospect.space import AddressSpace
from virtintrospect.translation import LinearRange

if TYPE_CHECKING:
    from virtintrospect.guests.linux.guest import LinuxGuest
    from virtintrospect.symbols.table import Symbols

#: KERNEL_LINK_ADDR: the last 2 GiB, which have the image (arch/riscv/include/asm/pgtable.h).
_KERNEL_MAP = 0xFFFF_FFFF_8000_0000
_LARGEST_IMAGE = 256 << 20
#: While it boots, a table maps the first 2 MiB alone.
_SMALLEST_TEXT = 4 << 20
#: How far from the start of RAM the second way looks.
_NEAR = 160 << 20
#: Pages that look like a top table that are tried.
_MAX_ROOTS = 1 << 16
_WRITE, _EXECUTE = 1 << 2, 1 << 3
_FRAMES = (1 << 54) - (1 << 10)
#: ``satp``: number of the mode, in bits 63 to 60.
_MODES = {8: SV39, 9: SV48, 10: SV57}
#: PAGE_OFFSET of each mode; that of Sv39 moved in 6.1 (asm/page.h).
_PAGE_OFFSETS = {
    SV39.name: (0xFFFF_FFD6_0000_0000, 0xFFFF_FFD8_0000_0000, 0xFFFF_FFE0_0000_0000),
    SV48.name: (0xFFFF_AF80_0000_0000,),
    SV57.name: (0xFF60_0000_0000_0000,),
}


class _RiscV64(Machine):
    """Kernels with 3, 4 and 5 levels of page tables."""

    name = "RISC-V"
    architectures = frozenset({"riscv64"})
    quick_ways = "page tables near the start of RAM"
    thorough_ways = "every resident page as a page table"
    ram_starts = (2 << 30,)
    link_base = _KERNEL_MAP
    lowest_code = 0xFFFF_FFFF_0000_0000

    def quick(self, target: Target) -> Iterator[KernelMapping]:
        """Registers, and a page table near the start of RAM."""
        registers = registers_of(target)
        if registers is not None:
            yield from by_registers(target.memory, registers)
        yield from by_page_table(target.memory, _NEAR)

    def thorough(self, target: Target) -> Iterator[KernelMapping]:
        """A page table anywhere."""
        yield from by_page_table(target.memory, 1 << 62)

    def maps(self, memory: PhysicalMemory, mapping: KernelMapping) -> bool:
        """By its first page."""
        image = mapping.image
        return walk(memory, mapping.mode, mapping.root, image.start).paddr == image.paddr

    def read_only_data(self, memory: PhysicalMemory, mapping: KernelMapping) -> list[LinearRange]:
        """What mark_rodata_ro() protects; else all of the image."""
        image = mapping.image
        found = leaves(memory, mapping.mode, mapping.root, image.start, image.end)
        wanted = found.vaddr - found.paddr == (image.start - image.paddr) & ((1 << 64) - 1)
        wanted &= (found.entry & (_WRITE | _EXECUTE)) == 0
        return joined(found.chosen(wanted).within(image)) or [image]

    def kernel_root(
        self,
        symbols: Symbols,
        image: AddressSpace,
        mapping: KernelMapping,  # noqa: ARG002
    ) -> int:
        """``swapper_pg_dir``."""
        return image.translate(symbols.address("swapper_pg_dir"))

    def direct_map(
        self, symbols: Symbols, image: AddressSpace, mapping: KernelMapping
    ) -> LinearRange | None:
        """From PAGE_OFFSET, where ``phys_ram_base`` is, to the end of RAM."""
        start = image.read_u64(symbols.address("phys_ram_base"))
        end, space = image.memory.end, AddressSpace(image.memory, mapping.mode, mapping.root)
        for offset in _PAGE_OFFSETS[mapping.mode.name] if start < end else ():
            paddr = mapping.image.paddr
            try:
                if space.translate(offset + paddr - start) == paddr:
                    return LinearRange(offset, offset + end - start, start)
            except FaultError:
                continue
        return None

    def page_array(self, guest: LinuxGuest, size: int) -> int:
        """``vmemmap``: VMEMMAP_START, less the pages before the one that it begins with."""
        start = noted(guest, "VMEMMAP_START")
        if "vmemmap_start_pfn" in guest.symbols:  # since 6.13
            first = guest.pointer("vmemmap_start_pfn")
        else:
            first = guest.pointer("phys_ram_base") >> 12
        return start - first * size

    def vmalloc_size(self, guest: LinuxGuest) -> int | None:
        """VMALLOC_END - VMALLOC_START; the end is the last byte."""
        return noted(guest, "VMALLOC_END") - noted(guest, "VMALLOC_START")


RISCV64 = _RiscV64()


def by_registers(memory: PhysicalMemory, target: SupportsRegisters) -> Iterator[KernelMapping]:
    """Try ``satp`` of the first vCPU."""
    satp = target.registers(0).get("satp", 0)
    mode = _MODES.get(satp >> 60)
    if mode is not None:
        yield from _try_root(memory, mode, (satp & ((1 << 44) - 1)) << 12, "satp")


def by_page_table(memory: PhysicalMemory, most: int) -> Iterator[KernelMapping]:
    """Try pages as a top table, those of the first ``most`` bytes of RAM."""
    likely = (
        (mode, start + 4096 * index)
        for start, words in pages(memory, most)
        for mode, index in _top_tables(words, memory.end)
    )
    for mode, root in islice(likely, _MAX_ROOTS):
        yield from _try_root(memory, mode, root, "a page table found in RAM")


def _top_tables(rows: Any, end: int) -> Iterator[tuple[PagingMode, int]]:
    """Which pages may be a top table: the entry of the image leads to a table in RAM."""
    import numpy as np

    for mode in (SV57, SV48, SV39):
        entries = rows[:, (_KERNEL_MAP >> mode.levels[0].shift) & 511]
        frames = (entries & np.uint64(_FRAMES)) << np.uint64(2)
        good = ((entries & np.uint64(0xF)) == 1) & (entries >> np.uint64(54) == 0)
        for number in np.flatnonzero(good & (frames < np.uint64(end))).tolist():
            yield mode, number


def _try_root(
    memory: PhysicalMemory, mode: PagingMode, root: int, found_by: str
) -> Iterator[KernelMapping]:
    try:
        image = kernel_image(memory, mode, root)
    except FaultError:
        return
    if image is not None:
        yield KernelMapping(mode, root, image, found_by, RISCV64)


def kernel_image(memory: PhysicalMemory, mode: PagingMode, root: int) -> LinearRange | None:
    """The image that a top table maps: code, and what is mapped as that is.

    :raises FaultError: a table lies outside of memory.
    """
    found = leaves(memory, mode, root, _KERNEL_MAP, 1 << 64)
    code = found.chosen((found.entry & (_WRITE | _EXECUTE)) == _EXECUTE)
    runs = sorted(code.runs(), key=lambda run: run.end - run.start)
    if not runs or runs[-1].end - runs[-1].start < _SMALLEST_TEXT:
        return None
    start, _, paddr = runs[-1]
    inside = found.vaddr - found.paddr == (start - paddr) & ((1 << 64) - 1)
    inside &= (found.vaddr >= start) & (found.vaddr < start + _LARGEST_IMAGE)
    end = min(found.chosen(inside).end(), start + _LARGEST_IMAGE)
    return LinearRange(start, end, paddr)

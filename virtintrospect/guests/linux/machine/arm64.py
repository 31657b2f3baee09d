"""AArch64: where its kernels' page tables and image are in physical memory.

The kernel's half of the addresses has a top table of its own (TTBR1_EL1, ``swapper_pg_dir``);
its place in RAM is written nowhere, and no part of it has a fixed address. Ways in:

1. **Registers**: TTBR1_EL1 of any vCPU, where the target can read it.
2. **A page table near the start of RAM**: a boot loader that is not told otherwise puts the
   kernel there, and ``swapper_pg_dir`` lies in its image. A fixed number of pages is looked at.
3. **VMCOREINFO**: names ``swapper_pg_dir``, ``kimage_voffset``, the size of pages and of
   addresses (arch/arm64/kernel/vmcore_info.c). A scan of resident pages.
4. **A page table anywhere**: as 2, everywhere.

Whichever it was, the tables say where the image is: its code is what the kernel may execute and
not write, in one physically contiguous run (arch/arm64/mm/mmu.c, ``map_kernel()``).
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any

from virtintrospect.arch import PagingMode, walk
from virtintrospect.arch.arm64 import aarch64
from virtintrospect.driver import SupportsRegisters, Target, registers_of
from virtintrospect.errors import CorruptDataError, FaultError, NotFoundError
from virtintrospect.guests.linux.machine.base import KernelMapping, Machine, joined, noted
from virtintrospect.guests.linux.machine.leaves import leaves
from virtintrospect.guests.linux.machine.scan import pages
from virtintrospect.memory import PhysicalMemory
from virtintrospect.space import AddressSpace
from virtintrospect.translation import LinearRange

if TYPE_CHECKING:
    from virtintrospect.guests.linux.guest import LinuxGuest
    from virtintrospect.symbols.table import Symbols

#: SEGMENT_ALIGN (arch/arm64/include/asm/memory.h): the parts of the image begin at such places.
_SEGMENT = 64 << 10
#: No image is larger; Debian's have 40 to 60 MiB.
_LARGEST_IMAGE = 256 << 20
#: The least that the kernel's code has.
_SMALLEST_TEXT = 2 << 20
#: How far from the start of RAM the second way looks.
_NEAR = 160 << 20
#: Pages that look like VMCOREINFO, like a top table, that are tried.
_MAX_TRIES, _MAX_ROOTS = 32, 4096
#: What begins an image (Documentation/arm64/booting.rst), and where.
_MAGIC, _MAGIC_OFFSET = b"ARM\x64", 56

#: Bits of a leaf (arch/arm64/include/asm/pgtable-hwdef.h): read-only, no execution by the kernel.
_READ_ONLY, _NO_EXECUTE = 1 << 7, 1 << 53
#: PAGE_SHIFT by the size of pages, and the sizes of addresses that kernels with such pages use
#: (CONFIG_ARM64_VA_BITS). Made for 52 bits, one with 16 KiB has 47 on a processor without LPA2.
_PAGE_SHIFTS = {4096: 12, 16384: 14, 65536: 16}
_SIZES = {12: (48, 52), 14: (52, 48, 47), 16: (48, 52)}
#: The part of a top table's entries that is its end, and how many entries are used at most.
_LAST_PART, _MOST_ENTRIES = 32, 128


class _Arm64(Machine):
    """Kernels with 4, 16 and 64 KiB pages; from 5.4 on, when the direct map moved down."""

    name = "AArch64"
    architectures = frozenset({"aarch64"})
    quick_ways = "page tables near the start of RAM"
    thorough_ways = "VMCOREINFO and every resident page as a page table"
    ram_starts = (1 << 30,)

    def quick(self, target: Target) -> Iterator[KernelMapping]:
        """Registers, and a page table near the start of RAM."""
        registers = registers_of(target)
        if registers is not None:
            yield from by_registers(target.memory, registers)
        yield from by_page_table(target.memory, _NEAR)

    def thorough(self, target: Target) -> Iterator[KernelMapping]:
        """VMCOREINFO, and a page table anywhere."""
        yield from by_vmcoreinfo(target.memory)
        yield from by_page_table(target.memory, 1 << 62)

    def maps(self, memory: PhysicalMemory, mapping: KernelMapping) -> bool:
        """By its code: what is before it (``_text`` to ``_stext``) is mapped at boot only."""
        vaddr, image = mapping.image.start + _SEGMENT, mapping.image
        found = walk(memory, mapping.mode, mapping.root, vaddr).paddr
        return found == vaddr - image.start + image.paddr

    def read_only_data(self, memory: PhysicalMemory, mapping: KernelMapping) -> list[LinearRange]:
        """What map_kernel() calls ``vmlinux_rodata``; else all of the image."""
        image = mapping.image
        found = leaves(memory, mapping.mode, mapping.root, image.start, image.end)
        wanted = found.vaddr - found.paddr == _offset(image)
        wanted &= (found.entry & (_READ_ONLY | _NO_EXECUTE)) == (_READ_ONLY | _NO_EXECUTE)
        return joined(found.chosen(wanted).within(image)) or [image]

    def direct_map(
        self,
        symbols: Symbols,
        image: AddressSpace,
        mapping: KernelMapping,
    ) -> LinearRange | None:
        """From PAGE_OFFSET, where ``memstart_addr`` is, to the end of RAM (asm/memory.h).

        ``memstart_addr`` may be below zero: with KASLR, and where a kernel made for addresses
        of 52 bits has 48. The start of all that is mapped there is that of the address space.
        """
        raw = image.read_u64(symbols.address("memstart_addr"))
        memstart = raw - (1 << 64) if raw >> 63 else raw
        memory = image.memory
        starts = [region.start for region in memory.regions if region.start >= memstart]
        for bits in dict.fromkeys((mapping.mode.virtual_bits - 1, 52)):
            if not starts:
                break
            start = (1 << 64) - (1 << bits) + min(starts) - memstart
            end = start + memory.end - min(starts)
            if start >> 52 == 0xFFF and end <= 1 << 64:
                linear = LinearRange(start, end, min(starts))
                space = AddressSpace(memory, mapping.mode, mapping.root)
                if bits == mapping.mode.virtual_bits - 1 or space.verify(linear):
                    return linear
        return None

    def user_mode(self, mode: PagingMode) -> PagingMode:
        """The lower half of the addresses."""
        return mode._replace(low=True, high=False)

    def page_array(self, guest: LinuxGuest, size: int) -> int:
        """``vmemmap``: VMEMMAP_START, less the pages before ``memstart_addr``."""
        raw = guest.pointer("memstart_addr")
        memstart = raw - (1 << 64) if raw >> 63 else raw
        return noted(guest, "VMEMMAP_START") - (memstart >> guest.page_shift) * size

    def vmalloc_size(self, guest: LinuxGuest) -> int | None:
        """VMALLOC_END - VMALLOC_START."""
        return noted(guest, "VMALLOC_END") - noted(guest, "VMALLOC_START")


ARM64 = _Arm64()


def by_registers(memory: PhysicalMemory, target: SupportsRegisters) -> Iterator[KernelMapping]:
    """Try TTBR1_EL1 of the first vCPU, with TCR_EL1 for the size of pages and addresses."""
    values = target.registers(0)
    root, control = values.get("ttbr1_el1", 0), values.get("tcr_el1", 0)
    if not root:
        return
    page_shift = {1: 14, 2: 12, 3: 16}.get(control >> 30 & 3, 12)
    bits = 64 - (control >> 16 & 63) if control else 48
    if 36 <= bits <= 52:
        mode = aarch64(page_shift, bits)._replace(low=False)
        # The ASID above, CnP below.
        yield from _try_root(memory, mode, root & ((1 << 48) - 2), "TTBR1_EL1")


def by_vmcoreinfo(memory: PhysicalMemory) -> Iterator[KernelMapping]:
    """Look for the text block of VMCOREINFO in all resident memory."""
    from virtintrospect.symbols import vmcoreinfo

    for _, text in islice(vmcoreinfo.find(memory), _MAX_TRIES):
        try:
            info = vmcoreinfo.parse(text)
            page_shift = _PAGE_SHIFTS.get(int(info.fields.get("PAGESIZE", "0")[:8]), 12)
            compiled = info.number("VA_BITS")
            bits = compiled
            if "NUMBER(TCR_EL1_T1SZ)" in info.fields:
                bits = 64 - info.number("TCR_EL1_T1SZ")
            if not (36 <= bits <= compiled <= 52):
                continue
            root = info.symbol("swapper_pg_dir") - _unsigned(info.number("kimage_voffset"))
        except (CorruptDataError, NotFoundError, ValueError):
            continue
        mode = aarch64(page_shift, bits)._replace(low=False)
        if bits < compiled and page_shift == 16:
            # The table is that of 52 bits; 48 bits use its end (TTBR1_BADDR_4852_OFFSET).
            root += ((1 << (compiled - 42)) - (1 << (bits - 42))) * 8
        yield from _try_root(memory, mode, root & ((1 << 52) - 1), "VMCOREINFO")


def by_page_table(memory: PhysicalMemory, most: int) -> Iterator[KernelMapping]:
    """Try pages as the kernel's top table, those of the first ``most`` bytes of RAM.

    One size of pages after the other, the usual one first.
    """
    for page_shift in _PAGE_SHIFTS.values():
        modes = [aarch64(page_shift, bits)._replace(low=False) for bits in _SIZES[page_shift]]
        yield from _by_page_table(memory, most, 1 << page_shift, modes)


def _by_page_table(
    memory: PhysicalMemory, most: int, page: int, modes: list[PagingMode]
) -> Iterator[KernelMapping]:
    likely = (
        (mode, start + index * page)
        for start, words in pages(memory, most, page)
        for mode, index in _top_tables(words, memory.end, modes)
    )
    for mode, root in islice(likely, _MAX_ROOTS):
        yield from _try_root(memory, mode, root, "a page table found in RAM")


def _top_tables(rows: Any, end: int, modes: list[PagingMode]) -> Iterator[tuple[PagingMode, int]]:
    """Which pages may be the kernel's top table, and of which format.

    Such a page has tables in RAM as entries and nothing else, and few of them. The direct map
    is in the first half of the entries; image and fixed map are near their end, above the
    direct map of any size of addresses. Behind the entries there is nothing.
    """
    import numpy as np

    counts = [1 << mode.levels[0].bits for mode in modes]
    ends = [range(count - max(1, count // _LAST_PART), count) for count in counts]
    is_table = (rows[:, [index for part in ends for index in part]] & np.uint64(3)) == 3
    likely = np.flatnonzero(is_table.any(axis=1))
    words = rows[likely]
    tables = (words & np.uint64(3)) == np.uint64(3)
    # Those with 52 bits of address have other bits at both ends, which are zero below 2^48.
    frames = words & np.uint64((1 << 48) - 8 * rows.shape[1])
    good = ((tables & (frames < np.uint64(end))) | (words == 0)).all(axis=1)
    good &= tables.sum(axis=1) <= _MOST_ENTRIES
    for number in np.flatnonzero(good).tolist():
        table = tables[number]
        for mode, count, part in zip(modes, counts, ends, strict=True):
            last = table[part.start : part.stop].any()
            if last and table[: count // 2].any() and not table[count:].any():
                yield mode, int(likely[number])
                break


def _try_root(
    memory: PhysicalMemory, mode: PagingMode, root: int, found_by: str
) -> Iterator[KernelMapping]:
    try:
        images = list(kernel_images(memory, mode, root))
    except FaultError:
        return
    for image in images:
        yield KernelMapping(mode, root, image, found_by, ARM64)


def kernel_images(memory: PhysicalMemory, mode: PagingMode, root: int) -> Iterator[LinearRange]:
    """The images that a top table may map: one, with the two places where it may begin.

    The longest run of code that is physically contiguous is the kernel's; modules are mapped
    page by page. Since 5.12 ``_text`` up to ``_stext`` (64 KiB of header) is not mapped.

    :raises FaultError: a table lies outside of memory.
    """
    import numpy as np

    first = (1 << 64) - (1 << (min(mode.virtual_bits - 1, 48) - 1))
    found = leaves(memory, mode, root, first, 1 << 64)
    code = found.chosen((found.entry & (_READ_ONLY | _NO_EXECUTE)) == _READ_ONLY)
    best = LinearRange(0, 0, 0)
    for run in code.runs():
        if run.end - run.start > best.end - best.start:
            best = run
    if best.end - best.start < _SMALLEST_TEXT:
        return
    same = found.chosen(found.vaddr - found.paddr == _offset(best))
    inside = (same.vaddr >= best.start) & (same.vaddr - best.start < np.uint64(_LARGEST_IMAGE))
    end = min(same.chosen(inside).end(), best.start + _LARGEST_IMAGE)
    whole = LinearRange(best.start, end, best.paddr)
    before = LinearRange(best.start - _SEGMENT, end, best.paddr - _SEGMENT)
    yield from (whole, before) if _has_header(memory, best.paddr) else (before, whole)


def _has_header(memory: PhysicalMemory, paddr: int) -> bool:
    try:
        return memory.read(paddr + _MAGIC_OFFSET, 4) == _MAGIC
    except FaultError:
        return False


def _offset(linear: LinearRange) -> Any:
    """``kimage_voffset``: from physical to virtual addresses, as arrays have it."""
    import numpy as np

    return np.uint64((linear.start - linear.paddr) & ((1 << 64) - 1))


def _unsigned(value: int) -> int:
    return value & ((1 << 64) - 1)

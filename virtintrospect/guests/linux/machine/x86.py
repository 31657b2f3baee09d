"""x86-64: where its kernels' page tables and image are in physical memory.

Four ways, cheapest first; each yields candidates, and identification decides:

1. The **trampoline page table**. Linux reserves its real-mode trampoline in the first MiB
   (arch/x86/realmode/init.c). One page of it, ``trampoline_pgd``, is a top table whose last
   entry is that of the kernel's own. 256 pages to try, whatever the size of the guest.
2. **Registers**: CR3 of any vCPU, where the target can read it.
3. **VMCOREINFO**: the text block that the kernel keeps for crash dumps names
   ``swapper_pg_dir`` and ``phys_base`` (kernel/vmcore_info.c). An image may have it as a note;
   else a scan of resident pages, for lack of a cheaper way.
4. **Any page table**: every resident page is tried as a top table. A process's table has the
   kernel's entries too, so any one will do.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING

from virtintrospect.arch import X86_64_4LEVEL, X86_64_5LEVEL, PagingMode
from virtintrospect.driver import SupportsRegisters, Target, registers_of
from virtintrospect.errors import CorruptDataError, FaultError, NotFoundError
from virtintrospect.guests.linux.machine.base import KernelMapping, Machine
from virtintrospect.guests.linux.machine.leaves import leaves
from virtintrospect.memory import PhysicalMemory
from virtintrospect.space import AddressSpace
from virtintrospect.translation import LinearRange

if TYPE_CHECKING:
    from virtintrospect.guests.linux.guest import LinuxGuest
    from virtintrospect.symbols.table import Symbols

#: __START_KERNEL_map (arch/x86/include/asm/page_64_types.h).
KERNEL_MAP = 0xFFFF_FFFF_8000_0000
#: No x86-64 kernel image is larger; distributions' are 25 to 70 MiB.
LARGEST_IMAGE = 256 << 20

#: Pages that look like VMCOREINFO that are tried.
_MAX_TRIES = 32
#: Pages that look like a top table that are tried: each process has one or two.
_MAX_ROOTS = 1 << 18
_LARGE_PAGE = 2 << 20
#: :attr:`KernelMapping.found_by` of the first way.
TRAMPOLINE = "the trampoline page table"
_TABLE = struct.Struct("<512Q")
_MODES = (X86_64_5LEVEL, X86_64_4LEVEL)
#: Accessed and dirty bits come and go; these make an entry a writable, present kernel table.
_TABLE_ENTRY = 0x3


class _X86(Machine):
    """64-bit kernels, with four and with five levels of page tables."""

    name = "x86-64"
    architectures = frozenset({"x86_64"})
    quick_ways = "the trampoline page table"
    thorough_ways = "VMCOREINFO and every resident page as a page table"
    certain = TRAMPOLINE
    #: __START_KERNEL (CONFIG_PHYSICAL_START is 16 MiB unless somebody changed it).
    link_base = 0xFFFF_FFFF_8100_0000
    lowest_code = KERNEL_MAP

    def quick(self, target: Target) -> Iterator[KernelMapping]:
        """The trampoline page table, and registers."""
        if target.memory.frames is None:  # Xen boots no CPU of a PV guest in real mode
            yield from by_trampoline(target.memory)
        registers = registers_of(target)
        if registers is not None:
            yield from by_registers(target.memory, registers)
        for note in getattr(target.memory, "notes", ()):
            if note.name == "VMCOREINFO":
                yield from _by_text(target.memory, note.desc)

    def thorough(self, target: Target) -> Iterator[KernelMapping]:
        """VMCOREINFO, and any page table."""
        yield from by_vmcoreinfo(target.memory)
        yield from by_any_page_table(target.memory)

    def maps(self, memory: PhysicalMemory, mapping: KernelMapping) -> bool:
        """Its end may have moved: a booted kernel unmaps what only booting needed."""
        image = image_range(memory, mapping.mode, mapping.root)
        found = mapping.image
        return image is not None and (image.start, image.paddr) == (found.start, found.paddr)

    def read_only_data(self, memory: PhysicalMemory, mapping: KernelMapping) -> list[LinearRange]:
        """See :func:`read_only_data`."""
        return read_only_data(memory, mapping)

    def kernel_root(
        self,
        symbols: Symbols,
        image: AddressSpace,
        mapping: KernelMapping,  # noqa: ARG002
    ) -> int:
        """``init_top_pgt``; ``swapper_pg_dir`` before 4.14."""
        top = "init_top_pgt" if "init_top_pgt" in symbols else "swapper_pg_dir"
        return image.translate(symbols.address(top))

    def direct_map(
        self, symbols: Symbols, image: AddressSpace, mapping: KernelMapping
    ) -> LinearRange | None:
        """As in Documentation/arch/x86/x86_64/mm.rst.

        With CONFIG_RANDOMIZE_MEMORY its start is a variable.
        """
        if "page_offset_base" in symbols:
            base = image.read_u64(symbols.address("page_offset_base"))
        else:
            five = mapping.mode is X86_64_5LEVEL
            base = 0xFF11_0000_0000_0000 if five else 0xFFFF_8880_0000_0000
        end = base + image.memory.end
        return LinearRange(base, end, 0) if end <= 1 << 64 else None

    def page_array(self, guest: LinuxGuest, size: int) -> int:  # noqa: ARG002
        """``vmemmap_base``; fixed where the kernel does not randomise it (x86_64/mm.rst)."""
        if "vmemmap_base" in guest.symbols:
            return guest.pointer("vmemmap_base")
        five = guest.mapping.mode is X86_64_5LEVEL
        return 0xFFD4_0000_0000_0000 if five else 0xFFFF_EA00_0000_0000

    def modules_room(self, guest: LinuxGuest) -> range:
        """All behind the image."""
        return range(guest.mapping.image.end, 1 << 64)

    def vmalloc_size(self, guest: LinuxGuest) -> int:
        """VMALLOC_SIZE_TB_L4, VMALLOC_SIZE_TB_L5: the end is the last byte, so one is missing."""
        return ((12800 if guest.mapping.mode is X86_64_5LEVEL else 32) << 40) - 1


X86_64 = _X86()


def by_trampoline(memory: PhysicalMemory) -> Iterator[KernelMapping]:
    """Try the pages of the first MiB as top tables."""
    for page in range(0, 1 << 20, 4096):
        try:
            last = memory.read_u64(page + 511 * 8)
        except FaultError:
            continue
        if last & _TABLE_ENTRY == _TABLE_ENTRY:
            yield from _try_root(memory, page, TRAMPOLINE)


def by_registers(memory: PhysicalMemory, target: SupportsRegisters) -> Iterator[KernelMapping]:
    """Try CR3 of the first vCPU; with KPTI the user's half has bit 12 set."""
    cr3 = target.registers(0).get("cr3")
    if cr3 is None:  # the notes of /proc/vmcore have none
        return
    if memory.frames is not None:
        yield from _try_root(memory, memory.frames.physical(cr3 & ~0xFFF), "CR3")
        return
    for root in (cr3 & ~0x1FFF, cr3 & ~0xFFF):
        yield from _try_root(memory, root, "CR3")


def by_vmcoreinfo(memory: PhysicalMemory) -> Iterator[KernelMapping]:
    """Look for the text block of VMCOREINFO in all resident memory."""
    from virtintrospect.symbols import vmcoreinfo

    for _, text in islice(vmcoreinfo.find(memory), _MAX_TRIES):
        yield from _by_text(memory, text)


def _by_text(memory: PhysicalMemory, text: bytes) -> Iterator[KernelMapping]:
    """The top table that a text of VMCOREINFO names."""
    from virtintrospect.symbols import vmcoreinfo

    try:
        info = vmcoreinfo.parse(text)
        names = ("init_top_pgt", "swapper_pg_dir")
        name = next((n for n in names if f"SYMBOL({n})" in info.fields), names[0])
        paddr = info.symbol(name) - KERNEL_MAP + info.number("phys_base")
    except (CorruptDataError, NotFoundError):
        return
    yield from _try_root(memory, paddr, "VMCOREINFO")


def by_any_page_table(memory: PhysicalMemory) -> Iterator[KernelMapping]:
    """Try every resident page as a top table, by its last entry."""
    import numpy as np

    end, left = memory.end, _MAX_ROOTS
    for region in memory.resident():
        first = -(-region.start // 4096) * 4096
        for start in range(first, region.end - 4095, _LARGE_PAGE * 8):
            pages = np.arange(start, min(region.end - 4095, start + _LARGE_PAGE * 8), 4096)
            last = memory.gather_u64((pages + 511 * 8).astype(np.uint64))
            frames = last & np.uint64(0x000F_FFFF_FFFF_F000)
            likely = (last & np.uint64(0xFFF) & ~np.uint64(0x60)) == np.uint64(0x3)
            likely |= (last & np.uint64(0xFFF) & ~np.uint64(0x60)) == np.uint64(0x7)
            likely &= (frames < np.uint64(end)) & (last >> np.uint64(52) == 0)
            for page in pages[likely].tolist():
                left -= 1
                if left < 0:
                    return
                yield from _try_root(memory, page, "a page table found in RAM")


def _try_root(memory: PhysicalMemory, root: int, found_by: str) -> Iterator[KernelMapping]:
    for mode in _MODES:
        try:
            image = image_range(memory, mode, root)
        except FaultError:
            continue
        if image is not None:
            yield KernelMapping(mode, root, image, found_by, X86_64)


def image_range(memory: PhysicalMemory, mode: PagingMode, root: int) -> LinearRange | None:
    """The kernel image that a top table maps, or ``None`` where it maps none.

    Early boot drops all mappings of the kernel's GiB that are not the image (cleanup_highmap,
    arch/x86/mm/init_64.c), so what is left is one run, physically contiguous.

    :raises FaultError: a table lies outside of memory.
    """
    table = root & mode.frame
    for level in mode.levels:
        if level.shift == 21:
            break
        entry = memory.read_u64(table + 8 * ((KERNEL_MAP >> level.shift) & 511))
        if not entry & mode.present or (level.large and entry & mode.leaf):
            return None
        table = _frame(memory, mode, entry)
    entries = _TABLE.unpack(memory.read(table, 4096))
    mapped = [index for index, entry in enumerate(entries) if entry & mode.present]
    # Xen gives PV guests no large pages.
    small = memory.frames is None and not any(entries[index] & mode.leaf for index in mapped)
    if not mapped or small:
        return None
    first, count = mapped[0], _run_length(mapped)
    start = _large_page(memory, mode, entries[first])
    for index in mapped[:count]:
        expected = start + (index - first) * _LARGE_PAGE
        if _large_page(memory, mode, entries[index]) not in (expected, -1):
            return None
    if start < 0 or count * _LARGE_PAGE > LARGEST_IMAGE:
        return None
    vaddr = KERNEL_MAP + first * _LARGE_PAGE
    return LinearRange(vaddr, vaddr + count * _LARGE_PAGE, start)


def _run_length(mapped: list[int]) -> int:
    """How many of the rising numbers follow each other without a gap."""
    count = 1
    while count < len(mapped) and mapped[count] == mapped[0] + count:
        count += 1
    return count


def _large_page(memory: PhysicalMemory, mode: PagingMode, entry: int) -> int:
    """Physical start of 2 MiB, be they one page or split into 4 KiB pages; -1 if neither.

    A split area may have unmapped pages (freed init memory), so any present one tells.
    """
    if entry & mode.leaf:
        return entry & mode.frame & -_LARGE_PAGE
    table: tuple[int, ...] = _TABLE.unpack(memory.read(_frame(memory, mode, entry), 4096))
    for index, small in enumerate(table):
        if small & mode.present:
            return _frame(memory, mode, small) - index * 4096
    return -1


def _frame(memory: PhysicalMemory, mode: PagingMode, entry: int) -> int:
    """Guest-physical address in an entry."""
    address = entry & mode.frame
    return address if memory.frames is None else memory.frames.physical(address)


def read_only_data(memory: PhysicalMemory, mapping: KernelMapping) -> list[LinearRange]:
    """The parts of the image that the tables allow neither to write nor to execute.

    That is .rodata (mark_rodata_ro(), arch/x86/mm/init_64.c), where kallsyms and BTF are. A
    kernel that does not protect it (rodata=off, or still booting) gives the whole image.
    """
    image, mode = mapping.image, mapping.mode
    found = leaves(memory, mode, mapping.root, image.start, image.end)
    forbidden = mode.no_execute | mode.writable
    only_read = found.entry & found.entry.dtype.type(forbidden) == mode.no_execute
    return found.chosen(only_read).runs() or [image]

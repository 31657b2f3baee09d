"""32-bit x86: where its kernels' page tables and image are in physical memory.

The kernel maps low memory linearly from PAGE_OFFSET on, and its image is a part of that. Once it
has booted, ``_text`` to ``__end_rodata`` is the one long run there that cannot be written
(mark_rodata_ro(), arch/x86/mm/init_32.c): a page table tells where the image is. Which page is
one:

1. The **trampoline header**, in the first MiB of RAM: the kernel notes there where another
   processor begins (``startup_32_smp``) and where the table of segments for that is
   (``setup_real_mode()``, arch/x86/realmode/init.c). Both are in the image, and so is
   ``swapper_pg_dir``: the pages around them are tried as top tables.
2. **Registers**: CR3 of any vCPU, where the target can read it.
3. **VMCOREINFO** names ``swapper_pg_dir`` and ``_stext``.
4. **Any page table** in the memory that a kernel of 32 bits can be in.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING

from virtintrospect.arch import X86_LEGACY, X86_PAE, PagingMode, walk
from virtintrospect.driver import SupportsRegisters, Target, registers_of
from virtintrospect.errors import CorruptDataError, FaultError, NotFoundError
from virtintrospect.guests.linux.machine.base import KernelMapping, Machine
from virtintrospect.guests.linux.machine.lowmem import image_range, page_offset
from virtintrospect.memory import PhysicalMemory
from virtintrospect.space import AddressSpace
from virtintrospect.translation import LinearRange

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from virtintrospect.guests.linux.guest import LinuxGuest
    from virtintrospect.symbols.table import Symbols

#: :attr:`KernelMapping.found_by` of the first way.
TRAMPOLINE = "the trampoline header"
#: That of the third; the image may then be one that can be written.
_TEXT = "VMCOREINFO"
#: KERNEL_IMAGE_SIZE (arch/x86/include/asm/page_32_types.h): KASLR puts the image below.
_HIGHEST_IMAGE = 512 << 20
#: No 32-bit image is larger; Debian's has 25 MiB.
_LARGEST_IMAGE = 64 << 20
#: ``gdt_pad`` and ``gdt_limit`` of ``struct trampoline_header``: __BOOT_DS + 7.
_LIMIT = 0x001F_0000
_MIB = 1 << 20
_PAGE = 4096
#: Headers, pages that look like VMCOREINFO, and pages that look like a top table that are tried.
_MAX_TRIES, _MAX_ROOTS = 32, 1 << 14
#: MAXMEM without highmem is less than this (896 MiB by default); see ``high_memory``.
_LOWEST_VMALLOC = 128 << 20
_MODES = (X86_PAE, X86_LEGACY)
#: Between these two ends what vmalloc() can give.
_END = ("high_memory", "pkmap_page_table")


class _I386(Machine):
    """32-bit kernels, with PAE and without, on processors of 32 and of 64 bits."""

    name = "i386"
    architectures = frozenset({"i386", "x86_64"})
    quick_ways = "the trampoline header"
    thorough_ways = "VMCOREINFO and every resident page below 576 MiB as a page table"
    certain = TRAMPOLINE
    #: CONFIG_PAGE_OFFSET and CONFIG_PHYSICAL_START, unless somebody changed them.
    link_base = 0xC100_0000
    lowest_code = 0x4000_0000

    def quick(self, target: Target) -> Iterator[KernelMapping]:
        """The trampoline header, and registers."""
        yield from by_trampoline(target.memory)
        registers = registers_of(target)
        if registers is not None:
            yield from by_registers(target.memory, registers)

    def thorough(self, target: Target) -> Iterator[KernelMapping]:
        """VMCOREINFO, and any page table."""
        yield from by_vmcoreinfo(target.memory)
        found_by = "a page table found in RAM"
        yield from _by_range(target.memory, 0, _HIGHEST_IMAGE + _LARGEST_IMAGE, found_by)

    def maps(self, memory: PhysicalMemory, mapping: KernelMapping) -> bool:
        """Whether the image still begins and ends there, and what is before it can be written."""
        image = mapping.image
        before, first, last = (
            walk(memory, mapping.mode, mapping.root, vaddr)
            for vaddr in (image.start - _PAGE, image.start, image.end - _PAGE)
        )
        ends = image.paddr, image.paddr + image.end - image.start - _PAGE
        protected = not first.writable and before.writable
        return (first.paddr, last.paddr) == ends and (protected or mapping.found_by == _TEXT)

    def read_only_data(
        self,
        memory: PhysicalMemory,  # noqa: ARG002
        mapping: KernelMapping,
    ) -> list[LinearRange]:
        """All of it: that is how it was found."""
        return [mapping.image]

    def kernel_root(self, symbols: Symbols, image: AddressSpace, mapping: KernelMapping) -> int:
        """``swapper_pg_dir``; it has all mappings of the kernel, while processes' may lag."""
        if "swapper_pg_dir" not in symbols:
            return mapping.root
        return image.translate(symbols.address("swapper_pg_dir"))

    def direct_map(
        self, symbols: Symbols, image: AddressSpace, mapping: KernelMapping
    ) -> LinearRange | None:
        """Low memory: up to ``high_memory``."""
        base = mapping.image.start - mapping.image.paddr
        end = min(base + image.memory.end, (1 << 32) - _LOWEST_VMALLOC)
        if "high_memory" in symbols:
            noted = image.read_pointer(symbols.address("high_memory"))
            if mapping.image.end <= noted <= end:
                end = noted
        return LinearRange(base, end, 0)

    def page_array(self, guest: LinuxGuest, size: int) -> int:  # noqa: ARG002
        """``mem_map``: all pages in one array (CONFIG_FLATMEM)."""
        if "mem_map" not in guest.symbols:
            raise CorruptDataError("the kernel has its pages in several arrays", 0)
        return guest.pointer("mem_map")

    def vmalloc_size(self, guest: LinuxGuest) -> int | None:
        """From 8 MiB above ``high_memory`` to two pages below PKMAP_BASE.

        Where that is, is a constant of the build; but its page table is noted
        (``pkmap_page_table``), and the tables above lead to it from one place.
        """
        if not all(name in guest.symbols for name in _END):
            return None
        kernel, mode = guest.kernel, guest.mapping.mode
        table = kernel.translate(guest.pointer("pkmap_page_table")) & -_PAGE
        start = guest.pointer("high_memory") + (8 << 20)
        step = 1 << mode.levels[-2].shift
        for vaddr in range(-(-start // step) * step, 1 << 32, step):
            found = kernel.walk(vaddr).steps[-1]
            if found.level == mode.levels[-1].name and found.entry_paddr & -_PAGE == table:
                return vaddr - 2 * _PAGE - start
        return None


I386 = _I386()


def by_trampoline(memory: PhysicalMemory) -> Iterator[KernelMapping]:
    """Try the pages around what a trampoline header points to."""
    for start in islice(_headers(memory), _MAX_TRIES):
        first = max(0, start - _LARGEST_IMAGE)
        yield from _by_range(memory, first, start + _LARGEST_IMAGE, TRAMPOLINE, holds=start)


def _headers(memory: PhysicalMemory) -> Iterator[int]:
    """Physical addresses of code that headers in the first MiB name."""
    sought = struct.pack("<I", _LIMIT)
    seen = set()
    for page in range(0, _MIB, _PAGE):
        try:
            data = memory.read(page, _PAGE)
        except FaultError:
            continue
        position = data.find(sought, 4)
        while 0 < position < _PAGE - 4:
            code, _, segments = struct.unpack_from("<3I", data, position - 4)
            near = abs(code - segments) < _LARGEST_IMAGE
            inside = min(code, segments) >= _MIB and max(code, segments) < memory.end
            if near and inside and not position % 4 and code not in seen:
                seen.add(code)
                yield code
            position = data.find(sought, position + 1)


def by_registers(memory: PhysicalMemory, target: SupportsRegisters) -> Iterator[KernelMapping]:
    """Try CR3 of the first vCPU; with KPTI the user's half has bit 12 set."""
    cr3 = target.registers(0).get("cr3", 0)
    if cr3 >> 32:
        return
    for root in (cr3 & ~0x1000, cr3):
        yield from _try_root(memory, root, "CR3", _MODES)


def by_vmcoreinfo(memory: PhysicalMemory) -> Iterator[KernelMapping]:
    """Look for the text block of VMCOREINFO in all resident memory.

    A kernel whose image can be written (rodata=off) is found by this way alone.
    """
    from virtintrospect.symbols import vmcoreinfo

    for _, text in islice(vmcoreinfo.find(memory), _MAX_TRIES):
        try:
            info = vmcoreinfo.parse(text)
            top, first = info.symbol("swapper_pg_dir"), info.symbol("_stext")
        except (CorruptDataError, NotFoundError):
            continue
        mode = X86_PAE if info.fields.get("CONFIG_X86_PAE") == "y" else X86_LEGACY
        for base in (0xC000_0000, 0xB000_0000, 0x8000_0000, 0x7800_0000, 0x4000_0000):
            if not base <= min(top, first) or max(top, first) >= 1 << 32:
                continue
            root = top - base
            try:
                if page_offset(memory, mode, root) != base:
                    continue
                image = image_range(memory, mode, root)
            except FaultError:
                continue
            if image is None:
                end = min(first + _LARGEST_IMAGE, base + memory.end)
                image = LinearRange(first & -_PAGE, end, (first & -_PAGE) - base)
            yield KernelMapping(mode, root, image, _TEXT, I386)


def _by_range(
    memory: PhysicalMemory, first: int, last: int, found_by: str, *, holds: int | None = None
) -> Iterator[KernelMapping]:
    """Try every resident page of a range as a top table, by what every one has.

    :param holds: only an image that this physical address is in.
    """
    left = _MAX_ROOTS
    for region in memory.resident():
        if region.start >= last:
            break
        start = -(-max(region.start, first) // _PAGE) * _PAGE
        end = min(region.end, last)
        for chunk in range(start, end - _PAGE + 1, 16 << 20):
            for mode, page in _likely(memory, chunk, min(chunk + (16 << 20), end)):
                left -= 1
                if left < 0:
                    return
                for found in _try_root(memory, page, found_by, (mode,)):
                    image = found.image
                    if holds is None or image.paddr <= holds < image.paddr + _LARGEST_IMAGE:
                        yield found


def _likely(memory: PhysicalMemory, start: int, end: int) -> Iterable[tuple[PagingMode, int]]:
    """Pages that may be a top table: of PAE by its fourth entry, else by those of PAGE_OFFSET."""
    import numpy as np

    pages = np.arange(start, end - _PAGE + 1, _PAGE).astype(np.uint64)
    found: list[tuple[PagingMode, int]] = []
    fourth = memory.gather_u64(pages + np.uint64(24))
    present = fourth & np.uint64(0xFDF) == np.uint64(1)
    found += [(X86_PAE, page) for page in _in_memory(memory, pages, fourth, present)]
    # Two entries of 4 bytes: the direct map's first and second 4 MiB, both present and writable.
    for base in (0xC000_0000, 0xB000_0000, 0x8000_0000, 0x4000_0000):
        pair = memory.gather_u64(pages + np.uint64((base >> 22) * 4))
        both = np.uint64(0x0000_0003_0000_0003)
        present = (pair & both == both) & (pair & np.uint64(0x0000_0004_0000_0004) == 0)
        low = pair & np.uint64(0xFFFF_FFFF)
        found += [(X86_LEGACY, page) for page in _in_memory(memory, pages, low, present)]
    return found


def _in_memory(
    memory: PhysicalMemory,
    pages: npt.NDArray[np.uint64],
    entries: npt.NDArray[np.uint64],
    likely: npt.NDArray[np.bool_],
) -> list[int]:
    """Pages among the likely ones whose entry leads to memory."""
    import numpy as np

    frames = entries & np.uint64(0x000F_FFFF_FFFF_F000)
    inside = likely & (frames < np.uint64(memory.end)) & (entries >> np.uint64(52) == 0)
    found: list[int] = pages[inside].tolist()
    return found


def _try_root(
    memory: PhysicalMemory, root: int, found_by: str, modes: Iterable[PagingMode]
) -> Iterator[KernelMapping]:
    for mode in modes:
        try:
            image = image_range(memory, mode, root)
        except FaultError:
            continue
        if image is not None:
            yield KernelMapping(mode, root, image, found_by, I386)

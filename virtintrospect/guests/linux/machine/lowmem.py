"""What a top table of a 32-bit x86 kernel says: where low memory is mapped, and the image in it."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from virtintrospect.arch import PagingMode, walk
from virtintrospect.guests.linux.machine.base import joined
from virtintrospect.memory import PhysicalMemory
from virtintrospect.translation import LinearRange

#: CONFIG_PAGE_OFFSET, the usual one first (arch/x86/Kconfig, VMSPLIT_…).
_SPLITS = (0xC000_0000, 0xB000_0000, 0x8000_0000, 0x7800_0000, 0x4000_0000)
#: Places of low memory that every guest has, and that a kernel maps where they belong.
_PROBES = (4 << 20, 16 << 20)
#: The image is at least so long, and at most.
_SMALLEST, _LARGEST = 2 << 20, 64 << 20
#: No more low memory is mapped than this, on any split.
_MOST = 3 << 30
#: Where KASLR puts the image at most, and then it has an end.
_HIGHEST = (512 << 20) + _LARGEST
_TABLES = {4: struct.Struct("<1024I"), 8: struct.Struct("<512Q")}


def page_offset(memory: PhysicalMemory, mode: PagingMode, root: int) -> int | None:
    """Virtual address of physical address 0, or ``None`` where low memory is not mapped.

    :raises FaultError: a table lies outside of memory.
    """
    for base in _SPLITS:
        if all(walk(memory, mode, root, base + probe).paddr == probe for probe in _PROBES):
            return base
    return None


def image_range(memory: PhysicalMemory, mode: PagingMode, root: int) -> LinearRange | None:
    """The longest run of low memory that cannot be written: ``_text`` to ``__end_rodata``.

    ``None`` where a top table maps no low memory, or all of it can be written. Single pages of
    modules and eBPF programs cannot be written, either; such runs are shorter.

    :raises FaultError: a table lies outside of memory.
    """
    base = page_offset(memory, mode, root)
    if base is None:
        return None
    pages = (
        LinearRange(base + paddr, base + paddr + size, paddr)
        for paddr, size in _protected(memory, mode, root, base)
    )
    longest = max(joined(pages), key=lambda run: run.end - run.start, default=None)
    if longest is None or not _SMALLEST <= longest.end - longest.start <= _LARGEST:
        return None
    return longest


def _protected(
    memory: PhysicalMemory, mode: PagingMode, root: int, base: int
) -> Iterator[tuple[int, int]]:
    """Pages of low memory that cannot be written: physical address and bytes."""
    last = mode.levels[-1]
    large = 1 << mode.levels[-2].shift
    table = _TABLES[mode.entry_size]
    for paddr in range(0, min(memory.end, _HIGHEST, _MOST, (1 << 32) - base), large):
        found = walk(memory, mode, root, base + paddr)
        step = found.steps[-1]
        if step.level != last.name:
            if found.paddr == paddr and not step.entry & mode.writable:
                yield paddr, large
            continue
        start = step.entry_paddr & -4096
        for index, entry in enumerate(table.unpack(memory.read(start, 4096))):
            place = paddr + index * 4096
            plain = entry & mode.present and entry & mode.frame == place
            if plain and not entry & mode.writable:
                yield place, 4096

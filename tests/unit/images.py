"""Guest memory built by hand, for what no real guest here can show: corruption, other layouts."""

from __future__ import annotations

import struct

from virtintrospect.arch.paging import PagingMode
from virtintrospect.errors import FaultError
from virtintrospect.memory import Mapped, PhysicalMemory, Region

PAGE = 4096


class BuiltMemory(PhysicalMemory):
    """Physical memory in a bytearray, optionally with holes and with a mapped block."""

    def __init__(self, size: int, *, start: int = 0, mapped: bool = False) -> None:
        self.data = bytearray(size)
        self.start = start
        self.regions = (Region(start, start + size),)
        self._mapped = mapped
        #: Addresses of pages that fault, though they lie within the region.
        self.broken: set[int] = set()
        self.reads = 0

    def _read_within(self, index: int, paddr: int, size: int) -> bytes:  # noqa: ARG002
        self.reads += 1
        for page in range(paddr & -PAGE, paddr + size, PAGE):
            if page in self.broken:
                raise FaultError(page, size)
        offset = paddr - self.start
        return bytes(self.data[offset : offset + size])

    def mapped(self, paddr: int) -> Mapped | None:
        if not self._mapped or self.region_index(paddr) < 0:
            return None
        pages = bytearray(b"\1" * (len(self.data) // PAGE))
        for page in self.broken:
            pages[(page - self.start) // PAGE] = 0
        end = self.start + len(self.data)
        return Mapped(memoryview(self.data).toreadonly(), self.start, end, pages)

    def write(self, paddr: int, data: bytes) -> None:
        offset = paddr - self.start
        self.data[offset : offset + len(data)] = data

    def write_u64(self, paddr: int, *values: int) -> None:
        self.write(paddr, struct.pack(f"<{len(values)}Q", *values))


class PageTables:
    """Builds page tables into a :class:`BuiltMemory`, from ``first`` upwards."""

    def __init__(self, memory: BuiltMemory, mode: PagingMode, first: int) -> None:
        self.memory = memory
        self.mode = mode
        self._next = first
        self.root = self._table()

    def map(self, vaddr: int, paddr: int, *, size: int = PAGE, flags: int = 0x63) -> None:
        """Map one page; ``flags`` are those of the leaf entry."""
        table = self.root
        for level in self.mode.levels:
            slot = table + 8 * ((vaddr >> level.shift) & 511)
            if 1 << level.shift == size:
                self.memory.write_u64(slot, paddr | flags | (0x80 if size > PAGE else 0))
                return
            entry = self.memory.read_u64(slot)
            if not entry:
                entry = self._table() | 0x67
                self.memory.write_u64(slot, entry)
            table = entry & self.mode.frame

    def entry(self, vaddr: int, value: int, *, size: int = PAGE) -> None:
        """Set the raw entry of the level that maps pages of ``size``."""
        self.map(vaddr, 0, size=size, flags=0)
        table = self.root
        for level in self.mode.levels:
            slot = table + 8 * ((vaddr >> level.shift) & 511)
            if 1 << level.shift == size:
                self.memory.write_u64(slot, value)
                return
            table = self.memory.read_u64(slot) & self.mode.frame

    def _table(self) -> int:
        table = self._next
        self._next += PAGE
        return table

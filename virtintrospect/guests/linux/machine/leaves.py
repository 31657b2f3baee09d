"""Every page that a top table maps in a range of addresses, as arrays."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from virtintrospect.arch import PagingMode
from virtintrospect.memory import PhysicalMemory
from virtintrospect.space import LinearRange

#: Entries of a level's tables that are read of one top table: enough for 16 GiB in pages of 4 KiB.
_MOST_ENTRIES = 1 << 22


@dataclass(frozen=True, slots=True)
class Leaves:
    """Pages in the order of their addresses: arrays of unsigned 64-bit numbers, equally long."""

    vaddr: Any
    size: Any
    paddr: Any
    entry: Any

    def chosen(self, which: Any) -> Leaves:
        """Those that a mask or an array of indices names."""
        return Leaves(self.vaddr[which], self.size[which], self.paddr[which], self.entry[which])

    def end(self) -> int:
        """First address behind all of them: ``1 << 64`` where the last page is the last of all."""
        return int((self.vaddr + (self.size - self.size.dtype.type(1))).max()) + 1

    def rows(self) -> Iterator[tuple[int, int, int, int]]:
        """Virtual address, size, physical address, entry of each."""
        columns = (self.vaddr, self.size, self.paddr, self.entry)
        return zip(*(column.tolist() for column in columns), strict=True)

    def runs(self) -> list[LinearRange]:
        """Runs that are contiguous both in virtual and in physical memory."""
        import numpy as np

        if not len(self.vaddr):
            return []
        end, next_paddr = self.vaddr + self.size, self.paddr + self.size
        breaks = (end[:-1] != self.vaddr[1:]) | (next_paddr[:-1] != self.paddr[1:])
        firsts = np.concatenate(([0], np.flatnonzero(breaks) + 1))
        lasts = np.concatenate((firsts[1:] - 1, [len(self.vaddr) - 1]))
        return [
            LinearRange(
                int(self.vaddr[a]), int(self.vaddr[b]) + int(self.size[b]), int(self.paddr[a])
            )
            for a, b in zip(firsts.tolist(), lasts.tolist(), strict=True)
        ]


def leaves(memory: PhysicalMemory, mode: PagingMode, root: int, start: int, end: int) -> Leaves:
    """The pages of ``[start, end)``, some around it included; bounded by the number of tables.

    A level at a time, so that what a guest links in circles ends with the levels.

    :param end: at most ``1 << 64``.
    :raises FaultError: a table lies outside of memory.
    """
    import numpy as np

    tables = np.array([root & mode.root_mask], dtype=np.uint64)
    # Virtual address of each table's first entry; the upper half is that of a canonical address.
    covered = 1 << (mode.levels[0].shift + mode.levels[0].bits)
    bases = np.array([start - start % covered if covered < 1 << 64 else 0], dtype=np.uint64)
    parts: list[tuple[Any, Any, Any, Any]] = []
    for level in mode.levels:
        width = 1 << level.bits
        most = _MOST_ENTRIES >> level.bits
        tables, bases = tables[:most], bases[:most]
        data = memory.gather(tables.tolist(), 8 * width)
        entries = np.frombuffer(data, dtype="<u8")
        step = np.arange(width, dtype=np.uint64) << np.uint64(level.shift)
        vaddrs = (bases[:, None] + step[None, :]).reshape(-1)
        page = np.uint64((1 << level.shift) - 1)
        wanted = (vaddrs + page >= np.uint64(start)) & (vaddrs <= np.uint64(end - 1))
        tables, bases = tables[:0], bases[:0]
        for form in mode.forms(level):
            hit = np.flatnonzero(
                wanted & ((entries & np.uint64(form.mask)) == np.uint64(form.value))
            )
            if not len(hit) or form.inverted:
                continue
            found = entries[hit]
            frames = found & np.uint64(form.frame)
            for bits, left in form.scattered:
                frames |= (found & np.uint64(bits)) << np.uint64(left)
            if form.page_shift:
                size = np.full(len(hit), 1 << form.page_shift, dtype=np.uint64)
                parts.append((vaddrs[hit], size, frames, found))
            else:
                tables = np.concatenate((tables, frames))
                bases = np.concatenate((bases, vaddrs[hit]))
        if not len(tables):
            break
    if not parts:
        empty = np.zeros(0, dtype=np.uint64)
        return Leaves(empty, empty, empty, empty)
    columns = [np.concatenate([part[n] for part in parts]) for n in range(4)]
    order = np.argsort(columns[0], kind="stable")
    return Leaves(*(column[order] for column in columns))

"""Every page that a top table maps in a range of addresses, as arrays."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from virtintrospect.arch import PagingMode
from virtintrospect.arch.leaves import PRESENT
from virtintrospect.arch.leaves import leaves as tables_of
from virtintrospect.memory import PhysicalMemory
from virtintrospect.translation import LinearRange

#: Tables that are read of one top table: enough for 16 GiB in pages of 4 KiB.
_MOST_TABLES = 1 << 13


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

    def within(self, image: LinearRange) -> list[LinearRange]:
        """Those that begin in an image, up to its end."""
        return [
            LinearRange(vaddr, min(vaddr + size, image.end), paddr)
            for vaddr, size, paddr, _ in self.rows()
            if image.start <= vaddr < image.end
        ]

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
    """The pages of ``[start, end)`` that are present.

    :param end: at most ``1 << 64``.
    :raises FaultError: a table lies outside of memory.
    """
    import numpy as np

    parts = [
        np.stack((each.vaddr, np.uint64(1) << each.shift, each.paddr, each.entry))[
            :, each.rights & PRESENT != 0
        ]
        for _, each in tables_of(memory, mode, root, start, end, _MOST_TABLES, strict=True)
        if len(each.vaddr)
    ]
    columns = np.concatenate(parts, axis=1) if parts else np.zeros((4, 0), dtype=np.uint64)
    return Leaves(*columns[:, np.argsort(columns[0], kind="stable")])

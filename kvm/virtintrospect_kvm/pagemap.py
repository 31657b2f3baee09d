"""Which pages of a RAM block the host has allocated, from QEMU's own page tables."""

from __future__ import annotations

import os
from collections.abc import Iterator

from virtintrospect.memory import Region
from virtintrospect_kvm.process import QemuProcess

#: Pages whose state is fetched together: one page of /proc/PID/pagemap, 2 MiB of RAM.
_CHUNK = 512
#: Pages a step when a whole block is looked at: 256 MiB of RAM, 512 KiB of pagemap.
_SWEEP = 65536

PRESENT, SWAPPED = 1, 2

# The top byte of an entry: bit 63 is "present", bit 62 "swapped"
# (Documentation/admin-guide/mm/pagemap.rst).
_STATES = bytes(PRESENT if top & 0x80 else SWAPPED if top & 0x40 else 0 for top in range(256))


class Pagemap:
    """The residency of one RAM block.

    :param process: the QEMU process.
    :param descriptor: its ``/proc/PID/pagemap``; the owner closes it.
    :param address: where QEMU has the block, as an address in QEMU.
    :param size: bytes.
    """

    def __init__(self, process: QemuProcess, descriptor: int, address: int, size: int) -> None:
        self._process = process
        self._descriptor = descriptor
        self._first = address >> 12
        #: One byte a 4 KiB page, non-zero where the page was seen allocated (1) or swapped
        #: out (2). A large bytearray costs host memory only where it was written.
        self.present = bytearray((size + 4095) >> 12)

    def resident(self, offset: int, size: int) -> bool:
        """Whether every page of a range of the block is allocated; asks when not known."""
        first, end = offset >> 12, ((offset + size - 1) >> 12) + 1
        if self.present.find(0, first, end) < 0:
            return True
        self.refresh(first, end)
        return self.present.find(0, first, end) < 0

    def refresh(self, first: int, end: int) -> None:
        """Look pages ``[first, end)`` up again, with their neighbours."""
        first -= first % _CHUNK
        end = min(-(-end // _CHUNK) * _CHUNK, len(self.present))
        self.present[first:end] = self._states(first, end)

    def first_absent(self, offset: int, size: int) -> int | None:
        """Offset of the first page of a range that is not allocated, asked anew."""
        first, end = offset >> 12, ((offset + size - 1) >> 12) + 1
        self.refresh(first, end)
        found = self.present.find(0, first, end)
        return None if found < 0 else max(offset, found << 12)

    def extents(self, offset: int, size: int, *, swapped: bool = False) -> Iterator[Region]:
        """Allocated ranges, as offsets in the block.

        :param swapped: those of swapped pages, too. Left out unless asked for: whoever sweeps
            through memory must not bring them back in.
        """
        end_page = (offset + size + 4095) >> 12
        for first in range(offset >> 12, end_page, _SWEEP):
            last = min(first + _SWEEP, end_page)
            states = self._states(first, last)
            self.present[first:last] = states
            if swapped:
                states = states.replace(bytes([SWAPPED]), bytes([PRESENT]))
            run = states.find(PRESENT)
            while run >= 0:
                stop = run + _run_length(states, run)
                yield Region((first + run) << 12, (first + stop) << 12)
                run = states.find(PRESENT, stop)

    def run(self, first: int, end: int) -> tuple[bool, int]:
        """Whether page ``first`` may be read, and where the pages like it end."""
        if self.present[first]:
            stop = self.present.find(0, first, end)
        else:
            stops = [self.present.find(value, first, end) for value in (PRESENT, SWAPPED)]
            stop = min((stop for stop in stops if stop >= 0), default=-1)
        return bool(self.present[first]), stop if stop >= 0 else end

    def forget(self) -> None:
        """Drop what is known."""
        self.present[:] = bytes(len(self.present))

    def close(self) -> None:
        """Stop using the descriptor, which the owner closes."""
        self._descriptor = -1

    def _states(self, first: int, end: int) -> bytes:
        """One byte a page: 0, :data:`PRESENT` or :data:`SWAPPED`."""
        length = (end - first) * 8
        try:
            entries = os.pread(self._descriptor, length, (self._first + first) * 8)
        except OSError:
            self._process.check()
            raise
        if len(entries) != length:
            # End of file: the process has no memory any more (pagemap_read, fs/proc/task_mmu.c).
            raise self._process.gone()
        return entries[7::8].translate(_STATES)


def _run_length(states: bytes, start: int) -> int:
    """How many bytes equal to the one at ``start`` follow, itself included."""
    ends = [end for value in (0, SWAPPED) if (end := states.find(value, start)) >= 0]
    return min(ends, default=len(states)) - start

"""Where virtual addresses are in guest-physical memory: a paging mode and a top table."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

from virtintrospect.arch.leaves import Leaves, leaves, no_leaves
from virtintrospect.arch.paging import (
    NOT_MAPPED,
    PagingMode,
    Walk,
    translate_many,
    translator,
    walk,
)
from virtintrospect.errors import CorruptDataError, FaultError, UsageError
from virtintrospect.memory import PhysicalMemory

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

_PAGE = 4096
#: Pages that one call looks up at most: 64 GiB.
_MAX_PAGES = 1 << 24


def as_addresses(values: npt.ArrayLike) -> npt.NDArray[np.uint64]:
    """An array of addresses.

    :raises UsageError: one of them has more than 64 bits, or is negative.
    """
    import numpy as np

    try:
        return np.ascontiguousarray(values, dtype=np.uint64)
    except (OverflowError, ValueError, TypeError) as error:
        raise UsageError(f"addresses are numbers of 64 bits: {error}") from error


class LinearRange(NamedTuple):
    """Virtual addresses ``[start, end)`` that map to ``paddr``, ``paddr + 1``, … in one run.

    Whoever makes one has checked it against the page tables
    (:meth:`AddressSpace.verify <virtintrospect.space.AddressSpace.verify>`); reads within it
    need no walk.
    """

    start: int
    end: int
    paddr: int


class Run(NamedTuple):
    """Virtual memory that is contiguous in guest-physical memory, too."""

    vaddr: int
    paddr: int
    size: int


def without_table(vaddr: int, size: int, error: FaultError) -> FaultError:
    """What to raise where a page table on the way to ``vaddr`` could not be read."""
    hint = f"its page table at {error.address:#x} has no memory"
    return FaultError(vaddr, size, kind="virtual", hint=hint)


class Translation:
    """What one top table says of addresses.

    :param memory: guest-physical memory.
    :param mode: format of the page tables.
    :param root: physical address of the top table, as in CR3 (what else CR3 holds is ignored).
    :param linear: ranges known to be linear (direct map, kernel image); the walker serves the
        rest, and nothing of what it finds is kept: a guest may change its tables at any time.
    """

    def __init__(
        self,
        memory: PhysicalMemory,
        mode: PagingMode,
        root: int,
        *,
        linear: Iterable[LinearRange] = (),
    ) -> None:
        self.memory = memory
        self.mode = mode
        self.root = root & mode.root_mask
        self.linear = tuple(linear)
        self._translate = translator(memory.reader(mode.entry_size), mode, memory.frames)

    def translate(self, vaddr: int) -> int:
        """Guest-physical address of ``vaddr``.

        :raises FaultError: the address has no page, or a page table lies outside of memory.
        """
        for start, end, paddr in self.linear:
            if start <= vaddr < end:
                return vaddr - start + paddr
        paddr = self._translate(self.root, vaddr)[0]
        if paddr < 0:
            raise FaultError(vaddr, 1, kind="virtual")
        return paddr

    def translate_many(self, vaddrs: npt.ArrayLike) -> npt.NDArray[np.uint64]:
        """Guest-physical addresses of an array of virtual ones, all at once.

        :returns: unsigned 64-bit numbers; ``0xffff_ffff_ffff_ffff`` where there is no page.
        :raises UsageError: an address has more than 64 bits, or is negative.
        """
        import numpy as np

        addresses = as_addresses(vaddrs)
        result = np.full(addresses.shape, NOT_MAPPED, dtype=np.uint64)
        rest = np.ones(addresses.shape, dtype=bool)
        for start, end, paddr in self.linear:
            inside = (addresses >= np.uint64(start)) & (addresses <= np.uint64(end - 1))
            result[inside] = addresses[inside] - np.uint64(start) + np.uint64(paddr)
            rest &= ~inside
        if rest.any():
            walked = translate_many(self.memory, self.mode, self.root, addresses[rest])
            result[rest] = walked
        return result

    def walk(self, vaddr: int) -> Walk:
        """Translate through the page tables alone and tell every step."""
        return walk(self.memory, self.mode, self.root, vaddr)

    def runs(self, vaddr: int, size: int) -> list[Run]:
        """The parts of a range that have pages, those that follow on each other joined.

        :param size: bytes; a range of any length, whose pages are looked up all at once.
        :returns: in rising order; what has no page is left out. Whether there is memory at
            the physical address is not asked.
        :raises UsageError: the range is not one of 64-bit addresses, or has more than 2^24 pages.
        """
        import numpy as np

        first, last = vaddr // _PAGE, (vaddr + max(size, 0) - 1) // _PAGE
        if vaddr < 0 or vaddr + size > 1 << 64 or last - first >= _MAX_PAGES:
            raise UsageError(f"no range of addresses: {size} bytes at {vaddr:#x}")
        pages = np.arange(first, last + 1, dtype=np.uint64) * np.uint64(_PAGE)
        found = self.translate_many(pages)
        there = np.flatnonzero(found != np.uint64(NOT_MAPPED))
        if not len(there):
            return []
        gap = (np.diff(there) != 1) | (np.diff(found[there]) != np.uint64(_PAGE))
        starts = np.concatenate(([0], np.flatnonzero(gap) + 1))
        ends = np.concatenate((starts[1:], [len(there)]))
        runs = []
        for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
            low = max(vaddr, (first + int(there[start])) * _PAGE)
            high = min(vaddr + size, (first + int(there[end - 1]) + 1) * _PAGE)
            runs.append(Run(low, int(found[there[start]]) + low % _PAGE, high - low))
        return runs

    def pages(self, start: int = 0, end: int = 1 << 64, *, limit: int = 1 << 16) -> Leaves:
        """Every page that the tables map in a range, lowest address first, as arrays.

        The linear ranges are not asked, the tables alone are. For a process
        ``pages(end=1 << 47)`` leaves the kernel's half out.

        :param limit: page tables that are read at most; one of more than 4 KiB, as kernels with
            larger pages have them, counts as several. A process has one for each 2 MiB that
            it uses; a hostile guest's tables may have no end.
        :raises CorruptDataError: there are more tables than that.
        """
        import numpy as np

        for level in self.mode.levels[-1:]:
            limit = min(limit, limit * _PAGE // (self.mode.entry_size << level.bits))
        found, read = [no_leaves()], 0
        for tables, some in leaves(self.memory, self.mode, [self.root], start, end, limit + 1):
            read += len(tables.paddr)
            found.append(some)
        if read > limit:
            raise CorruptDataError(f"more than {limit} page tables", self.root)
        columns = [np.concatenate(parts) for parts in zip(*found, strict=True)]
        order = np.argsort(columns[1], kind="stable")
        return Leaves(*(column[order] for column in columns))

    def verify(self, linear: LinearRange) -> bool:
        """Whether the page tables agree with a linear range at its start."""
        try:
            return self._translate(self.root, linear.start)[0] == linear.paddr
        except FaultError:
            return False

    def _page(self, vaddr: int, size: int) -> tuple[int, int]:
        """Physical address and page size behind ``vaddr``; ``size`` is for the error."""
        try:
            paddr, page_size = self._translate(self.root, vaddr)
        except FaultError as error:
            raise without_table(vaddr, size, error) from error
        if paddr < 0:
            raise FaultError(vaddr, size, kind="virtual")
        return paddr, page_size

    def _contiguous(self, vaddr: int, size: int) -> int:
        """Physical address of a range that lies in one piece; a FaultError where it does not."""
        for start, end, paddr in self.linear:
            if start <= vaddr and vaddr + size <= end:
                return vaddr - start + paddr
        paddr, page_size = self._page(vaddr, size)
        if (vaddr & (page_size - 1)) + size > page_size:
            raise FaultError(vaddr, size, kind="virtual")
        return paddr

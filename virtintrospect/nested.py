"""The memory of a guest that runs inside a guest, by the nested tables of the outer one's KVM.

A stack of address spaces: an inner guest's virtual address is translated by its own tables, its
physical one by the nested tables, and what that gives is a physical address of the outer guest.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence

from virtintrospect.arch import PagingMode
from virtintrospect.driver import Target
from virtintrospect.errors import FaultError
from virtintrospect.memory import PhysicalMemory, Region
from virtintrospect.memory.base import merge
from virtintrospect.space import AddressSpace

#: Tables of one guest that are looked at: 128 GiB by pages of 4 KiB.
_MOST_TABLES = 1 << 16
_TABLE = struct.Struct("<512Q")
_PAGE = 4096
_GRAIN = 2 << 20


class NestedMemory(PhysicalMemory):
    """Guest-physical memory of an inner guest.

    A page that its processors have not touched yet is not in the nested tables, and cannot be
    read: a :exc:`~virtintrospect.errors.FaultError`. ``regions`` are the stretches of 2 MiB that
    had any page when this was made.

    :param outer: memory of the outer guest.
    :param mode: format of the nested tables.
    :param root: their top table, a physical address of the outer guest.
    """

    def __init__(self, outer: PhysicalMemory, mode: PagingMode, root: int) -> None:
        self._outer = outer
        self._space = AddressSpace(outer, mode, root)
        grains = (
            Region(page.start & -_GRAIN, -(-page.end // _GRAIN) * _GRAIN)
            for page in self.resident()
        )
        self.regions = tuple(merge(grains))

    def _read_within(self, index: int, paddr: int, size: int) -> bytes:  # noqa: ARG002
        try:
            return self._space.read(paddr, size)
        except FaultError as error:
            raise FaultError(
                error.address, size, hint="the inner guest has no page there"
            ) from None

    def gather(self, paddrs: Sequence[int], size: int, faults: list[int] | None = None) -> bytes:
        """All at once, by the outer memory's own way."""
        try:
            return self._space.gather(paddrs, size, faults)
        except FaultError as error:
            raise FaultError(
                error.address, size, hint="the inner guest has no page there"
            ) from None

    def resident(self) -> Iterator[Region]:
        """What the nested tables map at this moment."""
        tables = _tables(self._outer, self._space.mode, self._space.root)
        return merge(Region(start, start + size) for start, size in tables)


def _tables(outer: PhysicalMemory, mode: PagingMode, root: int) -> Iterator[tuple[int, int]]:
    """Every page: its address in the inner guest, and its size, in rising order.

    Tables of a hostile outer guest may lead anywhere: each is looked at once, and so many.
    """
    seen: set[int] = set()

    def below(table: int, number: int, start: int) -> Iterator[tuple[int, int]]:
        if table in seen or len(seen) >= _MOST_TABLES:
            return
        seen.add(table)
        try:
            entries = _TABLE.unpack(outer.read(table, _PAGE))
        except FaultError:
            return
        level = mode.levels[number]
        forms = mode.forms(level)
        for index, entry in enumerate(entries):
            form = next((f for f in forms if entry & f.mask == f.value), None)
            # KVM marks devices by entries that lead beyond all memory.
            if form is None or entry & form.frame >= outer.end:
                continue
            place = start + (index << level.shift)
            if form.page_shift:
                yield place, 1 << form.page_shift
            else:
                yield from below(entry & form.frame, number + 1, place)

    return below(root & mode.root_mask, 0, 0)


class NestedTarget(Target):
    """A guest inside a guest; the outer target stays its owner's, and must outlive this one.

    :param outer: the outer guest.
    :param mode: format of the nested tables.
    :param root: their top table.
    """

    transport = "nested"

    def __init__(self, outer: Target, mode: PagingMode, root: int) -> None:
        self.live = outer.live
        self.architecture = outer.architecture
        self._memory = NestedMemory(outer.memory, mode, root)

    @property
    def memory(self) -> PhysicalMemory:
        """The inner guest's physical memory."""
        return self._memory

    def close(self) -> None:
        """Nothing is held."""

"""The memory of a guest that runs inside a guest, by the nested tables of the outer one's KVM.

A stack of address spaces: an inner guest's virtual address is translated by its own tables, its
physical one by the nested tables, and what that gives is a physical address of the outer guest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from virtintrospect.arch import PagingMode
from virtintrospect.arch.leaves import leaves
from virtintrospect.arch.nested import by_name
from virtintrospect.driver import Target
from virtintrospect.errors import FaultError, MemoryAccessError, NoSuchTargetError, UsageError
from virtintrospect.memory import PhysicalMemory, Region
from virtintrospect.model import InnerGuest
from virtintrospect.space import AddressSpace

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[Any]

#: Tables of one guest that are looked at: 128 GiB by pages of 4 KiB.
_MOST_TABLES = 1 << 16
#: Stretches of its memory: of an honest one a few, and one for each hole between devices.
_MOST_REGIONS, _MOST_RUNS = 1 << 12, 1 << 18
_GRAIN = 2 << 20
#: Letters of their names that an error has.
_MOST_NAMED = 200
#: What is looked at together.
_WINDOW = 1 << 30


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
        pages, _ = _mapped(outer, mode, root, Region(0, 1 << (mode.virtual_bits - 1)), _MOST_TABLES)
        self.regions = tuple(
            Region(*run) for run in _joined(pages, _GRAIN)[:_MOST_REGIONS].tolist()
        )

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
        """What the nested tables map of these regions at this moment."""
        left = _MOST_TABLES
        for start, end in self.regions:
            for at in range(start & -_WINDOW, end, _WINDOW):
                part = Region(max(start, at), min(end, at + _WINDOW))
                pages, read = _mapped(self._outer, self._space.mode, self._space.root, part, left)
                for first, last in pages.tolist():
                    yield Region(max(first, part.start), min(last, part.end))
                left -= read
                if left <= 0:
                    return


def _mapped(
    outer: PhysicalMemory, mode: PagingMode, root: int, part: Region, most: int
) -> tuple[Array, int]:
    """Runs of pages of the inner guest, rising, one row each; and how many tables were read.

    Tables of a hostile outer guest may lead anywhere, and be one table many times over.
    """
    import numpy as np

    runs, read = np.empty((0, 2), dtype=np.int64), 0
    for tables, found in leaves(outer, mode, root, part.start, part.end, most):
        read += len(tables.paddr)
        # KVM marks devices by entries that lead beyond all memory.
        there = found.paddr < outer.end
        starts = found.vaddr[there].astype(np.int64)
        ends = starts + (np.int64(1) << found.shift[there].astype(np.int64))
        runs = _joined(np.concatenate((runs, np.stack((starts, ends), axis=1))), 1)
        if len(runs) > _MOST_RUNS:
            break
    return runs, read


def _joined(runs: Array, grain: int) -> Array:
    """Runs that touch each other as one, in rising order; borders moved out to a grain."""
    import numpy as np

    starts, ends = runs[:, 0] // grain * grain, -(-runs[:, 1] // grain) * grain
    order = np.argsort(starts, kind="stable")
    starts, ends = starts[order], np.maximum.accumulate(ends[order])
    firsts = np.ones(len(starts), dtype=bool)
    firsts[1:] = starts[1:] > ends[:-1]
    lasts = np.append(firsts[1:], True)[: len(starts)]
    return np.stack((starts[firsts], ends[lasts]), axis=1)


def choose(found: Sequence[InnerGuest], wanted: str) -> tuple[PagingMode, int]:
    """Nested tables of one of several inner guests.

    :param wanted: its PID or name.
    :raises NoSuchTargetError: there is none.
    :raises UsageError: several have that name.
    :raises MemoryAccessError: it has no nested tables.
    """
    names = {inner.pid: (inner.name or b"?").decode("utf-8", "replace") for inner in found}
    chosen = [inner for inner in found if wanted in (str(inner.pid), names[inner.pid])]
    known = ", ".join(f"{pid} ({ascii(name)[1:-1]})" for pid, name in names.items())
    known = known[:_MOST_NAMED] or "none"
    if not chosen:
        raise NoSuchTargetError(
            f"the guest runs no guest {wanted!r} itself", hint=f"it runs: {known}"
        )
    if len(chosen) > 1:
        raise UsageError(f"several inner guests are called {wanted!r}", hint=f"by PID: {known}")
    mode = by_name(chosen[0].page_mode or "")
    if mode is None or chosen[0].root is None:
        raise MemoryAccessError(
            f"the inner guest {wanted!r} has no nested tables",
            hint="it has not run yet, or not since they were given up: try again",
        )
    return mode, chosen[0].root


class NestedTarget(Target):
    """A guest inside a guest; the outer target must outlive this one.

    :param outer: the outer guest.
    :param mode: format of the nested tables.
    :param root: their top table.
    :param closed: called when this target is closed; by default the outer one stays open.
    """

    transport = "nested"

    def __init__(
        self,
        outer: Target,
        mode: PagingMode,
        root: int,
        closed: Callable[[], None] | None = None,
    ) -> None:
        self._closed = closed
        self.live = outer.live
        self.architecture = outer.architecture
        self._memory = NestedMemory(outer.memory, mode, root)

    @property
    def memory(self) -> PhysicalMemory:
        """The inner guest's physical memory."""
        return self._memory

    def close(self) -> None:
        """Let go of the outer target, where that was asked for; twice is harmless."""
        if self._closed is not None:
            self._closed()

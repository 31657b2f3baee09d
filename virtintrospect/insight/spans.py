"""Where memory lies that is to be searched, as ranges without gaps; a window at a time.

What a process maps is not held at once: its page tables are gone through in rising order, and
what a batch of them maps is let go when it has been searched. So the host needs the same memory
for a process of any size, and for page tables that a hostile guest has made up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

from virtintrospect.arch.leaves import leaves_in_order
from virtintrospect.insight.patterns import LONGEST
from virtintrospect.memory import PhysicalMemory
from virtintrospect.space import AddressSpace

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[Any]

#: Bytes that are searched at once.
PIECE = 1 << 20
#: How often a process may map all RAM.
_MOST_MAPPED = 4
#: Page tables that a process always may have; besides, all of RAM may be tables.
_FEWEST_TABLES = 4096
#: Pieces that are held at once, some 100 bytes each; more where one page lies in more of them.
_PIECES_AT_ONCE = 1 << 17

#: Called with what went wrong, and the address.
Note = Callable[[str, int], None]


class Span(NamedTuple):
    """A range of addresses without a gap, and where its parts are in guest-physical memory."""

    start: int
    size: int
    #: Of each part its address, in rising order, and where it is; as arrays.
    vaddr: Array
    paddr: Array
    #: Offsets between which a match has to begin: what lies before has been searched, what lies
    #: behind will be, with the next span.
    first: int
    last: int


class Pieces(NamedTuple):
    """Of each piece its address, where it is, and its bytes: arrays, in rising order."""

    vaddr: Array
    paddr: Array
    size: Array


class Spans:
    """Ranges without gaps, in rising order.

    :param windows: makes the pieces, in rising order and some at a time.
    :param size: counts the bytes of all of them.
    """

    def __init__(self, windows: Callable[[], Iterator[Pieces]], size: Callable[[], int]) -> None:
        self._windows = windows
        #: Bytes of all of them, for who wants to know: a process's tables are read for it.
        self.size = size

    def parts(self, context: int = 0) -> Iterator[Span]:
        """The ranges; where one goes on beyond a window, it comes in several spans.

        These overlap, so that what is found at a place does not depend on the windows.

        :param context: bytes before the first place of a match that a span has, if it can.
        """
        rest, first = None, 0
        for window in self._windows():
            if not len(window.vaddr):
                continue
            held = None
            for span in _without_gaps(window if rest is None else _joined(rest, window), first):
                if held is not None:
                    yield held
                held = span
            assert held is not None
            part, rest, first = _cut(held, context)
            if part is not None:
                yield part
        if rest is not None:
            yield from _without_gaps(rest, first)


def physical_spans(memory: PhysicalMemory) -> Spans:
    """What the host has of a guest's memory."""
    resident = _resident(memory)
    start, size = resident[:, 0], resident[:, 1] - resident[:, 0]
    return Spans(lambda: iter([Pieces(start, start, size)]), lambda: int(size.sum()))


def virtual_spans(
    space: AddressSpace,
    end: int,
    note: Note,
    lock: AbstractContextManager[Any] | None = None,
) -> Spans:
    """What is mapped below ``end``, without pages that the host does not hold.

    A process may map all RAM four times, and have as many page tables as fit into RAM and
    4,096 more: there it ends.

    :param note: told where it ended before the process did, if so.
    :param lock: held while page tables are read.
    """
    resident = _resident(space.memory)
    taken = nullcontext() if lock is None else lock

    def windows() -> Iterator[Pieces]:
        for pages in _in_turns(_pages(space, end, note), taken):
            yield from _held(pages, resident)

    def size() -> int:
        pages = _in_turns(_pages(space, end, lambda *_: None), taken)
        return sum(_held_bytes(some, resident) for some in pages)

    return Spans(windows, size)


def _in_turns(items: Iterator[Pieces], lock: AbstractContextManager[Any]) -> Iterator[Pieces]:
    """The same, each made while the lock is held."""
    while True:
        with lock:
            item = next(items, None)
        if item is None:
            return
        yield item


def _resident(memory: PhysicalMemory) -> Array:
    """Stretches that the host holds, one row each: start and end; in rising order, with gaps.

    There may be one for every other page of the guest: never a list of them.
    """
    import numpy as np

    numbers = np.fromiter(chain.from_iterable(memory.resident()), dtype=np.int64).reshape(-1, 2)
    start, end = numbers[np.argsort(numbers[:, 0], kind="stable")].T
    end = np.maximum.accumulate(end)
    begins = np.ones(len(start), dtype=bool)
    begins[1:] = start[1:] > end[:-1]
    return np.stack([start[begins], end[np.append(begins[1:], True)[: len(end)]]], axis=1)


def _pages(space: AddressSpace, end: int, note: Note) -> Iterator[Pieces]:
    """The pages that are mapped below ``end``, in rising order."""
    import numpy as np

    memory, mode = space.memory, space.mode
    most, mapped, above = _MOST_MAPPED * memory.size, 0, end
    tables = _FEWEST_TABLES
    for level in mode.levels[-1:]:
        tables += memory.size // (mode.entry_size << level.bits)
    for reached, found in leaves_in_order(memory, mode, space.root, 0, end, tables):
        size = np.int64(1) << found.shift.astype(np.int64)
        pages = Pieces(found.vaddr.astype(np.int64), found.paddr.astype(np.int64), size)
        upto = np.cumsum(size)
        if len(size) and int(upto[-1]) > most - mapped:
            allowed = np.clip(most - mapped - (upto - size), 0, size)
            inside = allowed > 0
            yield Pieces(pages.vaddr[inside], pages.paddr[inside], allowed[inside])
            last = int(np.argmax(allowed < size))
            what = f"more than {_MOST_MAPPED} times the guest's memory is mapped"
            note(_stopped(most, what), int(pages.vaddr[last] + allowed[last]))
            return
        mapped += int(size.sum())
        yield pages
        above = reached
    if above < end:
        note(_stopped(mapped, "it has more page tables than a guest of this size"), above)


def _stopped(mapped: int, why: str) -> str:
    return f"the search stopped after {mapped >> 20} MiB of the process: {why}"


def _held(pages: Pieces, resident: Array) -> Iterator[Pieces]:
    """What the host holds of some pages: of each there may be several pieces, or none."""
    import numpy as np

    vaddr, paddr, size = pages
    first = np.searchsorted(resident[:, 1], paddr, side="right")
    count = np.maximum(np.searchsorted(resident[:, 0], paddr + size, side="left") - first, 0)
    ends = np.cumsum(count)
    at = 0
    while at < len(count):
        before = int(ends[at] - count[at])
        upto = max(int(np.searchsorted(ends, before + _PIECES_AT_ONCE, side="right")), at + 1)
        page = np.repeat(np.arange(at, upto), count[at:upto])
        stretch = first[page] + before + np.arange(len(page)) - (ends - count)[page]
        low = np.maximum(paddr[page], resident[stretch, 0])
        high = np.minimum((paddr + size)[page], resident[stretch, 1])
        yield Pieces(vaddr[page] + low - paddr[page], low, high - low)
        at = upto


def _held_bytes(pages: Pieces, resident: Array) -> int:
    """Bytes that the host holds of some pages."""
    import numpy as np

    if not len(resident):
        return 0
    start, size = resident[:, 0], resident[:, 1] - resident[:, 0]
    before = np.cumsum(size) - size

    def below(paddr: Array) -> Array:
        """Bytes that it holds below an address."""
        index = np.maximum(np.searchsorted(start, paddr, side="right") - 1, 0)
        found: Array = before[index] + np.clip(paddr - start[index], 0, size[index])
        return found

    return int((below(pages.paddr + pages.size) - below(pages.paddr)).sum())


def _without_gaps(pieces: Pieces, first: int) -> Iterator[Span]:
    """Join pieces that follow on each other, to spans, and within them to parts.

    :param first: of the first span.
    """
    import numpy as np

    vaddr, paddr, size = pieces
    follows = vaddr[1:] == vaddr[:-1] + size[:-1]
    parts = np.ones(len(vaddr), dtype=bool)
    parts[1:] = ~(follows & (paddr[1:] == paddr[:-1] + size[:-1]))
    begins = np.ones(len(vaddr), dtype=bool)
    begins[1:] = ~follows
    ends = (vaddr + size)[np.append(begins[1:], True)[: len(vaddr)]]
    vaddr, paddr = vaddr[parts], paddr[parts]
    borders = np.append(np.flatnonzero(begins[parts]), len(vaddr)).tolist()
    for number, end in enumerate(ends.tolist()):
        part = slice(borders[number], borders[number + 1])
        start = int(vaddr[part.start])
        yield Span(start, end - start, vaddr[part], paddr[part], first, end - start)
        first = 0


def _cut(span: Span, context: int) -> tuple[Span | None, Pieces, int]:
    """The part of a span that can be searched whatever follows, if there is one.

    :returns: that part; the pieces that are needed for the rest, and the rest's ``first``.
    """
    import numpy as np

    ready = max(span.size - LONGEST - span.first, 0) // PIECE * PIECE
    last = span.first + ready
    keep = max(last - context, 0) if ready else 0
    address = span.start + keep
    index = int(span.vaddr.searchsorted(address, side="right")) - 1
    vaddr, paddr = span.vaddr[index:].copy(), span.paddr[index:].copy()
    paddr[0] += address - vaddr[0]
    vaddr[0] = address
    rest = Pieces(vaddr, paddr, np.diff(np.append(vaddr, span.start + span.size)))
    return (span._replace(last=last) if ready else None), rest, last - keep


def _joined(first: Pieces, second: Pieces) -> Pieces:
    import numpy as np

    return Pieces(*(np.concatenate(columns) for columns in zip(first, second, strict=True)))

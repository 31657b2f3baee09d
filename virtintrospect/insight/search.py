"""Search guest memory, physical or of one process, without touching absent pages."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from virtintrospect.arch.leaves import leaves
from virtintrospect.errors import CorruptDataError, FaultError
from virtintrospect.insight.patterns import LONGEST, Pattern
from virtintrospect.memory import PhysicalMemory
from virtintrospect.memory.base import merge
from virtintrospect.model import Match
from virtintrospect.space import AddressSpace

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[Any]

#: Bytes that are searched at once.
_PIECE = 1 << 20
#: Bytes of a match that are kept.
_KEPT = 256
#: How often a process may map all RAM, what one page table maps, and tables that it always may
#: have.
_MOST_MAPPED, _TABLE_MAPS, _FEWEST_TABLES = 8, 2 << 20, 1024
#: Pages of a process, or pieces of them that the host holds: 16 GiB of 4 KiB each. They cost some
#: 120 bytes each while they are put in order.
_MOST_PIECES = 1 << 22

#: Called with bytes done and bytes in all, after each piece.
Progress = Callable[[int, int], None]


class Span(NamedTuple):
    """A range of addresses without a gap, and where its parts are in guest-physical memory."""

    start: int
    size: int
    #: Of each part its address, in rising order, and where it is; as arrays.
    vaddr: Array
    paddr: Array


class Spans:
    """Ranges without gaps, in rising order. As arrays: a guest chooses how many parts there are.

    :param vaddr: of each part its address; rising.
    :param paddr: where it is in guest-physical memory.
    :param size: its bytes.
    """

    def __init__(self, vaddr: Array, paddr: Array, size: Array) -> None:
        import numpy as np

        #: Bytes of all of them.
        self.size = int(size.sum())
        follows = vaddr[1:] == vaddr[:-1] + size[:-1]
        starts = np.ones(len(vaddr), dtype=bool)
        starts[1:] = ~(follows & (paddr[1:] == paddr[:-1] + size[:-1]))
        begins = np.ones(len(vaddr), dtype=bool)
        begins[1:] = ~follows
        self._ends = (vaddr + size)[np.append(begins[1:], True)[: len(vaddr)]]
        self._vaddr, self._paddr = vaddr[starts], paddr[starts]
        self._first = np.flatnonzero(begins[starts])

    def __iter__(self) -> Iterator[Span]:
        for number, first in enumerate(self._first.tolist()):
            last = int(self._first[number + 1]) if number + 1 < len(self._first) else None
            vaddr = self._vaddr[first:last]
            start, end = int(vaddr[0]), int(self._ends[number])
            yield Span(start, end - start, vaddr, self._paddr[first:last])


def physical_spans(memory: PhysicalMemory) -> Spans:
    """What the host has of a guest's memory."""
    resident = _resident(memory)
    start = resident[:, 0]
    return Spans(start, start, resident[:, 1] - start)


def virtual_spans(space: AddressSpace, end: int) -> Spans:
    """What is mapped below ``end``, without pages that the host does not hold.

    :raises CorruptDataError: more is mapped, or by more tables, than a guest of this size has;
        or it is in more pieces than are searched.
    """
    import numpy as np

    vaddr, paddr, size = _pages(space, end)
    resident = _resident(space.memory)
    # Each page may reach over several stretches that the host holds, or none.
    first = np.searchsorted(resident[:, 1], paddr, side="right")
    count = np.maximum(np.searchsorted(resident[:, 0], paddr + size, side="left") - first, 0)
    if (pieces := int(count.sum())) > _MOST_PIECES:
        raise _too_many(space.root)
    page = np.repeat(np.arange(len(count)), count)
    stretch = first[page] + np.arange(pieces) - np.repeat(np.cumsum(count) - count, count)
    low = np.maximum(paddr[page], resident[stretch, 0])
    high = np.minimum((paddr + size)[page], resident[stretch, 1])
    return Spans(vaddr[page] + low - paddr[page], low, high - low)


def _resident(memory: PhysicalMemory) -> Array:
    """Stretches that the host holds, one row each: start and end."""
    import numpy as np

    return np.array(list(merge(sorted(memory.resident()))), dtype=np.int64).reshape(-1, 2)


def _pages(space: AddressSpace, end: int) -> tuple[Array, Array, Array]:
    """Address, place and size of each page that is mapped below ``end``, in rising order."""
    import numpy as np

    memory, mode = space.memory, space.mode
    most = _MOST_MAPPED * memory.size
    limit = _FEWEST_TABLES + most // _TABLE_MAPS
    for level in mode.levels[-1:]:
        limit = min(limit, (limit << 12) // (mode.entry_size << level.bits))
    parts, read, mapped, pieces = [(np.empty(0, dtype=np.int64),) * 3], 0, 0, 0
    for tables, found in leaves(memory, mode, [space.root], 0, end, limit + 1):
        size = np.int64(1) << found.shift.astype(np.int64)
        read, mapped = read + len(tables.paddr), mapped + int(size.sum())
        if mapped > most or read > limit:
            raise CorruptDataError("a process that maps far more than there is", space.root)
        if (pieces := pieces + len(size)) > _MOST_PIECES:
            raise _too_many(space.root)
        parts.append((found.vaddr.astype(np.int64), found.paddr.astype(np.int64), size))
    vaddr, paddr, size = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    order = np.argsort(vaddr, kind="stable")
    return vaddr[order], paddr[order], size[order]


def _too_many(root: int) -> CorruptDataError:
    what = f"a process whose memory is in more than {_MOST_PIECES} pieces"
    return CorruptDataError(what, root, hint="search all memory, without --pid")


def search(
    read: Callable[[int, int], bytes],
    spans: Spans,
    pattern: Pattern,
    *,
    virtual: bool,
    context: int = 16,
    progress: Progress | None = None,
) -> Iterator[Match]:
    """Every place in some spans where a pattern is, in rising order.

    A match may cross the borders of pages, and of ranges that follow on each other; it is
    found whole up to :data:`~virtintrospect.insight.patterns.LONGEST` bytes.

    :param read: gives ``size`` bytes of guest-physical memory at an address.
    :param virtual: the addresses of the spans are virtual ones.
    :param context: bytes before and behind a match that are given along with it.
    """
    done, total = 0, spans.size
    for span in spans:
        behind = 0  # end of the last match: the next one begins there at the earliest
        for at in range(0, span.size, _PIECE):
            size = min(_PIECE, span.size - at)
            first = max(0, at - context)
            data = _bytes(read, span, first, min(span.size, at + size + LONGEST) - first)
            skip = max(at, behind) - first
            inner = data[skip:] if skip else data
            for start, end, name in pattern.find(inner):
                if start + skip + first >= at + size:
                    break
                behind = max(behind, first + skip + end)
                yield _match(span, first, data, start + skip, end + skip, name, context, virtual)
            done += size
            if progress is not None:
                progress(done, total)


def _match(
    span: Span,
    first: int,
    data: bytes,
    start: int,
    end: int,
    name: str,
    context: int,
    virtual: bool,
) -> Match:
    address = span.start + first + start
    index = int(span.vaddr.searchsorted(address, side="right")) - 1
    return Match(
        paddr=address - int(span.vaddr[index]) + int(span.paddr[index]),
        vaddr=address if virtual else None,
        size=end - start,
        name=name,
        data=data[start : min(end, start + _KEPT)],
        before=data[max(0, start - context) : start],
        after=data[end : end + context],
    )


def _bytes(read: Callable[[int, int], bytes], span: Span, offset: int, size: int) -> bytes:
    """Bytes of a span; zeros for what has just gone away."""
    address, end = span.start + offset, span.start + offset + size
    index = int(span.vaddr.searchsorted(address, side="right")) - 1
    last = int(span.vaddr.searchsorted(end, side="left"))
    begins, places = span.vaddr[index:last].tolist(), span.paddr[index:last].tolist()
    parts = []
    for begin, place, ends in zip(begins, places, [*begins[1:], end], strict=True):
        step = min(end, ends) - address
        try:
            parts.append(read(address - begin + place, step))
        except FaultError:
            parts.append(bytes(step))
        address += step
    return parts[0] if len(parts) == 1 else b"".join(parts)

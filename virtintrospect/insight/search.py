"""Search guest memory, physical or of one process, without touching absent pages."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from virtintrospect.errors import CorruptDataError, FaultError
from virtintrospect.insight.patterns import LONGEST, Pattern
from virtintrospect.memory import PhysicalMemory, Region
from virtintrospect.memory.base import merge
from virtintrospect.model import Match
from virtintrospect.space import AddressSpace
from virtintrospect.translation import Run

#: Bytes that are searched at once.
_PIECE = 1 << 20
#: Bytes of a match that are kept.
_KEPT = 256
#: How often a process may map all RAM, what one page table maps, and tables that it always may
#: have.
_MOST_MAPPED, _TABLE_MAPS, _FEWEST_TABLES = 8, 2 << 20, 1024

#: Called with bytes done and bytes in all, after each piece.
Progress = Callable[[int, int], None]


class Span(NamedTuple):
    """A range of addresses without a gap, and where its parts are in guest-physical memory."""

    start: int
    size: int
    #: In rising order of ``vaddr``, which are the addresses of the span.
    runs: list[Run]


def physical_spans(memory: PhysicalMemory) -> list[Span]:
    """What the host has of a guest's memory."""
    spans = []
    for start, end in merge(sorted(memory.resident())):
        spans.append(Span(start, end - start, [Run(start, start, end - start)]))
    return spans


def virtual_spans(space: AddressSpace, end: int) -> list[Span]:
    """What is mapped below ``end``, without pages that the host does not hold.

    :raises CorruptDataError: more is mapped, or by more tables, than a guest of this size has.
    """
    import numpy as np

    memory = space.memory
    resident = list(merge(sorted(memory.resident())))
    found = space.pages(end=end, limit=_FEWEST_TABLES + _MOST_MAPPED * memory.size // _TABLE_MAPS)
    if int((np.int64(1) << found.shift.astype(np.int64)).sum()) > _MOST_MAPPED * memory.size:
        raise CorruptDataError("a process that maps far more than there is", space.root)
    spans: list[Span] = []
    sizes = (1 << shift for shift in found.shift.tolist())
    for vaddr, paddr, size in zip(found.vaddr.tolist(), found.paddr.tolist(), sizes, strict=True):
        for low, high in _inside(resident, paddr, paddr + size):
            _add(spans, Run(vaddr + low - paddr, low, high - low))
    return spans


def _inside(regions: Sequence[Region], start: int, end: int) -> Iterator[tuple[int, int]]:
    """The parts of ``[start, end)`` that lie in regions."""
    index = max(0, bisect_right(regions, start, key=lambda region: region.start) - 1)
    while index < len(regions) and regions[index].start < end:
        low, high = max(start, regions[index].start), min(end, regions[index].end)
        if low < high:
            yield low, high
        index += 1


def _add(spans: list[Span], run: Run) -> None:
    """Put a run behind what there is, joined to it where that is possible."""
    if not spans or spans[-1].start + spans[-1].size != run.vaddr:
        spans.append(Span(run.vaddr, run.size, [run]))
        return
    start, size, runs = spans[-1]
    last = runs[-1]
    if last.paddr + last.size == run.paddr:
        runs[-1] = Run(last.vaddr, last.paddr, last.size + run.size)
    else:
        runs.append(run)
    spans[-1] = Span(start, size + run.size, runs)


def search(
    read: Callable[[int, int], bytes],
    spans: Sequence[Span],
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
    done, total = 0, sum(span.size for span in spans)
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
    index = bisect_right(span.runs, address, key=lambda run: run.vaddr) - 1
    run = span.runs[index]
    return Match(
        paddr=address - run.vaddr + run.paddr,
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
    index = bisect_right(span.runs, address, key=lambda run: run.vaddr) - 1
    parts = []
    while address < end:
        run = span.runs[index]
        step = min(end, run.vaddr + run.size) - address
        try:
            parts.append(read(address - run.vaddr + run.paddr, step))
        except FaultError:
            parts.append(bytes(step))
        address += step
        index += 1
    return parts[0] if len(parts) == 1 else b"".join(parts)

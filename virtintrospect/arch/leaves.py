"""Every page that page tables map, many tables at a time.

:func:`virtintrospect.arch.paging.walk` goes from an address to its page; this goes through the
tables themselves, for whole address spaces and for many of them at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from virtintrospect.arch.paging import Form, PagingMode
from virtintrospect.memory import PhysicalMemory

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Array = npt.NDArray[Any]

#: Rights of a page, as bits of :attr:`Leaves.rights`.
WRITABLE, USER, EXECUTABLE, PRESENT = 1, 2, 4, 8

#: Tables that are read at once, and entries of them: 4 MiB.
_AT_ONCE, _ENTRIES_AT_ONCE = 1024, 1 << 19
#: The same, of an address space of any size.
_ENTRIES_IN_ORDER = 1 << 17


class Leaves(NamedTuple):
    """Pages that were found together, as arrays of equal length; in no order."""

    #: Which of the top tables maps it: its index.
    root: npt.NDArray[np.int64]
    vaddr: npt.NDArray[np.uint64]
    paddr: npt.NDArray[np.uint64]
    #: The page has ``1 << shift`` bytes.
    shift: npt.NDArray[np.uint8]
    #: :data:`WRITABLE`, :data:`USER`, :data:`EXECUTABLE`, :data:`PRESENT`.
    rights: npt.NDArray[np.uint8]
    #: The entry that maps it, as it stands in memory.
    entry: npt.NDArray[np.uint64]


class Tables(NamedTuple):
    """Page tables that were read together: whose they are, and where they lie."""

    root: npt.NDArray[np.int64]
    paddr: npt.NDArray[np.uint64]
    #: Name of their level.
    level: str


class _Chunk(NamedTuple):
    """Tables of one level that wait to be read."""

    level: int
    root: Array
    table: Array
    vaddr: Array
    rights: Array


def leaves(
    memory: PhysicalMemory,
    mode: PagingMode,
    roots: npt.ArrayLike,
    start: int,
    end: int,
    limit: int,
    *,
    strict: bool = False,
) -> Iterator[tuple[Tables, Leaves]]:
    """Go through the page tables of one or many address spaces.

    :param roots: physical addresses of the top tables.
    :param start: first virtual address of interest; pages that begin below, but reach into the
        range, are included.
    :param end: first virtual address beyond the range; ``1 << 64`` is allowed.
    :param limit: tables that are read at most, altogether. Tables of a hostile guest may be
        one table 512 times over, on each level: without a limit there would be no end.
    :param strict: a table outside of memory is an error; else it maps nothing.
    :returns: batches of tables, each with the pages that they map; one of a thousand tables at
        most.
    :raises FaultError: a table lies outside of memory, and ``strict`` is set.
    """
    chunks = _chunks(memory, mode, roots, start, end, limit, _ENTRIES_AT_ONCE, strict=strict)
    for chunk, found, _ in chunks:
        yield Tables(chunk.root, chunk.table, mode.levels[chunk.level].name), found


def leaves_in_order(
    memory: PhysicalMemory, mode: PagingMode, root: int, start: int, end: int, limit: int
) -> Iterator[tuple[int, Leaves]]:
    """As :func:`leaves`, but of one address space, lowest address first.

    Whatever the tables say, no more is held than a batch of pages, and for each level 2^17
    tables and pages that wait for their turn. A page that takes several entries (64 KiB of
    ARM and RISC-V) is given in their parts.

    :returns: batches of pages; each with the address up to which all pages have now been
        given. That of the last one is ``end``, unless it was stopped by ``limit``.
    """
    import numpy as np

    waiting: list[Leaves] = []
    chunks = _chunks(memory, mode, [root], start, end, limit, _ENTRIES_IN_ORDER, strict=False)
    for chunk, found, todo in chunks:
        if len(found.vaddr):
            waiting.append(_by_address(found, mode.levels[chunk.level].shift))
        # What waits on top of the others is what is lowest.
        reached = int(todo[-1].vaddr[0]) if todo else end
        ready, waiting = waiting, []
        if todo:
            for pages in ready:
                cut = int(pages.vaddr.searchsorted(np.uint64(reached)))
                if cut < len(pages.vaddr):
                    waiting.append(_part(pages, slice(cut, None)))
            ready = [_part(pages, pages.vaddr < np.uint64(reached)) for pages in ready]
        found = Leaves(*_joined(list(ready), no_leaves()))
        yield reached, _sorted(found) if len(ready) > 1 else found


def _by_address(found: Leaves, shift: int) -> Leaves:
    """Pages of tables of one level in rising order, none larger than what an entry stands for.

    :param shift: of that level.
    """
    import numpy as np

    inner = found.vaddr & ((np.uint64(1) << found.shift.astype(np.uint64)) - np.uint64(1))
    parts = found._replace(
        paddr=found.paddr + inner, shift=np.minimum(found.shift, np.uint8(shift))
    )
    return _sorted(parts)


def _sorted(pages: Leaves) -> Leaves:
    import numpy as np

    return _part(pages, np.argsort(pages.vaddr, kind="stable"))


def _part(pages: Leaves, part: slice | Array) -> Leaves:
    columns: tuple[Array, ...] = pages
    return Leaves(*(column[part] for column in columns))


def _chunks(
    memory: PhysicalMemory,
    mode: PagingMode,
    roots: npt.ArrayLike,
    start: int,
    end: int,
    limit: int,
    at_once: int,
    *,
    strict: bool,
) -> Iterator[tuple[_Chunk, Leaves, list[_Chunk]]]:
    """Tables as they are read, the pages that they map, and what is still to be read.

    Of one address space the last of what is to be read has the lowest addresses.

    :param at_once: entries of tables that are read at once.
    """
    import numpy as np

    tops = np.atleast_1d(np.asarray(roots, dtype=np.uint64)) & np.uint64(mode.root_mask)
    numbers = np.arange(len(tops), dtype=np.int64)
    everything = np.full(len(tops), WRITABLE | USER | EXECUTABLE | PRESENT, dtype=np.uint8)
    todo = (
        []
        if not mode.levels
        else [_Chunk(0, numbers, tops, np.zeros(len(tops), dtype=np.uint64), everything)]
    )
    while todo and limit > 0:
        chunk = todo.pop()
        bits = mode.levels[chunk.level].bits
        most = min(_AT_ONCE, at_once >> bits, limit)
        if len(chunk.root) > most:
            todo.append(_cut(chunk, slice(most, None)))
            chunk = _cut(chunk, slice(0, most))
        limit -= len(chunk.root)
        found, below = _read(memory, mode, chunk, start, end, None if strict else [])
        if below is not None:
            todo.append(below)
        yield chunk, found, todo


def _cut(chunk: _Chunk, part: slice) -> _Chunk:
    return _Chunk(chunk.level, *(column[part] for column in chunk[1:]))


def _read(
    memory: PhysicalMemory,
    mode: PagingMode,
    chunk: _Chunk,
    start: int,
    end: int,
    faults: list[int] | None,
) -> tuple[Leaves, _Chunk | None]:
    """What the tables of a chunk map, and the tables that they lead to."""
    import numpy as np

    level = mode.levels[chunk.level]
    count = 1 << level.bits
    data = memory.gather(chunk.table.tolist(), count * mode.entry_size, faults)
    entries = np.frombuffer(data, dtype=f"<u{mode.entry_size}").reshape(-1, count)
    tables, slots = np.nonzero(entries)
    entries = entries[tables, slots].astype(np.uint64)
    vaddrs = chunk.vaddr[tables] | (slots.astype(np.uint64) << np.uint64(level.shift))
    if chunk.level == 0:
        vaddrs = _extended(mode, vaddrs)
    inside = vaddrs <= np.uint64(min(end, 1 << 64) - 1)
    inside &= (vaddrs | np.uint64((1 << level.shift) - 1)) >= np.uint64(start)
    tables, entries, vaddrs = tables[inside], entries[inside], vaddrs[inside]

    pages: list[tuple[Array, ...]] = []
    onward: list[tuple[Array, ...]] = []
    for form in mode.forms(level):
        hit = np.flatnonzero((entries & np.uint64(form.mask)) == np.uint64(form.value))
        if not len(hit):
            continue
        entry = entries[hit]
        rights = _rights(mode, form, entry, chunk.rights[tables[hit]])
        root = chunk.root[tables[hit]]
        address = _addresses(form, entry)
        if memory.frames is not None:
            address = memory.frames.physical_many(address)
        if not form.page_shift:
            onward.append((root, address, vaddrs[hit], rights))
            continue
        shift = np.full(len(hit), form.page_shift, dtype=np.uint8)
        pages.append((root, vaddrs[hit], address, shift, rights, entry))
    found = Leaves(*_joined(pages, no_leaves()))
    if not onward or chunk.level + 1 == len(mode.levels):
        return found, None
    return found, _in_turn(_Chunk(chunk.level + 1, *_joined(onward, ())), len(onward))


def _in_turn(chunk: _Chunk, forms: int) -> _Chunk:
    """Of one address space the lowest table first; each form of entries has been in order."""
    import numpy as np

    if forms < 2:
        return chunk
    order = np.lexsort((chunk.vaddr, chunk.root))
    return _Chunk(chunk.level, *(column[order] for column in chunk[1:]))


_TYPES = ("i8", "u8", "u8", "u1", "u1", "u8")


def no_leaves() -> Leaves:
    """No pages at all."""
    import numpy as np

    return Leaves(*(np.empty(0, dtype=kind) for kind in _TYPES))


def _joined(parts: list[tuple[Array, ...]], nothing: tuple[Array, ...]) -> tuple[Array, ...]:
    import numpy as np

    if len(parts) < 2:
        return parts[0] if parts else nothing
    return tuple(np.concatenate(columns) for columns in zip(*parts, strict=True))


def _extended(mode: PagingMode, vaddrs: Array) -> Array:
    """Addresses whose upper bits are copies of the topmost translated one.

    A top table that serves one half of the addresses alone has no such bit.
    """
    import numpy as np

    sign = np.uint64(1 << (mode.virtual_bits - 1))
    upper = np.uint64((1 << 64) - (1 << (mode.virtual_bits - 1)))
    if not mode.low:
        return vaddrs | upper
    return np.where(vaddrs & sign, vaddrs | upper, vaddrs) if mode.high else vaddrs


def _addresses(form: Form, entry: Array) -> Array:
    import numpy as np

    value = ~entry if form.inverted else entry
    address = value & np.uint64(form.frame)
    for bits, left in form.scattered:
        address |= (value & np.uint64(bits)) << np.uint64(left)
    return address


def _rights(mode: PagingMode, form: Form, entry: Array, above: Array) -> Array:
    """The rights of all levels together; see :class:`~virtintrospect.arch.paging.Walk`."""
    import numpy as np

    if not form.page_shift and (form.bare or not mode.hierarchical):
        return above
    where = form.rights or mode
    flags = entry ^ np.uint64(where.negated)
    own = np.zeros(len(entry), dtype=np.uint8)
    own |= np.where(flags & np.uint64(where.writable), np.uint8(WRITABLE), np.uint8(0))
    own |= np.where(flags & np.uint64(where.user), np.uint8(USER), np.uint8(0))
    forbids = np.where(
        flags & np.uint64(where.user),
        np.uint64(where.user_no_execute or where.no_execute),
        np.uint64(where.no_execute),
    )
    own |= np.where(flags & forbids, np.uint8(0), np.uint8(EXECUTABLE))
    if not (form.inverted or form.absent):
        own |= np.uint8(PRESENT)
    result: Array = own & above
    return result

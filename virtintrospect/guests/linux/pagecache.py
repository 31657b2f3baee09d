"""Content of files that the guest has in its page cache (mm/filemap.c, mm/shmem.c).

``address_space.i_pages`` has a page, or a folio of several, for each part of a file that is in
memory; what is on disk only is not there. Files of tmpfs and of the initramfs have no other
place, so they are there whole, unless they were swapped out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from virtintrospect.errors import CorruptDataError, FaultError
from virtintrospect.guests.linux.xarray import Span, walk_spans

if TYPE_CHECKING:
    from virtintrospect.guests.linux.budget import Budget
    from virtintrospect.guests.linux.guest import LinuxGuest

#: Bytes of a file that are read unless the caller wants fewer.
LIMIT = 1 << 20
#: A ``struct page`` has 64 bytes, of 32-bit kernels 32 or 40; kernels for debugging have more.
_PAGE_SIZES = range(32, 257, 4)


class CachedFile(NamedTuple):
    """What is in memory of a file."""

    #: Bytes of the whole file (``i_size``); ``None`` where that cannot be read.
    size: int | None
    #: Its pieces, in order, as (offset, bytes); adjacent ones are joined.
    pieces: tuple[tuple[int, bytes], ...]
    #: Bytes from its start that were wanted at most.
    limit: int

    @property
    def whole(self) -> bytes | None:
        """The content; ``None`` where some of it is not in memory, or it is larger than wanted."""
        if self.size == 0:
            return b""
        if len(self.pieces) == 1 and not self.pieces[0][0]:
            content = self.pieces[0][1]
            return content if len(content) == self.size else None
        return None


def read_inode(guest: LinuxGuest, inode: int, budget: Budget, *, limit: int = LIMIT) -> CachedFile:
    """What is in the page cache of a file, up to ``limit`` bytes from its start.

    :param inode: address of its ``struct inode``.
    """
    layout = guest.layout(
        "inode",
        {"size": "i_size", "mapping": "i_mapping", "root": "i_mapping.i_pages.xa_head"},
        text=(),
    )
    size, mapping, root = (column[0] for column in layout.lists(guest.kernel, [inode], []).values())
    if size is None or root is None or size < 0:
        guest.note("unreadable file", inode)
        return CachedFile(None, (), limit)
    wanted = min(size, limit)
    if wanted <= 0:
        return CachedFile(size, (), limit)
    page = guest.page_size
    last = (wanted - 1) // page
    pages = _pages(guest, mapping, walk_spans(guest, root, budget, last=last), last)
    pieces: list[tuple[int, bytes]] = []
    for index, frame in sorted(pages.items()):
        offset = index * page
        length = min(page, wanted - offset)
        if not budget.keep(length):
            break
        try:
            data = guest.memory.read(frame * page, length)
        except FaultError as error:
            guest.note("page of a file outside of memory", error.address)
            continue
        if pieces and pieces[-1][0] + len(pieces[-1][1]) == offset:
            pieces[-1] = (pieces[-1][0], pieces[-1][1] + data)
        else:
            pieces.append((offset, data))
    return CachedFile(size, tuple(pieces), limit)


def _pages(guest: LinuxGuest, mapping: int, spans: list[Span], last: int) -> dict[int, int]:
    """Page frame of each page of a file that is up to date, by its index."""
    # A folio's head is its first page; before 5.16 there was no name for it.
    kind = "folio" if guest.types.has("folio", "mapping") else "page"
    members = {"flags": "flags.f|flags", "mapping": "mapping"}
    columns = guest.layout(kind, members, text=()).lists(
        guest.kernel, [span.entry for span in spans], []
    )
    uptodate = 1 << (guest.types.enumerators("pageflags").get("PG_uptodate", 2) & 63)
    base, size = page_array(guest)
    found: dict[int, int] = {}
    before, start = 0, 0
    for span, flags, owner in zip(spans, *columns.values(), strict=True):
        # Before 5.17 the head of a huge page is there once for each of its pages.
        start = start if span.entry == before else span.first
        before = span.entry
        if flags is None or owner != mapping:
            guest.note("page cache with a page of another file", span.entry)
            continue
        frame, rest = divmod(span.entry - base, size)
        if rest or frame < 0:
            guest.note("page cache with what is no page", span.entry)
        elif flags & uptodate:
            for index in range(span.first, min(span.last, last) + 1):
                found[index] = frame + index - start
    return found


def page_array(guest: LinuxGuest) -> tuple[int, int]:
    """Address and element size of the array of all pages (``pfn_to_page()``)."""
    size = guest.types.sizeof("page")
    if size not in _PAGE_SIZES or size % guest.types.pointer_size:
        raise CorruptDataError(f"a struct page of {size} bytes", 0)
    base = guest.machine.page_array(guest, size)
    frames = guest.memory.end // guest.page_size + 1
    if not 0 <= base <= guest.kernel.last - frames * size:
        raise CorruptDataError(f"an array of pages at {base:#x}", 0)
    return base, size

"""Guest RAM that QEMU shares: memfd, hugetlbfs, tmpfs or a plain file, mapped here too."""

from __future__ import annotations

import mmap
import struct
import sys
from collections.abc import Callable, Iterator, Sequence
from time import monotonic_ns

from virtintrospect.errors import MemoryAccessError
from virtintrospect.memory import Region
from virtintrospect_kvm.backing import BackingFile
from virtintrospect_kvm.pagemap import Pagemap
from virtintrospect_kvm.process import QemuProcess

#: Reads of a session through the file, before it goes over to the mapping.
_SHORT_LOOK = 3 << 16
#: Bytes of pages that are copied at once when many small structures lie on few pages.
_PAGES = 16 << 20
#: Numbers read one after the other from one page, before that page is looked up at once.
_HOT = 256

_unpack_u64 = struct.Struct("<Q").unpack_from


class SharedBlock:
    """One shared RAM block, mapped read-only into this process.

    Which pages may be touched is known from the page tables of QEMU: a page that QEMU has
    mapped is allocated. Every other page is read through the file instead of the mapping:
    reading a hole of a tmpfs, memfd or hugetlbfs *file* gives zeros and allocates nothing,
    reading a hole through a *mapping* allocates a page (and on hugetlbfs may raise SIGBUS).
    So data that only another process has written, such as a vhost-user back-end, is found too.

    A page that the guest gives back (balloon, free page reporting) after it was seen resident
    is allocated again, empty, by a read that comes before :meth:`forget`.

    :param descriptor: the file, open for reading; the block takes it over.
    :param offset: offset of the block in the file, in bytes.
    :param size: bytes.
    """

    def __init__(
        self, process: QemuProcess, pagemap: Pagemap, descriptor: int, offset: int, size: int
    ) -> None:
        self._process = process
        self._pagemap = pagemap
        self.size = size
        self._map = mmap.mmap(
            descriptor, size, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ, offset=offset
        )
        self._whole = memoryview(self._map)
        self._file = BackingFile(descriptor, offset)
        self._copies = 0
        self._last_page, self._in_a_row = -1, 0
        self.present = pagemap.present

    def read(self, offset: int, size: int) -> bytes:
        """Bytes at an offset in the block; the range must lie inside it."""
        if monotonic_ns() >= self._process.check_at:
            self._process.check()
        if self._knows(offset, size):
            return self._map[offset : offset + size]
        return self._file.read(offset, size)

    def read_into(self, offset: int, out: memoryview) -> None:
        """Fill ``out`` from an offset in the block; never through the mapping."""
        self._process.check()
        self._file.read_into(offset, out)

    def read_u64(self, offset: int) -> int:
        """The 64-bit number at an offset: the shortest way for the most frequent read."""
        if monotonic_ns() >= self._process.check_at:
            self._process.check()
        if self.present[offset >> 12] and offset & 0xFFF <= 0xFF8:
            number: int = _unpack_u64(self._map, offset)[0]
            return number
        self._in_a_row = self._in_a_row + 1 if offset >> 12 == self._last_page else 0
        self._last_page = offset >> 12
        if self._in_a_row >= _HOT:
            self._pagemap.resident(offset, 8)
        return int.from_bytes(self.read(offset, 8), "little")

    def reader_u64(
        self, start: int, end: int, shift: int, otherwise: Callable[[int], int]
    ) -> Callable[[int], int]:
        """A function that reads 64-bit numbers at guest-physical addresses of this block.

        :param start: first address that it may read by itself; ``end`` is the first beyond.
        :param shift: what to subtract from an address to get an offset in the block.
        :param otherwise: reads what is not known to be safe, and notices the guest's end.
        """
        process, present, mapped = self._process, self.present, self._map

        def read_u64(paddr: int) -> int:
            if start <= paddr < end and monotonic_ns() < process.check_at:
                offset = paddr - shift
                if present[offset >> 12] and offset & 0xFFF <= 0xFF8:
                    number: int = _unpack_u64(mapped, offset)[0]
                    return number
            return otherwise(paddr)

        return read_u64

    def gather(self, offsets: Sequence[int], size: int) -> bytes:
        """Bytes at many offsets, in their order."""
        if monotonic_ns() >= self._process.check_at:
            self._process.check()
        present, last = self.present, size - 1
        if size <= 4096 and 0 not in [
            present[o >> 12] and present[(o + last) >> 12] for o in offsets
        ]:
            mapped = self._map
            return b"".join([mapped[o : o + size] for o in offsets])
        pages = {o >> 12 for o in offsets}
        dense = size <= 4096 and len(pages) <= min(len(offsets) // 2, _PAGES >> 12)
        copies = self._copies + (len(pages) if dense else len(offsets))
        if copies > _SHORT_LOOK:
            return b"".join([self.read(o, size) for o in offsets])
        self._copies = copies
        if not dense:
            return b"".join([self._file.read(o, size) for o in offsets])
        # Slabs: a system call for each page, not for each object. What begins on a page may
        # end on the next.
        found = {page: self._file.read(page << 12, 4096 + last) for page in pages}
        return b"".join([found[o >> 12][o & 0xFFF : (o & 0xFFF) + size] for o in offsets])

    def _knows(self, offset: int, size: int) -> bool:
        """Whether a range may be read through the mapping.

        At first nothing is: a short look costs no more through the file, and then none of the
        guest's pages count as this process's memory (a fault on a mapping brings in 64 KiB).
        After :data:`_SHORT_LOOK` reads, each page of a large one counted, the session is a long
        one, and pages are looked up.
        """
        if self.present.find(0, offset >> 12, ((offset + size - 1) >> 12) + 1) < 0:
            return True
        self._copies += 1 + (size >> 12)
        return self._copies > _SHORT_LOOK and self._pagemap.resident(offset, size)

    def view(self, offset: int, size: int) -> memoryview | None:
        """A window on the mapping, or ``None`` when a page of it is not resident."""
        self._process.check()
        return self._whole[offset : offset + size] if self._pagemap.resident(offset, size) else None

    def whole(self) -> memoryview:
        """The mapping of the whole block; only what :attr:`present` marks may be touched."""
        self._process.check()
        return self._whole

    def extents(self, offset: int, size: int, *, swapped: bool = False) -> Iterator[Region]:
        """Offsets that hold data, as the file's own holes tell or else QEMU's page tables.

        What the host swapped out of a memfd is no hole of it, whether asked for or not.
        """
        if self._file.knows_holes:
            return self._file.extents(offset, size, self._process.check)
        return self._pagemap.extents(offset, size, swapped=swapped)

    def first_absent(self, offset: int, size: int) -> int | None:
        """Offset of the first page of a range that the host has not got."""
        if self._file.knows_holes:
            return self._file.first_hole(offset, size)
        return self._pagemap.first_absent(offset, size)

    def write(self, offset: int, data: bytes) -> None:
        """Write to a range of which no page is absent.

        :raises MemoryAccessError: it cannot be mapped for that.
        """
        self._process.check()
        try:
            self._file.write(offset, data)
        except (OSError, ValueError) as error:
            raise MemoryAccessError(f"the guest's RAM cannot be written: {error}") from error

    def forget(self) -> None:
        """Drop what is known of residency, and what of the mapping counts as our memory."""
        self._pagemap.forget()
        self._copies = 0
        self._map.madvise(mmap.MADV_DONTNEED)

    def outlive(self) -> None:
        """Go on after QEMU's end: pages that are not known are read through the file."""
        self._copies = -sys.maxsize

    def close(self) -> None:
        """Unmap; closing twice is harmless."""
        if self._file.descriptor < 0:
            return
        self._file.close()
        try:
            self._whole.release()
            self._map.close()
        except BufferError:
            # Somebody still holds a view: the mapping goes away with the last one.
            pass

"""The file behind shared RAM: read it without allocating anything, and find its holes."""

from __future__ import annotations

import errno
import mmap
import os
import sys
from collections.abc import Callable, Iterator
from typing import Literal

from virtintrospect.errors import FaultError
from virtintrospect.memory import Region

#: Formats of :class:`memoryview` for numbers of so many bytes.
_WORDS: dict[int, Literal["H", "I", "Q"]] = {2: "H", 4: "I", 8: "Q"}


class BackingFile:
    """A range of a memfd, of a file on hugetlbfs or tmpfs, or of a plain file.

    Reading a hole of such a *file* gives zeros and allocates nothing, while reading a hole
    through a *mapping* allocates a page (and on hugetlbfs may raise SIGBUS).

    :param descriptor: the file, open for reading; taken over.
    :param offset: where the range begins, in bytes.
    """

    def __init__(self, descriptor: int, offset: int) -> None:
        self.descriptor = descriptor
        self._offset = offset
        #: Only tmpfs (memfd included) and disk file systems know their holes; on hugetlbfs all
        #: is "data" (default_llseek in fs/read_write.c).
        self.knows_holes = os.fstatvfs(descriptor).f_bsize == mmap.PAGESIZE

    def read(self, offset: int, size: int) -> bytes:
        """Bytes at an offset in the range; zeros where the file ends or has a hole.

        :raises FaultError: the host's memory is broken there (EIO of mm/shmem.c).
        """
        try:
            data = os.pread(self.descriptor, size, self._offset + offset)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            raise _broken(offset, size) from error
        if len(data) == size:
            return data
        out = bytearray(size)
        self.read_into(offset, memoryview(out))
        return bytes(out)

    def read_into(self, offset: int, out: memoryview) -> None:
        """As :meth:`read`, as many bytes as ``out`` has, into it."""
        done = 0
        while done < len(out):
            try:
                count = os.preadv(self.descriptor, [out[done:]], self._offset + offset + done)
            except OSError as error:
                if error.errno != errno.EIO:
                    raise
                raise _broken(offset + done, len(out)) from error
            if not count:  # only now it is the end of the file: what is broken makes it short, too
                break
            done += count
        out[done:] = bytes(len(out) - done)

    def first_hole(self, offset: int, size: int) -> int | None:
        """Offset of the first byte of a range without data; only where :attr:`knows_holes`."""
        start, end = self._offset + offset, self._offset + offset + size
        try:
            hole = os.lseek(self.descriptor, start, os.SEEK_HOLE)
        except OSError:  # ENXIO: the file ends before
            return offset
        return None if hole >= end else max(start, hole) - self._offset

    def write(self, offset: int, data: bytes) -> None:
        """Write to a range that is no hole; the file must have been opened for it.

        Through a mapping that lasts no longer: a number of 2, 4 or 8 bytes at a multiple of its
        size is stored by one instruction, and no guest ever sees a part of it.
        """
        position = self._offset + offset
        unit = max(mmap.PAGESIZE, os.fstatvfs(self.descriptor).f_bsize)  # huge pages: theirs
        start = position - position % unit
        end = -(-(position + len(data)) // unit) * unit
        with mmap.mmap(self.descriptor, end - start, offset=start) as window:
            at, size = position - start, len(data)
            kind = _WORDS.get(size)
            if kind is not None and at % size == 0:
                with memoryview(window) as view, view.cast(kind) as words:
                    words[at // size] = int.from_bytes(data, sys.byteorder)
            else:
                window[at : at + size] = data

    def extents(self, offset: int, size: int, check: Callable[[], None]) -> Iterator[Region]:
        """Offsets in the range that hold data; only where :attr:`knows_holes`.

        :param check: called before each step; raises when the guest has ended.
        """
        position, end = self._offset + offset, self._offset + offset + size
        while position < end:
            check()
            try:
                start = os.lseek(self.descriptor, position, os.SEEK_DATA)
            except OSError:  # ENXIO: no data up to the end of the file
                return
            if start >= end:
                return
            position = min(os.lseek(self.descriptor, start, os.SEEK_HOLE), end)
            yield Region(start - self._offset, position - self._offset)

    def close(self) -> None:
        """Close the file; closing twice is harmless."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1


def _broken(offset: int, size: int) -> FaultError:
    return FaultError(offset, size, kind="RAM block", hint="the host's memory is broken there")

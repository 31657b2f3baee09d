"""Guest-physical memory in a file: what all image formats have in common."""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from virtintrospect.errors import (
    ImageFormatError,
    MemoryAccessError,
    NotWritableError,
)
from virtintrospect.memory.base import PAGE_SIZE, PhysicalMemory, Region, merge


class Part(NamedTuple):
    """A guest-physical range and the bytes of the file that hold it.

    Memory from ``start + length`` to ``end`` is not in the file and reads as zeros.
    """

    start: int
    end: int
    #: Offset in the file, in bytes.
    offset: int
    #: Bytes in the file.
    length: int


class FileImage(PhysicalMemory):
    """A memory image, read with ``pread``.

    Not mapped, so there is no zero-copy :meth:`view`: the file of a stranger may be cut short
    while it is mapped, and the next access would kill this process (SIGBUS). A small read
    costs about 0.6 µs instead of 0.1 µs.

    :param path: the file's name, for messages.
    :param descriptor: the file, open for reading; the image takes it over.
    :param parts: what is where; sorted by address, without overlap.
    """

    def __init__(self, path: str, descriptor: int, parts: Sequence[Part]) -> None:
        self.path = path
        self._descriptor = descriptor
        self._place(parts)

    def _place(self, parts: Sequence[Part]) -> None:
        self._parts = tuple(parts)
        self.regions = tuple(Region(part.start, part.end) for part in parts)
        self._starts = [part.start for part in parts]

    def region_index(self, paddr: int) -> int:
        """Index in :attr:`regions` of the region that holds ``paddr``, or -1.

        An ELF core may have a thousand.
        """
        index = bisect_right(self._starts, paddr) - 1
        return index if index >= 0 and paddr < self.regions[index].end else -1

    def _read_within(self, index: int, paddr: int, size: int) -> bytes:
        start, _, offset, length = self._parts[index]
        at = paddr - start
        there = min(size, length - at)
        if there <= 0:
            return bytes(size)
        if self._descriptor < 0:
            raise MemoryAccessError(f"{self.path} is closed")
        try:
            data = os.pread(self._descriptor, there, offset + at)
        except OSError as error:
            raise MemoryAccessError(
                f"{self.path}: cannot read at offset {offset + at:#x}: {error.strerror}"
            ) from error
        if len(data) != there:
            raise ImageFormatError(
                self.path, offset + at + len(data), "the file was cut short while in use"
            )
        return data if there == size else data + bytes(size - there)

    def allow_writing(self, descriptor: int) -> None:
        """Let the file be changed where it is: its bytes *are* the memory.

        Not where they are those of another file, what was unpacked from this one.

        :param descriptor: the file that the user named, open for writing, too.
        """
        self.writable = descriptor == self._descriptor

    def _check_write_within(self, index: int, paddr: int, size: int) -> None:
        start, _, offset, length = self._parts[index]
        if paddr + size > start + length:
            raise NotWritableError(
                max(paddr, start + length), "these zeros are not in the file: there is no room"
            )
        end = offset + length
        if any(
            part.offset < end and offset < part.offset + part.length
            for number, part in enumerate(self._parts)
            if number != index
        ):
            raise NotWritableError(
                paddr, "the file shows these bytes at other addresses, too: there is no room"
            )

    def _write_within(self, index: int, paddr: int, data: bytes) -> None:
        start, _, offset, _ = self._parts[index]
        at = offset + paddr - start
        if self._descriptor < 0:
            raise MemoryAccessError(f"{self.path} is closed")
        while data:
            try:
                done = os.pwrite(self._descriptor, data, at)
            except OSError as error:
                raise MemoryAccessError(
                    f"{self.path}: cannot write at offset {at:#x}: {error.strerror}"
                ) from error
            at, data = at + done, data[done:]

    def resident(self) -> Iterator[Region]:
        """Ranges that hold data: holes of a sparse file are left out, in whole pages."""
        return merge(self._data())

    def _data(self) -> Iterator[Region]:
        for start, _, offset, length in self._parts:
            for run in self._extents(offset, offset + length):
                first = start + max(run.start - offset, 0) // PAGE_SIZE * PAGE_SIZE
                last = start + -(-(run.end - offset) // PAGE_SIZE) * PAGE_SIZE
                yield Region(first, min(last, start + length))

    def _extents(self, position: int, end: int) -> Iterator[Region]:
        """File ranges with data (lseek(2), SEEK_DATA); all of it where that is not known."""
        while position < end:
            try:
                first = os.lseek(self._descriptor, position, os.SEEK_DATA)
                last = os.lseek(self._descriptor, first, os.SEEK_HOLE)
            except OSError:
                return  # ENXIO: nothing but a hole up to the end of the file
            if first < end:
                yield Region(first, min(last, end))
            position = max(last, position + 1)

    def close(self) -> None:
        """Close the file; closing twice is harmless."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

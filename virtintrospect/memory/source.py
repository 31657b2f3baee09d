"""Bytes of an image by offset: of the file itself, or of what a flattened file stands for."""

from __future__ import annotations

import os
import struct
from bisect import bisect_right
from itertools import pairwise
from typing import NamedTuple

from virtintrospect.errors import ImageFormatError, MemoryAccessError

#: makedumpfile's mark of a flattened dump, and where its records begin (makedumpfile.h).
FLATTENED = b"makedumpfile\0\0\0\0"
_RECORDS_AT = 4096
_RECORD = struct.Struct(">qq")
#: QEMU writes a record for each 4 MiB of pages, makedumpfile one for a few pages.
_MOST_RECORDS = 1 << 22


class Source:
    """A file, read at offsets; never mapped, since it may be cut short while it is used.

    :param path: the file's name, for messages.
    :param descriptor: the file, open for reading; taken over.
    :param size: bytes of it.
    """

    def __init__(self, path: str, descriptor: int, size: int) -> None:
        self.path = path
        self.size = size
        self._descriptor = descriptor

    def read(self, offset: int, size: int, what: str = "data") -> bytes:
        """Exactly ``size`` bytes; the range is checked before anything is allocated.

        :raises ImageFormatError: the file ends before.
        :raises MemoryAccessError: it cannot be read, or is closed.
        """
        self.check(offset, size, what)
        return self._read(offset, size)

    def check(self, offset: int, size: int, what: str) -> None:
        """Raise :exc:`ImageFormatError` where a range is not within the file."""
        if offset < 0 or size < 0 or offset + size > self.size:
            raise ImageFormatError(
                self.path, self.size, f"truncated: {what} of {size} bytes would be at {offset:#x}"
            )

    def _read(self, offset: int, size: int) -> bytes:
        if self._descriptor < 0:
            raise MemoryAccessError(f"{self.path} is closed")
        try:
            data = os.pread(self._descriptor, size, offset)
        except OSError as error:
            raise MemoryAccessError(
                f"{self.path}: cannot read at offset {offset:#x}: {error.strerror}"
            ) from error
        if len(data) != size:
            raise ImageFormatError(
                self.path, offset + len(data), "the file was cut short while in use"
            )
        return data

    def close(self) -> None:
        """Close the file; closing twice is harmless."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


class _Piece(NamedTuple):
    """A range of the file that is meant, and where it is in the file that is there."""

    start: int
    end: int
    at: int


class FlattenedSource(Source):
    """makedumpfile's flattened form: records of (offset, size, bytes) in any order.

    QEMU writes kdump files so (``dump-guest-memory -z``, ``virsh dump --format kdump-zlib``),
    as it may write into a pipe. A later record replaces an earlier one where both overlap.
    """

    def __init__(self, path: str, descriptor: int, size: int) -> None:
        super().__init__(path, descriptor, size)
        self._pieces: list[_Piece] = []
        self._starts: list[int] = []
        pieces = self._index(size)
        self._pieces, self._starts = pieces, [piece.start for piece in pieces]
        self.size = pieces[-1].end if pieces else 0

    def _index(self, size: int) -> list[_Piece]:
        pieces: list[_Piece] = []
        position = _RECORDS_AT
        sorted_so_far = True
        while True:
            if position + _RECORD.size > size:
                raise ImageFormatError(
                    self.path, size, "truncated: the flattened dump has no end mark"
                )
            offset, length = _RECORD.unpack(super()._read(position, _RECORD.size))
            if offset < 0:  # END_FLAG_FLAT_HEADER
                break
            position += _RECORD.size
            if length <= 0 or offset >= 1 << 62 or position + length > size:
                raise ImageFormatError(
                    self.path, position - 8, f"a record of {length} bytes does not fit the file"
                )
            if len(pieces) >= _MOST_RECORDS:
                raise ImageFormatError(self.path, position, "more records than any dump has")
            piece = _Piece(offset, offset + length, position)
            sorted_so_far &= not pieces or pieces[-1].end <= piece.start
            pieces.append(piece)
            position += length
        return pieces if sorted_so_far else _settled(pieces)

    def _read(self, offset: int, size: int) -> bytes:
        parts = []
        index = bisect_right(self._starts, offset) - 1
        while size > 0:
            piece = self._pieces[index] if index >= 0 else None
            if piece is not None and offset < piece.end:
                step = min(size, piece.end - offset)
                parts.append(super()._read(piece.at + offset - piece.start, step))
            else:  # never written: zeros, as in the sparse file that it would be
                following = self._starts[index + 1] if index + 1 < len(self._starts) else self.size
                step = min(size, following - offset)
                parts.append(bytes(step))
            offset += step
            size -= step
            if index + 1 < len(self._starts) and offset >= self._starts[index + 1]:
                index += 1
        return b"".join(parts)


def _settled(pieces: list[_Piece]) -> list[_Piece]:
    """Pieces sorted and without overlap: of two that overlap the later one counts.

    A sweep over all borders with the pieces that are open there, latest first.
    """
    from heapq import heappop, heappush

    borders = sorted({piece.start for piece in pieces} | {piece.end for piece in pieces})
    by_start = sorted(range(len(pieces)), key=lambda number: pieces[number].start)
    open_pieces: list[int] = []
    found: list[_Piece] = []
    following = 0
    for start, end in pairwise(borders):
        while following < len(by_start) and pieces[by_start[following]].start <= start:
            heappush(open_pieces, -by_start[following])
            following += 1
        while open_pieces and pieces[-open_pieces[0]].end <= start:
            heappop(open_pieces)
        if open_pieces:
            piece = pieces[-open_pieces[0]]
            found.append(_Piece(start, end, piece.at + start - piece.start))
    return found


def open_source(path: str, descriptor: int, size: int) -> Source:
    """The file's bytes, whether it is flattened or not."""
    if os.pread(descriptor, len(FLATTENED), 0) == FLATTENED:
        return FlattenedSource(path, descriptor, size)
    return Source(path, descriptor, size)

"""Compressed AVML images: LiME's headers, version 2, and a stream of Snappy frames behind each.

Source: AVML's src/image.rs; Snappy's framing_format.txt. A frame holds at most 64 KiB, so that
reading a page means to decompress no more than that.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

from virtintrospect.errors import ImageFormatError
from virtintrospect.memory.base import PAGE_SIZE, Region, merge
from virtintrospect.memory.codecs import decompressor
from virtintrospect.memory.lime import HEADER, MOST_RANGES, range_header
from virtintrospect.memory.paged import PagedMemory
from virtintrospect.memory.source import Source

MAGIC = b"AVML"
_COMPRESSED, _PLAIN, _STREAM = 0x00, 0x01, 0xFF
#: Chunks that a reader must skip (padding 0xfe, reserved 0x80 to 0xfd).
_SKIPPABLE = range(0x80, 0xFF)
_LARGEST_FRAME = 65536
_MOST_FRAMES = 1 << 24
#: Chunks without data of a range: a mark at its start, padding.
_MOST_SKIPPED = 1 << 10
#: Frames that are kept decompressed.
_KEPT = 128


class _Frame(NamedTuple):
    start: int
    length: int
    #: Of the data behind header and checksum.
    offset: int
    size: int
    compressed: bool


class AvmlImage(PagedMemory):
    """Guest memory in a compressed AVML image.

    :param source: the file, which is taken over.
    :raises ImageFormatError: it is truncated or contradicts itself.
    """

    def __init__(self, source: Source) -> None:
        super().__init__(PAGE_SIZE)
        self._source = source
        self._snappy = decompressor("snappy")
        frames: list[_Frame] = []
        ranges: list[Region] = []
        offset = 0
        while offset < source.size:
            if len(ranges) >= MOST_RANGES:
                raise ImageFormatError(source.path, offset, "more ranges than any machine has")
            start, end = range_header(source, offset, MAGIC, 2)
            ranges.append(Region(start, end))
            offset = self._frames_of(start, end, offset + HEADER.size, frames)
        ranges.sort()
        for before, after in pairwise(ranges):
            if after.start < before.end:
                raise ImageFormatError(source.path, 0, f"ranges overlap at {after.start:#x}")
        self.regions = tuple(merge(ranges))
        self._frames = sorted(frames)
        self._starts = [frame.start for frame in self._frames]
        self._plain: OrderedDict[int, bytes] = OrderedDict()

    def _frames_of(self, start: int, end: int, offset: int, frames: list[_Frame]) -> int:
        """Note the frames of a range; the offset behind them and their trailer."""
        if start % PAGE_SIZE:
            raise ImageFormatError(
                self._source.path, offset, f"a range that begins at {start:#x}, within a page"
            )
        first = offset
        skipped = 0
        while start < end:
            head = self._source.read(offset, 4, "a Snappy frame")
            kind, size = head[0], int.from_bytes(head[1:], "little")
            self._source.check(offset + 4, size, "a Snappy frame")
            if kind in (_COMPRESSED, _PLAIN):
                length = self._length(kind, offset, size)
                if length > min(_LARGEST_FRAME, end - start) or length % PAGE_SIZE or not length:
                    raise ImageFormatError(
                        self._source.path, offset, f"a frame of {length} bytes makes no sense"
                    )
                if len(frames) >= _MOST_FRAMES:
                    raise ImageFormatError(self._source.path, offset, "too many frames")
                frames.append(_Frame(start, length, offset + 8, size - 4, kind == _COMPRESSED))
                start += length
            elif kind != _STREAM and kind not in _SKIPPABLE:
                raise ImageFormatError(self._source.path, offset, f"frame of kind {kind:#x}")
            else:
                skipped += 1
                if skipped > _MOST_SKIPPED:
                    raise ImageFormatError(self._source.path, offset, "too many frames of nothing")
            offset += 4 + size
        trailer = int.from_bytes(self._source.read(offset, 8, "a range's trailer"), "little")
        if trailer != offset - first:
            raise ImageFormatError(self._source.path, offset, "the range has another length")
        return offset + 8

    def _length(self, kind: int, offset: int, size: int) -> int:
        """Bytes of a frame when decompressed: Snappy's preamble, a varint."""
        if size < 5:
            raise ImageFormatError(self._source.path, offset, "a frame without data")
        if kind == _PLAIN:
            return size - 4
        length = 0
        for position, byte in enumerate(self._source.read(offset + 8, min(5, size - 4))):
            length |= (byte & 0x7F) << 7 * position
            if byte < 0x80:
                break
        return length

    def _load(self, number: int) -> bytes:
        address = number * PAGE_SIZE
        index = bisect_right(self._starts, address) - 1
        at = address - self._starts[index]
        return self._frame(index)[at : at + PAGE_SIZE]

    def _frame(self, index: int) -> bytes:
        found = self._plain.get(index)
        if found is not None:
            self._plain.move_to_end(index)
            return found
        frame = self._frames[index]
        data = self._source.read(frame.offset, frame.size, "a frame's data")
        if frame.compressed:
            try:
                data = self._snappy(data, frame.length)
            except ValueError as error:
                raise ImageFormatError(
                    self._source.path, frame.offset, f"a damaged frame: {error}"
                ) from error
        self._plain[index] = data
        if len(self._plain) > _KEPT:
            self._plain.popitem(last=False)
        return data

    def resident(self) -> Iterator[Region]:
        """All of it: AVML writes every page."""
        yield from self.regions

    def close(self) -> None:
        """Close the file; closing twice is harmless."""
        self._blocks.clear()
        self._plain.clear()
        self._source.close()

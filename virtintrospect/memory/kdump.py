"""kdump-compressed dumps (``KDUMP``, ``DISKDUMP``), as QEMU, makedumpfile and libvirt write them.

``virsh dump --memory-only --format kdump-zlib`` makes one in its flattened form. Source of the
layout: makedumpfile's diskdump_mod.h and IMPLEMENTATION, QEMU's include/sysemu/dump.h. In front
are a header, a sub-header and two bitmaps (which page frames are RAM, which of them the file
has), then a descriptor of 24 bytes for each page that is there.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterator
from functools import cached_property
from itertools import islice

from virtintrospect.errors import ImageFormatError
from virtintrospect.memory.base import Region, merge
from virtintrospect.memory.codecs import decompressor
from virtintrospect.memory.paged import PagedMemory
from virtintrospect.memory.source import Source

SIGNATURES = (b"KDUMP   ", b"DISKDUMP")

#: status, block_size, sub_hdr_size, bitmap_blocks, max_mapnr of struct disk_dump_header; behind
#: signature, version, utsname (6 × 65 bytes) and a time of 16 bytes.
_HEADER = struct.Struct("<8si390s6x16s I i i I I")
#: phys_base, dump_level, split, start_pfn, end_pfn, offset and size of VMCOREINFO, of the notes
#: and of the erase info, start_pfn_64, end_pfn_64, max_mapnr_64 of struct kdump_sub_header.
_SUB_HEADER = struct.Struct("<QiiQQQQQQQQQQQ")
#: Version of the header from which on each of these is there.
_HAS_NOTES, _HAS_MAX_MAPNR_64 = 4, 6
_DESCRIPTOR = struct.Struct("<qIIQ")

#: QEMU counts in the largest pages that an AArch64 guest may have.
_PAGE_SIZES = (4096, 16384, 65536)

#: How a page is compressed: bits of its descriptor's flags.
_CODECS = {0x01: "zlib", 0x02: "lzo", 0x04: "snappy", 0x20: "zstd"}

#: x86-64 has at most 52 bits of physical address.
_MOST_FRAMES = 1 << 40
#: A bit a page frame: 256 MiB of bitmap are 8 TiB of guest.
_LARGEST_BITMAP = 1 << 28
#: Ranges of RAM that a guest can have; and of pages that are there, which may lie apart.
_MOST_RANGES, _MOST_RUNS = 1 << 16, 1 << 20
_LARGEST_SUB_HEADER = 64 << 20
#: Bytes of the bitmap between two running totals.
_STRIDE = 512


class KdumpImage(PagedMemory):
    """Guest memory in a kdump-compressed dump.

    A page that is RAM but not in the file (zero, or filtered out by makedumpfile) reads as
    zeros, as crash(8) shows it.

    :param source: the file, which is taken over.
    :raises ImageFormatError: it is truncated, contradicts itself, or is split over several files.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        header = _HEADER.unpack(source.read(0, _HEADER.size, "the header"))
        _, version, uts, _, _, block_size, sub_blocks, bitmap_blocks, frames = header
        if block_size not in _PAGE_SIZES:
            raise self._error(428, f"pages of {block_size} bytes are not supported")
        self._page = block_size
        #: Architecture of the guest as the file names it; empty where it does not.
        self.machine = uts[4 * 65 :].split(b"\0", 1)[0].decode("ascii", "replace")
        if not 0 < sub_blocks <= _LARGEST_SUB_HEADER // self._page:
            raise self._error(432, f"a sub-header of {sub_blocks} blocks makes no sense")
        if not 0 < bitmap_blocks <= 2 * _LARGEST_BITMAP // self._page:
            raise self._error(436, f"bitmaps of {bitmap_blocks} blocks make no sense")
        sub = _SUB_HEADER.unpack(source.read(self._page, _SUB_HEADER.size, "the sub-header"))
        if sub[2]:
            raise self._error(
                self._page + 12, "one of several files of a split dump",
                "put them together: makedumpfile --reassemble",
            )  # fmt: skip
        if version >= _HAS_MAX_MAPNR_64 and sub[13]:
            frames = sub[13]
        self.notes_range = (sub[7], sub[8]) if version >= _HAS_NOTES else (0, 0)
        bitmap_at = (1 + sub_blocks) * self._page
        size = bitmap_blocks // 2 * self._page
        if not 0 < frames <= min(_MOST_FRAMES, size * 8):
            raise self._error(440, f"{frames} page frames do not fit the bitmaps")
        self._ram = source.read(bitmap_at, size, "the first bitmap")
        self._there = source.read(bitmap_at + size, size, "the second bitmap")
        self._descriptors_at = bitmap_at + bitmap_blocks * self._page
        self._totals = _running_totals(self._there)
        count = self._totals[-1]
        source.check(self._descriptors_at, count * _DESCRIPTOR.size, "the table of pages")
        self.regions = tuple(islice(_runs(self._ram, frames, self._page), _MOST_RANGES + 1))
        if len(self.regions) > _MOST_RANGES:
            raise self._error(bitmap_at, "more ranges of RAM than any machine has")
        self._frames = frames
        self._codecs = {flag: decompressor(name) for flag, name in _CODECS.items()}
        super().__init__(self._page)

    def _load(self, number: int) -> bytes:
        byte, bit = divmod(number, 8)
        if not self._there[byte] >> bit & 1:
            return bytes(self._page)
        at = self._descriptors_at + self._rank(byte, bit) * _DESCRIPTOR.size
        descriptor = self._source.read(at, _DESCRIPTOR.size, "a page's descriptor")
        offset, size, flags, _ = _DESCRIPTOR.unpack(descriptor)
        if not 0 < size <= 2 * self._page:
            raise self._error(at, f"a page of {size} bytes makes no sense")
        data = self._source.read(offset, size, f"page {number:#x}")
        if not flags & sum(_CODECS):
            if size != self._page:
                raise self._error(at, f"an uncompressed page of {size} bytes")
            return data
        try:
            return self._codecs[flags & sum(_CODECS)](data, self._page)
        except KeyError:
            raise self._error(at, f"compression {flags:#x} is not known") from None
        except ValueError as error:
            raise self._error(offset, f"page {number:#x} is damaged: {error}") from error

    def _rank(self, byte: int, bit: int) -> int:
        """How many pages of the file come before this one."""
        stride = byte // _STRIDE
        before = self._there[stride * _STRIDE : byte]
        partial = self._there[byte] & ((1 << bit) - 1)
        return (
            self._totals[stride] + int.from_bytes(before, "little").bit_count()
            + partial.bit_count()
        )  # fmt: skip

    def resident(self) -> Iterator[Region]:
        """Ranges of the pages that the file has."""
        return merge(self._resident)

    @cached_property
    def _resident(self) -> list[Region]:
        runs = _runs(self._there, self._frames, self._page)
        found = list(islice(runs, _MOST_RUNS))
        if (following := next(runs, None)) is not None:  # it costs time to take zeros for data
            found.append(Region(following.start, self._frames * self._page))
        return found

    def close(self) -> None:
        """Close the file; closing twice is harmless."""
        self._blocks.clear()
        self._source.close()

    def _error(self, offset: int, problem: str, hint: str = "") -> ImageFormatError:
        return ImageFormatError(self._source.path, offset, problem, hint=hint)


def _running_totals(bitmap: bytes) -> array[int]:
    """Bits set before each stride of the bitmap, and altogether."""
    totals = array("Q", [0])
    for at in range(0, len(bitmap), _STRIDE):
        count = int.from_bytes(bitmap[at : at + _STRIDE], "little").bit_count()
        totals.append(totals[-1] + count)
    return totals


def _runs(bitmap: bytes, frames: int, page: int) -> Iterator[Region]:
    """Runs of set bits as ranges of addresses, in rising order."""
    import numpy as np

    start = None
    step = 1 << 20  # bytes of the bitmap at once
    for first in range(0, -(-frames // 8), step):
        piece = np.frombuffer(bitmap, np.uint8, min(step, len(bitmap) - first), first)
        if piece[0] == (0 if start is None else 0xFF) and (piece == piece[0]).all():
            continue  # the run, or the gap, goes on
        bits = np.unpackbits(piece, bitorder="little")[: frames - first * 8]
        edges = np.flatnonzero(np.diff(bits, prepend=np.uint8(start is not None)))
        for edge in edges.tolist():
            frame = first * 8 + edge
            if start is None:
                start = frame
            else:
                yield Region(start * page, frame * page)
                start = None
    if start is not None:
        yield Region(start * page, frames * page)

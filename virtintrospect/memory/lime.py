"""LiME images: ranges of memory, each behind a header of 32 bytes.

Source: LiME's doc/README.md (struct lime_mem_range_header). LiME's format ``padded`` is raw
memory. What AVML writes uncompressed is LiME.
"""

from __future__ import annotations

import struct
from itertools import pairwise

from virtintrospect.errors import ImageFormatError
from virtintrospect.memory.file import FileImage, Part
from virtintrospect.memory.source import Source

MAGIC = b"EMiL"
#: magic, version, first and last address (inclusive), eight bytes of nothing.
HEADER = struct.Struct("<4sIQQ8x")
#: A machine has tens of ranges; AVML cuts them in pieces.
MOST_RANGES = 1 << 20
#: x86-64 has at most 52 bits of physical address.
ADDRESS_LIMIT = 1 << 52


def open_lime(source: Source, descriptor: int) -> FileImage:
    """A LiME image; the result takes ``descriptor`` over.

    :raises ImageFormatError: it is truncated or contradicts itself.
    """
    parts: list[Part] = []
    offset = 0
    while offset < source.size:
        start, end = range_header(source, offset, MAGIC, 1)
        offset += HEADER.size
        if len(parts) >= MOST_RANGES:
            raise ImageFormatError(source.path, offset, "more ranges than any machine has")
        source.check(offset, end - start, f"range {start:#x}-{end - 1:#x}")
        parts.append(Part(start, end, offset, end - start))
        offset += end - start
    parts.sort()
    for before, after in pairwise(parts):
        if after.start < before.end:
            raise ImageFormatError(source.path, after.offset - HEADER.size, "ranges overlap")
    return FileImage(source.path, descriptor, parts)


def range_header(source: Source, offset: int, magic: bytes, version: int) -> tuple[int, int]:
    """Start and end of a range, from the header at ``offset``; checked."""
    found, number, start, last = HEADER.unpack(source.read(offset, HEADER.size, "a header"))
    if found != magic or number != version:
        raise ImageFormatError(source.path, offset, "here should be the header of a range")
    if not start <= last < ADDRESS_LIMIT:
        raise ImageFormatError(source.path, offset, f"range {start:#x}-{last:#x} makes no sense")
    return start, last + 1

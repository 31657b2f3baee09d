"""A file of named sections behind a header, to be mapped and used as it is.

Layout: 8 bytes magic, u32 version, u32 length and u32 CRC-32 of the header that follows, all in
the host's byte order; the header is JSON and names the sections by offset and length; then the
sections, each at a multiple of 8. Only the header is checked on opening.
"""

from __future__ import annotations

import json
import struct
import sys
import zlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from virtintrospect.errors import CorruptDataError

_PREFIX = struct.Struct("=8sIII")
_MAX_HEADER = 1 << 20


class Contents(NamedTuple):
    """A file's header, and where its sections are."""

    fields: dict[str, Any]
    sections: dict[str, memoryview]


def pack(
    magic: bytes, version: int, fields: Mapping[str, Any], parts: Mapping[str, Any]
) -> Iterator[bytes | memoryview]:
    """A file, piece by piece.

    :param magic: 8 bytes.
    :param fields: what the header says besides; it must survive JSON.
    :param parts: content of each section: anything with a buffer.
    """
    views = {name: memoryview(part).cast("B") for name, part in parts.items()}
    sections, position = {}, 0
    for name, view in views.items():
        sections[name] = (position, view.nbytes)
        position += -(-view.nbytes // 8) * 8
    head = {"byteorder": sys.byteorder, "size": position, "sections": sections, **fields}
    header = json.dumps(head).encode()
    header += b" " * (-(len(header) + _PREFIX.size) % 8)
    yield _PREFIX.pack(magic, version, len(header), zlib.crc32(header)) + header
    for view in views.values():
        yield view
        yield bytes(-view.nbytes % 8)


def unpack(data: memoryview, magic: bytes, version: int, what: str) -> Contents:
    """Check a file's header; nothing is copied.

    :param what: how the kind of file is called, for messages.
    :raises CorruptDataError: it is damaged, or of another version or machine.
    """
    if len(data) < _PREFIX.size:
        raise CorruptDataError(f"{what} is shorter than its header", 0)
    found, number, length, checksum = _PREFIX.unpack_from(data)
    if found != magic or number != version:
        raise CorruptDataError(f"no {what}, or one of another version", 0)
    start = _PREFIX.size + length
    if length > _MAX_HEADER or start > len(data) or start % 8:
        raise CorruptDataError(f"the header of {what} is cut off", 8)
    raw = bytes(data[_PREFIX.size : start])
    if zlib.crc32(raw) != checksum:
        raise CorruptDataError(f"the header of {what} is damaged", 16)
    try:
        fields = json.loads(raw)
        return Contents(fields, _sections(fields, data[start:]))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as problem:
        raise CorruptDataError(f"the header of {what} makes no sense: {problem}", 16) from problem


def _sections(fields: dict[str, Any], body: memoryview) -> dict[str, memoryview]:
    if fields["byteorder"] != sys.byteorder or fields["size"] != len(body):
        raise ValueError("cut off, or made on another kind of machine")
    sections = {}
    for name, (offset, length) in fields["sections"].items():
        if not (0 <= offset <= offset + length <= len(body)) or offset % 8:
            raise ValueError(f"section {name} lies outside the file")
        sections[name] = body[offset : offset + length]
    return sections

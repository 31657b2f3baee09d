"""A profile: what is known of one kernel build, as one file that is mapped and used as it is.

Layout: 8 bytes magic, u32 version, u32 length and u32 CRC-32 of the header that follows, all in
the host's byte order; the header is JSON and names the sections by offset and length; then the
sections, each at a multiple of 8. Only the header is checked on opening: a flipped bit in a
section costs the symbol or type that it hits, or gives
:exc:`~virtintrospect.errors.CorruptDataError`.
"""

from __future__ import annotations

import json
import struct
import sys
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from virtintrospect.errors import CorruptDataError
from virtintrospect.symbols.btf import Btf, BtfSections
from virtintrospect.symbols.table import Symbols, SymbolTable

_MAGIC = b"VIprofil"
#: Raised with every change to what the sections hold.
_VERSION = 1
_PREFIX = struct.Struct("=8sIII")
_MAX_HEADER = 1 << 20
_SYMBOL_SECTIONS = ("names", "offsets", "addresses", "index")
_BTF_SECTIONS = ("btf", "btf_records", "btf_index")

#: Regions of guest memory: (offset from ``_text``, length), both in bytes.
Sources = Sequence[tuple[int, int]]

_MAX_SOURCES = 64
_MAX_SOURCE_SIZE = 256 << 20


class Profile(NamedTuple):
    """Symbols and types of one kernel build.

    :param symbols: at the base they were first seen at; ``slid()`` them to this guest's.
    :param types: ``None`` for a kernel without BTF.
    :param metadata: what the caller saved with it (JSON).
    """

    symbols: Symbols
    types: Btf | None
    metadata: dict[str, Any]


class Header(NamedTuple):
    """The header of a profile file, checked as far as can be without reading the sections."""

    build_id: bytes
    digest: str
    sources: tuple[tuple[int, int], ...]
    sections: dict[str, tuple[int, int]]
    base: int
    relative: tuple[int, int]
    metadata: dict[str, Any]


def pack(
    build_id: bytes,
    digest: str,
    sources: Sources,
    symbols: Symbols,
    types: Btf | None,
    metadata: Mapping[str, Any],
) -> Iterator[bytes | memoryview]:
    """A profile file, piece by piece."""
    table = symbols.table
    parts = {name: getattr(table, name) for name in _SYMBOL_SECTIONS}
    if types is not None:
        stored = types.sections
        parts |= dict(zip(_BTF_SECTIONS, (stored.raw, stored.records, stored.index), strict=True))
    sections, position = {}, 0
    for name, part in parts.items():
        sections[name] = (position, part.nbytes)
        position += -(-part.nbytes // 8) * 8
    header = json.dumps(
        {
            "byteorder": sys.byteorder,
            "build_id": build_id.hex(),
            "digest": digest,
            "sources": [list(source) for source in sources],
            "sections": sections,
            "size": position,
            "base": symbols.base,
            "relative": [table.first_relative, table.end_relative],
            "metadata": dict(metadata),
        }
    ).encode()
    header += b" " * (-(len(header) + _PREFIX.size) % 8)
    yield _PREFIX.pack(_MAGIC, _VERSION, len(header), zlib.crc32(header)) + header
    for part in parts.values():
        yield part
        yield bytes(-part.nbytes % 8)


def unpack_header(data: memoryview) -> Header:
    """Check and decode the header of a profile file.

    :raises CorruptDataError: it is damaged, or of another version or machine.
    """
    if len(data) < _PREFIX.size:
        raise CorruptDataError("the profile is shorter than its header", 0)
    magic, version, length, checksum = _PREFIX.unpack_from(data)
    if magic != _MAGIC or version != _VERSION:
        raise CorruptDataError("no profile, or one of another version", 0)
    start = _PREFIX.size + length
    if length > _MAX_HEADER or start > len(data) or start % 8:
        raise CorruptDataError("the profile's header is cut off", 8)
    raw = bytes(data[_PREFIX.size : start])
    if zlib.crc32(raw) != checksum:
        raise CorruptDataError("the profile's header is damaged", 16)
    try:
        return _header(json.loads(raw), start, len(data))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as problem:
        raise CorruptDataError(f"the profile's header makes no sense: {problem}", 16) from problem


def _header(fields: dict[str, Any], start: int, size: int) -> Header:
    if fields["byteorder"] != sys.byteorder or fields["size"] != size - start:
        raise ValueError("cut off, or made on another kind of machine")
    sections = {}
    for name, (offset, length) in fields["sections"].items():
        if not (0 <= offset <= offset + length <= size - start) or offset % 8:
            raise ValueError(f"section {name} lies outside the file")
        sections[name] = (start + offset, start + offset + length)
    sources = tuple((int(offset), int(length)) for offset, length in fields["sources"])
    if not usable(sources) or not isinstance(fields["metadata"], dict):
        raise ValueError("it does not say what it was made from")
    if not set(_SYMBOL_SECTIONS) <= set(sections):
        raise ValueError("it has no symbols")
    first, last = fields["relative"]
    return Header(
        bytes.fromhex(fields["build_id"]),
        str(fields["digest"]),
        sources,
        sections,
        int(fields["base"]),
        (int(first), int(last)),
        fields["metadata"],
    )


def usable(sources: Sources) -> bool:
    """Whether these regions can prove anything, and comparing them has bounds."""
    total = sum(max(length, 0) for _, length in sources)
    positive = all(offset >= 0 and length > 0 for offset, length in sources)
    return 0 < len(sources) <= _MAX_SOURCES and positive and total <= _MAX_SOURCE_SIZE


def unpack(data: memoryview, header: Header) -> Profile:
    """Profile over the bytes of a file; nothing is copied.

    :raises CorruptDataError: the type section is damaged.
    """

    def section(name: str) -> memoryview:
        start, end = header.sections[name]
        return data[start:end]

    first, last = header.relative
    names, offsets, addresses, index = map(section, _SYMBOL_SECTIONS)
    symbols = Symbols(SymbolTable(names, offsets, addresses, index, first, last), header.base)
    types = None
    if set(_BTF_SECTIONS) <= set(header.sections):
        types = Btf(BtfSections(*map(section, _BTF_SECTIONS)))
    return Profile(symbols, types, header.metadata)

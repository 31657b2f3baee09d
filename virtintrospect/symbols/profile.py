"""A profile: what is known of one kernel build, as one file that is mapped and used as it is.

A :mod:`~virtintrospect.symbols.container` whose header says what the profile was made from. A
flipped bit in a section costs the symbol or type that it hits, or gives
:exc:`~virtintrospect.errors.CorruptDataError`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from virtintrospect.errors import CorruptDataError
from virtintrospect.symbols import container
from virtintrospect.symbols.btf import Btf, BtfSections
from virtintrospect.symbols.table import Symbols, SymbolTable

_MAGIC = b"VIprofil"
#: Raised with every change to what the sections hold.
_VERSION = 1
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
    sections: dict[str, memoryview]
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
    fields = {
        "build_id": build_id.hex(),
        "digest": digest,
        "sources": [list(source) for source in sources],
        "metadata": dict(metadata),
        **symbol_fields(symbols),
    }
    parts = symbol_parts(symbols) | ({} if types is None else type_parts(types))
    return container.pack(_MAGIC, _VERSION, fields, parts)


def unpack_header(data: memoryview) -> Header:
    """Check and decode the header of a profile file.

    :raises CorruptDataError: it is damaged, or of another version or machine.
    """
    fields, sections = container.unpack(data, _MAGIC, _VERSION, "profile")
    try:
        return _header(fields, sections)
    except (ValueError, KeyError, TypeError, AttributeError) as problem:
        raise CorruptDataError(f"the profile's header makes no sense: {problem}", 16) from problem


def _header(fields: dict[str, Any], sections: dict[str, memoryview]) -> Header:
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


def unpack(header: Header) -> Profile:
    """Profile over the bytes of a file; nothing is copied.

    :raises CorruptDataError: the type section is damaged.
    """
    symbols = unpack_symbols(header.sections, header.base, header.relative)
    has_types = set(_BTF_SECTIONS) <= set(header.sections)
    types = unpack_types(header.sections) if has_types else None
    return Profile(symbols, types, header.metadata)


# Symbols and types as sections, for whoever keeps them in files.


def symbol_parts(symbols: Symbols) -> dict[str, memoryview]:
    """The sections of a symbol table."""
    return {name: getattr(symbols.table, name) for name in _SYMBOL_SECTIONS}


def symbol_fields(symbols: Symbols) -> dict[str, Any]:
    """What a header must say of a symbol table."""
    table = symbols.table
    return {"base": symbols.base, "relative": [table.first_relative, table.end_relative]}


def unpack_symbols(
    sections: Mapping[str, memoryview], base: int, relative: tuple[int, int]
) -> Symbols:
    """The symbol table of these sections."""
    names, offsets, addresses, index = (sections[name] for name in _SYMBOL_SECTIONS)
    return Symbols(SymbolTable(names, offsets, addresses, index, *relative), base)


def type_parts(types: Btf) -> dict[str, memoryview]:
    """The sections of types."""
    stored = types.sections
    return dict(zip(_BTF_SECTIONS, (stored.raw, stored.records, stored.index), strict=True))


def unpack_types(sections: Mapping[str, memoryview]) -> Btf:
    """The types of these sections.

    :raises CorruptDataError: they are damaged.
    """
    return Btf(BtfSections(*(sections[name] for name in _BTF_SECTIONS)))

"""Files of the cache that hold what a person brought for one kernel build.

Beside the profiles, which are made from guests and may be dropped at any time, lie these: they
were given by the host's administrator, are never evicted, and serve every guest whose kernel is
that build. A guest that claims falsely to be one is read by types that do not fit it, which
misleads about that guest alone.

Whatever the types came from, they are kept as BTF, with the size of a pointer, which BTF does not
record; types and symbols lie in files of their own (``KERNEL.types``, ``KERNEL.symbols``), parsed
and indexed: a :mod:`~virtintrospect.symbols.container`, whose sections a checksum covers.
"""

from __future__ import annotations

import hashlib
import re
import struct
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from virtintrospect.errors import CorruptDataError
from virtintrospect.symbols import container
from virtintrospect.symbols.brought import Brought
from virtintrospect.symbols.btf import Btf
from virtintrospect.symbols.profile import (
    symbol_fields,
    symbol_parts,
    type_parts,
    unpack_symbols,
    unpack_types,
)
from virtintrospect.symbols.table import Symbols

#: What ends the name of a file; what stands before it says which kernel.
TYPES, SYMBOLS = ".types", ".symbols"

#: Longest build id, in bytes; that of SHA-1 has 20.
MAX_BUILD_ID = 64

_MAGIC = b"VIbrough"
#: Raised with every change to what the files hold.
_VERSION = 1
_RELEASE = re.compile(r"[A-Za-z0-9][\w.+~-]{0,126}", re.ASCII)
_SECTIONS = {
    TYPES: ("btf", "btf_records", "btf_index"),
    SYMBOLS: ("names", "offsets", "addresses", "index"),
}


@dataclass(frozen=True)
class Imported:
    """What the header of a file says.

    :param kernel: which kernel it is for: a build id in hexadecimal, ``release-…`` or
        ``banner-…`` (a digest); the file's name without its ending.
    :param holds: :data:`TYPES` or :data:`SYMBOLS`.
    :param count: of types or symbols.
    :param note: where the kernel's image has its build-id note, in bytes from ``_text``; ``None``
        where that is not known.
    :param banner_at: where it has ``linux_banner``, likewise.
    :param source: name of the file that was brought; ``format`` is its format.
    :param imported: when, in seconds since the epoch.
    :param checksum: CRC-32 of all sections.
    """

    kernel: str
    holds: str
    build_id: bytes
    release: str
    banner: bytes
    pointer_size: int
    count: int
    note: int | None
    banner_at: int | None
    format: str
    source: str
    imported: int
    checksum: int


def kernel_name(build_id: bytes = b"", release: str = "", banner: bytes = b"") -> str:
    """How files of a kernel are named, by the surest thing that is known of it.

    :raises CorruptDataError: nothing is known, or it is no build id or release.
    """
    if build_id:
        if len(build_id) > MAX_BUILD_ID:
            raise CorruptDataError(f"a build id of {len(build_id)} bytes", 0)
        return build_id.hex()
    if banner:
        return f"banner-{hashlib.sha256(banner).hexdigest()[:40]}"
    if not _RELEASE.fullmatch(release):
        raise CorruptDataError(
            "nothing says which kernel this is for"
            if not release
            else f"{release[:64]!r} is no kernel release",
            0,
        )
    return f"release-{release}"


def pack(brought: Brought, source: str) -> Iterator[tuple[str, list[bytes | memoryview]]]:
    """The files to be written: ending of the name, and content in pieces.

    :param source: name of the file that was brought.
    :raises CorruptDataError: the types are no BTF, or it does not say which kernel it is for.
    """
    if brought.pointer_size not in (4, 8):
        raise CorruptDataError(f"pointers of {brought.pointer_size} bytes", 0)
    kernel = kernel_name(brought.build_id, brought.release, brought.banner)
    common = {
        "kernel": kernel,
        "build_id": brought.build_id.hex(),
        "release": brought.release or _release(brought.banner),
        "banner": brought.banner.hex(),
        "pointer_size": brought.pointer_size,
        "format": brought.format,
        "source": source[:256],
        "imported": int(time.time()),
    }
    if brought.types is not None:
        types = Btf.parse(brought.types)
        fields = {"count": types.end_id - 1, "note": None, "banner_at": None}
        yield TYPES, _file(TYPES, common | fields, type_parts(types))
    symbols = brought.symbols
    if symbols is not None:
        banner = symbols.get("linux_banner")
        if banner is None and not brought.note:
            raise CorruptDataError("the symbols have no linux_banner: they are no kernel's", 0)
        fields = {
            "count": len(symbols),
            "note": brought.note - symbols.base if brought.note else None,
            "banner_at": None if banner is None else banner - symbols.base,
            **symbol_fields(symbols),
        }
        yield SYMBOLS, _file(SYMBOLS, common | fields, symbol_parts(symbols))


def _file(holds: str, fields: dict[str, Any], parts: dict[str, memoryview]) -> list[Any]:
    checksum = 0
    for part in parts.values():
        checksum = zlib.crc32(part, checksum)
    head = {"holds": holds, "checksum": checksum, **fields}
    return list(container.pack(_MAGIC, _VERSION, head, parts))


def _release(banner: bytes) -> str:
    """The kernel's release, as its banner has it: ``Linux version RELEASE (…``."""
    words = banner.split(b" ", 3)
    return words[2].decode("ascii", "replace") if len(words) == 4 else ""


def header(data: memoryview) -> Imported:
    """What a file says of itself.

    :raises CorruptDataError: it is damaged, or of another version.
    """
    return _header(data)[0]


def types(data: memoryview) -> Btf:
    """The types of a file.

    :raises CorruptDataError: it is damaged, or holds none.
    """
    about, contents = _checked(data, TYPES)
    found = unpack_types(contents.sections)
    found.pointer_size = about.pointer_size
    return found


def symbols(data: memoryview) -> Symbols:
    """The symbols of a file, at the base that the kernel was linked for.

    :raises CorruptDataError: it is damaged, or holds none.
    """
    _, contents = _checked(data, SYMBOLS)
    first, last = contents.fields["relative"]
    return unpack_symbols(contents.sections, contents.fields["base"], (first, last))


def _header(data: memoryview) -> tuple[Imported, container.Contents]:
    contents = container.unpack(data, _MAGIC, _VERSION, "imported file")
    fields = contents.fields
    try:
        about = Imported(
            kernel=str(fields["kernel"]),
            holds=str(fields["holds"]),
            build_id=bytes.fromhex(fields["build_id"]),
            release=str(fields["release"]),
            banner=bytes.fromhex(fields["banner"]),
            pointer_size=int(fields["pointer_size"]),
            count=int(fields["count"]),
            note=fields["note"],
            banner_at=fields["banner_at"],
            format=str(fields["format"]),
            source=str(fields["source"]),
            imported=int(fields["imported"]),
            checksum=int(fields["checksum"]),
        )
        expected = _SECTIONS[about.holds]
    except (KeyError, TypeError, ValueError) as problem:
        raise CorruptDataError(f"an imported file makes no sense: {problem}", 16) from problem
    if set(contents.sections) != set(expected):
        raise CorruptDataError("an imported file lacks a section", 16)
    return about, contents


def _checked(data: memoryview, holds: str) -> tuple[Imported, container.Contents]:
    about, contents = _header(data)
    if about.holds != holds:
        raise CorruptDataError(f"an imported file has no {holds[1:]}", 16)
    checksum = 0
    for name in _SECTIONS[holds]:
        checksum = zlib.crc32(contents.sections[name], checksum)
    if checksum != about.checksum:
        raise CorruptDataError(f"imported {holds[1:]} are damaged", 16)
    return about, contents


def build_id_note(build_id: bytes, byteorder: str = "<") -> bytes:
    """The note as it lies in the kernel's image (NT_GNU_BUILD_ID, elf(5))."""
    return struct.pack(f"{byteorder}3I4s", 4, len(build_id), 3, b"GNU") + build_id

"""A guest with nothing but what a test puts into its memory, its symbols and its types."""

from __future__ import annotations

import struct
from collections.abc import Mapping

from tests.unit.images import BuiltMemory
from virtintrospect.arch import X86_64_4LEVEL
from virtintrospect.guests.linux.guest import LinuxGuest
from virtintrospect.guests.linux.locate import KernelMapping
from virtintrospect.space import LinearRange
from virtintrospect.symbols.index import build_index
from virtintrospect.symbols.table import Symbols, SymbolTable
from virtintrospect.symbols.types import Types

#: Where the memory is mapped: image and direct map at once.
BASE = 0xFFFF_8880_0000_0000
SIZE = 4 << 20
#: Its page tables have the pages at 0x2000, 0x3000 and 0x4000.
_TABLES = 0x2000


def built_guest(
    memory: BuiltMemory, addresses: Mapping[str, int], types: Types, *, live: bool = False
) -> LinuxGuest:
    """A guest of :data:`SIZE` bytes.

    :param addresses: its symbols; the banner is at :data:`BASE` unless they say otherwise.
    """
    known = {"linux_banner": BASE, "swapper_pg_dir": BASE + _TABLES, **addresses}
    names = sorted(known, key=lambda name: known[name])
    blob, offsets = b"", []
    for name in names:
        offsets.append(len(blob) + 2)
        blob += b"\0d" + name.encode()
    table = SymbolTable(
        names=memoryview(blob),
        offsets=memoryview(struct.pack(f"={len(names) + 1}I", *offsets, len(blob) + 2)),
        addresses=memoryview(struct.pack(f"={len(names)}Q", *(known[n] for n in names))),
        index=memoryview(build_index(name.encode() for name in names)),
        first_relative=0,
        end_relative=0,
    )
    image = LinearRange(BASE, BASE + SIZE, 0)
    mapping = KernelMapping(X86_64_4LEVEL, _TABLES, image, "hand")
    # Two large pages of the kernel's own tables map the image: PGD, PUD, PMD.
    memory.write_u64(_TABLES + 8 * ((BASE >> 39) & 511), 0x3067)
    memory.write_u64(0x3000 + 8 * ((BASE >> 30) & 511), 0x4067)
    for page in (0, 1):
        memory.write_u64(0x4000 + 8 * (((BASE >> 21) & 511) + page), page << 21 | 0xE7)
    return LinuxGuest(memory, mapping, Symbols(table, BASE), types, b"", live=live)

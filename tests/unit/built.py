"""Kernels built by hand, for layouts that no kernel here has: types as C would write them,
structures laid out in memory, symbols, and the guest on top of it all.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping, Sequence
from typing import Any

from tests.unit.images import BuiltMemory
from tests.unit.symbols.btf_blob import FWD, PTR, Blob
from virtintrospect.arch import X86_64_4LEVEL, PagingMode
from virtintrospect.arch.arm64 import aarch64
from virtintrospect.guests.linux.guest import LinuxGuest
from virtintrospect.guests.linux.machine import KernelMapping
from virtintrospect.guests.linux.machine.arm64 import ARM64
from virtintrospect.guests.linux.machine.x86 import X86_64
from virtintrospect.symbols.btf import Btf
from virtintrospect.symbols.index import build_index
from virtintrospect.symbols.table import Symbols, SymbolTable
from virtintrospect.symbols.types import Types
from virtintrospect.translation import LinearRange

#: All memory, by the direct map; the kernel's image is its beginning.
BASE = 0xFFFF_8880_0000_0000
SIZE = 4 << 20
_ROOT = 0x2000
#: Structures are put from here on.
_FIRST = 0x1_0000

_INTEGERS = {
    "char": (1, True), "u8": (1, False), "u16": (2, False), "u32": (4, False), "int": (4, True),
    "u64": (8, False), "long": (8, True),
}  # fmt: skip
_MEMBER = re.compile(r"(\w+) (\**)(\w+)((?:\[\d+\])*)(?::(\d+))?")

Values = Mapping[str, Any]


def c_types(
    structs: Mapping[str, str], enums: Mapping[str, Mapping[str, int]] | None = None
) -> Blob:
    """BTF of structures: ``{"list_head": "list_head *next; list_head *prev"}``.

    Members are aligned as C aligns them; ``u8 level:3`` are bits. A structure must come before
    those that contain it; pointers may go to any. ``"union NAME"`` makes a union.
    """
    blob = Blob()
    known = {
        name: (blob.integer(name, size, signed=signed), size, size)
        for name, (size, signed) in _INTEGERS.items()
    }
    for enum, values in (enums or {}).items():
        blob.enum(enum, dict(values))
    for title, text in structs.items():
        name, union = title.removeprefix("union "), title.startswith("union ")
        members, at, end, largest = [], 0, 0, 1
        for part in filter(None, (part.strip() for part in text.split(";"))):
            match = _MEMBER.fullmatch(part)
            assert match is not None, part
            kind, stars, member, counts, bits = match.groups()
            if stars:
                type_id, size, align = blob.add(PTR, word=blob.add(FWD, kind)), 8, 8
            else:
                type_id, size, align = known[kind]
            for count in reversed(re.findall(r"\d+", counts)):
                type_id, size = blob.array(type_id, int(count)), size * int(count)
            width = int(bits or 0)
            if not width:
                at = -(-at // (8 * align)) * 8 * align
            members.append((member, type_id, at, width))
            end = max(end, at + (width or 8 * size))
            at = 0 if union else end
            largest = max(largest, align)
        size = -(-end // (8 * largest)) * largest
        made = blob.union(name, size, members) if union else blob.struct(name, size, members)
        known[name] = (made, size, largest)
    return blob


class BuiltKernel:
    """Memory in the making, and at last the guest in it."""

    def __init__(
        self,
        structs: Mapping[str, str] | None = None,
        enums: Mapping[str, Mapping[str, int]] | None = None,
        memory: BuiltMemory | None = None,
    ) -> None:
        self.memory = memory or BuiltMemory(SIZE)
        self.types = Btf.parse(c_types(structs or {}, enums).build())
        self.symbols: dict[str, int] = {}
        self._next = _FIRST
        self.symbols["linux_banner"] = self.string(b"Linux version 0.0\n")
        self.symbols["swapper_pg_dir"] = BASE + _ROOT
        self.number("page_offset_base", BASE)
        # One large page of the kernel's own tables maps the image: PGD, PUD, PMD.
        self.memory.write_u64(_ROOT + 8 * ((BASE >> 39) & 511), 0x3067)
        self.memory.write_u64(0x3000 + 8 * ((BASE >> 30) & 511), 0x4067)
        for page in (0, 1):
            self.memory.write_u64(0x4000 + 8 * (((BASE >> 21) & 511) + page), page << 21 | 0xE7)

    def room(self, size: int) -> int:
        """Address of ``size`` bytes that nothing else uses."""
        at, self._next = self._next, (self._next + size + 63) & ~63
        return BASE + at

    def write(self, address: int, data: bytes) -> None:
        self.memory.write(address - BASE, data)

    def string(self, text: bytes) -> int:
        address = self.room(len(text) + 1)
        self.write(address, text + b"\0")
        return address

    def number(self, symbol: str, value: int, size: int = 8) -> int:
        """A global integer."""
        address = self.symbols[symbol] = self.room(size)
        self.write(address, value.to_bytes(size, "little", signed=value < 0))
        return address

    def make(self, kind: str, values: Values | None = None, symbol: str = "") -> int:
        """A structure, as a global variable where it has a symbol; its address."""
        address = self.room(self.types.sizeof(kind))
        self.set(kind, address, values or {})
        if symbol:
            self.symbols[symbol] = address
        return address

    def set(self, kind: str, address: int, values: Values) -> None:
        """Give members values; integers, or bytes as they are."""
        for path, value in values.items():
            (field,) = self.types.resolve(kind, path)
            if isinstance(value, int):
                value = (value % (1 << 8 * field.size)).to_bytes(field.size, "little")
            self.write(address + field.offset, value)

    def at(self, kind: str, address: int, path: str) -> int:
        """Address of a member."""
        return address + self.types.offsetof(kind, path)

    def link(self, head: int, nodes: Sequence[int]) -> None:
        """Make a ``struct list_head`` ring."""
        ring = [head, *nodes]
        for index, node in enumerate(ring):
            following = ring[(index + 1) % len(ring)]
            self.write(node, struct.pack("<2Q", following, ring[index - 1]))

    def guest(self, *, live: bool = False, page_shift: int = 12) -> LinuxGuest:
        """The guest, with the symbols so far.

        :param page_shift: with another one than 12 it is an AArch64 kernel with such pages.
        """
        image = LinearRange(BASE, BASE + SIZE, 0)
        mapping = KernelMapping(X86_64_4LEVEL, _ROOT, image, "hand", X86_64)
        if page_shift != 12:
            mode = aarch64(page_shift, 48)._replace(low=False)
            mapping = KernelMapping(mode, self._arm_tables(mode), image, "hand", ARM64)
        table = symbol_table(self.symbols)
        return LinuxGuest(self.memory, mapping, Symbols(table, BASE), self.types, b"", live=live)

    def _arm_tables(self, mode: PagingMode) -> int:
        """Tables that map the image page by page; the top one."""
        self.number("memstart_addr", 0)
        tables = [(2 << 20) + (number << 16) for number in range(len(mode.levels))]
        for level, table, onward in zip(mode.levels, tables, [*tables[1:], 0], strict=True):
            slot = table + 8 * (BASE >> level.shift & (1 << level.bits) - 1)
            pages = range(0, SIZE, 1 << level.shift)
            self.memory.write_u64(slot, *([onward | 3] if onward else [at | 3 for at in pages]))
        return tables[0]


def symbol_table(addresses: Mapping[str, int]) -> SymbolTable:
    """Symbols, all of them data."""
    names = sorted(addresses, key=lambda name: addresses[name])
    blob, offsets = b"", []
    for name in names:
        offsets.append(len(blob) + 2)
        blob += b"\0d" + name.encode()
    return SymbolTable(
        names=memoryview(blob),
        offsets=memoryview(struct.pack(f"={len(names) + 1}I", *offsets, len(blob) + 2)),
        addresses=memoryview(struct.pack(f"={len(names)}Q", *(addresses[n] for n in names))),
        index=memoryview(build_index(name.encode() for name in names)),
        first_relative=0,
        end_relative=0,
    )


def built_guest(
    memory: BuiltMemory, addresses: Mapping[str, int], types: Types, *, live: bool = False
) -> LinuxGuest:
    """A guest of :data:`SIZE` bytes, whose structures a test lays out itself.

    :param addresses: its symbols; the banner is at :data:`BASE` unless they say otherwise.
    """
    known = {"linux_banner": BASE, "swapper_pg_dir": BASE + _ROOT, **addresses}
    memory.write_u64(_ROOT + 8 * ((BASE >> 39) & 511), 0x3067)
    memory.write_u64(0x3000 + 8 * ((BASE >> 30) & 511), 0x4067)
    for page in (0, 1):
        memory.write_u64(0x4000 + 8 * (((BASE >> 21) & 511) + page), page << 21 | 0xE7)
    mapping = KernelMapping(X86_64_4LEVEL, _ROOT, LinearRange(BASE, BASE + SIZE, 0), "hand", X86_64)
    symbols = Symbols(symbol_table(known), BASE)
    return LinuxGuest(memory, mapping, symbols, types, b"", live=live)

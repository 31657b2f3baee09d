"""Writes BTF: what types become that were brought in another format (DWARF, ISF).

All that is kept and used is BTF, whatever a type came from: one reader, one form in the cache.
Ids are handed out before a type is known, since types point to each other in circles.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple

from virtintrospect.errors import CorruptDataError
from virtintrospect.symbols.btf import MAX_SIZE, MAX_STRINGS, MAX_TYPES

(INT, PTR, ARRAY, STRUCT, UNION, ENUM, FWD, TYPEDEF, VOLATILE, CONST, RESTRICT, _FUNC, FUNC_PROTO,
 _VAR, _DATASEC, FLOAT, _DECL_TAG, _TYPE_TAG, ENUM64) = range(1, 20)  # fmt: skip

_HEADER = struct.Struct("<HBBIIIII")
_MAGIC = 0xEB9F
#: vlen has 16 bits.
_MOST_ELEMENTS = 0xFFFF
_WORD = 0xFFFF_FFFF
#: Encodings of an INT.
_SIGNED, _BOOL = 1, 4


class WrittenMember(NamedTuple):
    """A member of a struct or union; ``bit_size`` is 0 unless it is a bit field."""

    name: bytes
    type_id: int
    bit_offset: int
    bit_size: int = 0


class BtfWriter:
    """Types, added one by one, as one blob of little-endian BTF.

    Everything raises :exc:`~virtintrospect.errors.CorruptDataError` for what BTF cannot hold: more
    types than a kernel has, a struct of more than 65,535 members, a blob of more than 32 MiB.
    """

    def __init__(self) -> None:
        self._records: list[bytes] = [b""]
        self._size = 0
        self._strings = bytearray(b"\0")
        self._offsets: dict[bytes, int] = {b"": 0}

    def __len__(self) -> int:
        return len(self._records) - 1

    def reserve(self) -> int:
        """An id for a type that will be defined later; until then it is ``void`` by a typedef."""
        if len(self._records) > MAX_TYPES:
            raise CorruptDataError("more types than any kernel has", 0)
        self._records.append(struct.pack("<3I", 0, CONST << 24, 0))
        self._size += 12
        return len(self._records) - 1

    def integer(
        self, type_id: int, name: bytes, size: int, *, signed: bool = False, boolean: bool = False
    ) -> None:
        """An integer of 1, 2, 4, 8 or 16 bytes."""
        if size not in (1, 2, 4, 8, 16):
            raise CorruptDataError(f"an integer of {size} bytes", 0)
        encoding = (_SIGNED if signed else 0) | (_BOOL if boolean else 0)
        self._define(type_id, INT, name, size, struct.pack("<I", encoding << 24 | 8 * size))

    def simple(self, type_id: int, kind: int, target: int, name: bytes = b"") -> None:
        """A pointer, typedef or qualifier of another type; a ``FLOAT`` of so many bytes."""
        self._define(type_id, kind, name, target, b"")

    def forward(self, type_id: int, name: bytes, *, union: bool) -> None:
        """A struct or union that is only named."""
        self._define(type_id, FWD, name, 0, b"", flag=union)

    def array(self, type_id: int, element: int, count: int) -> None:
        """An array; ``count`` 0 for one of no declared size."""
        self._define(type_id, ARRAY, b"", 0, struct.pack("<3I", element, 0, count & _WORD))

    def struct(
        self, type_id: int, kind: int, name: bytes, size: int, members: Sequence[WrittenMember]
    ) -> None:
        """A struct or union (``kind``) of ``size`` bytes."""
        fields = any(member.bit_size for member in members)
        body = bytearray()
        for member in members:
            place = member.bit_offset
            if fields:
                if place >> 24 or member.bit_size > 0xFF:
                    raise CorruptDataError(f"a bit field {place} bits into a struct", 0)
                place |= member.bit_size << 24
            body += struct.pack("<3I", self._string(member.name), member.type_id, place & _WORD)
        self._define(type_id, kind, name, size, bytes(body), len(members), flag=fields)

    def enum(
        self, type_id: int, name: bytes, size: int, values: Sequence[tuple[bytes, int]]
    ) -> None:
        """An enum; of 64 bits where a value needs them."""
        signed = any(value < 0 for _, value in values)
        wide = any(not -(1 << 31) <= value < 1 << 32 for _, value in values)
        body = bytearray()
        for label, value in values:
            body += struct.pack("<2I", self._string(label), value & _WORD)
            body += struct.pack("<I", value >> 32 & _WORD) if wide else b""
        kind = ENUM64 if wide else ENUM
        self._define(type_id, kind, name, size, bytes(body), len(values), flag=signed)

    def function(self, type_id: int, returns: int, parameters: Sequence[int]) -> None:
        """The type of a function; a parameter 0 at the end means ``...``."""
        body = b"".join(struct.pack("<2I", 0, parameter) for parameter in parameters)
        self._define(type_id, FUNC_PROTO, b"", returns, body, len(parameters))

    def build(self) -> bytes:
        """The blob."""
        types = b"".join(self._records)
        sizes = 0, len(types), len(types), len(self._strings)
        return _HEADER.pack(_MAGIC, 1, 0, _HEADER.size, *sizes) + types + bytes(self._strings)

    def _define(
        self,
        type_id: int,
        kind: int,
        name: bytes,
        word: int,
        body: bytes,
        vlen: int = 0,
        *,
        flag: bool = False,
    ) -> None:
        if vlen > _MOST_ELEMENTS or not 0 <= word <= _WORD:
            raise CorruptDataError(f"{name[:64]!r} is too large a type", 0)
        info = kind << 24 | vlen | flag << 31
        record = struct.pack("<3I", self._string(name), info, word) + body
        self._size += len(record) - len(self._records[type_id])
        if self._size + len(self._strings) > MAX_SIZE - _HEADER.size:
            raise CorruptDataError("more types than any kernel has", 0)
        self._records[type_id] = record

    def _string(self, text: bytes) -> int:
        found = self._offsets.get(text)
        if found is None:
            if len(self._offsets) >= MAX_STRINGS - 1 or b"\0" in text:
                raise CorruptDataError("more names than any kernel has", 0)
            found = self._offsets[text] = len(self._strings)
            self._strings += text + b"\0"
        return found

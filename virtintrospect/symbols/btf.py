"""BTF: the type information that a Linux kernel carries in its own image.

Format: Documentation/bpf/btf.rst and include/uapi/linux/btf.h. The kernel's own lies between
``__start_BTF`` and ``__stop_BTF``; a module carries *split* BTF, whose type ids and string
offsets continue where the kernel's end.

A :class:`Btf` works on the raw bytes and two small sections made once (where each record
begins, and an index of the names), so that a kernel's 110,000 types cost nothing until one of
them is asked for.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple
from zlib import crc32

from virtintrospect.errors import CorruptDataError
from virtintrospect.symbols.index import NameIndex, build_index_of_hashes
from virtintrospect.symbols.types import MAX_SPELLING, Kind, Member, Node, Types

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Words = npt.NDArray[np.uint32]
    Numbers = npt.NDArray[np.int64]

#: Largest blob taken; that of a full distribution kernel has 5 to 8 MB.
MAX_SIZE = 32 << 20

#: Most types of one blob; BTF_MAX_TYPE has been raised over the years, it is 0xfffff now.
MAX_TYPES = 1 << 20

#: Most strings of one blob; a distribution kernel has some 120,000.
MAX_STRINGS = 1 << 21

_MAGIC = 0xEB9F
#: Types, and members of types, that are kept decoded.
_NODES_KEPT = 1 << 17
_NAME_SIZE = MAX_SPELLING

(_INT, _PTR, _ARRAY, _STRUCT, _UNION, _ENUM, _FWD, _TYPEDEF, _VOLATILE, _CONST, _RESTRICT, _FUNC,
 _FUNC_PROTO, _VAR, _DATASEC, _FLOAT, _DECL_TAG, _TYPE_TAG, _ENUM64) = range(1, 20)  # fmt: skip

#: Bytes that follow the 12-byte head of a record: (fixed, for each of vlen elements).
_LAYOUT = {
    _INT: (4, 0), _PTR: (0, 0), _ARRAY: (12, 0), _STRUCT: (0, 12), _UNION: (0, 12),
    _ENUM: (0, 8), _FWD: (0, 0), _TYPEDEF: (0, 0), _VOLATILE: (0, 0), _CONST: (0, 0),
    _RESTRICT: (0, 0), _FUNC: (0, 0), _FUNC_PROTO: (0, 8), _VAR: (4, 0), _DATASEC: (0, 12),
    _FLOAT: (0, 0), _DECL_TAG: (4, 0), _TYPE_TAG: (0, 0), _ENUM64: (0, 12),
}  # fmt: skip

_KINDS = {
    _INT: Kind.INT, _PTR: Kind.POINTER, _ARRAY: Kind.ARRAY, _STRUCT: Kind.STRUCT,
    _UNION: Kind.UNION, _ENUM: Kind.ENUM, _FWD: Kind.FORWARD, _TYPEDEF: Kind.TYPEDEF,
    _VOLATILE: Kind.QUALIFIER, _CONST: Kind.QUALIFIER, _RESTRICT: Kind.QUALIFIER,
    _FUNC: Kind.QUALIFIER, _FUNC_PROTO: Kind.FUNCTION, _VAR: Kind.QUALIFIER,
    _DATASEC: Kind.VOID, _FLOAT: Kind.FLOAT, _DECL_TAG: Kind.QUALIFIER,
    _TYPE_TAG: Kind.QUALIFIER, _ENUM64: Kind.ENUM,
}  # fmt: skip

_QUALIFIERS = {_VOLATILE: "volatile", _CONST: "const", _RESTRICT: "restrict"}

#: What has a name that people ask for. A variable's name leads to its type.
_NAMED = (_INT, _STRUCT, _UNION, _ENUM, _FWD, _TYPEDEF, _VAR, _FLOAT, _ENUM64)


@dataclass(frozen=True, slots=True)
class BtfSections:
    """The stored form of a blob.

    :param raw: the blob as the kernel has it.
    :param records: u32 of each type: offset of its record from the start of the type section.
    :param index: a :mod:`~virtintrospect.symbols.index` section from names to type ids.
    """

    raw: memoryview
    records: memoryview
    index: memoryview


class _Header(NamedTuple):
    order: str
    types: int
    types_size: int
    strings: int
    strings_size: int
    layouts: tuple[tuple[int, int], ...]


class Btf(Types):
    """Types from BTF.

    :param sections: what :meth:`parse` made, perhaps inside a mapped file. Damage in it gives
        :exc:`~virtintrospect.errors.CorruptDataError` when the damaged type is looked at.
    :param base: the kernel's own BTF, for the split BTF of a module.
    """

    def __init__(self, sections: BtfSections, base: Btf | None = None) -> None:
        super().__init__()
        self.sections = sections
        self.base = base
        self._raw = sections.raw
        self._header = _header(sections.raw)
        view = memoryview(sections.records).cast("B")
        self._records = view[: len(view) // 4 * 4].cast("I")
        self._index = NameIndex(sections.index)
        #: Id of the first type of this blob; 0 is ``void``.
        self.first_id: int = base.end_id if base else 1
        #: Id after the last type.
        self.end_id: int = self.first_id + len(self._records)
        self._string_base = base.string_end if base else 0
        #: String offset after the last string; split BTF continues here.
        self.string_end: int = self._string_base + self._header.strings_size
        self._endian: Literal["little", "big"] = "little" if self.byteorder == "<" else "big"
        self._nodes: dict[int, Node] = {}
        self._kept = 0

    @classmethod
    def parse(cls, blob: bytes | memoryview, base: Btf | None = None) -> Btf:
        """Parse raw BTF.

        :param base: the kernel's own BTF, when ``blob`` is that of a module.
        :raises CorruptDataError: this is no BTF, or its records do not add up.
        """
        raw = memoryview(blob).cast("B").toreadonly()
        if len(raw) > MAX_SIZE:
            raise CorruptDataError(f"BTF of {len(raw)} bytes is larger than any kernel's", 0)
        header = _header(raw)
        words = _type_words(raw, header)
        records = _records(words, header)
        index = _build_index(raw, header, words, records, base)
        empty = BtfSections(raw, memoryview((records * 4).astype("u4").tobytes()), index)
        return cls(empty, base)

    @property
    def byteorder(self) -> str:
        """``"<"`` or ``">"``: the guest's byte order."""
        return self._header.order

    def variable(self, name: str) -> int | None:
        """Id of the type of a global variable; kernels record only the per-CPU ones."""
        for type_id in self._candidates(name.encode("utf-8", "replace")):
            offset, info = self._head(type_id)
            if _kind(info) == _VAR:
                return self._word(offset + 8)
        return None

    def section(self, name: str) -> dict[str, int]:
        """Offset of each variable in a section, such as ``.data..percpu`` (BTF_KIND_DATASEC).

        :raises CorruptDataError: its record is damaged.
        """
        for type_id in range(self.end_id - 1, self.first_id - 1, -1):
            offset, info = self._head(type_id)
            if _kind(info) != _DATASEC or self.string(self._word(offset)) != name.encode():
                continue
            found = {}
            for at in range(offset + 12, offset + 12 + 12 * (info & 0xFFFF), 12):
                variable, _ = self._head(self._word(at))
                found[_text(self.string(self._word(variable)))] = self._word(at + 4)
            return found
        return {}

    # What Types asks of a format.

    def node(self, type_id: int) -> Node:
        """The type of that id; see :meth:`Types.node`."""
        if type_id == 0:
            return _VOID_NODE
        if type_id < self.first_id and self.base is not None:
            return self.base.node(type_id)
        known = self._nodes.get(type_id)
        if known is None:
            known = self._decode(type_id)
            self._kept += 1 + len(known.members) + len(known.values)
            if self._kept > _NODES_KEPT:
                self._nodes.clear()
                self._kept = 0
            self._nodes[type_id] = known
        return known

    def candidates(self, name: str) -> Iterator[int]:
        """Ids of types called ``name``; those of a module go before the kernel's."""
        yield from self._candidates(name.encode("utf-8", "replace"))
        if self.base is not None:
            yield from self.base.candidates(name)

    def all_names(self) -> Iterator[tuple[str, Kind]]:
        """Name and kind of every named type, this blob's own before its base's."""
        for type_id in range(self.first_id, self.end_id):
            offset, info = self._head(type_id)
            kind = _kind(info)
            if kind in _NAMED and kind != _VAR and (name := self.string(self._word(offset))):
                yield _text(name), _KINDS[kind]
        if self.base is not None:
            yield from self.base.all_names()

    # Decoding.

    def _candidates(self, name: bytes) -> Iterator[int]:
        for type_id in self._index.candidates(name):
            if self.first_id <= type_id < self.end_id and name:
                offset, _ = self._head(type_id)
                if self.string(self._word(offset)) == name:
                    yield type_id

    def _head(self, type_id: int) -> tuple[int, int]:
        """Offset of a record in the blob, and its ``info`` word."""
        number = type_id - self.first_id
        if not 0 <= number < len(self._records):
            raise CorruptDataError(f"BTF has no type {type_id}", type_id)
        offset = self._header.types + self._records[number]
        return offset, self._word(offset + 4)

    def _word(self, offset: int) -> int:
        return int.from_bytes(self._bytes(offset, 4), self._endian)

    def _bytes(self, offset: int, size: int) -> memoryview:
        """A piece of the type section."""
        if offset + size > self._header.types + self._header.types_size:
            raise CorruptDataError("BTF: a type reaches beyond the type section", offset)
        return self._raw[offset : offset + size]

    def string(self, offset: int) -> bytes:
        """Name at a string offset, as a type gives it; cut at 512 bytes."""
        if offset < self._string_base and self.base is not None:
            return self.base.string(offset)
        start = offset - self._string_base
        if not 0 <= start < self._header.strings_size:
            raise CorruptDataError("BTF: a name lies outside the string section", offset)
        start += self._header.strings
        end = min(start + _NAME_SIZE, self._header.strings + self._header.strings_size)
        return bytes(self._raw[start:end]).split(b"\0", 1)[0]

    def _decode(self, type_id: int) -> Node:
        offset, info = self._head(type_id)
        kind, vlen, flag = _kind(info), info & 0xFFFF, bool(info >> 31)
        if kind not in _KINDS:
            return Node(Kind.VOID, f"<unknown BTF kind {kind}>")
        name = _text(self.string(self._word(offset)))
        word = self._word(offset + 8)
        body = offset + 12
        if kind in (_STRUCT, _UNION):
            return Node(_KINDS[kind], name, word, members=self._struct_members(body, vlen, flag))
        if kind in (_ENUM, _ENUM64):
            values = self._values(body, vlen, flag, wide=kind == _ENUM64)
            return Node(Kind.ENUM, name, word, signed=flag, values=values)
        if kind == _INT:
            return self._integer(name, word, self._word(body))
        if kind == _ARRAY:
            return Node(Kind.ARRAY, target=self._word(body), count=self._word(body + 8))
        if kind == _FUNC_PROTO:
            return Node(Kind.FUNCTION, target=word, members=self._parameters(body, vlen))
        if kind == _FLOAT:
            return Node(Kind.FLOAT, name, word)
        if kind == _FWD:
            return Node(Kind.FORWARD, name, signed=flag)
        if _KINDS[kind] is Kind.QUALIFIER:
            return Node(Kind.QUALIFIER, _QUALIFIERS.get(kind, ""), target=word)
        return Node(_KINDS[kind], name, target=word)

    def _integer(self, name: str, size: int, data: int) -> Node:
        """Decode an INT: encoding in bits 24-27, bit offset in 16-23, width in bits in 0-7."""
        width, shift = data & 0xFF, (data >> 16) & 0xFF
        if size not in (1, 2, 4, 8, 16) or width > 8 * size or shift + width > 8 * size:
            raise CorruptDataError(f"BTF: an integer {name!r} of {size} bytes, {width} bits", 0)
        narrow = width and width != 8 * size
        signed = bool(data >> 24 & 1)
        return Node(
            Kind.INT,
            name,
            size,
            signed=signed,
            bits=width if narrow else 0,
            shift=shift if narrow else 0,
        )

    def _struct_members(self, body: int, vlen: int, flag: bool) -> tuple[Member, ...]:
        raw = self._bytes(body, 12 * vlen)
        members = []
        for name, type_id, position in struct.iter_unpack(f"{self._header.order}3I", raw):
            # With the kind flag, the upper byte is the width of a bit field.
            bits = (position & 0xFFFFFF, position >> 24) if flag else (position, 0)
            members.append(Member(_text(self.string(name)), type_id, *bits))
        return tuple(members)

    def _parameters(self, body: int, vlen: int) -> tuple[Member, ...]:
        raw = self._bytes(body, 8 * vlen)
        return tuple(
            Member(_text(self.string(name)), type_id)
            for name, type_id in struct.iter_unpack(f"{self._header.order}2I", raw)
        )

    def _values(
        self, body: int, vlen: int, signed: bool, *, wide: bool
    ) -> tuple[tuple[str, int], ...]:
        raw = self._bytes(body, (12 if wide else 8) * vlen)
        order, values = self._header.order, []
        if not wide:
            # Before 6.0 the flag was never set: values are signed, as the kernel prints them.
            for name, value in struct.iter_unpack(f"{order}Ii", raw):
                values.append((_text(self.string(name)), value))
            return tuple(values)
        for name, low, high in struct.iter_unpack(f"{order}3I", raw):
            value = high << 32 | low
            if signed and value >> 63:
                value -= 1 << 64
            values.append((_text(self.string(name)), value))
        return tuple(values)


_VOID_NODE = Node(Kind.VOID, "void")


def _kind(info: int) -> int:
    return info >> 24 & 0x1F


def _text(name: bytes) -> str:
    return name.decode("ascii", "backslashreplace")


def _header(raw: memoryview) -> _Header:
    """Read ``struct btf_header``, and check that its sections lie inside the blob."""
    if len(raw) < 24:
        raise CorruptDataError("BTF: shorter than its header", 0)
    order = "<" if struct.unpack_from("<H", raw)[0] == _MAGIC else ">"
    magic, version, _, size, types, types_size, strings, strings_size = struct.unpack_from(
        f"{order}HBBIIIII", raw
    )
    if magic != _MAGIC:
        raise CorruptDataError("BTF: it does not begin with the magic number 0xeb9f", 0)
    if version != 1:
        raise CorruptDataError(f"BTF: version {version} is not known", 2)
    if size < 24 or types % 4:
        raise CorruptDataError("BTF: the header makes no sense", 4)
    for name, start, length in (("type", types, types_size), ("string", strings, strings_size)):
        if size + start + length > len(raw):
            raise CorruptDataError(f"BTF: the {name} section reaches beyond the end", size + start)
    layouts = _layouts(raw, order, size)
    return _Header(order, size + types, types_size, size + strings, strings_size, layouts)


def _layouts(raw: memoryview, order: str, size: int) -> tuple[tuple[int, int], ...]:
    """Sizes of records of kinds that we do not know, where the blob says them.

    A header of 32 bytes or more ends in offset and length of an array of ``struct btf_layout``
    (u8 fixed bytes, u8 bytes an element, u16 flags), one a kind.
    """
    if size < 32 or len(raw) < 32:
        return ()
    start, length = struct.unpack_from(f"{order}II", raw, 24)
    if length > 4 * 32 or size + start + length > len(raw):
        return ()
    data = bytes(raw[size + start : size + start + length // 4 * 4])
    return tuple((fixed, each) for fixed, each, _ in struct.iter_unpack(f"{order}BBH", data))


def _type_words(raw: memoryview, header: _Header) -> Words:
    import numpy as np

    section = raw[header.types : header.types + header.types_size // 4 * 4]
    return np.frombuffer(section, dtype=f"{header.order}u4").astype(np.uint32, copy=False)


def _records(words: Words, header: _Header) -> Numbers:
    """Index of the word at which each record begins.

    The length of a would-be record is computed for every word at once; then the chain of real
    ones is followed.
    """
    import numpy as np

    fixed = np.zeros(32, dtype=np.uint32)
    each = np.zeros(32, dtype=np.uint32)
    for kind, (extra, element) in enumerate(header.layouts[:32]):
        fixed[kind], each[kind] = 3 + extra // 4, element // 4
    for kind, (extra, element) in _LAYOUT.items():
        fixed[kind], each[kind] = 3 + extra // 4, element // 4
    info = words[1:]
    kinds = (info >> 24 & 0x1F).astype(np.uint8)
    jumps = (fixed[kinds] + each[kinds] * (info & 0xFFFF)).data.cast("B").cast("I")
    starts: list[int] = []
    position, end = 0, len(words)
    while position + 2 < end:
        step = jumps[position]
        if step == 0 or len(starts) >= MAX_TYPES:
            raise CorruptDataError("BTF: a record of unknown kind", position * 4)
        starts.append(position)
        position += step
    if position != end:
        raise CorruptDataError("BTF: the records do not add up to the type section", position * 4)
    return np.array(starts, dtype=np.int64)


def _build_index(
    raw: memoryview, header: _Header, words: Words, records: Numbers, base: Btf | None
) -> memoryview:
    """Index the named types: every string is hashed once, then found by its offset."""
    import numpy as np

    strings = bytes(raw[header.strings : header.strings + header.strings_size])
    if strings.count(0) > MAX_STRINGS:
        raise CorruptDataError("BTF: more strings than any kernel has", header.strings)
    string_base = base.string_end if base else 0
    first_id = base.end_id if base else 1
    kinds = words[records + 1] >> 24 & 0x1F if len(records) else records
    offsets = words[records].astype(np.int64) if len(records) else records
    chosen = np.flatnonzero(np.isin(kinds, _NAMED) & (offsets != 0))
    offsets = offsets[chosen]
    parts = strings.split(b"\0")
    lengths = np.fromiter(map(len, parts), dtype=np.int64, count=len(parts))
    starts = np.cumsum(lengths + 1) - lengths - 1
    all_hashes = np.fromiter(map(crc32, parts), dtype=np.uint32, count=len(parts))
    local = offsets - string_base
    place = np.clip(np.searchsorted(starts, local), 0, len(starts) - 1)
    hashes = all_hashes[place]
    # A name in the base, one that is the tail of another, or one outside the section (which
    # then is in no index, and is reported when its type is looked at).
    for odd in np.flatnonzero(starts[place] != local).tolist():
        hashes[odd] = crc32(_odd_name(strings, int(local[odd]), int(offsets[odd]), base))
    section: Any = build_index_of_hashes(hashes, chosen + first_id)
    return memoryview(section)


def _odd_name(strings: bytes, local: int, offset: int, base: Btf | None) -> bytes:
    if local < 0 and base is not None:
        return base.string(offset)
    return strings[max(local, 0) : max(local, 0) + _NAME_SIZE].split(b"\0", 1)[0]

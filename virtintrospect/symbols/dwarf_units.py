"""DWARF as bytes: units, abbreviations and entries of ``.debug_info``, versions 2 to 5.

Only what leads to C types is decoded. A distribution's vmlinux has tens of millions of entries, and
each unit repeats the types of all headers that it includes: the layout of an abbreviation's values
is compiled once, entries are read by it in one go, and what lies below an entry is stepped over by
its sibling reference, where the compiler gave one.

Format: dwarfstd.org, DWARF 5, sections 7.5 (units, abbreviations, forms) and 7.4 (32 and 64 bits).
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Iterator
from typing import Any, NamedTuple

from virtintrospect.errors import CorruptDataError

(TAG_ARRAY, TAG_ENUM, TAG_MEMBER, TAG_POINTER, TAG_STRUCT, TAG_SUBROUTINE, TAG_TYPEDEF, TAG_UNION,
 TAG_SUBRANGE, TAG_BASE, TAG_CONST, TAG_ENUMERATOR, TAG_VOLATILE, TAG_RESTRICT, TAG_PARAMETER,
 TAG_VARIADIC, TAG_ATOMIC, TAG_COMPILE_UNIT, TAG_PARTIAL_UNIT) = (
    0x01, 0x04, 0x0D, 0x0F, 0x13, 0x15, 0x16, 0x17, 0x21, 0x24, 0x26, 0x28, 0x35, 0x37, 0x05,
    0x18, 0x47, 0x11, 0x3C)  # fmt: skip

#: Attributes that are decoded, by number.
ATTRIBUTES = {
    0x01: "sibling", 0x03: "name", 0x0B: "byte_size", 0x0C: "bit_offset", 0x0D: "bit_size",
    0x1C: "const_value", 0x2F: "upper_bound", 0x37: "count", 0x38: "location", 0x39: "column",
    0x3B: "line", 0x3C: "declaration", 0x3E: "encoding", 0x49: "type", 0x6B: "data_bit_offset",
    0x72: "string_offsets", 0x76: "split_name", 0x2130: "split_name",
}  # fmt: skip

#: Forms of a fixed size: what struct calls them, once the size of addresses is known.
_FIXED = {
    0x05: "H", 0x06: "I", 0x07: "Q", 0x0B: "B", 0x0C: "B", 0x11: "B", 0x12: "H", 0x13: "I",
    0x14: "Q", 0x1E: "16s", 0x20: "Q", 0x25: "B", 0x26: "H", 0x28: "I", 0x29: "B", 0x2A: "H",
    0x2C: "I",
}  # fmt: skip
_OFFSETS = (0x0E, 0x17, 0x1F, 0x1D, 0x1F20, 0x1F21)
_ADDR, _BLOCK2, _BLOCK4, _STRING, _BLOCK, _BLOCK1, _SDATA, _STRP, _UDATA, _REF_ADDR = (
    0x01, 0x03, 0x04, 0x08, 0x09, 0x0A, 0x0D, 0x0E, 0x0F, 0x10)  # fmt: skip
_REF_UDATA, _INDIRECT, _EXPRLOC, _FLAG_PRESENT, _STRX, _LINE_STRP, _IMPLICIT = (
    0x15, 0x16, 0x18, 0x19, 0x1A, 0x1F, 0x21)  # fmt: skip
_UNSIGNED_LEB = (_UDATA, _REF_UDATA, _STRX, 0x1B, 0x22, 0x23)
_STRING_INDEXES = (_STRX, 0x25, 0x26, 0x27, 0x28)
_LOCAL_REFERENCES = (0x11, 0x12, 0x13, 0x14, _REF_UDATA)

#: Bounds: no vmlinux has more units, a unit more abbreviations, an abbreviation more attributes;
#: nothing that is C nests more deeply.
_MAX_UNITS = 1 << 18
_MAX_ABBREVIATIONS = 1 << 16
_MAX_ATTRIBUTES = 256
_MAX_NESTING = 256
#: Longest name taken.
_MAX_NAME = 512

Values = dict[str, Any]


class Sections(NamedTuple):
    """The sections that types need; an absent one is empty."""

    info: memoryview
    abbreviations: memoryview
    strings: memoryview
    line_strings: memoryview = memoryview(b"")
    string_offsets: memoryview = memoryview(b"")


class Abbreviation(NamedTuple):
    """What entries of one code are, and how their values lie."""

    tag: int
    children: bool
    #: Of each value: name of the attribute (empty: not wanted), form, implicit constant.
    values: tuple[tuple[str, int, int], ...]
    #: Where all values have a fixed size: they are read at once, the wanted ones are kept.
    fixed: struct.Struct | None
    kept: tuple[tuple[str, int], ...]
    #: Those of them that are references, counted from the start of the unit.
    references: tuple[str, ...]
    #: Values that take no space in the entry.
    implied: tuple[tuple[str, int], ...]


class Entry(NamedTuple):
    """One entry: its offset in ``.debug_info``, its tag, its values, where what follows begins."""

    offset: int
    tag: int
    children: bool
    values: Values
    end: int


class Unit:
    """One unit: a compiled file, with the types that it knows.

    :param start: offset of its header in ``.debug_info``.
    :param budget: how many entries may still be read, in all units together.
    """

    def __init__(self, sections: Sections, order: str, start: int, budget: list[int]) -> None:
        self.sections = sections
        self.order = order
        self.start = start
        self._budget = budget
        self._head()
        self._string_base = 0
        self._table: dict[int, Abbreviation] = {}

    def _head(self) -> None:
        info, order, at = self.sections.info, self.order, self.start
        (length,) = struct.unpack_from(f"{order}I", info, at)
        self.wide, at = length == 0xFFFF_FFFF, at + 4
        if self.wide:
            (length,) = struct.unpack_from(f"{order}Q", info, at)
            at += 8
        self.end = at + length
        word = "Q" if self.wide else "I"
        if self.end > len(info):
            raise CorruptDataError("DWARF: a unit reaches beyond the section", self.start)
        (self.version,) = struct.unpack_from(f"{order}H", info, at)
        at += 2
        if not 2 <= self.version <= 5:
            raise CorruptDataError(f"DWARF: version {self.version} is not known", self.start)
        self.kind = 1
        if self.version >= 5:
            kind, self.address_size = info[at], info[at + 1]
            (self.abbreviations,) = struct.unpack_from(f"{order}{word}", info, at + 2)
            self.kind, at = kind, at + 2 + struct.calcsize(word)
            # Skeleton and split units have an id of 8 bytes; type units a signature and an offset.
            at += {4: 8, 5: 8, 2: 8 + struct.calcsize(word), 6: 8 + struct.calcsize(word)}.get(
                kind, 0
            )
        else:
            (self.abbreviations,) = struct.unpack_from(f"{order}{word}", info, at)
            at += struct.calcsize(word)
            self.address_size, at = info[at], at + 1
        if self.address_size not in (2, 4, 8):
            raise CorruptDataError(f"DWARF: addresses of {self.address_size} bytes", self.start)
        #: Offset of the unit's own entry.
        self.first = at

    def use(self, table: dict[int, Abbreviation]) -> Entry:
        """Take the abbreviations of this unit, and read its own entry."""
        self._table = table
        entry = self.entry(self.first)
        if entry is None:
            raise CorruptDataError("DWARF: a unit without an entry", self.start)
        self._string_base = entry.values.get("string_offsets", 0)
        return entry

    def entries(self, at: int) -> Iterator[Entry]:
        """The entries from offset ``at`` to the end of their level, without what is below them."""
        while at < self.end:
            entry = self.entry(at)
            if entry is None:
                return
            yield entry
            at = self.after(entry)

    def after(self, entry: Entry) -> int:
        """Offset behind an entry and all that is below it."""
        if not entry.children:
            return entry.end
        sibling: int = entry.values.get("sibling", 0)
        if sibling:
            if sibling <= entry.offset:
                raise CorruptDataError("DWARF: an entry's sibling lies before it", entry.offset)
            return sibling
        at, depth = entry.end, 1
        while depth:
            below = self.entry(at)
            if below is None:
                at, depth = at + 1, depth - 1
            else:
                at, depth = below.end, depth + below.children
            if depth > _MAX_NESTING:
                raise CorruptDataError("DWARF: entries nested too deeply", entry.offset)
        return at

    def entry(self, at: int) -> Entry | None:
        """The entry at an offset; ``None`` for the mark that ends a level."""
        info = self.sections.info
        self._budget[0] -= 1
        if not self.first <= at < self.end:
            raise CorruptDataError("DWARF: a reference out of its unit", at)
        if self._budget[0] < 0:
            raise CorruptDataError("DWARF: entries that lie across each other", at)
        code, start = info[at], at
        at += 1
        if code >= 0x80:
            code, at = _unsigned(info, start)
        if code == 0:
            return None
        abbreviation = self._table.get(code)
        if abbreviation is None:
            raise CorruptDataError(f"DWARF: no abbreviation {code}", start)
        fixed = abbreviation.fixed
        if fixed is None:
            values, at = self._values(abbreviation, at)
        else:
            found = fixed.unpack_from(info, at)
            values = {name: found[number] for name, number in abbreviation.kept}
            for name in abbreviation.references:
                values[name] += self.start
            values.update(abbreviation.implied)
            at += fixed.size
        return Entry(start, abbreviation.tag, abbreviation.children, values, at)

    def name(self, entry: Entry) -> bytes:
        """The name of an entry; empty where it has none."""
        place = entry.values.get("name")
        if place is None:
            return b""
        if isinstance(place, bytes):
            return place
        section, offset = place if isinstance(place, tuple) else ("strings", place)
        if section == "index":
            section, offset = "strings", self._indexed(offset)
        return _string(getattr(self.sections, section), offset)

    def _indexed(self, number: int) -> int:
        size = 8 if self.wide else 4
        start = self._string_base + number * size
        offsets = self.sections.string_offsets
        if not 0 <= start <= len(offsets) - size:
            raise CorruptDataError("DWARF: a string index beyond its table", start)
        order = "little" if self.order == "<" else "big"
        return int.from_bytes(offsets[start : start + size], order)  # type: ignore[arg-type]

    # -- values ---------------------------------------------------------------------------------

    def _values(self, abbreviation: Abbreviation, at: int) -> tuple[Values, int]:
        """The wanted values of an entry, form by form."""
        values: Values = {}
        for name, form, constant in abbreviation.values:
            value, at = self._value(form, constant, at, name)
            if name:
                values[name] = value
        return values, at

    def _value(self, form: int, constant: int, at: int, name: str) -> tuple[Any, int]:
        info = self.sections.info
        code = self._code(form)
        if code:
            (value,) = struct.unpack_from(f"{self.order}{code}", info, at)
            return self._meaning(form, value), at + struct.calcsize(f"={code}")
        if form in _UNSIGNED_LEB:
            value, at = _unsigned(info, at)
            return self._meaning(form, value), at
        if form == _SDATA:
            return _signed(info, at)
        if form in (_FLAG_PRESENT, _IMPLICIT):
            return (1 if form == _FLAG_PRESENT else constant), at
        if form == _STRING:
            text = _string(info, at) if name else b""
            return text, _end_of_string(info, at)
        if form == 0x27:  # a string index of three bytes
            order = "little" if self.order == "<" else "big"
            return ("index", int.from_bytes(info[at : at + 3], order)), at + 3  # type: ignore[arg-type]
        if form == _INDIRECT:
            inner, at = _unsigned(info, at)
            if inner in (_INDIRECT, _IMPLICIT):
                raise CorruptDataError("DWARF: an indirect form of an indirect form", at)
            return self._value(inner, 0, at, name)
        size, at = self._block_size(form, at)
        return bytes(info[at : min(at + size, at + 64)]) if name else b"", at + size

    def _block_size(self, form: int, at: int) -> tuple[int, int]:
        info = self.sections.info
        if form in (_BLOCK, _EXPRLOC):
            return _unsigned(info, at)
        code = {_BLOCK1: "B", _BLOCK2: "H", _BLOCK4: "I"}.get(form)
        if code is None:
            raise CorruptDataError(f"DWARF: form {form:#x} is not known", at)
        (size,) = struct.unpack_from(f"{self.order}{code}", info, at)
        return size, at + struct.calcsize(f"={code}")

    def _code(self, form: int) -> str:
        """The struct code of a form of fixed size in this unit; empty for the others."""
        if form == _ADDR:
            return {2: "H", 4: "I", 8: "Q"}[self.address_size]
        if form == _REF_ADDR and self.version == 2:
            return {2: "H", 4: "I", 8: "Q"}[self.address_size]
        if form in _OFFSETS or form == _REF_ADDR:
            return "Q" if self.wide else "I"
        return _FIXED.get(form, "")

    def _meaning(self, form: int, value: Any) -> Any:
        if form in _LOCAL_REFERENCES:
            return self.start + value
        if form in _STRING_INDEXES:
            return ("index", value)
        if form == _LINE_STRP:
            return ("line_strings", value)
        return value

    def compile(self, tag: int, values: list[tuple[int, int, int]], *, children: bool) -> Any:
        """An abbreviation, made ready for entries of this kind of unit."""
        named = tuple((ATTRIBUTES.get(at, ""), form, constant) for at, form, constant in values)
        codes = self.order
        kept: list[tuple[str, int]] = []
        implied: list[tuple[str, int]] = []
        references: list[str] = []
        for name, form, constant in named:
            code = self._code(form)
            if form in (_FLAG_PRESENT, _IMPLICIT):
                if name:
                    implied.append((name, 1 if form == _FLAG_PRESENT else constant))
                continue
            if not code or (name and form in (*_STRING_INDEXES, _LINE_STRP)):
                return Abbreviation(tag, children, named, None, (), (), ())
            if name:
                kept.append((name, len(kept)))
                codes += code
                references += [name] if form in _LOCAL_REFERENCES else []
            else:
                codes += f"{struct.calcsize(f'={code}')}x"
        fixed = struct.Struct(codes)
        return Abbreviation(
            tag, children, named, fixed, tuple(kept), tuple(references), tuple(implied)
        )


class Dwarf:
    """The units of ``.debug_info``.

    :param order: ``"<"`` or ``">"``: byte order of the file.
    """

    def __init__(self, sections: Sections, order: str) -> None:
        self.sections = sections
        self.order = order
        self._tables: dict[tuple[int, bool, int, int], dict[int, Abbreviation]] = {}
        # An entry has some ten bytes, and is looked at a few times at most.
        self._budget = [len(sections.info) + 1024]
        self._starts: list[int] = []
        self._units: list[Unit] = []

    def units(self) -> Iterator[tuple[Unit, Entry]]:
        """Every unit, with its own entry.

        :raises CorruptDataError: the section is damaged.
        """
        at = 0
        while at + 11 < len(self.sections.info):
            if len(self._units) >= _MAX_UNITS:
                raise CorruptDataError("DWARF: more units than any kernel has", at)
            unit = Unit(self.sections, self.order, at, self._budget)
            self._starts.append(at)
            self._units.append(unit)
            yield unit, unit.use(self._abbreviations(unit))
            at = unit.end

    def unit_at(self, offset: int) -> Unit:
        """The unit that an entry lies in; only those that :meth:`units` has given are known."""
        number = bisect_right(self._starts, offset) - 1
        if number < 0 or offset >= self._units[number].end:
            raise CorruptDataError("DWARF: a reference to a unit that was not read yet", offset)
        return self._units[number]

    def _abbreviations(self, unit: Unit) -> dict[int, Abbreviation]:
        key = (unit.abbreviations, unit.wide, unit.address_size, unit.version)
        table = self._tables.get(key)
        if table is None:
            if len(self._tables) > 64:
                self._tables.clear()
            table = self._tables[key] = self._read_abbreviations(unit)
        return table

    def _read_abbreviations(self, unit: Unit) -> dict[int, Abbreviation]:
        data, at = self.sections.abbreviations, unit.abbreviations
        table: dict[int, Abbreviation] = {}
        while True:
            code, at = _unsigned(data, at)
            if code == 0:
                return table
            tag, at = _unsigned(data, at)
            if at >= len(data) or len(table) >= _MAX_ABBREVIATIONS:
                raise CorruptDataError("DWARF: the abbreviations have no end", at)
            children, at = bool(data[at]), at + 1
            values: list[tuple[int, int, int]] = []
            while True:
                attribute, at = _unsigned(data, at)
                form, at = _unsigned(data, at)
                constant = 0
                if form == _IMPLICIT:
                    constant, at = _signed(data, at)
                if not attribute and not form:
                    break
                values.append((attribute, form, constant))
                if len(values) > _MAX_ATTRIBUTES:
                    raise CorruptDataError("DWARF: an abbreviation without an end", at)
            table[code] = unit.compile(tag, values, children=children)


def _unsigned(data: memoryview, at: int) -> tuple[int, int]:
    """An unsigned LEB128 number, and where it ends."""
    value = shift = 0
    while shift < 70 and at < len(data):
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise CorruptDataError("DWARF: a number without an end", at)


def _signed(data: memoryview, at: int) -> tuple[int, int]:
    value, end = _unsigned(data, at)
    bits = 7 * (end - at)
    return (value - (1 << bits) if value >> (bits - 1) & 1 else value), end


def _string(data: memoryview, at: int) -> bytes:
    if not 0 <= at < len(data):
        raise CorruptDataError("DWARF: a name lies outside its section", at)
    return bytes(data[at : at + _MAX_NAME]).split(b"\0", 1)[0]


def _end_of_string(data: memoryview, at: int) -> int:
    step = 64
    while at < len(data):
        found = bytes(data[at : at + step]).find(b"\0")
        if found >= 0:
            return at + found + 1
        at += step
    raise CorruptDataError("DWARF: a string without an end", at)

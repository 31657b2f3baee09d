"""Types out of DWARF, as BTF.

A vmlinux repeats the types of a header in every file that includes it. A named type is taken from
the first unit that defines it, and known again by kind, name, size and place in its source file;
what it consists of is read only then. So two different structs of one name are both kept, as
pahole keeps them.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from virtintrospect.errors import CorruptDataError
from virtintrospect.symbols import btf_write as btf
from virtintrospect.symbols import dwarf_units as dw
from virtintrospect.symbols.brought import Progress
from virtintrospect.symbols.btf_write import BtfWriter, WrittenMember
from virtintrospect.symbols.dwarf_units import Dwarf, Entry, Sections, Unit

#: Longest chain of pointers, qualifiers, typedefs, arrays and parameters.
_MAX_DEPTH = 64
_MOST_ELEMENTS = 0xFFFF
_LARGEST_OFFSET = 1 << 28

_DEFINED = {dw.TAG_STRUCT: btf.STRUCT, dw.TAG_UNION: btf.UNION, dw.TAG_ENUM: btf.ENUM}
_REFERRING = {
    dw.TAG_POINTER: btf.PTR, dw.TAG_CONST: btf.CONST, dw.TAG_VOLATILE: btf.VOLATILE,
    dw.TAG_RESTRICT: btf.RESTRICT,
}  # fmt: skip
_ROOTS = (*_DEFINED, dw.TAG_TYPEDEF, dw.TAG_BASE)

#: DW_ATE_*: boolean; signed, signed char; floats.
_BOOLEAN, _SIGNED, _FLOATS = 2, (5, 6, 13), (3, 4)
#: DW_OP_plus_uconst and DW_OP_constu, by which DWARF 2 gives the place of a member.
_PLACES = (0x23, 0x10)


def read_types(sections: Sections, order: str, progress: Progress | None = None) -> bytes:
    """All types of a kernel, as raw BTF.

    Time and memory are bounded by the size of the sections, and by what BTF can hold.

    :param order: ``"<"`` or ``">"``, the byte order of the file.
    :param progress: called with the bytes that are done, and how many there are.
    :raises CorruptDataError: the sections are damaged, or of a kind that is not known.
    """
    try:
        return _Reader(Dwarf(sections, order)).read(progress)
    except (struct.error, IndexError, OverflowError) as problem:
        raise CorruptDataError(f"DWARF: it is cut off ({problem})", 0) from problem


class _Reader:
    def __init__(self, dwarf: Dwarf) -> None:
        self._dwarf = dwarf
        self._out = BtfWriter()
        #: Types by what they are; see the head of this module.
        self._known: dict[tuple[object, ...], int] = {}
        #: Types of the unit at hand, by the offset of their entry.
        self._here: dict[int, int] = {}
        #: Structs, unions and enums whose inside is not read yet.
        self._waiting: list[tuple[Unit, Entry, int]] = []

    def read(self, progress: Progress | None) -> bytes:
        split = False
        for unit, own in self._dwarf.units():
            if progress is not None:
                progress(unit.start, len(self._dwarf.sections.info))
            split = split or "split_name" in own.values or unit.kind in (4, 5)
            if own.children and own.tag in (dw.TAG_COMPILE_UNIT, dw.TAG_PARTIAL_UNIT):
                self._unit(unit, own)
        if not len(self._out):
            raise CorruptDataError(
                "DWARF: the types are in other files (.dwo)" if split else "DWARF: it has no types",
                0,
                hint="give a vmlinux that was built without CONFIG_DEBUG_INFO_SPLIT"
                if split
                else "",
            )
        return self._out.build()

    def _unit(self, unit: Unit, own: Entry) -> None:
        self._here = {}
        for entry in unit.entries(own.end):
            if entry.tag in _ROOTS and "name" in entry.values:
                self._type(unit, entry, 0)
            while self._waiting:
                self._inside(*self._waiting.pop())

    # -- which type an entry is -----------------------------------------------------------------

    def _at(self, unit: Unit, values: dw.Values, depth: int) -> int:
        """Id of the type that an entry's ``type`` refers to; 0, void, where it has none."""
        offset = values.get("type")
        if offset is None:
            return 0
        known = self._here.get(offset)
        if known is not None:
            return known
        if not unit.first <= offset < unit.end:
            unit = self._dwarf.unit_at(offset)
        entry = unit.entry(offset)
        if entry is None:
            raise CorruptDataError("DWARF: a reference to no entry", offset)
        return self._type(unit, entry, depth)

    def _type(self, unit: Unit, entry: Entry, depth: int) -> int:
        if depth > _MAX_DEPTH:
            raise CorruptDataError(
                "DWARF: types that refer to each other in a circle", entry.offset
            )
        found = self._here.get(entry.offset)
        if found is None:
            found = self._here[entry.offset] = self._new(unit, entry, depth + 1)
        return found

    def _new(self, unit: Unit, entry: Entry, depth: int) -> int:
        tag, values = entry.tag, entry.values
        if tag in _DEFINED:
            return self._definition(unit, entry)
        if tag == dw.TAG_TYPEDEF:
            return self._typedef(unit, entry, depth)
        if tag == dw.TAG_BASE:
            return self._base(unit, entry)
        if tag in _REFERRING:
            target = self._at(unit, values, depth)
            return self._same((tag, target), lambda i: self._out.simple(i, _REFERRING[tag], target))
        if tag == dw.TAG_ARRAY:
            return self._array(unit, entry, depth)
        if tag == dw.TAG_SUBROUTINE:
            return self._function(unit, entry, depth)
        # _Atomic and whatever else wraps a type; what wraps none is void.
        return self._at(unit, values, depth)

    def _same(self, key: tuple[object, ...], define: object) -> int:
        """The type that this key stands for, defined at its first appearance."""
        known = self._known.get(key)
        if known is None:
            known = self._known[key] = self._out.reserve()
            define(known)  # type: ignore[operator]
        return known

    def _definition(self, unit: Unit, entry: Entry) -> int:
        """A struct, union or enum: its id now, its inside later."""
        values, name = entry.values, unit.name(entry)
        if values.get("declaration"):
            union = entry.tag == dw.TAG_UNION
            return self._same(
                ("declared", entry.tag, name), lambda i: self._out.forward(i, name, union=union)
            )
        place = [values.get(key) for key in ("byte_size", "line", "column")]
        if not name:
            place.append(entry.offset)
        key = (entry.tag, name, *place)
        known = self._known.get(key)
        if known is None:
            known = self._known[key] = self._out.reserve()
            self._waiting.append((unit, entry, known))
        return known

    def _typedef(self, unit: Unit, entry: Entry, depth: int) -> int:
        values, name = entry.values, unit.name(entry)
        key = (entry.tag, name, values.get("line"), values.get("column"))
        known = self._known.get(key)
        if known is None:
            known = self._known[key] = self._out.reserve()
            self._here[entry.offset] = known
            self._out.simple(known, btf.TYPEDEF, self._at(unit, values, depth), name)
        return known

    def _base(self, unit: Unit, entry: Entry) -> int:
        name, size = unit.name(entry), entry.values.get("byte_size", 0)
        encoding = entry.values.get("encoding", 0)

        def define(number: int) -> None:
            if encoding in _FLOATS or size not in (1, 2, 4, 8, 16):
                self._out.simple(number, btf.FLOAT, _size(entry), name)
            else:
                signed, boolean = encoding in _SIGNED, encoding == _BOOLEAN
                self._out.integer(number, name, size, signed=signed, boolean=boolean)

        return self._same((entry.tag, name, size, encoding), define)

    def _array(self, unit: Unit, entry: Entry, depth: int) -> int:
        """An array; one of several dimensions is an array of arrays, the last dimension inside."""
        counts = [
            _count(below.values)
            for below in self._below(unit, entry)
            if below.tag == dw.TAG_SUBRANGE
        ]
        element = self._at(unit, entry.values, depth)
        for count in reversed(counts or [0]):
            inner, size = element, count
            element = self._same(
                (entry.tag, inner, size),
                lambda i, inner=inner, size=size: self._out.array(i, inner, size),
            )
        return element

    def _function(self, unit: Unit, entry: Entry, depth: int) -> int:
        returns = self._at(unit, entry.values, depth)
        parameters = tuple(
            0 if below.tag == dw.TAG_VARIADIC else self._at(unit, below.values, depth)
            for below in self._below(unit, entry)
            if below.tag in (dw.TAG_PARAMETER, dw.TAG_VARIADIC)
        )
        return self._same(
            (entry.tag, returns, parameters),
            lambda i: self._out.function(i, returns, parameters),
        )

    # -- what is inside -------------------------------------------------------------------------

    def _below(self, unit: Unit, entry: Entry) -> Iterator[Entry]:
        if entry.children:
            for number, below in enumerate(unit.entries(entry.end)):
                if number >= _MOST_ELEMENTS:
                    raise CorruptDataError("DWARF: impossibly many members", entry.offset)
                yield below

    def _inside(self, unit: Unit, entry: Entry, number: int) -> None:
        name, size = unit.name(entry), _size(entry)
        if entry.tag == dw.TAG_ENUM:
            values = [
                (unit.name(below), _constant(below.values.get("const_value", 0)))
                for below in self._below(unit, entry)
                if below.tag == dw.TAG_ENUMERATOR
            ]
            self._out.enum(number, name, size, values)
            return
        members = [
            self._member(unit, below)
            for below in self._below(unit, entry)
            if below.tag == dw.TAG_MEMBER
        ]
        self._out.struct(number, _DEFINED[entry.tag], name, size, members)

    def _member(self, unit: Unit, entry: Entry) -> WrittenMember:
        values = entry.values
        type_id = self._at(unit, values, 0)
        bits = values.get("bit_size", 0)
        if "data_bit_offset" in values:
            place = values["data_bit_offset"]
        else:
            place = 8 * _place(values.get("location", 0))
            if "bit_offset" in values:  # DWARF 2 and 3: counted from the most significant bit
                storage = 8 * values.get("byte_size", 0) or 32
                from_top = values["bit_offset"]
                place += from_top if self._dwarf.order == ">" else storage - from_top - bits
        if not (0 <= place < _LARGEST_OFFSET and 0 <= bits <= 64):
            raise CorruptDataError("DWARF: a member at an impossible place", entry.offset)
        return WrittenMember(unit.name(entry), type_id, place, bits)


def _size(entry: Entry) -> int:
    size = entry.values.get("byte_size", 0)
    if not isinstance(size, int) or not 0 <= size <= _LARGEST_OFFSET:
        raise CorruptDataError("DWARF: a type of an impossible size", entry.offset)
    return size


def _count(values: dw.Values) -> int:
    """Elements of a dimension; 0 where it has no declared size."""
    if "count" in values:
        count = values["count"]
    elif "upper_bound" in values:
        count = values["upper_bound"]
        # The bound of an array of no elements is written as -1 in as many bytes as it may have.
        count = count + 1 if isinstance(count, int) and count not in (-1, _ALL, _MOST) else 0
    else:
        count = 0
    return count if isinstance(count, int) and 0 <= count < 1 << 32 else 0


_ALL, _MOST = 0xFFFF_FFFF, 0xFFFF_FFFF_FFFF_FFFF


def _constant(value: object) -> int:
    if isinstance(value, bytes):  # a block: wider than any form of a constant
        value = int.from_bytes(value[:8], "little")
    if not isinstance(value, int):
        raise CorruptDataError("DWARF: an enumerator without a value", 0)
    return value  # negative ones have a signed form


def _place(location: object) -> int:
    """Offset of a member: a number, or an expression that adds one to the struct's address."""
    if isinstance(location, int):
        return location
    if isinstance(location, bytes) and location[:1] and location[0] in _PLACES:
        value = shift = 0
        for byte in location[1:11]:
            value |= (byte & 0x7F) << shift
            shift += 7
        return value
    raise CorruptDataError("DWARF: a member at a computed place", 0)

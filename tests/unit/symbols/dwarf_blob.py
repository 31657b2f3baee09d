"""DWARF written by hand, for what no compiler writes: types that lie."""

from __future__ import annotations

import struct

from virtintrospect.symbols.dwarf_units import Sections

COMPILE_UNIT, STRUCT, MEMBER, POINTER, TYPEDEF, BASE, FUNCTION, PARAMETER, ARRAY, CONST = (
    0x11, 0x13, 0x0D, 0x0F, 0x16, 0x24, 0x15, 0x05, 0x01, 0x26)  # fmt: skip
NAME, SIZE, TYPE, PLACE, ENCODING, SIBLING = 0x03, 0x0B, 0x49, 0x38, 0x3E, 0x01
_DATA4, _STRING, _REF4 = 0x06, 0x08, 0x13
_FORMS = {NAME: _STRING, SIZE: _DATA4, TYPE: _REF4, PLACE: _DATA4, ENCODING: _DATA4, SIBLING: _REF4}
_HEAD = 11

Values = dict[int, int | bytes]


class Dwarf:
    """One unit of DWARF 4; entries are added in order, ``up()`` ends a level."""

    def __init__(self) -> None:
        self._abbreviations = b""
        self._known: dict[tuple[object, ...], int] = {}
        self.info = b""
        self.add(COMPILE_UNIT, {}, children=True)

    @property
    def here(self) -> int:
        """Offset of the next entry, as references give it."""
        return _HEAD + len(self.info)

    def add(self, tag: int, values: Values, *, children: bool = False) -> int:
        """An entry; its offset."""
        key = (tag, children, *values)
        if key not in self._known:
            code = self._known[key] = len(self._known) + 1
            attributes = b"".join(bytes([name, _FORMS[name]]) for name in values)
            self._abbreviations += bytes([code, tag, children]) + attributes + b"\0\0"
        at = self.here
        self.info += bytes([self._known[key]])
        for value in values.values():
            self.info += value + b"\0" if isinstance(value, bytes) else struct.pack("<I", value)
        return at

    def up(self) -> None:
        self.info += b"\0"

    def sections(self) -> Sections:
        body = struct.pack("<HIB", 4, 0, 8) + self.info + b"\0"
        unit = struct.pack("<I", len(body)) + body
        return Sections(
            memoryview(unit), memoryview(self._abbreviations + b"\0"), memoryview(b"\0")
        )

"""ISF: the JSON in which volatility3 keeps symbols and types of one kernel build.

A profile has ``base_types``, ``user_types`` (structs and unions), ``enums`` and ``symbols``.
A type is described where it is used: ``{"kind": "pointer", "subtype": {"kind": "struct", "name":
"list_head"}}``. Typedefs are resolved by the tool that made the profile; a typedef of an anonymous
struct appears as a struct of that name, and what has no name at all is called ``unnamed_…``. The
symbol ``linux_banner`` carries the banner of the
kernel, which says what build the profile is of.

Format: the schemas of volatility3 (versions 4 to 6 are alike in what is read here); the profiles
that dwarf2json makes.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterator
from typing import Any

from virtintrospect.errors import CorruptDataError
from virtintrospect.symbols import btf_write as btf
from virtintrospect.symbols.brought import Brought
from virtintrospect.symbols.btf_write import BtfWriter, WrittenMember
from virtintrospect.symbols.systemmap import MAX_SYMBOLS
from virtintrospect.symbols.table_build import Entry, build_table

#: Largest profile, unpacked: a distribution kernel's has 25 to 40 MB. Reading one takes some ten
#: times its size in memory.
MAX_SIZE = 128 << 20

_MAX_DEPTH = 64
_LARGEST = 1 << 28
_KINDS = {"struct": btf.STRUCT, "union": btf.UNION, "class": btf.STRUCT}

_Json = dict[str, Any]


def read(data: bytes | memoryview) -> Brought:
    """What a profile says.

    :param data: the JSON, unpacked.
    :raises CorruptDataError: it is no ISF profile of a Linux kernel, or makes no sense.
    """
    if len(data) > MAX_SIZE:
        raise CorruptDataError(
            f"ISF: a profile of {len(data)} bytes is larger than any kernel's", 0
        )
    try:
        document = json.loads(bytes(data))
    except (ValueError, RecursionError) as problem:
        raise CorruptDataError(f"ISF: no JSON ({problem})", 0) from problem
    if not isinstance(document, dict) or not {"user_types", "base_types", "symbols"} <= set(
        document
    ):
        raise CorruptDataError("ISF: JSON, but no profile: it lacks user_types or symbols", 0)
    pointer = _mapping(_mapping(document["base_types"]).get("pointer", {}))
    pointer_size = pointer.get("size", 8)
    if pointer.get("endian", "little") != "little":
        raise CorruptDataError("ISF: a big-endian kernel; only little-endian ones are known", 0)
    types = _Types(document).build()
    entries = list(_symbols(_mapping(document["symbols"])))
    return Brought(
        format="ISF",
        types=types,
        symbols=build_table(entries, 8 * pointer_size) if entries else None,
        pointer_size=pointer_size,
        banner=_banner(_mapping(document["symbols"])),
    )


def _symbols(symbols: _Json) -> Iterator[Entry]:
    if len(symbols) > MAX_SYMBOLS:
        raise CorruptDataError("ISF: more symbols than any kernel has", 0)
    for name, about in symbols.items():
        address = _mapping(about).get("address", 0)
        # dwarf2json writes what it found nowhere with address 0, and some as signed numbers.
        if isinstance(address, int) and address and -(1 << 63) <= address < 1 << 64:
            yield Entry(address & (1 << 64) - 1, b"?", _name(name))


def _banner(symbols: _Json) -> bytes:
    text = _mapping(symbols.get("linux_banner", {})).get("constant_data", "")
    try:
        banner = base64.b64decode(text, validate=True) if isinstance(text, str) else b""
    except (binascii.Error, ValueError):
        return b""
    return banner[:512].split(b"\0", 1)[0].rstrip(b"\n")


class _Types:
    def __init__(self, document: _Json) -> None:
        self._base = _mapping(document["base_types"])
        self._user = _mapping(document["user_types"])
        self._enums = _mapping(document.get("enums", {}))
        self._out = BtfWriter()
        self._named: dict[tuple[str, str], int] = {}
        self._same: dict[tuple[object, ...], int] = {}

    def build(self) -> bytes:
        structs = [(name, _mapping(about)) for name, about in self._user.items()]
        for name, _ in structs:
            self._named["user", name] = self._out.reserve()
        for name, about in self._enums.items():
            self._enum(name, _mapping(about))
        for name, about in structs:
            self._struct(name, about)
        if not structs:
            raise CorruptDataError("ISF: the profile has no types", 0)
        return self._out.build()

    def _struct(self, name: str, about: _Json) -> None:
        kind = _KINDS.get(about.get("kind", ""))
        if kind is None:
            raise CorruptDataError(f"ISF: {name[:64]!r} is neither a struct nor a union", 0)
        fields = _mapping(about.get("fields", {}))
        members = sorted(
            (self._member(field, _mapping(place)) for field, place in fields.items()),
            key=lambda member: member.bit_offset,
        )
        number = self._named["user", name]
        self._out.struct(number, kind, _type_name(name), _number(about.get("size")), members)

    def _member(self, name: str, about: _Json) -> WrittenMember:
        described = _mapping(about.get("type"))
        bits, width = 8 * _number(about.get("offset")), 0
        if described.get("kind") == "bitfield":
            bits += _number(described.get("bit_position"))
            width = _number(described.get("bit_length"))
            described = _mapping(described.get("type"))
        text = b"" if about.get("anonymous") is True else _name(name)
        return WrittenMember(text, self._type(described, 0), bits, width)

    def _enum(self, name: str, about: _Json) -> None:
        constants = _mapping(about.get("constants", {}))
        values = [(_name(label), _constant(value)) for label, value in constants.items()]
        values.sort(key=lambda item: item[1])
        number = self._named["enum", name] = self._out.reserve()
        self._out.enum(number, _type_name(name), _number(about.get("size")), values)

    def _type(self, about: _Json, depth: int) -> int:
        """Id of a type that is described where it is used; 0, void, for what is not known."""
        if depth > _MAX_DEPTH:
            raise CorruptDataError("ISF: a type described too deeply", 0)
        kind, name = about.get("kind"), about.get("name")
        if kind == "pointer":
            target = self._type(_mapping(about.get("subtype", {})), depth + 1)
            return self._once(("pointer", target), lambda i: self._out.simple(i, btf.PTR, target))
        if kind == "array":
            element = self._type(_mapping(about.get("subtype", {})), depth + 1)
            count = _number(about.get("count", 0))
            return self._once(
                ("array", element, count), lambda i: self._out.array(i, element, count)
            )
        if kind == "function":
            return self._once(("function",), lambda i: self._out.function(i, 0, ()))
        if not isinstance(name, str):
            return 0
        if kind == "base":
            return 0 if name == "void" else self._basic(name)
        if kind == "enum":
            return self._named.get(("enum", name), 0)
        found = self._named.get(("user", name))
        if found is None:
            union = kind == "union"
            return self._once(
                ("forward", name, union),
                lambda i: self._out.forward(i, _name(name), union=union),
            )
        return found

    def _basic(self, name: str) -> int:
        about = _mapping(self._base.get(name, {}))
        size, kind = _number(about.get("size", 0)), about.get("kind")

        def define(number: int) -> None:
            if kind == "float" or size not in (1, 2, 4, 8, 16):
                self._out.simple(number, btf.FLOAT, size, _name(name))
            else:
                signed = about.get("signed") is True and kind != "bool"
                self._out.integer(number, _name(name), size, signed=signed, boolean=kind == "bool")

        return self._once(("base", name), define)

    def _once(self, key: tuple[object, ...], define: Any) -> int:
        known = self._same.get(key)
        if known is None:
            known = self._same[key] = self._out.reserve()
            define(known)
        return known


def _mapping(value: object) -> _Json:
    if not isinstance(value, dict):
        raise CorruptDataError(f"ISF: {str(value)[:64]!r} stands where an object should", 0)
    return value


def _number(value: object) -> int:
    if not isinstance(value, int) or not 0 <= value <= _LARGEST:
        raise CorruptDataError(f"ISF: {str(value)[:64]!r} is no size, place or count", 0)
    return value


def _constant(value: object) -> int:
    if not isinstance(value, int) or not -(1 << 63) <= value < 1 << 64:
        raise CorruptDataError(f"ISF: {str(value)[:64]!r} is no value of an enum", 0)
    return value if value < 1 << 63 else value - (1 << 64)


def _type_name(text: str) -> bytes:
    return b"" if text.startswith("unnamed_") else _name(text)


def _name(text: str) -> bytes:
    return text.encode("utf-8", "replace").replace(b"\0", b"?")[:512]

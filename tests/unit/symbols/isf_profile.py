"""Makes ISF profiles of types and symbols that are known, in the way of dwarf2json."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from typing import Any

from virtintrospect.symbols.btf import Btf
from virtintrospect.symbols.table import Symbol
from virtintrospect.symbols.types import Kind, Member, Node

_USER = (Kind.STRUCT, Kind.UNION)


def profile(types: Btf, symbols: Iterable[Symbol], banner: bytes) -> dict[str, Any]:
    """The document."""
    return _Profile(types).document(symbols, banner)


class _Profile:
    def __init__(self, types: Btf) -> None:
        self.types = types
        self.base: dict[str, Any] = {
            "void": {"size": 0, "signed": False, "kind": "void", "endian": "little"},
            "pointer": {
                "size": types.pointer_size, "signed": False, "kind": "int", "endian": "little",
            },
        }  # fmt: skip
        #: An anonymous struct behind a typedef gets the typedef's name.
        self.names: dict[int, str] = {}
        for type_id in range(1, types.end_id):
            node = types.node(type_id)
            if node.kind is Kind.TYPEDEF:
                self.names.setdefault(types.strip(type_id)[0], node.name)

    def document(self, symbols: Iterable[Symbol], banner: bytes) -> dict[str, Any]:
        user, enums = {}, {}
        for type_id in range(1, self.types.end_id):
            node = self.types.node(type_id)
            name = self.name(type_id, node)
            if node.kind in _USER and name not in user:
                user[name] = {
                    "kind": str(node.kind), "size": node.size, "fields": self.fields(node),
                }  # fmt: skip
            elif node.kind is Kind.ENUM and name not in enums:
                enums[name] = {
                    "size": node.size, "base": "unsigned int", "constants": dict(node.values),
                }  # fmt: skip
        listed: dict[str, Any] = {}
        for symbol in symbols:
            listed.setdefault(symbol.name, {"address": symbol.address})
        text = base64.b64encode(banner + b"\n\0").decode()
        listed.setdefault("linux_banner", {})["constant_data"] = text
        return {
            "metadata": {"format": "6.2.0", "linux": {}, "producer": {"name": "test"}},
            "base_types": self.base,
            "user_types": user,
            "enums": enums,
            "symbols": listed,
        }

    def name(self, type_id: int, node: Node) -> str:
        return node.name or self.names.get(type_id) or f"unnamed_{type_id:016x}"

    def fields(self, node: Node) -> dict[str, Any]:
        fields: dict[str, Any] = {}
        for number, member in enumerate(node.members):
            described = self.member(member)
            if not member.name:
                described["anonymous"] = True
            fields[member.name or f"unnamed_field_{number:x}"] = described
        return fields

    def member(self, member: Member) -> dict[str, Any]:
        described = self.describe(member.type_id)
        if not member.bit_size:
            return {"type": described, "offset": member.bit_offset // 8}
        size = self.types.size_of(member.type_id)
        offset = member.bit_offset // (8 * size) * size
        kind = {
            "kind": "bitfield", "bit_position": member.bit_offset - 8 * offset,
            "bit_length": member.bit_size, "type": described,
        }  # fmt: skip
        return {"type": kind, "offset": offset}

    def describe(self, type_id: int) -> dict[str, Any]:
        type_id, node = self.types.strip(type_id)
        target = node.target or 0
        if node.kind is Kind.POINTER:
            return {"kind": "pointer", "subtype": self.describe(target)}
        if node.kind is Kind.ARRAY:
            return {"kind": "array", "count": node.count, "subtype": self.describe(target)}
        if node.kind is Kind.FUNCTION:
            return {"kind": "function"}
        if node.kind is Kind.FORWARD:
            return {"kind": "union" if node.signed else "struct", "name": node.name}
        if node.kind in (*_USER, Kind.ENUM):
            return {"kind": str(node.kind), "name": self.name(type_id, node)}
        if node.kind is Kind.VOID:
            return {"kind": "base", "name": "void"}
        kind = "float" if node.kind is Kind.FLOAT else "bool" if node.name == "_Bool" else "int"
        self.base[node.name] = {
            "size": node.size, "signed": node.signed, "kind": kind, "endian": "little",
        }  # fmt: skip
        return {"kind": "base", "name": node.name}

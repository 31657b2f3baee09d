"""C types as C spells them."""

from __future__ import annotations

from virtintrospect.symbols.types import MAX_DEPTH, MAX_SPELLING, Kind, Node, Types

#: Types looked at for one spelling: function types with function types as parameters grow
#: exponentially.
_MAX_NODES = 128


def spell(types: Types, type_id: int) -> str:
    """Spell a type as C does: inside out, from a declarator that grows around nothing."""
    return _spell(types, type_id, 3, [_MAX_NODES])


def _spell(types: Types, type_id: int, depth: int, left: list[int]) -> str:
    declarator, qualifiers = "", ""
    for _ in range(MAX_DEPTH):
        left[0] -= 1
        if left[0] < 0:
            break
        node = types.node(type_id)
        if node.kind is Kind.QUALIFIER:
            qualifiers += f"{node.name} " if node.name else ""
        elif node.kind is Kind.POINTER:
            declarator, qualifiers = f"*{qualifiers}{declarator}", ""
        elif node.kind is Kind.ARRAY:
            grouped = f"({declarator})" if declarator.startswith("*") else declarator
            declarator = f"{grouped}[{node.count or ''}]"
        elif node.kind is Kind.FUNCTION:
            declarator = f"({declarator})({_spell_parameters(types, node, depth, left)})"
        else:
            gap = " " if declarator[:1] in ("*", "(") else ""
            return (qualifiers + _base_name(node) + gap + declarator)[:MAX_SPELLING]
        if len(declarator) > MAX_SPELLING:
            break
        type_id = node.target or 0
    return "…"


def _spell_parameters(types: Types, node: Node, depth: int, left: list[int]) -> str:
    if depth <= 0:
        return "…"
    parameters = [
        _spell(types, member.type_id, depth - 1, left) if member.type_id else "..."
        for member in node.members[:MAX_DEPTH]
    ]
    return ", ".join(parameters) or "void"


def _base_name(node: Node) -> str:
    if node.kind in (Kind.STRUCT, Kind.UNION, Kind.ENUM):
        return f"{node.kind} {node.name or '<anonymous>'}"
    if node.kind is Kind.FORWARD:
        return f"{'union' if node.signed else 'struct'} {node.name}"
    return node.name or "void"

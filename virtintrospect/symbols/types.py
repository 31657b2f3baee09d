"""C types of a guest's kernel, whatever format they came in.

A format (:mod:`~virtintrospect.symbols.btf`) derives from :class:`Types` and supplies *nodes*;
finding members by path, following pointers and spelling C are done here, once.

The types are the guest's own data: every descent is bounded in depth and count.
"""

from __future__ import annotations

import abc
import fnmatch
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from itertools import islice
from typing import NamedTuple

from virtintrospect.errors import CorruptDataError, TypeNotFoundError

#: Longest chain of typedefs and qualifiers, deepest nesting of anonymous members and arrays.
MAX_DEPTH = 32

#: Most members of one struct, those of its anonymous members included (task_struct has 260).
MAX_MEMBERS = 16384

#: Longest member path, in characters; longest C type name given out.
MAX_PATH = 512
#: Most types of one name that are looked at.
MAX_NAMESAKES = 256
#: Searches for similar names, which take time, that errors of one kernel's types may cost.
_MOST_HINTS = 4
MAX_SPELLING = 512

_STEP = re.compile(r"([A-Za-z_]\w*)((?:\[\d{1,9}\])*)\Z")
_TAGS = ("struct ", "union ", "enum ")


class Kind(StrEnum):
    """What a C type is. The last two never appear in a :class:`Field`: they are looked through."""

    INT = "int"
    POINTER = "pointer"
    ARRAY = "array"
    STRUCT = "struct"
    UNION = "union"
    ENUM = "enum"
    FLOAT = "float"
    FUNCTION = "function"
    VOID = "void"
    FORWARD = "forward"
    TYPEDEF = "typedef"
    QUALIFIER = "qualifier"


class Member(NamedTuple):
    """A member of a struct or union, or a parameter of a function."""

    name: str
    type_id: int
    #: From the start of the struct.
    bit_offset: int = 0
    #: 0 unless it is a bit field.
    bit_size: int = 0


@dataclass(frozen=True, slots=True)
class Node:
    """One type as the format has it.

    :param size: in bytes; 0 where the format does not say (pointer, array, typedef).
    :param target: id of what it points to, has as element, returns, or is another name of.
    :param count: elements of an array.
    :param signed: of an integer or enum; of a forward declaration: it is one of a union.
    :param bits: of an integer that is narrower than its storage: how many (else 0) …
    :param shift: … and where they begin.
    """

    kind: Kind
    name: str = ""
    size: int = 0
    target: int | None = None
    count: int = 1
    signed: bool = False
    members: tuple[Member, ...] = ()
    values: tuple[tuple[str, int], ...] = ()
    bits: int = 0
    shift: int = 0


@dataclass(frozen=True, slots=True)
class Field:
    """Where a value is and how to read it.

    :param offset: bytes from the start of the struct that this hop begins in.
    :param size: in bytes; of the storage unit, when it is a bit field.
    :param signed: of an integer or enum, or of an array's elements.
    :param bit_offset: lowest bit of a bit field, within the ``size`` bytes read as one
        little-endian integer.
    :param bit_size: width of a bit field, 0 for everything else.
    :param count: elements of an array (all dimensions multiplied), else 1. 0: flexible array.
    :param element_size: bytes of one element; the same as ``size`` for what is no array.
    :param type_name: C spelling of the type.
    :param target: id of the struct or union that the field is, has as elements, or points to.
    """

    offset: int
    size: int
    kind: Kind
    signed: bool
    bit_offset: int
    bit_size: int
    count: int
    element_size: int
    type_name: str
    target: int | None


class MemberDescription(NamedTuple):
    """A member as people want to see it; offset and size in bytes, bits where it has some."""

    name: str
    offset: int
    size: int
    bit_offset: int
    bit_size: int
    type: str


class TypeDescription(NamedTuple):
    """A type as people want to see it; ``enumerators`` for an enum, ``target`` for a typedef."""

    kind: Kind
    name: str
    size: int
    members: tuple[MemberDescription, ...] = ()
    enumerators: tuple[tuple[str, int], ...] = ()
    target: str = ""


class Types(abc.ABC):
    """The C types of one kernel or module.

    A type is named as in C (``struct task_struct``, ``enum pid_type``) or without its tag
    (``task_struct``, ``pid_t``); without it a struct or union goes before an enum, and that
    before a typedef. Where a kernel has several structs of one name, the first is meant, always
    the same. A path names a member of a member: ``signal.thread_head.next``,
    ``mem[1].base``. Members of anonymous structs and unions need no name of their own. Where a
    path leads *through* a pointer, the rest of it lies in another object: a new hop.
    """

    #: Bytes of a pointer.
    pointer_size = 8

    def __init__(self) -> None:
        self._flat: dict[int, dict[str, Member]] = {}
        self._resolved: dict[tuple[str, str], tuple[Field, ...]] = {}
        #: What :meth:`_find` has found, below zero what it has not.
        self._found: dict[tuple[str, str], int] = {}
        #: What :meth:`has` has looked for in vain.
        self._absent: set[tuple[str, str]] = set()
        self._hints = _MOST_HINTS

    # What a format supplies.

    @abc.abstractmethod
    def node(self, type_id: int) -> Node:
        """The type of that id.

        :raises CorruptDataError: there is none, or it makes no sense.
        """

    @abc.abstractmethod
    def candidates(self, name: str) -> Iterator[int]:
        """Ids of the named types that are called ``name`` (without tag)."""

    @abc.abstractmethod
    def all_names(self) -> Iterator[tuple[str, Kind]]:
        """Name (without tag) and kind of every named type."""

    # What everyone asks.

    def words(self, data: bytes | bytearray | memoryview) -> tuple[int, ...]:
        """``unsigned long`` values or pointers that stand one behind the other, as numbers."""
        code = "Q" if self.pointer_size == 8 else "I"
        return struct.unpack(f"<{len(data) // self.pointer_size}{code}", data)

    def find(self, name: str) -> int:
        """Id of the type called ``name``.

        :raises TypeNotFoundError: there is none; the hint names similar ones.
        """
        tag, bare = _split_tag(name)
        found = self._find(tag, bare)
        if found < 0:
            raise TypeNotFoundError(name, hint=self._similar_types(bare))
        return found

    def _find(self, tag: str, bare: str) -> int:
        """Id of a type, below zero where there is none: no search for similar names."""
        known = self._found.get((tag, bare))
        if known is not None:
            return known
        best, best_rank = -1, len(_PREFERENCE)
        for type_id in islice(self.candidates(bare), MAX_NAMESAKES):
            kind = self.node(type_id).kind
            rank = _PREFERENCE.get(kind, best_rank)
            if rank < best_rank and (not tag or kind == tag):
                best, best_rank = type_id, rank
        if len(self._found) < MAX_MEMBERS:
            self._found[tag, bare] = best
        return best

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self._find(*_split_tag(name)) >= 0

    def sizeof(self, name: str) -> int:
        """Size in bytes of the type called ``name``.

        :raises TypeNotFoundError: there is no such type.
        :raises CorruptDataError: the type contradicts itself.
        """
        return self.size_of(self.find(name))

    def has(self, name: str, path: str) -> bool:
        """Whether the type ``name`` exists and has a member ``path``: ask this, not a version."""
        if (name, path) in self._absent or name not in self:
            return False
        try:
            self.resolve(name, path, explain=False)
        except TypeNotFoundError:
            if len(self._absent) < MAX_MEMBERS:
                self._absent.add((name, path))
            return False
        return True

    def offsetof(self, name: str, path: str) -> int:
        """Offset of ``path`` in ``name``, in bytes; for a bit field, of its storage unit.

        :raises TypeNotFoundError: no such type or member, or the path leads through a pointer.
        """
        hops = self.resolve(name, path)
        if len(hops) > 1:
            raise TypeNotFoundError(
                name, path, hint="the path leads through a pointer, into another object"
            )
        return hops[0].offset

    def resolve(self, name: str, path: str, *, explain: bool = True) -> tuple[Field, ...]:
        """Where ``path`` lies in ``name``: one field a hop, all but the last of them pointers.

        :raises TypeNotFoundError: no such type or member; the hint says what there is.
        :raises CorruptDataError: the types contradict themselves.
        """
        known = self._resolved.get((name, path))
        if known is None:
            known = self.resolve_in(self.find(name), path, name=name, explain=explain)
            if len(self._resolved) >= MAX_MEMBERS:
                self._resolved.clear()
            self._resolved[name, path] = known
        return known

    def resolve_in(
        self, type_id: int, path: str, *, name: str = "", explain: bool = True
    ) -> tuple[Field, ...]:
        """As :meth:`resolve`, for a type known by its id (``name`` is for messages).

        :param explain: say what there is instead, which takes longer than the look-up itself.
        """
        if len(path) > MAX_PATH:
            raise TypeNotFoundError(name, path[:64] + "…", hint="the path is too long")
        hops: list[Field] = []
        current, bits, member = type_id, 0, None
        for step in path.split("."):
            parsed = _STEP.match(step)
            if parsed is None:
                raise TypeNotFoundError(name, path, hint=f"{step!r} is no member name")
            stripped, node = self.strip(current)
            if member is not None and node.kind is Kind.POINTER:
                hops.append(self._field(member, bits))
                bits = 0
                stripped, node = self._defined(*self.strip(node.target or 0))
            member = self._members(stripped, node, name, path).get(parsed[1])
            if member is None:
                hint = self._similar(stripped, parsed[1]) if explain else ""
                raise TypeNotFoundError(name, path, hint=hint)
            bits += member.bit_offset
            current = member.type_id
            for number in re.findall(r"\d+", parsed[2]):
                current, skipped = self._element(current, int(number), name, path)
                bits += skipped * 8
                member = Member(member.name, current)
        assert member is not None  # split() gives at least one step
        return (*hops, self._field(member, bits))

    def enumerators(self, name: str) -> dict[str, int]:
        """Names and values of an enum.

        :raises TypeNotFoundError: there is no such enum.
        """
        _, node = self.strip(self.find(name))
        if node.kind is not Kind.ENUM:
            raise TypeNotFoundError(name, hint=f"{name} is no enum but a {node.kind}")
        return dict(node.values)

    def names(self, pattern: str = "*") -> Iterator[str]:
        """Names of types that match a shell pattern, with their tag (``struct list_head``).

        A pattern with a tag (``struct list_*``) matches that kind alone.
        """
        matches = re.compile(fnmatch.translate(pattern)).match
        for bare, kind in self.all_names():
            name = f"{kind} {bare}" if kind in _TAGGED else bare
            if matches(bare) or matches(name):
                yield name

    def describe(self, name: str) -> TypeDescription:
        """The whole type called ``name``, its members in the order of their declaration.

        :raises TypeNotFoundError: there is no such type.
        """
        type_id = self.find(name)
        node = self.node(type_id)
        if len(node.members) > MAX_MEMBERS:
            raise CorruptDataError(f"{name} has impossibly many members", 0)
        target = ""
        if node.kind in (Kind.TYPEDEF, Kind.POINTER):
            target = self.spell(node.target or 0)
        return TypeDescription(
            kind=node.kind,
            name=node.name,
            size=0 if node.kind is Kind.FORWARD else self.size_of(type_id),
            members=tuple(map(self._describe_member, node.members)),
            enumerators=node.values,
            target=target,
        )

    # Walking types by id.

    def strip(self, type_id: int) -> tuple[int, Node]:
        """Look through typedefs, const, volatile, restrict and tags."""
        for _ in range(MAX_DEPTH):
            node = self.node(type_id)
            if node.kind is not Kind.TYPEDEF and node.kind is not Kind.QUALIFIER:
                return type_id, node
            type_id = node.target or 0
        raise CorruptDataError(
            f"typedefs of the guest's kernel run in a circle (type {type_id})", 0
        )

    def size_of(self, type_id: int) -> int:
        """Size in bytes of the type of that id; 0 for void, functions and forward declarations."""
        count = 1
        for _ in range(MAX_DEPTH):
            _, node = self.strip(type_id)
            if node.kind is Kind.POINTER:
                return count * self.pointer_size
            if node.kind is not Kind.ARRAY:
                return count * node.size
            count *= node.count
            type_id = node.target or 0
        raise CorruptDataError(f"arrays nested too deeply (type {type_id})", 0)

    def members_of(self, type_id: int) -> dict[str, Member]:
        """Members of a struct or union by name, those of anonymous members included."""
        stripped, node = self.strip(type_id)
        return self._members(stripped, node, node.name, "")

    def spell(self, type_id: int) -> str:
        """C spelling of a type, such as ``struct list_head *`` or ``char[16]``."""
        from virtintrospect.symbols.spelling import spell

        return spell(self, type_id)

    def _members(self, type_id: int, node: Node, name: str, path: str) -> dict[str, Member]:
        known = self._flat.get(type_id)
        if known is None:
            if node.kind not in (Kind.STRUCT, Kind.UNION):
                hint = f"{self.spell(type_id)} has no members"
                raise TypeNotFoundError(name, path, hint=hint)
            known = {}
            self._flatten(node, 0, known, [MAX_MEMBERS], MAX_DEPTH)
            self._flat[type_id] = known
        return known

    def _flatten(
        self, node: Node, bits: int, into: dict[str, Member], budget: list[int], depth: int
    ) -> None:
        for member in node.members:
            budget[0] -= 1
            if budget[0] < 0 or depth <= 0:
                raise CorruptDataError(f"struct {node.name!r} has impossibly many members", 0)
            offset = bits + member.bit_offset
            if member.name:
                into.setdefault(member.name, member._replace(bit_offset=offset))
                continue
            _, inner = self.strip(member.type_id)
            if inner.kind in (Kind.STRUCT, Kind.UNION):
                self._flatten(inner, offset, into, budget, depth - 1)

    def _defined(self, type_id: int, node: Node) -> tuple[int, Node]:
        """The definition behind a forward declaration, where there is one of that name."""
        if node.kind is Kind.FORWARD:
            for candidate in islice(self.candidates(node.name), MAX_NAMESAKES):
                found = self.node(candidate)
                if found.kind in (Kind.STRUCT, Kind.UNION):
                    return candidate, found
        return type_id, node

    def _element(self, type_id: int, number: int, name: str, path: str) -> tuple[int, int]:
        """Type and byte offset of element ``number`` of an array."""
        _, node = self.strip(type_id)
        if node.kind is not Kind.ARRAY:
            raise TypeNotFoundError(name, path, hint=f"{self.spell(type_id)} is no array")
        if node.count and number >= node.count:
            raise TypeNotFoundError(name, path, hint=f"the array has {node.count} elements")
        element = node.target or 0
        return element, number * self.size_of(element)

    def _field(self, member: Member, bits: int) -> Field:
        """How to read ``member``, which begins ``bits`` bits into its hop."""
        type_id, node = self.strip(member.type_id)
        kind, count, signed = node.kind, 1, node.signed
        size = element_size = self.size_of(type_id)
        width = member.bit_size
        if node.bits and not width and kind is Kind.INT:
            width, bits = node.bits, bits + node.shift
        offset, shift = bits // 8, 0
        target: int | None = None
        if width:
            offset, size, shift = _storage(bits, width, size)
            element_size = size
        if kind is Kind.ARRAY:
            type_id, node, count = self._innermost(type_id)
            element_size, signed = self.size_of(type_id), node.signed
        if node.kind is Kind.POINTER:
            type_id, node = self._defined(*self.strip(node.target or 0))
        if node.kind in (Kind.STRUCT, Kind.UNION, Kind.FORWARD):
            target = type_id
        spelling = self.spell(member.type_id)
        return Field(
            offset, size, kind, signed, shift, width, count, element_size, spelling, target
        )

    def _innermost(self, type_id: int) -> tuple[int, Node, int]:
        """Element type of an array of arrays, and how many there are of it altogether."""
        count = 1
        for _ in range(MAX_DEPTH):
            type_id, node = self.strip(type_id)
            if node.kind is not Kind.ARRAY:
                return type_id, node, count
            count *= node.count
            type_id = node.target or 0
        raise CorruptDataError(f"arrays nested too deeply (type {type_id})", 0)

    def _describe_member(self, member: Member) -> MemberDescription:
        field = self._field(member, member.bit_offset)
        return MemberDescription(
            member.name, field.offset, field.size, field.bit_offset, field.bit_size, field.type_name
        )

    def _similar(self, type_id: int, member: str) -> str:
        import difflib

        members = self._flat.get(type_id, {})
        near = difflib.get_close_matches(member, members, n=5, cutoff=0.5)
        return f"it has: {', '.join(near or list(members)[:12])}" if members else ""

    def _similar_types(self, name: str) -> str:
        """Names like that; a guest that lacks many pays for the search a few times only."""
        import difflib

        if self._hints <= 0:
            return ""
        self._hints -= 1
        head = name[:3]
        near = [other for other, _ in self.all_names() if other.startswith(head)][:4000]
        found = difflib.get_close_matches(name[:128], near, n=3, cutoff=0.6)
        return f"similar: {', '.join(found)}" if found else ""


def _split_tag(name: str) -> tuple[str, str]:
    """``struct x`` as its tag and its name; the tag may be empty."""
    for prefix in _TAGS:
        if name.startswith(prefix):
            return prefix.strip(), name[len(prefix) :].strip()
    return "", name


#: Without a tag, which of several types of one name is meant.
_PREFERENCE = {
    Kind.STRUCT: 0, Kind.UNION: 1, Kind.ENUM: 2, Kind.TYPEDEF: 3,
    Kind.INT: 4, Kind.FLOAT: 5, Kind.FORWARD: 6,
}  # fmt: skip

_TAGGED = (Kind.STRUCT, Kind.UNION, Kind.ENUM)


def _storage(bits: int, width: int, size: int) -> tuple[int, int, int]:
    """Byte offset and size of the unit that a bit field is read from, and its lowest bit there."""
    unit = size * 8
    if unit and bits % unit + width <= unit:
        return bits // unit * size, size, bits % unit
    if bits % 8 + width > 64:
        raise CorruptDataError(f"a bit field of {width} bits", bits // 8)
    return bits // 8, (bits % 8 + width + 7) // 8, bits % 8

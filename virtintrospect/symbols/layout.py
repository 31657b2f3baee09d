"""Compiled access to a chosen set of members of a structure.

A :class:`Layout` turns names into offsets once and then reads the chosen members of many
objects in a few bulk reads: no attribute look-up per object, no read per member.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from virtintrospect.errors import CorruptDataError
from virtintrospect.space import AddressSpace
from virtintrospect.symbols.types import Field, Kind, Types
from virtintrospect.translation import as_addresses

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

#: Members further apart than this are read separately: copying a gap costs more than a read.
_GAP = 192
#: No member that a table wants is larger; more is a forged type.
_LARGEST_MEMBER = 4096
#: No text that a table wants is larger (utsname has 65 bytes each, module names 56).
_LARGEST_TEXT = 256
#: Nor any structure.
_LARGEST_STRUCT = 64 << 20
#: Objects that are read at once: a forged layout must not make the host hold them all.
_AT_ONCE = 16384

_CODES = {(1, False): "B", (1, True): "b", (2, False): "H", (2, True): "h"}
_CODES |= {(4, False): "I", (4, True): "i", (8, False): "Q", (8, True): "q"}
_SCALARS = {Kind.INT, Kind.POINTER, Kind.ENUM}

#: A column of Python values: integers, or bytes for arrays and structures; ``None`` where the
#: object could not be read, or where a pointer on the path was null.
Column = list[Any]


class _Segment(NamedTuple):
    """Members that lie close together and are read at once."""

    start: int
    end: int
    members: list[tuple[str, Field]]
    unpack: struct.Struct


class _Group:
    """Members of one structure, and the structures its pointers lead to."""

    __slots__ = ("children", "members", "segments")

    def __init__(self) -> None:
        self.members: list[tuple[str, Field]] = []
        self.children: dict[int, tuple[str, _Group]] = {}
        self.segments: list[_Segment] = []


class Layout:
    """Chosen members of one structure type.

    :param types: the kernel's types.
    :param name: the structure.
    :param members: what to read, as paths (``"comm"``, ``"signal.nr_threads"``; a ``.`` behind a
        pointer follows it), or a mapping from a column's name to a path. ``"__state|state"``
        takes the first path that exists; ``"full_name?"`` may be missing altogether, and then
        gives ``None`` everywhere.
    :param text: which columns are character arrays (``bytes``), all others being integers;
        ``None`` takes whatever the types say. Types are the guest's own claim: code that
        computes with a column says here what it expects.
    :raises TypeNotFoundError: a member does not exist.
    :raises CorruptDataError: a member is not what it must be.
    """

    def __init__(
        self,
        types: Types,
        name: str,
        members: Sequence[str] | Mapping[str, str],
        text: Collection[str] | None = None,
    ) -> None:
        self.name = name
        wanted = members if isinstance(members, Mapping) else {_plain(m): m for m in members}
        self.columns_wanted = tuple(wanted)
        self.absent: list[str] = []
        self._root = _Group()
        self._hidden = 0
        for column, expression in wanted.items():
            path = _choose(types, name, expression)
            if path is None:
                self.absent.append(column)
                continue
            hops = types.resolve(name, path)
            expected = _is_text if text and column in text else _is_number
            if text is not None and not expected(hops[-1]):
                raise CorruptDataError(f"{name}.{path} is a {hops[-1].type_name}", 0)
            self._place(column, hops, path)
        _compile(self._root)

    # -- reading ----------------------------------------------------------------------------

    def lists(
        self, space: AddressSpace, addresses: Sequence[int], faults: list[int] | None = None
    ) -> dict[str, Column]:
        """Read the members of the structures at ``addresses`` into lists.

        :param faults: where given, a structure that cannot be read gives ``None`` and its index
            is appended; otherwise it raises.
        :returns: one list a column, in the order of ``addresses``.
        :raises FaultError: a structure cannot be read and ``faults`` is not given.
        """
        columns: dict[str, Column] = {name: [None] * len(addresses) for name in self.absent}
        for first in range(0, len(addresses), _AT_ONCE):
            bad: list[int] | None = None if faults is None else []
            some: dict[str, Column] = {}
            _fill(self._root, space, addresses[first : first + _AT_ONCE], some, bad)
            for name, column in some.items():
                columns.setdefault(name, []).extend(column)
            if faults is not None and bad:
                faults.extend(first + index for index in sorted(set(bad)))
        return {name: columns.get(name, []) for name in self.columns_wanted}

    def read(self, space: AddressSpace, address: int) -> dict[str, Any]:
        """Read one structure; raises :exc:`~virtintrospect.errors.FaultError`."""
        return {name: column[0] for name, column in self.lists(space, [address]).items()}

    def columns(
        self, space: AddressSpace, addresses: npt.ArrayLike, faults: list[int] | None = None
    ) -> dict[str, npt.NDArray[Any]]:
        """As :meth:`lists`, but numpy arrays, for bulk work.

        Integers keep their C type; a character array is ``S<n>``, another array of integers has
        the shape ``(rows, count)``, anything else is raw ``V<n>``. Rows that could not be
        read, or that a null pointer hides, are zeros.
        """
        import numpy as np

        wanted = as_addresses(addresses)
        columns: dict[str, npt.NDArray[Any]] = {}
        bad: list[int] | None = None if faults is None else []
        _fill_arrays(self._root, space, wanted, columns, bad)
        for name in self.absent:
            columns[name] = np.zeros(len(wanted), dtype=np.uint8)
        if faults is not None and bad:
            faults.extend(sorted(set(bad)))
        return {name: columns[name] for name in self.columns_wanted}

    # -- compiling --------------------------------------------------------------------------

    def _place(self, column: str, hops: tuple[Field, ...], path: str) -> None:
        for hop in hops:
            sound = 0 < hop.size <= (8 if hop.bit_size else _LARGEST_MEMBER)
            if not sound or not 0 <= hop.offset <= _LARGEST_STRUCT:
                raise CorruptDataError(
                    f"{self.name}.{path} has {hop.size} bytes at offset {hop.offset}", 0
                )
        group = self._root
        for pointer in hops[:-1]:
            child = group.children.get(pointer.offset)
            if child is None:
                hidden = f"\0{self._hidden}"
                self._hidden += 1
                group.members.append((hidden, pointer))
                child = group.children[pointer.offset] = (hidden, _Group())
            group = child[1]
        group.members.append((column, hops[-1]))


def _is_text(field: Field) -> bool:
    whole = field.kind is Kind.ARRAY and field.element_size == 1 and not field.bit_size
    return whole and field.size <= _LARGEST_TEXT


def _is_number(field: Field) -> bool:
    return bool(field.bit_size) or (field.kind in _SCALARS and field.size in (1, 2, 4, 8))


def _plain(expression: str) -> str:
    return expression.split("|")[0].removesuffix("?")


def _choose(types: Types, name: str, expression: str) -> str | None:
    """The first of several paths that exists; ``None`` for a missing optional one."""
    optional = expression.endswith("?")
    paths = expression.removesuffix("?").split("|")
    for path in paths:
        if types.has(name, path):
            return path
    if optional:
        return None
    types.resolve(name, paths[0])  # raises, and says what the type has instead
    raise AssertionError("resolve() disagrees with has()")


def _compile(group: _Group) -> None:
    """Lay a group's members out in segments; then its children's."""
    pending = sorted(group.members, key=lambda member: (member[1].offset, member[1].size))
    while pending:
        # Members of unions overlap; what does not fit behind the last one waits for a segment
        # of its own.
        taken = [pending.pop(0)]
        later = []
        for member in pending:
            end = taken[-1][1].offset + taken[-1][1].size
            if end <= member[1].offset <= end + _GAP:
                taken.append(member)
            else:
                later.append(member)
        group.segments.append(_segment(taken))
        pending = later
    for _, child in group.children.values():
        _compile(child)


def _segment(members: list[tuple[str, Field]]) -> _Segment:
    start = position = members[0][1].offset
    code = "<"
    for _, member in members:
        code += f"{member.offset - position}x" if member.offset > position else ""
        code += _code(member)
        position = member.offset + member.size
    return _Segment(start, position, members, struct.Struct(code))


def _code(member: Field) -> str:
    if member.kind in _SCALARS and not member.bit_size:
        code = _CODES.get((member.size, member.signed and member.kind is not Kind.POINTER))
        if code:
            return code
    return f"{member.size}s"


# -- lists ----------------------------------------------------------------------------------


def _fill(
    group: _Group,
    space: AddressSpace,
    addresses: Sequence[int],
    columns: dict[str, Column],
    bad: list[int] | None,
) -> None:
    broken: set[int] = set()
    for segment in group.segments:
        faults: list[int] | None = None if bad is None else []
        data = space.gather(
            [address + segment.start for address in addresses],
            segment.end - segment.start,
            faults,
        )
        unpacked = zip(*segment.unpack.iter_unpack(data), strict=True) if data else ()
        values = [list(column) for column in unpacked] or [[] for _ in segment.members]
        for (name, member), column in zip(segment.members, values, strict=True):
            columns[name] = _bits(column, member) if member.bit_size else column
        broken.update(faults or ())
    for name, _ in group.members:
        for index in broken:
            columns[name][index] = None
    if bad is not None:
        bad.extend(broken)
    for hidden, child in group.children.values():
        _fill_child(child, space, columns.pop(hidden), columns, bad is not None)


def _fill_child(
    child: _Group,
    space: AddressSpace,
    pointers: Column,
    columns: dict[str, Column],
    tolerant: bool,
) -> None:
    """Read what a column of pointers leads to, each distinct structure once."""
    distinct = list({pointer for pointer in pointers if pointer})
    position = {pointer: index for index, pointer in enumerate(distinct)}
    inner: dict[str, Column] = {}
    _fill(child, space, distinct, inner, [] if tolerant else None)
    for name, column in inner.items():
        columns[name] = [column[position[p]] if p else None for p in pointers]


def _bits(column: Column, member: Field) -> Column:
    shift, mask = member.bit_offset, (1 << member.bit_size) - 1
    values = [(int.from_bytes(raw, "little") >> shift) & mask for raw in column]
    if member.signed:
        sign = 1 << (member.bit_size - 1)
        values = [(value ^ sign) - sign for value in values]
    return values


# -- arrays ---------------------------------------------------------------------------------


def _fill_arrays(
    group: _Group,
    space: AddressSpace,
    addresses: npt.NDArray[np.uint64],
    columns: dict[str, npt.NDArray[Any]],
    bad: list[int] | None,
) -> None:
    for segment in group.segments:
        if not _from_mapped(segment, space, addresses, columns):
            _from_gather(segment, space, addresses, columns, bad)
    for hidden, child in group.children.values():
        _fill_child_arrays(child, space, columns.pop(hidden), columns, bad)


def _fill_child_arrays(
    child: _Group,
    space: AddressSpace,
    pointers: npt.NDArray[Any],
    columns: dict[str, npt.NDArray[Any]],
    bad: list[int] | None,
) -> None:
    import numpy as np

    there = np.flatnonzero(pointers)
    inner: dict[str, npt.NDArray[Any]] = {}
    _fill_arrays(child, space, pointers[there], inner, None if bad is None else [])
    for name, values in inner.items():
        column = np.zeros((len(pointers), *values.shape[1:]), dtype=values.dtype)
        column[there] = values
        columns[name] = column


def _from_gather(
    segment: _Segment,
    space: AddressSpace,
    addresses: npt.NDArray[np.uint64],
    columns: dict[str, npt.NDArray[Any]],
    bad: list[int] | None,
) -> None:
    import numpy as np

    size = segment.end - segment.start
    starts = (addresses + np.uint64(segment.start)).tolist()
    raw = np.frombuffer(space.gather(starts, size, bad), dtype=np.uint8)
    table = raw.reshape(len(addresses), size)
    for name, member in segment.members:
        offset = member.offset - segment.start
        piece = np.ascontiguousarray(table[:, offset : offset + member.size])
        columns[name] = _as_type(piece, member)


def _from_mapped(
    segment: _Segment,
    space: AddressSpace,
    addresses: npt.NDArray[np.uint64],
    columns: dict[str, npt.NDArray[Any]],
) -> bool:
    """Index the members right out of mapped RAM; ``False`` where that is not possible."""
    import numpy as np

    if not len(addresses):
        return False
    low, high = int(addresses.min()) + segment.start, int(addresses.max()) + segment.end
    linear = next((r for r in space.linear if r.start <= low and high <= r.end), None)
    if linear is None:
        return False
    block = space.memory.mapped(low - linear.start + linear.paddr)
    if block is None or high - linear.start + linear.paddr > block.end:
        return False
    shift = (linear.paddr - linear.start - block.start + segment.start) % (1 << 64)
    index = (addresses + np.uint64(shift)).view(np.int64)
    present = np.frombuffer(block.present, dtype=np.uint8)
    last = index + (segment.end - segment.start - 1)
    pages = np.concatenate((index >> 12, last >> 12))
    if not present[pages].all():
        # Whoever wants arrays will want them again: ask which pages are there, for good.
        for page in np.unique(pages[present[pages] == 0]).tolist():
            space.memory.view(block.start + (page << 12), 1)
        if not present[pages].all():
            return False
    for name, member in segment.members:
        at = index + (member.offset - segment.start)
        columns[name] = _as_type(_pick(block.buffer, at, member.size), member)
    return True


def _pick(buffer: memoryview, at: npt.NDArray[Any], size: int) -> npt.NDArray[Any]:
    """``size`` bytes at each position, as rows of bytes; by words where they are aligned."""
    import numpy as np

    for width, dtype in ((8, "<u8"), (4, "<u4"), (2, "<u2"), (1, "u1")):
        if size % width == 0 and not np.bitwise_or.reduce(at) % width:
            whole = buffer[: len(buffer) // width * width]
            words: npt.NDArray[Any] = np.frombuffer(whole, dtype=dtype)
            if size == width:
                picked = words[at // width]
            else:
                picked = words[(at // width)[:, None] + np.arange(size // width)]
            rows: npt.NDArray[Any] = picked.view(np.uint8).reshape(len(at), size)
            return rows
    raise AssertionError("a width of one byte always fits")


def _as_type(rows: npt.NDArray[Any], member: Field) -> npt.NDArray[Any]:
    """Rows of raw bytes as the member's own type."""
    import numpy as np

    if member.bit_size:
        padded = np.zeros((len(rows), 8), dtype=np.uint8)
        padded[:, : member.size] = rows
        # The field goes to the top of its word and down again, which extends its sign.
        words: npt.NDArray[Any] = padded.view("<u8").reshape(-1)
        words = words << np.uint64(64 - member.bit_offset - member.bit_size)
        words = words.view("<i8") if member.signed else words
        fields: npt.NDArray[Any] = words >> (64 - member.bit_size)
        return fields
    signed = "i" if member.signed and member.kind is not Kind.POINTER else "u"
    if member.kind in _SCALARS and member.size in (1, 2, 4, 8):
        return rows.view(f"<{signed}{member.size}").reshape(-1)
    if member.kind is Kind.ARRAY and member.element_size == 1:
        return rows.view(f"S{member.size}").reshape(-1)
    if member.kind is Kind.ARRAY and member.element_size in (2, 4, 8):
        return rows.view(f"<{signed}{member.element_size}")
    return rows.view(f"V{member.size}").reshape(-1)

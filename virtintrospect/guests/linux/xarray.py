"""Extensible arrays of the kernel (include/linux/xarray.h, lib/xarray.c; since 4.20).

The page cache of a file is one, and so are radix trees and IDRs: their ``xa_head`` is the same.
A node has a slot for each of 64 ranges of indices. The lowest bits of what a slot holds tell
what it is: a pointer, a value, or something internal: the node below, or a mark.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple

from virtintrospect.errors import CorruptDataError

if TYPE_CHECKING:
    from virtintrospect.guests.linux.budget import Budget
    from virtintrospect.guests.linux.guest import LinuxGuest

#: Highest index: ``unsigned long``.
LAST = (1 << 64) - 1
#: Bits of the index that a level decides, by the slots of a node (XA_CHUNK_SHIFT).
_BITS = {16: 4, 64: 6}
#: Bytes in front of a node's slots; the real ones have 40.
_MAX_HEADER = 256
#: Internal entries up to this one are marks: this slot belongs to the entry of a slot before it
#: (sibling), is being written (retry), or is reserved (zero).
_MARKS = 4096
#: Nodes that are read together.
_AT_ONCE = 1024


class _Node(NamedTuple):
    """A node that a slot leads to, and what it must say of itself if the slot is right."""

    address: int
    #: Index of its first slot.
    first: int
    #: Bits of the index below those that it decides; ``None`` for the root, which may have any.
    shift: int | None
    #: Which slot of its parent leads to it; ``None`` for the root, which has none (``xas_alloc()``
    #: leaves there what the memory held before).
    place: int | None


class Span(NamedTuple):
    """An entry, and the indices that it is at."""

    first: int
    last: int
    entry: int


class _Form(NamedTuple):
    """Where a node has what."""

    words: struct.Struct
    shift_at: int
    offset_at: int
    slots_at: int
    bits: int


def walk_xarray(
    guest: LinuxGuest, root: int, budget: Budget, *, last: int = LAST, values: bool = False
) -> list[tuple[int, int]]:
    """The entries of an xarray, radix tree or IDR, in the order of their indices.

    An entry that spans several indices is given once, with the first of them. What is broken is
    left out and noted; a pointer may still lead anywhere.

    :param root: value of ``xarray.xa_head`` (of an IDR: ``idr_rt.xa_head``).
    :param last: highest index that is of interest.
    :param values: give value entries too (odd numbers: in the page cache shadows and swapped
        pages), not pointers alone.
    :returns: pairs of index and entry; the ids of an IDR are ``idr_base`` higher.
    """
    spans = walk_spans(guest, root, budget, last=last, values=values)
    return [(span.first, span.entry) for span in spans]


def walk_spans(
    guest: LinuxGuest, root: int, budget: Budget, *, last: int = LAST, values: bool = False
) -> list[Span]:
    """As :func:`walk_xarray`, with all the indices of each entry (``xa_store_order()``)."""
    if not _is_node(root):
        return [Span(0, 0, root)] if _is_entry(root, values=values) else []
    form = _form(guest)
    found: list[Span] = []
    seen: set[int] = set()
    level = [_Node(root - 2, 0, None, None)]
    while level and not budget.late():
        # Each level is at most 64 times as wide, and what is taken of it counts.
        taken = level[: min(_AT_ONCE, budget.follow(min(_AT_ONCE, len(level))))]
        if not taken:
            break
        level = level[len(taken) :]
        new = [node for node in dict.fromkeys(taken) if node.address not in seen]
        if len(new) < len(taken):
            guest.note("xarray with a cycle", taken[-1].address)
        seen.update(node.address for node in new)
        entries, below = _read(guest, form, new, last)
        wanted = [span for span in entries if _is_entry(span.entry, values=values)]
        found += wanted[: budget.follow(len(wanted))]
        # No more than that can be taken; one more lets the budget say so.
        level += below[: max(0, budget.entries + 1 - len(level))]
    found.sort()
    return found


def _is_node(entry: int) -> bool:
    """``xa_is_node()``."""
    return entry & 3 == 2 and entry > _MARKS


def _is_entry(entry: int, *, values: bool) -> bool:
    return bool(entry) and (not entry & 3 or (values and bool(entry & 1)))


def _form(guest: LinuxGuest) -> _Form:
    types = guest.types
    shift, offset, slots = (
        types.resolve("xa_node", member)[-1] for member in ("shift", "offset", "slots")
    )
    bits = _BITS.get(slots.count)
    sound = shift.size == offset.size == 1 and slots.element_size == types.pointer_size
    if bits is None or not sound or not max(shift.offset, offset.offset) < slots.offset:
        raise CorruptDataError(f"an xa_node with {slots.count} slots of other kinds", 0)
    if slots.offset > _MAX_HEADER:
        raise CorruptDataError(f"an xa_node with {slots.offset} bytes before its slots", 0)
    words = struct.Struct(f"<{slots.count}{'Q' if types.pointer_size == 8 else 'I'}")
    return _Form(words, shift.offset, offset.offset, slots.offset, bits)


def _read(
    guest: LinuxGuest, form: _Form, nodes: list[_Node], last: int
) -> tuple[list[Span], list[_Node]]:
    """What the slots of some nodes hold, up to an index: entries, and nodes below."""
    size = form.slots_at + form.words.size
    faults: list[int] = []
    data = guest.kernel.gather([node.address for node in nodes], size, faults)
    bad = set(faults)
    entries: list[Span] = []
    below: list[_Node] = []
    for number, node in enumerate(nodes):
        start = number * size
        shift = data[start + form.shift_at]
        if number in bad:
            guest.note("unreadable xarray node", node.address)
            continue
        expected = shift if node.shift is None else node.shift
        right = shift == expected and node.place in (None, data[start + form.offset_at])
        if not right or shift % form.bits or shift >= 64:
            guest.note("xarray node in the wrong place", node.address)
            continue
        words = form.words.unpack_from(data, start + form.slots_at)
        for slot, entry in enumerate(words):
            index = node.first + (slot << shift)
            if index > last:
                break
            if not _is_node(entry):
                if entry:
                    end = slot + 1
                    while end < len(words) and words[end] == slot << 2 | 2:  # xa_mk_sibling()
                        end += 1
                    entries.append(Span(index, node.first + (end << shift) - 1, entry))
            elif shift:
                below.append(_Node(entry - 2, index, shift - form.bits, slot))
            else:
                guest.note("xarray node below the lowest level", node.address)
    return entries, below

"""Maple trees of the kernel (include/linux/maple_tree.h, lib/maple_tree.c; since 6.1).

A pointer to a node has the node's type in bits 3 to 6; nodes are 256 bytes and aligned so. A
node's slots are ranges of indices that its pivots divide; the slots of a leaf hold the entries.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from virtintrospect.errors import CorruptDataError
from virtintrospect.guests.linux.lists import ListWalk
from virtintrospect.model import Problem

if TYPE_CHECKING:
    from virtintrospect.guests.linux.budget import Budget
    from virtintrospect.guests.linux.guest import LinuxGuest

#: MAPLE_HEIGHT_MAX.
MAX_HEIGHT = 31
_NODE_SIZE = 256
_TYPE_SHIFT, _TYPE_MASK = 3, 0x0F
#: enum maple_type: the kinds whose slots lead to other nodes.
_RANGE, _ARANGE = "maple_range_64", "maple_arange_64"


class _Form(NamedTuple):
    """Where a kind of node has its pivots and slots, as positions of words."""

    pivots: slice
    slots: slice
    leaf: bool


def walk_maple(guest: LinuxGuest, root: int, budget: Budget) -> ListWalk:
    """The entries of a maple tree that are pointers, in the order of their indices.

    :param root: value of ``maple_tree.ma_root``.
    :returns: the entries; of a broken tree those that can be reached.
    """
    if not _is_node(root):
        return ListWalk([root] if root and not root & 3 else [], None)
    forms = _forms(guest)
    entries: list[int] = []
    problem = None
    seen: set[int] = set()
    level = [(root, 0, guest.kernel.last)]
    for _ in range(MAX_HEIGHT):
        level = level[: budget.follow(len(level))]
        if not level or budget.late():
            break
        faults: list[int] = []
        nodes = [node & -_NODE_SIZE for node, _, _ in level]
        seen.update(nodes)
        data = guest.kernel.gather(nodes, _NODE_SIZE, faults)
        below: list[tuple[int, int, int]] = []
        bad = set(faults)
        for index, (node, low, high) in enumerate(level):
            form = forms.get(node >> _TYPE_SHIFT & _TYPE_MASK)
            if index in bad or form is None:
                what = "unreadable maple node" if index in bad else "maple node of unknown type"
                problem = problem or Problem(what, nodes[index])
                continue
            words = guest.types.words(data[index * _NODE_SIZE : (index + 1) * _NODE_SIZE])
            ranges = _ranges(form, words, low, high)
            if form.leaf:
                entries += (entry for entry, _, _ in ranges if not entry & 3)
            else:
                below += ranges
        level = [item for item in below if item[0] & -_NODE_SIZE not in seen]
        if len(level) < len(below):
            problem = problem or Problem("maple tree with a cycle", root)
    else:
        problem = problem or Problem(f"maple tree higher than {MAX_HEIGHT} levels", root)
    return ListWalk(entries[: budget.follow(len(entries))], problem)


def _is_node(entry: int) -> bool:
    """``xa_is_node()``: an internal entry that is no small constant."""
    return entry & 3 == 2 and entry > 4096


def _forms(guest: LinuxGuest) -> dict[int, _Form]:
    """By the number of the type."""
    types = guest.types
    kinds = types.enumerators("maple_type")
    found = {
        kinds["maple_leaf_64"]: _form(guest, "mr64", leaf=True),
        kinds[_RANGE]: _form(guest, "mr64", leaf=False),
        kinds[_ARANGE]: _form(guest, "ma64", leaf=False),
    }
    slots = _words(guest, "slot")
    found[kinds["maple_dense"]] = _Form(slice(0, 0), slots, leaf=True)
    return found


def _form(guest: LinuxGuest, kind: str, *, leaf: bool) -> _Form:
    return _Form(_words(guest, f"{kind}.pivot"), _words(guest, f"{kind}.slot"), leaf)


def _words(guest: LinuxGuest, member: str) -> slice:
    """Where an array of pointers or indices is in a node."""
    field = guest.types.resolve("maple_node", member)[-1]
    word = guest.types.pointer_size
    if field.offset % word or field.size % word or not 0 < field.offset + field.size <= _NODE_SIZE:
        raise CorruptDataError(f"maple_node.{member} is not within a node", field.offset)
    return slice(field.offset // word, (field.offset + field.size) // word)


def _ranges(form: _Form, words: tuple[int, ...], low: int, high: int) -> list[tuple[int, int, int]]:
    """Slots in use, with the first and the last index of each (``mas_logical_pivot()``).

    The last one's range ends where the node's does; what lies in the slots behind it is old.
    """
    pivots, slots = words[form.pivots], words[form.slots]
    if not pivots:  # a dense node: one index a slot
        return [(slot, low + index, low + index) for index, slot in enumerate(slots) if slot]
    found = []
    for index, slot in enumerate(slots):
        last = pivots[index] if index < len(pivots) else high
        if (not last and index) or last > high:
            last = high
        if slot:
            found.append((slot, low, last))
        if last >= high:
            break
        low = last + 1
    return found

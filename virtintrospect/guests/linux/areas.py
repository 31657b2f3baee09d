"""Memory areas of many processes at once, by their flags alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from virtintrospect.guests.linux.maple import walk_maple
from virtintrospect.guests.linux.rbtree import walk_rbtree

if TYPE_CHECKING:
    from virtintrospect.guests.linux.budget import Budget
    from virtintrospect.guests.linux.guest import LinuxGuest

#: include/linux/mm.h
VM_WRITE, VM_EXEC = 0x2, 0x4

_MEMBERS = {
    "mm": "vm_mm", "start": "vm_start", "end": "vm_end", "flags": "vm_flags", "file": "vm_file",
}  # fmt: skip


class Area(NamedTuple):
    """One ``vm_area_struct``."""

    start: int
    end: int
    flags: int
    #: Address of the file that is mapped; 0 for anonymous memory.
    file: int


def areas_of(guest: LinuxGuest, mms: Sequence[int], budget: Budget) -> Iterator[list[Area]]:
    """The areas of each ``mm_struct``, in the tree's order.

    What cannot be read, or is another's, is left out; a tree that makes no sense is noted.
    """
    maple = guest.types.has("mm_struct", "mm_mt")
    tree = guest.layout("mm_struct", {"tree": "mm_mt.ma_root|mm_rb.rb_node"}, ())
    roots = tree.lists(guest.kernel, mms, [])["tree"]
    layout = guest.layout("vm_area_struct", _MEMBERS, ())
    shift = 0 if maple else guest.types.offsetof("vm_area_struct", "vm_rb")
    for mm, root in zip(mms, roots, strict=True):
        if not root or budget.late():
            yield []
            continue
        nodes, problem = (walk_maple if maple else walk_rbtree)(guest, root, budget)
        guest.note_all([problem])
        areas = [node - shift for node in nodes if node >= shift]
        columns: dict[str, list[Any]] = layout.lists(guest.kernel, areas, [])
        yield [
            Area(start, end, flags, file)
            for owner, start, end, flags, file in zip(*columns.values(), strict=True)
            if owner == mm and start < end
        ]

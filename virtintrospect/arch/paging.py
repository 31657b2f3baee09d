"""Page-table walks.

A paging mode is data (:class:`PagingMode`); :func:`walk` follows one address and tells every
step, :func:`translator` makes a function that does the same for speed, :func:`translate_many`
does it for whole arrays.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from virtintrospect.memory import PhysicalMemory

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from virtintrospect.memory.base import MachineFrames

#: What :func:`translate_many` gives for an address that has no page.
NOT_MAPPED = 0xFFFF_FFFF_FFFF_FFFF


class Rights(NamedTuple):
    """Where the rights of one kind of page are, if elsewhere than in the mode's others.

    As in :class:`PagingMode`.
    """

    writable: int
    user: int
    no_execute: int
    negated: int
    user_no_execute: int = 0


class Form(NamedTuple):
    """One kind of entry: what ``entry & mask == value`` means.

    ``page_shift`` is the size of the page that a leaf maps, 0 for a table. The address is
    ``entry & frame`` and, for each ``(bits, left)`` of ``scattered``, ``(entry & bits) << left``.
    ``absent`` is an entry that is not present, but of a page that the kernel keeps; ``inverted``
    is one whose address is also written inverted. A ``bare`` entry says nothing of rights.
    """

    mask: int
    value: int
    frame: int
    page_shift: int = 0
    scattered: tuple[tuple[int, int], ...] = ()
    inverted: bool = False
    absent: bool = False
    bare: bool = False
    rights: Rights | None = None


class Level(NamedTuple):
    """One level of page tables.

    ``shift`` is the position of its index in a virtual address, so a leaf here maps
    ``1 << shift`` bytes; ``large`` says whether leaves may sit at this level.
    """

    name: str
    shift: int
    large: bool
    bits: int = 9
    #: Kinds of entries; without any, those that the mode's ``present`` and ``leaf`` make.
    forms: tuple[Form, ...] = ()


class PagingMode(NamedTuple):
    """A page-table format with little-endian entries, top level first.

    The rights are read after the bits of ``negated`` are flipped (AArch64 has a read-only bit),
    from the leaf alone unless ``hierarchical``.
    """

    name: str
    levels: tuple[Level, ...]
    virtual_bits: int
    present: int = 1 << 0
    writable: int = 1 << 1
    user: int = 1 << 2
    #: In an entry of a level that allows large pages: this is a leaf.
    leaf: int = 1 << 7
    no_execute: int = 1 << 63
    frame: int = 0x000F_FFFF_FFFF_F000
    #: Linux keeps a page that nobody may touch (PROT_NONE, NUMA hinting) in an entry that is
    #: not present but has this bit, its frame number inverted since the L1TF mitigation
    #: (arch/x86/include/asm/pgtable-invert.h, commit 6b28baca9b1f).
    none_bit: int = 1 << 8
    negated: int = 0
    #: What forbids programs to execute a page of theirs, where that is another bit.
    user_no_execute: int = 0
    hierarchical: bool = True
    #: Bytes of an entry, 4 or 8.
    entry_size: int = 8
    #: Bits of the register that hold the top table's address; 0: those of ``frame``.
    root_bits: int = 0
    #: Which halves of the addresses the top table serves; AArch64 has one for each.
    low: bool = True
    high: bool = True

    @property
    def root_mask(self) -> int:
        """What of CR3 (TTBR, satp) is the address of the top table."""
        return self.root_bits or self.frame

    def forms(self, level: Level) -> tuple[Form, ...]:
        """The kinds of entries at a level."""
        if level.forms:
            return level.forms
        last = level.shift == self.levels[-1].shift
        leaf = self.leaf if level.large and not last else 0
        found = []
        for mask, value, inverted in (
            (self.present, self.present, False),
            (self.present | self.none_bit, self.none_bit, True),
        ):
            if not last:
                found.append(Form(mask | leaf, value, self.frame, inverted=inverted))
            if last or leaf:
                frame = self.frame & -(1 << level.shift)
                found.append(Form(mask | leaf, value | leaf, frame, level.shift, (), inverted))
        return tuple(found)

    def canonical(self, vaddr: int) -> bool:
        """Whether the upper bits of ``vaddr`` are copies of its topmost translated bit.

        An address of a half that the table does not serve is none for this mode.
        """
        upper = vaddr >> (self.virtual_bits - 1)
        ones = (1 << (65 - self.virtual_bits)) - 1
        return (self.low and upper == 0) or (self.high and upper == ones)


#: No tables: for physical addresses, which an address space then has in a linear range.
UNTRANSLATED = PagingMode(name="physical", levels=(), virtual_bits=64)


class Step(NamedTuple):
    """One table looked up on the way: the entry and where it stands."""

    level: str
    entry_paddr: int
    entry: int


class Walk(NamedTuple):
    """How one virtual address translates.

    ``paddr`` is ``None`` when it does not; ``steps`` then ends with the entry that stopped the
    walk. The rights are those of all levels together. ``present`` is false for a page that the
    guest's kernel keeps but has made inaccessible (PROT_NONE).
    """

    vaddr: int
    paddr: int | None
    page_size: int
    writable: bool
    user: bool
    executable: bool
    present: bool
    steps: tuple[Step, ...]


def walk(memory: PhysicalMemory, mode: PagingMode, root: int, vaddr: int) -> Walk:
    """Translate one address and tell every step.

    :param root: physical address of the top table, as in CR3: what else that register holds
        (PCID, PWT, PCD) is ignored.
    :raises FaultError: a page table lies where there is no memory.
    """
    table = root & mode.root_mask
    size = mode.entry_size
    steps: list[Step] = []
    writable = user = executable = present = True
    for level in mode.levels if mode.canonical(vaddr) else ():
        entry_paddr = table + size * ((vaddr >> level.shift) & ((1 << level.bits) - 1))
        entry = int.from_bytes(memory.read(entry_paddr, size), "little")
        steps.append(Step(level.name, entry_paddr, entry))
        form = next((f for f in mode.forms(level) if entry & f.mask == f.value), None)
        if form is None:
            break
        table = _address(form, entry)
        if memory.frames is not None:
            table = memory.frames.physical(table)
        if form.page_shift or (mode.hierarchical and not form.bare):
            where = form.rights or mode
            rights = entry ^ where.negated
            writable = writable and bool(rights & where.writable)
            user = user and bool(rights & where.user)
            theirs = where.user_no_execute if rights & where.user else 0
            executable = executable and not rights & (theirs or where.no_execute)
        present = present and not (form.inverted or form.absent)
        if form.page_shift:
            page = 1 << form.page_shift
            paddr = table | (vaddr & (page - 1))
            return Walk(vaddr, paddr, page, writable, user, executable, present, tuple(steps))
    return Walk(vaddr, None, 0, False, False, False, False, tuple(steps))


def _address(form: Form, entry: int) -> int:
    """Physical address in an entry of a form."""
    if form.inverted:
        entry = ~entry
    address = entry & form.frame
    for bits, left in form.scattered:
        address |= (entry & bits) << left
    return address


def translator(
    read_entry: Callable[[int], int], mode: PagingMode, frames: MachineFrames | None = None
) -> Callable[[int, int], tuple[int, int]]:
    """Compile a mode into a function ``(root, vaddr) -> (paddr, page_size)``.

    The function gives ``(-1, 0)`` for an address without a page. ``read_entry`` reads as many
    bytes as an entry has at a physical address, and may raise
    :exc:`~virtintrospect.errors.FaultError`.

    :param frames: ``PhysicalMemory.frames`` of the memory that ``read_entry`` reads.
    """
    root_mask, canonical, entry_size = mode.root_mask, mode.canonical, mode.entry_size
    levels = [
        (
            level.shift,
            (1 << level.bits) - 1,
            [
                (f.mask, f.value, f.frame, f.page_shift, f if f.inverted or f.scattered else None)
                for f in mode.forms(level)
            ],
        )
        for level in mode.levels
    ]

    def translate(root: int, vaddr: int) -> tuple[int, int]:
        if not canonical(vaddr):
            return -1, 0
        table = root & root_mask
        for shift, index, forms in levels:
            entry = read_entry(table + ((vaddr >> shift) & index) * entry_size)
            for mask, value, frame, page_shift, odd in forms:
                if entry & mask == value:
                    table = entry & frame if odd is None else _address(odd, entry)
                    if frames is not None:
                        table = frames.physical(table)
                    if page_shift:
                        size = 1 << page_shift
                        return table | (vaddr & (size - 1)), size
                    break
            else:
                return -1, 0
        return -1, 0  # pragma: no cover - the last level always ends the loop

    return translate


def translate_many(
    memory: PhysicalMemory,
    mode: PagingMode,
    roots: int | npt.NDArray[np.uint64],
    vaddrs: npt.NDArray[np.uint64],
) -> npt.NDArray[np.uint64]:
    """Translate whole arrays, all addresses one level at a time.

    :param roots: one top table for all, or one for each address.
    :returns: physical addresses; :data:`NOT_MAPPED` where there is no page.
    """
    import numpy as np

    vaddrs = np.ascontiguousarray(vaddrs, dtype=np.uint64)
    result = np.full(len(vaddrs), NOT_MAPPED, dtype=np.uint64)
    upper = vaddrs >> np.uint64(mode.virtual_bits - 1)
    ones = np.uint64((1 << (65 - mode.virtual_bits)) - 1)
    served = np.zeros(upper.shape, dtype=bool)
    if mode.low:
        served |= upper == 0
    if mode.high:
        served |= upper == ones
    todo = np.flatnonzero(served)
    tables = np.broadcast_to(np.asarray(roots, dtype=np.uint64), vaddrs.shape)[todo]
    tables = tables & np.uint64(mode.root_mask)
    for level in mode.levels:
        index = (vaddrs[todo] >> np.uint64(level.shift)) & np.uint64((1 << level.bits) - 1)
        entries = _entries(memory, mode, tables + index * np.uint64(mode.entry_size))
        onward: list[tuple[npt.NDArray[Any], npt.NDArray[Any]]] = []
        for form in mode.forms(level):
            hit = np.flatnonzero((entries & np.uint64(form.mask)) == np.uint64(form.value))
            if not len(hit):
                continue
            found = ~entries[hit] if form.inverted else entries[hit]
            frames = found & np.uint64(form.frame)
            for bits, left in form.scattered:
                frames |= (found & np.uint64(bits)) << np.uint64(left)
            if memory.frames is not None:
                frames = memory.frames.physical_many(frames)
            if form.page_shift:
                done = todo[hit]
                result[done] = frames | (vaddrs[done] & np.uint64((1 << form.page_shift) - 1))
            else:
                onward.append((todo[hit], frames))
        todo, tables = (
            (np.concatenate([o[0] for o in onward]), np.concatenate([o[1] for o in onward]))
            if onward
            else (todo[:0], tables[:0])
        )
        if not len(todo):
            break
    return result


def _entries(
    memory: PhysicalMemory, mode: PagingMode, paddrs: npt.NDArray[np.uint64]
) -> npt.NDArray[Any]:
    """Page-table entries at ``paddrs``; zero (not present) where there is no memory.

    Neighbouring virtual addresses share their upper entries: a run of equal addresses is read
    once.
    """
    import numpy as np

    starts = np.flatnonzero(np.diff(paddrs, prepend=~paddrs[:1]))
    lengths = np.diff(starts, append=len(paddrs))
    paddrs = paddrs[starts]
    if mode.entry_size == 8:
        return np.repeat(memory.gather_u64(paddrs), lengths)
    # A word of 8 bytes has two entries; the table is whole where one of them is.
    words = memory.gather_u64(paddrs & ~np.uint64(7))
    entries = (words >> ((paddrs & np.uint64(4)) << np.uint64(3))) & np.uint64(0xFFFF_FFFF)
    return np.repeat(entries, lengths)

"""Page-table walks.

A paging mode is data (:class:`PagingMode`); :func:`walk` follows one address and tells every
step, :func:`translate` does the same for speed, :func:`translate_many` does it for whole arrays.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from virtintrospect.memory import PhysicalMemory

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

_U64 = struct.Struct("<Q")

#: What :func:`translate_many` gives for an address that has no page.
NOT_MAPPED = 0xFFFF_FFFF_FFFF_FFFF


class Level(NamedTuple):
    """One level of page tables.

    ``shift`` is the position of its index in a virtual address, so a leaf here maps
    ``1 << shift`` bytes; ``large`` says whether leaves may sit at this level.
    """

    name: str
    shift: int
    large: bool
    bits: int = 9


class PagingMode(NamedTuple):
    """A page-table format with 8-byte entries, top level first."""

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

    def canonical(self, vaddr: int) -> bool:
        """Whether the upper bits of ``vaddr`` are copies of its topmost translated bit."""
        upper = vaddr >> (self.virtual_bits - 1)
        return upper == 0 or upper == (1 << (65 - self.virtual_bits)) - 1

    def frame_of(self, entry: int) -> int:
        """Physical address in an entry, or -1 where it holds none."""
        if entry & self.present:
            return entry & self.frame
        if entry & self.none_bit:
            return ~entry & self.frame
        return -1


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

    :param root: physical address of the top table; the low 12 bits (PCID, PWT, PCD as in CR3)
        are ignored.
    :raises FaultError: a page table lies where there is no memory.
    """
    table = root & mode.frame
    steps: list[Step] = []
    writable = user = executable = present = True
    for level in mode.levels if mode.canonical(vaddr) else ():
        entry_paddr = table + 8 * ((vaddr >> level.shift) & ((1 << level.bits) - 1))
        entry = _U64.unpack(memory.read(entry_paddr, 8))[0]
        steps.append(Step(level.name, entry_paddr, entry))
        frame = mode.frame_of(entry)
        if frame < 0:
            break
        writable = writable and bool(entry & mode.writable)
        user = user and bool(entry & mode.user)
        executable = executable and not entry & mode.no_execute
        present = present and bool(entry & mode.present)
        if level.shift == 12 or (level.large and entry & mode.leaf):
            offset = vaddr & ((1 << level.shift) - 1)
            paddr = (frame & -(1 << level.shift)) | offset
            return Walk(
                vaddr, paddr, 1 << level.shift, writable, user, executable, present, tuple(steps)
            )
        table = frame
    return Walk(vaddr, None, 0, False, False, False, False, tuple(steps))


def translator(
    read_u64: Callable[[int], int], mode: PagingMode
) -> Callable[[int, int], tuple[int, int]]:
    """Compile a mode into a function ``(root, vaddr) -> (paddr, page_size)``.

    The function gives ``(-1, 0)`` for an address without a page. ``read_u64`` reads a physical
    address and may raise :exc:`~virtintrospect.errors.FaultError`.
    """
    frame_mask, present, leaf = mode.frame, mode.present, mode.leaf
    canonical, frame_of = mode.canonical, mode.frame_of
    levels = [(lv.shift, lv.large, lv.shift == 12) for lv in mode.levels]

    def translate(root: int, vaddr: int) -> tuple[int, int]:
        if not canonical(vaddr):
            return -1, 0
        table = root & frame_mask
        for shift, large, last in levels:
            entry = read_u64(table + ((vaddr >> shift) & 0x1FF) * 8)
            table = entry & frame_mask if entry & present else frame_of(entry)
            if table < 0:
                return -1, 0
            if last or (large and entry & leaf):
                size = 1 << shift
                return (table & -size) | (vaddr & (size - 1)), size
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
    todo = np.flatnonzero((upper == 0) | (upper == ones))
    tables = np.broadcast_to(np.asarray(roots, dtype=np.uint64), vaddrs.shape)[todo]
    tables = tables & np.uint64(mode.frame)
    for level in mode.levels:
        index = (vaddrs[todo] >> np.uint64(level.shift)) & np.uint64((1 << level.bits) - 1)
        entries = _entries(memory, tables + index * np.uint64(8))
        is_present = (entries & np.uint64(mode.present)) != 0
        is_none = ~is_present & ((entries & np.uint64(mode.none_bit)) != 0)
        frames = np.where(is_none, ~entries, entries) & np.uint64(mode.frame)
        usable = is_present | is_none
        if level.shift == 12:
            leaf = usable
        elif level.large:
            leaf = usable & ((entries & np.uint64(mode.leaf)) != 0)
        else:
            leaf = np.zeros_like(usable)
        inside = np.uint64((1 << level.shift) - 1)
        done = todo[leaf]
        result[done] = (frames[leaf] & ~inside) | (vaddrs[done] & inside)
        onward = usable & ~leaf
        todo, tables = todo[onward], frames[onward]
        if not len(todo):
            break
    return result


def _entries(memory: PhysicalMemory, paddrs: npt.NDArray[np.uint64]) -> npt.NDArray[Any]:
    """Page-table entries at ``paddrs``; zero (not present) where there is no memory.

    Neighbouring virtual addresses share their upper entries: a run of equal addresses is read
    once.
    """
    import numpy as np

    starts = np.flatnonzero(np.diff(paddrs, prepend=~paddrs[:1]))
    lengths = np.diff(starts, append=len(paddrs))
    return np.repeat(memory.gather_u64(paddrs[starts]), lengths)
